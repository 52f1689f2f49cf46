from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.catalog import Model, ModelFile, Normalisation, PatchRules, sha256_of
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box, ChunkGrid
from services.predict import Predictor

SHAPE = (50, 61, 33)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8)


def _overlapping(model: Model) -> Model:
    return Model(replace(model.card, patch=PatchRules((4, 4, 4), (24, 20, 24), (2, 2, 3), (5, 4, 2))), model.folder)


@pytest.fixture(scope="module", params=["partition", "overlap"])
def predictor(request: pytest.FixtureRequest, model: Model) -> Predictor:
    return Predictor(model if request.param == "partition" else _overlapping(model), threads=1)


@pytest.fixture(scope="module")
def whole(predictor: Predictor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return predictor.predict(image)


def test_affinities_fill_the_volume(whole: NDArray[np.uint8]) -> None:
    assert whole.shape == (3, *SHAPE)
    assert whole.dtype == np.uint8
    assert whole.std(axis=(1, 2, 3)).min() > 10


def test_equals_a_slow_sum_over_all_patches(
    predictor: Predictor, image: NDArray[np.uint8], whole: NDArray[np.uint8]
) -> None:
    plan, rules = predictor.plan(SHAPE), predictor.card.patch
    total = np.zeros((3, *SHAPE))
    for index in plan.patches():
        patch, valid = plan.patch_box(index), plan.valid_box(index)
        padding = [
            (max(0, -a), max(0, b - n)) for a, b, n in zip(patch.start, patch.stop, SHAPE, strict=True)
        ]  # fmt: skip
        mirrored = np.pad(image, padding, mode="reflect")
        cut = mirrored[patch.shifted(tuple(before for before, _ in padding)).slices()]
        seen = predictor.session.run(predictor.card.normalisation.apply(cut[None, None]))[0]
        z, y, x = (axis.weights(i).astype(float) for axis, i in zip(plan.axes, index, strict=True))
        weights = z[:, None, None] * y[:, None] * x
        total[:, *valid.slices()] += seen[:, *valid.slices(patch.start)] * weights
    assert rules.margin[0] > 0
    rounded = np.maximum(np.rint(total * 255), 1)
    assert np.abs(rounded - whole).max() <= 1
    assert (rounded != whole).mean() < 1e-3


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_voxel_is_the_same_in_every_box(
    predictor: Predictor, image: NDArray[np.uint8], whole: NDArray[np.uint8], data: st.DataObject
) -> None:
    start = data.draw(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)))
    extent = data.draw(st.tuples(*(st.integers(1, 30) for _ in SHAPE)))
    box = Box.from_shape(extent, start).intersection(Box.from_shape(SHAPE))
    reads: list[Box] = []

    def read(part: Box) -> NDArray[np.uint8]:
        reads.append(part)
        return image[part.slices()]

    np.testing.assert_array_equal(predictor.predict_box(read, SHAPE, box), whole[:, *box.slices()])
    assert len(reads) == 1
    assert Box.from_shape(SHAPE).contains(reads[0])


def test_chunks_of_any_shape_make_the_whole(
    predictor: Predictor, image: NDArray[np.uint8], whole: NDArray[np.uint8]
) -> None:
    made = np.zeros_like(whole)
    for chunk in ChunkGrid(Box.from_shape(SHAPE), (17, 40, 33)):
        made[:, *chunk.box.slices()] = predictor.predict_box(lambda part: image[part.slices()], SHAPE, chunk.box)
    np.testing.assert_array_equal(made, whole)


def test_only_touched_patches_are_computed(model: Model, image: NDArray[np.uint8]) -> None:
    counted = Predictor(model)
    runs = []
    run = counted.session.run
    counted.session.run = lambda patches: runs.append(len(patches)) or run(patches)  # type: ignore[method-assign, func-returns-value]
    stride = counted.plan(SHAPE).stride
    counted.predict_box(lambda part: image[part.slices()], SHAPE, Box.from_shape(stride))
    assert runs == [1]


def test_batches_do_not_change_the_result(model: Model, image: NDArray[np.uint8]) -> None:
    one, four = Predictor(model, precision="fp32"), Predictor(model, precision="fp32", batch_size=4)
    np.testing.assert_array_equal(four.predict(image), one.predict(image))


def test_threads_do_not_change_the_result(model: Model, image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(
        Predictor(model, threads=1).predict(image), Predictor(model, threads=2).predict(image)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 2), (3, 5, 90)])
