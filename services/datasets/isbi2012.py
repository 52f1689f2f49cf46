"""ISBI 2012: membranes of larval fly nerve cord, labelled section by section."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.geometry import Box, VoxelSize
from services.datasets.dataset import Dataset, Sample, Truth, files_below

_SIZE: VoxelSize = (50.0, 4.0, 4.0)


def convert(stored: NDArray[Any], box: Box) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Membrane images (0 membrane, else inside) to cross-sections: parts that touch within a section, not across.

    An id is unique in the volume: section times voxels of a section, plus the number of the part.
    """
    from scipy.ndimage import label

    if len(np.unique(stored)) > 2:
        raise InvalidVolume(f"labels: expected membrane images of two values in box {box}, got more")
    ids = np.zeros(stored.shape, np.uint64)
    for index, section in enumerate(stored):
        parts, _ = label(section > 0)
        first = np.uint64((box.start[0] + index) * section.size)
        ids[index] = np.where(parts > 0, parts.astype(np.uint64) + first, np.uint64(0))
    return ids, np.ones(stored.shape, np.uint8)


def find(folder: Path) -> Iterator[Sample]:
    """`train-volume.tif` with `train-labels.tif`, and `test-volume.tif`."""
    images, labels = (files_below(folder, f"train-{name}.tif*") for name in ("volume", "labels"))
    if images and labels:
        truth = Truth(str(labels[0]), convert=convert, whole_sections=True, membranes=True)
        yield Sample("train", str(images[0]), _SIZE, truth)
    for path in files_below(folder, "test-volume.tif*")[:1]:
        yield Sample("test", str(path), _SIZE)


ISBI2012 = Dataset(
    name="isbi2012",
    title="ISBI 2012: serial-section TEM of a fly larva's nerve cord, 50 x 4 x 4 nm, 30 x 512 x 512 voxels",
    licence="non-commercial research and education only, with citation",
    needs_acceptance=True,
    citation="A. Cardona et al., An integrated micro- and macroarchitectural analysis of the Drosophila brain, PLoS "
    "Biol. 8 (2010), DOI 10.1371/journal.pbio.1000502; I. Arganda-Carreras et al., Front. Neuroanat. 9:142 (2015)",
    where="https://imagej.net/events/isbi-2012-segmentation-challenge",
    files=("train-volume.tif", "train-labels.tif", "test-volume.tif"),
    find=find,
    notes="labels are cross-sections: two-dimensional parts, each section on its own, with ids unique in the volume; "
    "train on them with `target: inside` and the background, affinities across sections cannot be learnt from them",
)
