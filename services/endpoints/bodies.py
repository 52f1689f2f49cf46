"""Arrays in HTTP bodies: raw with a shape in the headers, or `.npy`.

What a body claims is checked before memory is set aside, and it is read into its array piece by piece, so neither a
false header nor an endless body costs more than the limit.
"""

from __future__ import annotations

import io
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple, triple
from services.endpoints.problems import MalformedBody, NotAcceptable, PayloadTooLarge, UnsupportedMediaType

RAW = "application/octet-stream"
NPY = "application/x-npy"
JSON = "application/json"

MAX_HEADER_BYTES = 1024
"""An .npy header of three axes has about 100 bytes; parsing time and depth grow with longer ones."""
MAX_JSON_BYTES = 64 * 1024
PIECE_BYTES = 4 * 2**20
"""Replies beyond this are sent in pieces of it."""
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")

Check = Callable[[np.dtype[Any]], None]


@dataclass(frozen=True)
class Layout:
    """Shape (z, y, x), dtype and order of an array in a body."""

    shape: Triple
    dtype: np.dtype[Any]
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def raw_layout(shape: str | None, dtype: str | None) -> Layout:
    """The layout that headers or query parameters give; raises `MalformedBody` or `InvalidVolume`."""
    if not shape or not dtype:
        raise MalformedBody(f"{RAW}: expected X-Shape: z,y,x and X-Dtype, got shape {shape!r} and dtype {dtype!r}")
    if dtype not in _DTYPES:
        raise InvalidVolume(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype[:100]!r}")
    try:
        extents = [int(part) for part in shape.split(",")] if len(shape) < 100 else None
    except ValueError:
        extents = None
    if extents is None:
        raise MalformedBody(f"shape: expected three integers z,y,x, got {shape[:100]!r}")
    return Layout(triple(extents, "shape", minimum=1), np.dtype(dtype))


def npy_layout(start: bytes | bytearray) -> tuple[Layout, int] | None:
    """Layout and header length of an .npy file from its first bytes; None while more bytes are needed.

    Raises `MalformedBody` for what is no .npy header of at most `MAX_HEADER_BYTES`, `InvalidVolume` for other axes.
    """
    magic = npy.MAGIC_PREFIX
    if start[: len(magic)] != magic[: len(start)]:
        raise MalformedBody(f"{NPY}: expected a file that begins with {magic!r}, got {bytes(start[:8])!r}")
    if len(start) < 12:
        return None
    version = (start[6], start[7])
    if version not in ((1, 0), (2, 0)):
        raise MalformedBody(f"{NPY}: expected format version 1.0 or 2.0, got {version[0]}.{version[1]}")
    width = 2 if version == (1, 0) else 4
    length = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if length > MAX_HEADER_BYTES:
        raise MalformedBody(f"{NPY}: expected a header of at most {MAX_HEADER_BYTES} bytes, got {length}")
    if len(start) < length:
        return None
    stream = io.BytesIO(bytes(start[8:length]))
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # whatever a hostile literal makes the parser raise, the header is not one
        raise MalformedBody(f"{NPY}: the header cannot be read ({_short(error)})") from error
    if dtype.hasobject or dtype.name not in _DTYPES:
        raise InvalidVolume(f"dtype: expected one of {', '.join(_DTYPES)}, got {str(dtype)[:100]}")
    if len(shape) != 3:
        raise InvalidVolume(f"image: expected three axes z, y, x, got shape {str(shape)[:100]}")
    return Layout(triple(shape, "shape", minimum=1), dtype, fortran), length


def check_length(declared: str | None, limit: int) -> None:
    """Refuse a body whose Content-Length says that it is too large, before any of it is read."""
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise PayloadTooLarge(f"body: expected at most {limit} bytes, Content-Length says {declared}")


def check_encoding(encoding: str | None) -> None:
    """Refuse compressed bodies: their size is not known before they are unpacked."""
    if encoding and encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: expected none, got {encoding[:100]!r}")