def test_thin_volumes_are_mirrored_repeatedly(model: Model, shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert Predictor(model).predict(image).shape == (3, *shape)


def test_empty_box_and_boxes_outside(model: Model, image: NDArray[np.uint8]) -> None:
    predictor = Predictor(model)
    empty = predictor.predict_box(lambda part: image[part.slices()], SHAPE, Box((3, 3, 3), (3, 9, 9)))
    assert empty.shape == (3, 0, 6, 6)
    with pytest.raises(InvalidInput, match=r"within the volume of shape \(50, 61, 33\)"):
        predictor.predict_box(lambda part: image[part.slices()], SHAPE, Box((0, 0, 0), (51, 61, 33)))


@pytest.mark.parametrize("dtype", ["uint16", "float32", "bool", "complex64"])
def test_other_dtypes_are_refused(model: Model, image: NDArray[np.uint8], dtype: str) -> None:
    with pytest.raises(InvalidVolume, match=f"expects dtype uint8, got {dtype}"):
        Predictor(model).predict(image.astype(dtype))


def test_wrong_axes_and_wrong_reads_are_refused(model: Model, image: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidVolume, match="three axes"):
        Predictor(model).predict(image[None])
    with pytest.raises(InvalidVolume, match="expected shape"):
        Predictor(model).predict_box(lambda _: image[:3], SHAPE, Box.from_shape(SHAPE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_value_that_is_not_finite_is_named(model: Model, image: NDArray[np.uint8], value: float) -> None:
    card = replace(model.card, normalisation=Normalisation("float32", 0.5, 4))
    predictor = Predictor(Model(card, model.folder))
    bad = (image / 255).astype(np.float64)
    good = predictor.predict(bad)
    assert good.std() > 10
    bad[20, 30, 7] = bad[21, 2, 3] = value
    box = Box((18, 20, 5), (23, 33, 12))
    with pytest.raises(InvalidVolume, match=r"at z, y, x = \(20, 30, 7\)"):
        predictor.predict_box(lambda part: bad[part.slices()], SHAPE, box)


def test_float_image_equals_the_same_integers(model: Model, image: NDArray[np.uint8]) -> None:
    card = replace(model.card, normalisation=replace(model.card.normalisation, dtype="float32"))
    floats = Predictor(Model(card, model.folder)).predict(image.astype(np.float16))
    np.testing.assert_array_equal(floats, Predictor(model).predict(image))


def test_augmentation_is_the_identity_for_an_equivariant_network(
    model: Model, tmp_path: Path, image: NDArray[np.uint8]
) -> None:
    import torch

    from models.networks.family import Network
    from models.networks.rsunet import RSUNetConfig
    from models.training.export import export_onnx

    class Toy(Network):
        config = RSUNetConfig(3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            before = torch.nn.functional.pad(image, (1, 0, 1, 0, 1, 0))
            centre = before[:, :, 1:, 1:, 1:]
            ends = (before[:, :, :-1, 1:, 1:], before[:, :, 1:, :-1, 1:], before[:, :, 1:, 1:, :-1])
            return torch.cat([1 - (centre - end).abs() for end in ends], dim=1)

    path = tmp_path / "model.onnx"
    export_onnx(Toy(), path)
    card = replace(model.card, file=ModelFile(path.name, sha256_of(path), path.stat().st_size))
    toy = Model(card, tmp_path)
    plain = Predictor(toy, precision="fp32").predict(image)
    for number in (8, 16, 48, True):
        np.testing.assert_array_equal(Predictor(toy, precision="fp32", tta=number).predict(image), plain)


def test_augmentation_averages_a_real_network_and_keeps_boxes_identical(model: Model, image: NDArray[np.uint8]) -> None:
    predictor = Predictor(_overlapping(model), tta=8, batch_size=2)
    augmented = predictor.predict(image)
    assert (augmented != Predictor(_overlapping(model)).predict(image)).mean() > 0.1
    box = Box((11, 3, 20), (30, 44, 33))
    part = predictor.predict_box(lambda part: image[part.slices()], SHAPE, box)
    np.testing.assert_array_equal(part, augmented[:, *box.slices()])


def test_unknown_model_and_options() -> None:
    with pytest.raises(NotFound, match="known models"):
        Predictor("nobody")


def test_impossible_options_are_refused(model: Model) -> None:
    with pytest.raises(InvalidInput, match="batch size"):
        Predictor(model, batch_size=0)
    with pytest.raises(InvalidInput, match="openvino"):
        Predictor(model, runtime="abacus")
    with pytest.raises(InvalidInput, match="bf16"):
        Predictor(model, precision="int2")
    with pytest.raises(InvalidInput, match="threads"):
        Predictor(model, threads=0)
