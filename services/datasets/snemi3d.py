"""SNEMI3D: a densely labelled volume of mouse cortex."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.geometry import VoxelSize
from services.datasets.dataset import Dataset, Sample, Truth, files_below

_SIZE: VoxelSize = (30.0, 6.0, 6.0)


def find(folder: Path) -> Iterator[Sample]:
    """`train-input.tif` with `train-labels.tif`, and `test-input.tif`."""
    images, labels = (files_below(folder, f"train-{name}.tif*") for name in ("input", "labels"))
    if images and labels:
        yield Sample("train", str(images[0]), _SIZE, Truth(str(labels[0])))
    for path in files_below(folder, "test-input.tif*")[:1]:
        yield Sample("test", str(path), _SIZE)


SNEMI3D = Dataset(
    name="snemi3d",
    title="SNEMI3D: serial-section SEM of mouse cortex, 30 x 6 x 6 nm, 100 x 1024 x 1024 voxels",
    licence="published for the SNEMI3D challenge after registration, no licence is stated; not for commercial use",
    needs_acceptance=True,
    citation="N. Kasthuri et al., Saturated reconstruction of a volume of neocortex, Cell 162 (2015), "
    "DOI 10.1016/j.cell.2015.06.054",
    where="https://snemi3d.grand-challenge.org/ (register first)",
    files=("train-input.tif", "train-labels.tif", "test-input.tif"),
    find=find,
    notes="true 0 is membrane and outside",
)
