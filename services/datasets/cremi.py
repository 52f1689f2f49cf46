"""CREMI: three volumes of adult fly brain with dense truth, and three without."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from models.geometry import Box
from services.datasets.dataset import Dataset, Sample, Truth, files_below

_NAME = re.compile(r"sample_[ABC]\+?_.*\.(hdf|h5|hdf5)$")
_RESERVED = np.uint64(2**64 - 3)
"""From here on ids are marks: outside, invalid, transparent; -1 where they are stored as signed numbers."""


def convert(stored: NDArray[Any], box: Box) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Neuron ids; voxels that are marked as not annotated become background outside the mask."""
    ids = stored.astype(np.uint64)  # -1 becomes 2^64 - 1
    given = ids < _RESERVED
    return np.where(given, ids, np.uint64(0)), given.astype(np.uint8)


def find(folder: Path) -> Iterator[Sample]:
    """Files `sample_A_20160501.hdf`, padded or not, and `sample_A+_20160601.hdf`."""
    for path in files_below(folder, "sample_*"):
        if not _NAME.match(path.name):
            continue
        with h5py.File(path, "r") as file:
            if "volumes/raw" not in file:
                continue
            labelled = "volumes/labels/neuron_ids" in file
        truth = Truth(f"{path}:/volumes/labels/neuron_ids", convert=convert) if labelled else None
        yield Sample(path.stem, f"{path}:/volumes/raw", (40.0, 4.0, 4.0), truth)


CREMI = Dataset(
    name="cremi",
    title="CREMI: serial-section TEM of the adult fly brain, 40 x 4 x 4 nm",
    licence="published for the CREMI challenge, no licence is stated; ask the organisers before other uses",
    needs_acceptance=True,
    citation="J. Funke et al., CREMI: MICCAI challenge on circuit reconstruction from EM images (2016), https://cremi.org",
    where="https://cremi.org/data/",
    files=("sample_A_20160501.hdf", "sample_B_20160501.hdf", "sample_C_20160501.hdf", "sample_A+_20160601.hdf"),
    find=find,
    notes="padded files are understood: labels lie at their offset, the mask says where truth is",
)
