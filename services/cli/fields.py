"""Reads numbers in options: triples such as `128,128,128`."""

from __future__ import annotations

from models.errors import InvalidInput
from models.geometry import Triple, VoxelSize, triple


def read_triple(text: str | None, what: str) -> Triple | None:
    """`z,y,x` of integers, None for None; raises `InvalidInput`."""
    if text is None:
        return None
    try:
        return triple([int(part) for part in text.split(",")], what, minimum=1)
    except ValueError as error:
        raise InvalidInput(f"{what}: expected three integers z,y,x of at least 1, got {text!r}") from error


def read_voxel_size(text: str | None) -> VoxelSize | None:
    """`z,y,x` in nanometres, None for None; raises `InvalidInput`."""
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(f"voxel size: expected three numbers z,y,x in nm, got {text!r}") from error
    if not min(z, y, x) > 0:
        raise InvalidInput(f"voxel size: expected numbers above 0, got {text!r}")
    return z, y, x
