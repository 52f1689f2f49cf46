"""All data sets, by name."""

from __future__ import annotations

from models.errors import NotFound
from services.datasets.axonem import AXONEM
from services.datasets.cremi import CREMI
from services.datasets.dataset import Dataset
from services.datasets.fib25 import FIB25
from services.datasets.isbi2012 import ISBI2012
from services.datasets.snemi3d import SNEMI3D

DATASETS: dict[str, Dataset] = {found.name: found for found in (AXONEM, CREMI, FIB25, ISBI2012, SNEMI3D)}


def find_dataset(name: str) -> Dataset:
    """The data set of that name; raises `NotFound` with the names there are."""
    if name not in DATASETS:
        raise NotFound(f"data set {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]
