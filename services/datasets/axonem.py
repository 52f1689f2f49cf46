"""AxonEM: nine densely annotated subvolumes each of human and mouse cortex."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import h5py

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple, VoxelSize, triple
from services.datasets.dataset import Dataset, Sample, Truth, files_below

_SIZES: dict[str, VoxelSize] = {"human": (30.0, 8.0, 8.0), "mouse": (40.0, 8.0, 8.0)}
_SPECIES = {
    "human": re.compile(r"human|EM30-H|axonem[-_]h", re.I),
    "mouse": re.compile(r"mouse|EM30-M|axonem[-_]m", re.I),
}
_IMAGE = re.compile(r"im_(\d+-\d+-\d+)(_pad)?\.h5$")
_VALIDATION = 2
"""The last subvolumes of each species, in the order of their names, are validation."""


def find(folder: Path) -> Iterator[Sample]:
    """Pairs `im_Z-Y-X_pad.h5` and `seg_Z-Y-X_pad.h5` (dataset main) in folders that say human or mouse."""
    for species in _SPECIES:
        pairs = []
        for path in files_below(folder, "im_*.h5"):
            matched = _IMAGE.match(path.name)
            if matched is None or _species(path.relative_to(folder.parent)) != species:
                continue
            place = matched.group(1)
            labels = [path.parent / f"seg_{place}{suffix}.h5" for suffix in ("_pad", "")]
            pairs += [(place, path, found) for found in labels if found.exists()][:1]
        for number, (place, image, labels_path) in enumerate(pairs):
            truth = Truth(f"{labels_path}:/main", offset=_centred(image, labels_path))
            share = 0.0 if number >= len(pairs) - _VALIDATION and len(pairs) > _VALIDATION else 1.0
            yield Sample(f"{species}_{place}", f"{image}:/main", _SIZES[species], truth, share)


def _species(path: Path) -> str:
    found = [name for name, pattern in _SPECIES.items() if any(pattern.search(part) for part in path.parent.parts)]
    if len(found) != 1:
        raise InvalidInput(f"{path}: expected a folder that says human (EM30-H) or mouse (EM30-M), got {path.parent}")
    return found[0]


def _centred(image: Path, labels: Path) -> Triple:
    """Images may be padded on every side with context that has no truth."""
    shapes = []
    for path in (image, labels):
        with h5py.File(path, "r") as file:
            if "main" not in file:
                raise InvalidVolume(f"{path}: expected the dataset 'main', got {', '.join(file) or 'none'}")
            shapes.append(file["main"].shape)
    if any(a < b or (a - b) % 2 for a, b in zip(*shapes, strict=True)):
        raise InvalidVolume(f"{labels}: expected labels in the middle of the image {shapes[0]}, got shape {shapes[1]}")
    return triple([(a - b) // 2 for a, b in zip(*shapes, strict=True)], "offset")


AXONEM = Dataset(
    name="axonem",
    title="AxonEM: EM of human (30 x 8 x 8 nm) and mouse (40 x 8 x 8 nm) cortex, nine subvolumes each",
    licence="MIT, as stated where it is published",
    needs_acceptance=False,
    citation="D. Wei et al., AxonEM dataset: 3D axon instance segmentation of brain cortical regions, MICCAI 2021, "
    "arXiv:2107.05451",
    where="https://huggingface.co/datasets/pytc/AxonEM (unpack the .zip files into folders named human and mouse)",
    files=("human/im_Z-Y-X_pad.h5", "human/seg_Z-Y-X_pad.h5", "mouse/…"),
    find=find,
    notes="images without labels are left out; the challenge's graphs of skeletons (.npz) go to `evaluate skeletons`",
)
