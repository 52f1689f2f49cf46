"""What a published data set is to petavoxel: its terms, its files, and the samples in them.

A data set is a `Dataset` in a file of its own, registered in `services.datasets.registry`. Nothing is downloaded:
`find` looks for the published files below a folder and says which volumes they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box, Triple, VoxelSize

Convert = Callable[[NDArray[Any], Box], tuple[NDArray[np.uint64], NDArray[np.uint8]]]
"""Stored truth of a box of its volume to labels (uint64, 0 = background) and mask (uint8, 1 where truth was given)."""


def plain_labels(stored: NDArray[Any], box: Box) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Ids as they are; all of it is truth. Raises `InvalidVolume` for numbers that are no ids."""
    if stored.dtype.kind not in "iub" or (stored.dtype.kind == "i" and stored.size and int(stored.min()) < 0):
        raise InvalidVolume(f"labels: expected ids of at least 0 in box {box}, got {stored.dtype}")
    return stored.astype(np.uint64), np.ones(stored.shape, np.uint8)


@dataclass(frozen=True)
class Truth:
    """Where the truth of a sample lies.

    `offset`: position of its first voxel in the image, None: what both volumes say. `whole_sections`: whether `convert`
    must see sections whole. `membranes`: whether 0 is annotated background, and not what nobody looked at.
    """

    url: str
    offset: Triple | None = None
    convert: Convert = plain_labels
    whole_sections: bool = False
    membranes: bool = False


@dataclass(frozen=True)
class Sample:
    """One image of a data set, its truth if there is any, and the part of z that is training, the rest validation.

    `train_share` 1 makes all of it training, 0 validation; an image without truth is test data whatever it says.
    """

    name: str
    image: str
    voxel_size_nm: VoxelSize
    truth: Truth | None = None
    train_share: float = 0.8

    def splits(self, box: Box) -> dict[str, Box]:
        """Boxes by split, of a truth that covers `box` of the image."""
        if self.truth is None:
            return {"test": box}
        sections = box.shape[0]
        train = round(sections * self.train_share)
        (z, y, x), stop = box.start, box.stop
        parts = {
            "train": Box(box.start, (z + train, stop[1], stop[2])),
            "validation": Box((z + train, y, x), stop),
        }
        return {name: part for name, part in parts.items() if part.size}


@dataclass(frozen=True)
class Dataset:
    """A published data set.

    `licence` says the terms; where `needs_acceptance`, they are not simply free, and nothing is prepared before they
    were accepted. `files`: what is looked for; `where`: where to get it. `find(folder)` yields the samples there are.
    """

    name: str
    title: str
    licence: str
    needs_acceptance: bool
    citation: str
    where: str
    files: tuple[str, ...]
    find: Callable[[Path], Iterator[Sample]]
    notes: str = ""

    def samples(self, folder: Path) -> list[Sample]:
        """The samples whose files are below `folder`; raises `NotFound`, saying where to get them, without any."""
        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder; {self.name} is published at {self.where}")
        found = list(self.find(folder.resolve()))
        if not found:
            raise NotFound(
                f"{folder}: found no files of {self.name}: expected {', '.join(self.files)}; get them from {self.where}"
            )
        names = [sample.name for sample in found]
        if len(set(names)) != len(names):
            raise InvalidInput(f"{folder}: expected each sample of {self.name} once, got {', '.join(sorted(names))}")
        return found

    def check_accepted(self, accepted: bool) -> None:
        """Raise `InvalidInput` with the terms unless they were accepted or need no acceptance."""
        if self.needs_acceptance and not accepted:
            raise InvalidInput(
                f"{self.name}: its terms need your acceptance: {self.licence}. Say --accept-licence if you accept them"
            )


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Files below `folder`, at any depth, whose name matches a glob pattern; sorted."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file())
