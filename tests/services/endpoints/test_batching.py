from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from models.catalog import Model
from models.errors import InvalidVolume
from services.endpoints.batching import BatchedSession
from services.endpoints.catalog import Entry
from services.endpoints.config import ServeConfig
from services.endpoints.worker import Worker
from services.predict import Predictor

Patches = NDArray[np.float32]


class SlowSession:
    """Doubles its input, slowly, and keeps the shapes that it saw; refuses negative values."""

    device, precision, engine = "here", "fp32", "slow"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, patches: Patches) -> Patches:
        self.shapes.append(patches.shape)
        time.sleep(0.05)
        if (patches < 0).any():
            raise InvalidVolume("negative")
        return 2 * patches


def _patch(value: float, extent: int = 2) -> Patches:
    return np.full((1, 1, extent, 2, 2), value, np.float32)


def test_requests_that_come_meanwhile_share_a_batch() -> None:
    session, sizes = SlowSession(), list[int]()
    batched = BatchedSession(session, 4, sizes.append)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: batched.run(_patch(i)), range(16)))
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each, _patch(2 * i))
    assert sum(sizes) == 16
    assert len(sizes) < 10
    assert set(session.shapes) == {(4, 1, 2, 2, 2)}, "always full, whatever came"


def test_shapes_do_not_mix_and_nobody_is_forgotten() -> None:
    session, sizes = SlowSession(), list[int]()
    batched = BatchedSession(session, 3, sizes.append)
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda i: batched.run(_patch(i, 2 + i % 2)), range(20)))
    for i, each in enumerate(found):
        np.testing.assert_array_equal(each, _patch(2 * i, 2 + i % 2))


def test_an_error_reaches_those_of_its_batch_and_no_others() -> None:
    batched = BatchedSession(SlowSession(), 2, lambda _: None)
    with pytest.raises(InvalidVolume, match="negative"):
        batched.run(_patch(-1))
    np.testing.assert_array_equal(batched.run(_patch(1)), _patch(2))


def test_without_batching_and_with_batches_of_ones_own() -> None:
    session, sizes = SlowSession(), list[int]()
    BatchedSession(session, 1, sizes.append).run(_patch(1))
    BatchedSession(session, 4, sizes.append).run(np.concatenate([_patch(1)] * 3))
    assert session.shapes == [(1, 1, 2, 2, 2), (3, 1, 2, 2, 2)]
    assert sizes == [1, 3]


def test_batches_do_not_change_a_voxel(model: Model) -> None:
    """Whatever else is in a batch, and whether an image fills batches alone: the same as without company."""
    worker = Worker(ServeConfig(models=(str(model.folder),), max_batch=3))
    loaded = worker.load(Entry(model.card, str(model.folder)))
    images = [np.random.default_rng(i).integers(0, 256, (20, 20, 18 + 20 * (i % 3)), dtype=np.uint8) for i in range(9)]
    alone = [worker.predict(loaded, image).voxels for image in images]
    barrier = threading.Barrier(len(images))

    def together(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        barrier.wait()
        return worker.predict(loaded, image).voxels

    with ThreadPoolExecutor(len(images)) as pool:
        for image, found, wanted in zip(images, pool.map(together, images), alone, strict=True):
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(found, Predictor(model, batch_size=3).predict(image))
