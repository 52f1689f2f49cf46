from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume, PetavoxelError
from services.endpoints import bodies
from services.endpoints.bodies import NPY, RAW, Layout
from services.endpoints.problems import MalformedBody, NotAcceptable, PayloadTooLarge, UnsupportedMediaType


def _read(content: bytes, size: int, layout: Layout | None = None, max_bytes: int = 1000) -> NDArray[Any]:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(0, len(content), size):
            yield content[i : i + size]

    async def read() -> NDArray[Any]:
        return await bodies.read_image(pieces(), layout, check=lambda dtype: None, max_bytes=max_bytes)

    return asyncio.run(read())


@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", ">f4", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_round_trip_in_any_pieces(dtype: str, order: Any) -> None:
    image = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype, order=order)
    stream = io.BytesIO()
    np.save(stream, image, allow_pickle=False)
    for size in (1, 7, 129, 10_000):
        found = _read(stream.getvalue(), size)
        np.testing.assert_array_equal(found, image)
        assert found.dtype == image.dtype


def test_encoded_npy_is_what_numpy_reads() -> None:
    affinities = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 6), dtype=np.uint8)
    view = affinities[:, ::2]
    np.testing.assert_array_equal(np.load(io.BytesIO(b"".join(bodies.encode(view, NPY))), allow_pickle=False), view)
    assert b"".join(bodies.encode(view, RAW, b"head")) == b"head" + view.tobytes()


def test_claims_are_checked_before_memory_is_set_aside() -> None:
    for shape in ((10**6, 10**6, 10**6), (1, 1, 10**400)):
        with pytest.raises(PayloadTooLarge, match="at most 1000 bytes"):
            _read(b"x", 1, Layout(shape, np.dtype(np.uint8)))
    assert _read(bytes(1000), 77, Layout((10, 10, 10), np.dtype(np.uint8))).shape == (10, 10, 10)


@given(st.binary(max_size=300), st.booleans(), st.integers(1, 50))
def test_any_bytes_are_refused_with_a_reason(content: bytes, begin: bool, size: int) -> None:
    prefix = np.lib.format.MAGIC_PREFIX + b"\x01\x00" if begin else b""
    with pytest.raises(PetavoxelError, match=r"expected|ends within|cannot be read"):
        _read(prefix + content, size)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, NPY),
        ("*/*", NPY),
        (f"{RAW}", RAW),
        (f"{NPY};q=0.5, {RAW};q=0.9", RAW),
        (f"{NPY};q=0, */*", RAW),
        ("text/html, application/*;q=0.1", NPY),
    ],
)
def test_reply_that_the_client_prefers(accept: str | None, expected: str) -> None:
    assert bodies.choose_reply(accept) == expected


def test_replies_that_cannot_be_made() -> None:
    for accept in ("text/html", f"{NPY};q=0"):
        with pytest.raises(NotAcceptable):
            bodies.choose_reply(accept)
    with pytest.raises(InvalidInput, match="weight"):
        bodies.choose_reply(f"{NPY};q=much")


def test_raw_layouts() -> None:
    assert bodies.raw_layout("1,2,3", "uint16").nbytes == 12
    with pytest.raises(MalformedBody, match="X-Shape"):
        bodies.raw_layout(None, "uint8")
    with pytest.raises(InvalidVolume, match="object"):
        bodies.raw_layout("1,2,3", "object")
    with pytest.raises(InvalidInput, match="three integers"):
        bodies.raw_layout("1,2", "uint8")


def test_lengths_and_encodings() -> None:
    bodies.check_length(None, 5)
    bodies.check_length("5", 5)
    with pytest.raises(PayloadTooLarge):
        bodies.check_length("6", 5)
    bodies.check_encoding("identity")
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        bodies.check_encoding("gzip")
