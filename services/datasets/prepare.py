"""Converts the published files of a data set into volumes that training and evaluation read as they are.

::

    OUT/dataset.json               terms, citation, samples with their boxes by split
    OUT/SAMPLE/image.zarr          uint8 as published
    OUT/SAMPLE/labels.zarr         uint64 in the image's frame, 0 = background
    OUT/SAMPLE/mask.zarr           uint8, 1 where truth was given
    OUT/SAMPLE/background.zarr     uint8, 1 on annotated membranes; only where the data set has some

All are OME-Zarr with voxel size. Labels fill the whole frame of the image: a box names the same voxels in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.objects import Folder
from infra.volumes import Volume, VolumeInfo, create_pyramid, open_volume
from models.errors import InvalidVolume
from models.geometry import Box, ChunkGrid, Triple, VoxelSize
from services.datasets.dataset import Dataset, Sample, Truth

_STORED: Triple = (16, 128, 128)
_READ: Triple = (16, 512, 512)


@dataclass(frozen=True)
class Prepared:
    """What became of one sample: its shape, its boxes by split, and the share of the image that has truth."""

    name: str
    shape: Triple
    voxel_size_nm: VoxelSize
    splits: dict[str, Box]
    objects: int
    annotated: float
    volumes: tuple[str, ...]


def prepare(
    dataset: Dataset,
    source: Path,
    out: str,
    *,
    accepted: bool = False,
    on_sample: Callable[[str], None] | None = None,
) -> list[Prepared]:
    """Convert all samples of `dataset` below the folder `source` to volumes below the prefix `out`.

    What a former preparation left there is replaced. Raises `InvalidInput` where the terms were not accepted,
    `NotFound` where files are missing, `InvalidVolume` for files that are not as published.
    """
    dataset.check_accepted(accepted)
    found, folder = [], Folder(out)
    for sample in dataset.samples(source):
        if on_sample is not None:
            on_sample(sample.name)
        found.append(_prepare_sample(sample, folder / sample.name, dataset))
    folder.write_json(
        "dataset.json",
        {
            "name": dataset.name,
            "licence": dataset.licence,
            "citation": dataset.citation,
            "samples": [
                {
                    "name": sample.name,
                    **{name: f"{sample.name}/{name}.zarr" for name in sample.volumes},
                    "shape": list(sample.shape),
                    "voxel_size_nm": list(sample.voxel_size_nm),
                    "splits": {name: str(box) for name, box in sample.splits.items()},
                }
                for sample in found
            ],
        },
    )
    return found


def _prepare_sample(sample: Sample, folder: Folder, dataset: Dataset) -> Prepared:
    image = open_volume(sample.image)
    size = sample.voxel_size_nm  # what TIFF files say is often the viewer's guess
    if image.info.channels is not None or image.info.dtype != np.uint8:
        raise InvalidVolume(
            f"{image.url}: expected an image (z, y, x) of uint8, got {image.info.dtype} of {image.info.array_shape()}"
        )

    def create(name: str, dtype: str) -> Volume:
        info = VolumeInfo(
            shape=image.info.shape,
            dtype=np.dtype(dtype),
            voxel_size_nm=size,
            chunk_shape=_STORED,
            attributes={"dataset": dataset.name, "licence": dataset.licence, "citation": dataset.citation},
        )
        return create_pyramid(folder.at(name), info, (), exists="replace")[0]

    copy = create("image.zarr", "uint8")
    for chunk in ChunkGrid(image.box, _READ):
        copy.write(chunk.box, image.read(chunk.box))
    if sample.truth is None:
        return Prepared(sample.name, image.info.shape, size, sample.splits(image.box), 0, 0.0, ("image",))
    labels, mask = create("labels.zarr", "uint64"), create("mask.zarr", "uint8")
    background = create("background.zarr", "uint8") if sample.truth.membranes else None
    covered, ids, annotated = _write_truth(sample.truth, image, labels, mask, background)
    volumes = ("image", "labels", "mask", *(["background"] if background else []))
    share = annotated / image.box.size
    return Prepared(sample.name, image.info.shape, size, sample.splits(covered), ids.size, share, volumes)


def _write_truth(
    truth: Truth, image: Volume, labels: Volume, mask: Volume, background: Volume | None
) -> tuple[Box, Any, int]:
    """Convert and store the truth; returns the box of the image it covers, its ids and the number of voxels given."""
    stored = open_volume(truth.url)
    if stored.info.channels is not None:
        raise InvalidVolume(f"{stored.url}: expected labels (z, y, x), got {stored.info.channels} channels")
    z, y, x = truth.offset or (a - b for a, b in zip(stored.info.offset_voxels, image.info.offset_voxels, strict=True))
    covered = stored.box.shifted((z, y, x))
    if not image.box.contains(covered):
        raise InvalidVolume(f"{stored.url}: expected labels within the image {image.box}, got {covered}")
    _, height, width = image.info.shape
    step = (_READ[0], height, width) if truth.whole_sections else _READ
    ids: Any = np.empty(0, np.uint64)
    annotated = 0
    for chunk in ChunkGrid(image.box, step):
        part = chunk.box.intersection(covered)
        if not part.size:
            continue
        own = part.shifted((-z, -y, -x))
        try:
            found, given = truth.convert(stored.read(own), own)
        except InvalidVolume as error:
            raise InvalidVolume(f"{stored.url}: {error}") from error
        whole, inside = np.zeros(chunk.box.shape, np.uint64), np.zeros(chunk.box.shape, np.uint8)
        at = part.slices(chunk.box.start)
        whole[at], inside[at] = found, given
        labels.write(chunk.box, whole)
        mask.write(chunk.box, inside)
        if background is not None:
            background.write(chunk.box, inside * (whole == 0).astype(np.uint8))
        ids = np.union1d(ids, found[found != 0])
        annotated += int(given.sum())
    return covered, ids, annotated