async def read_json(pieces: AsyncIterator[bytes], max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A small body as a whole; raises `PayloadTooLarge` beyond `max_bytes`."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > max_bytes:
            raise PayloadTooLarge(f"{JSON}: expected at most {max_bytes} bytes")
    return bytes(body)


async def read_head(pieces: AsyncIterator[bytes], length: int) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first `length` bytes of a body, and the pieces of the rest; raises `MalformedBody` where it is shorter."""
    head = bytearray()
    while len(head) < length:
        try:
            head += await anext(pieces)
        except StopAsyncIteration:
            raise MalformedBody(f"body: expected a header of {length} bytes, got {len(head)} in all") from None
    rest = bytes(head[length:])

    async def remaining() -> AsyncIterator[bytes]:
        if rest:
            yield rest
        async for piece in pieces:
            yield piece

    return bytes(head[:length]), remaining()


async def read_image(
    pieces: AsyncIterator[bytes], layout: Layout | None, *, check: Check, max_bytes: int
) -> NDArray[Any]:
    """Read an image (z, y, x) from the pieces of a body.

    `layout` None means .npy, whose header is read first. `check` refuses a dtype. Raises `MalformedBody` where the body
    is shorter or longer than its layout, `PayloadTooLarge` above `max_bytes`, and what `check` raises.
    """
    target = _Target(layout, check, max_bytes) if layout else None
    head = bytearray()
    async for piece in pieces:
        if target is not None:
            target.append(piece)
            continue
        head += piece
        found = npy_layout(head)
        if found is not None:
            target = _Target(found[0], check, max_bytes)
            target.append(memoryview(head)[found[1] :])
    if target is None:
        raise MalformedBody(f"{NPY}: the body ends within the header, after {len(head)} bytes")
    return target.finished()


class _Target:
    """An array that fills up."""

    def __init__(self, layout: Layout, check: Check, max_bytes: int) -> None:
        check(layout.dtype.newbyteorder("="))
        if layout.nbytes > max_bytes:
            raise PayloadTooLarge(
                f"image: expected at most {max_bytes} bytes, shape {layout.shape} has {layout.nbytes}"
            )
        self._layout = layout
        self._bytes = memoryview(bytearray(layout.nbytes))
        self._filled = 0

    def append(self, piece: bytes | memoryview) -> None:
        end = self._filled + len(piece)
        if end > len(self._bytes):
            raise MalformedBody(f"body: expected {len(self._bytes)} bytes of voxels, got more")
        self._bytes[self._filled : end] = piece
        self._filled = end

    def finished(self) -> NDArray[Any]:
        if self._filled != len(self._bytes):
            raise MalformedBody(f"body: expected {len(self._bytes)} bytes of voxels, got {self._filled}")
        layout = self._layout
        flat = np.frombuffer(self._bytes, layout.dtype)
        return flat.reshape(layout.shape, order="F" if layout.fortran else "C")


def choose_reply(accept: str | None) -> str:
    """`NPY` or `RAW`, whichever the client prefers; raises `NotAcceptable` where it takes neither."""
    if not accept:
        return NPY
    weights = dict.fromkeys((NPY, RAW), 0.0)
    specificity = dict.fromkeys(weights, 0)
    for item in accept[:1000].split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = _quality(parameters)
        for offered in weights:
            rank = {offered: 3, "application/*": 2, "*/*": 1}.get(name, 0)
            if rank > specificity[offered]:
                weights[offered], specificity[offered] = weight, rank
    best = max(weights, key=lambda offered: weights[offered])
    if weights[best] <= 0:
        raise NotAcceptable(f"Accept: this endpoint sends {NPY} or {RAW}, got {accept[:100]!r}")
    return best


def encode(array: NDArray[Any], media_type: str, before: bytes = b"") -> list[bytes | memoryview]:
    """The bytes of an array, C-ordered, as `NPY` or `RAW`, in pieces of which the voxels' are not copied."""
    array = np.ascontiguousarray(array)
    header = io.BytesIO()
    if media_type == NPY:
        npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return [before + header.getvalue(), array.data.cast("B")] if array.size else [before + header.getvalue()]


class ArrayResponse(Response):
    """An array as a reply. Large ones are sent piece by piece, so they need not be in memory a second time."""

    def __init__(
        self, array: NDArray[Any], media_type: str, headers: dict[str, str], before: bytes = b"", status: int = 200
    ) -> None:
        self._pieces = encode(array, media_type, before)
        super().__init__(status_code=status, media_type=media_type)
        for name, value in headers.items():
            self.headers[name] = value
        self.headers["Content-Length"] = str(sum(len(piece) for piece in self._pieces))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply."""
        del scope, receive
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        total = sum(len(piece) for piece in self._pieces)
        if total <= PIECE_BYTES:
            await send({"type": "http.response.body", "body": b"".join(self._pieces)})
            return
        for piece in self._pieces:
            for start in range(0, len(piece), PIECE_BYTES):
                body = bytes(piece[start : start + PIECE_BYTES])
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError as error:
                raise InvalidInput(f"Accept: expected a weight, got {parameter[:50]!r}") from error
    return 1.0


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
