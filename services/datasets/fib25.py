"""FIB-25: dense truth of the fly's medulla, as published with NeuroProof and flood-filling networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.geometry import VoxelSize
from services.datasets.dataset import Dataset, Sample, Truth, files_below

_SIZE: VoxelSize = (10.0, 10.0, 10.0)
_TRAIN_SHARE = {"validation_sample": 0.0}
"""The published validation block is validation; other blocks are training."""


def find(folder: Path) -> Iterator[Sample]:
    """Folders with `grayscale_maps.h5` (raw), and `groundtruth.h5` (stack) where there is truth."""
    for path in files_below(folder, "grayscale_maps.h5"):
        name, truth = path.parent.name, path.parent / "groundtruth.h5"
        labelled = Truth(f"{truth}:/stack") if truth.exists() else None
        yield Sample(name, f"{path}:/raw", _SIZE, labelled, _TRAIN_SHARE.get(name, 1.0))


FIB25 = Dataset(
    name="fib25",
    title="FIB-25: FIB-SEM of the fly's medulla, 10 x 10 x 10 nm, blocks of 250^3 and 520^3 voxels",
    licence="CC BY 3.0, FlyEM team, HHMI Janelia: free with attribution",
    needs_acceptance=False,
    citation="S. Takemura et al., Synaptic circuits and their variations within different columns in the visual system "
    "of Drosophila, PNAS 112 (2015), DOI 10.1073/pnas.1509820112",
    where="gs://ffn-flyem-fib25 or https://github.com/janelia-flyem/neuroproof_examples",
    files=("training_sample2/grayscale_maps.h5", "training_sample2/groundtruth.h5", "validation_sample/…"),
    find=find,
)
