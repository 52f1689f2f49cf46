"""Claims of the papers behind petavoxel, tested again on real data; each prints what RESULTS.md says.

`PETAVOXEL_DATA=FOLDER PETAVOXEL_RUNS=FOLDER pytest -m slow -s tests/benchmarks/test_claims.py`. Networks are trained by
the zoo's recipes and variants of them into PETAVOXEL_RUNS; runs that are there go on, or are used.
Options are chosen on sections 10-14, scores are of sections 15-19. `PETAVOXEL_AFFINITIES`: affinities of the shipped
network for all of `fib25_train.npz`; computed where it is not set.

The claims may fail on these data and with so little training; the tests fail only where there is nothing to compare.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from choices import Grid, Options, chosen, difference, scored, sections, table_at, terms, verdict
from numpy.typing import NDArray
from scipy import ndimage

from models.catalog import ZOO, Training
from models.metrics.affinities import EdgeHistogram, average_precision
from models.metrics.bootstrap import Interval, Terms
from models.metrics.contingency import contingency_table
from services.predict import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@dataclass(frozen=True)
class Variant:
    """A recipe of the zoo with other values for some keys.

    With `weights`, the name of a run that it begins with, `recursion` is that of its first network, or None.
    """

    recipe: str
    changes: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    recursion: str | None = None


SMALL, LARGE = "sstem-affinity/small.yaml", "sstem-affinity/train.yaml"
STAGES = [f"vd2d3d-boundary/{stage}.yaml" for stage in ("stage1", "stage2", "train")]
NO_DEFECTS = {
    "misalignment_probability": 0,
    "section_contrast": 0,
    "section_brightness": 0,
    "drift": 0,
    "defocus_probability": 0,
    "missing_probability": 0,
    "cutout_probability": 0,
}
PLANAR_STEPS = {"steps": 3400, "validate_every": 850}
VARIANTS = {
    "small": Variant(SMALL),
    "no-auxiliary": Variant(SMALL, {"auxiliary": False}),
    "no-defects": Variant(SMALL, {"augmentation": NO_DEFECTS}),
    "planar": Variant(SMALL, {"network": {"preset": "planar", "widths": [16, 24, 40, 52]}}),
    "large planar": Variant(LARGE, {"network": {"preset": "planar", "widths": [32, 52, 72, 96]}, "loop": PLANAR_STEPS}),
    "vd2d": Variant(STAGES[0]),
    "plain, begun": Variant(STAGES[1], {"patch": [5, 148, 148]}, weights="vd2d"),  # as much output
    "plain": Variant(STAGES[2], {"patch": [5, 212, 212]}, weights="plain, begun"),
    "recursive, begun": Variant(STAGES[1], weights="vd2d", recursion="vd2d"),
    "recursive": Variant(STAGES[2], weights="recursive, begun", recursion="vd2d"),
}
SEEDS = range(2, 6)
for name in ("small", "no-auxiliary", "no-defects", "planar"):
    VARIANTS |= {f"{name}, seed {n}": Variant(SMALL, {**VARIANTS[name].changes, "seed": n}) for n in SEEDS}
FIB25 = Grid(
    (252, 253, 254, 255), (0, 50, 200, 300, 1000, 3000, 10_000, 30_000), tuple(t / 100 for t in range(10, 62, 4))
)
FIB25_SIZES = Grid((230, 240, 245, 250, *FIB25.highs, 256), (*FIB25.sizes, 100_000, 300_000))
AS_IT_IS, DEFECTS = "as it is", ("missing", "half missing", "slip", "defocus", "contrast")
CONTRASTS = {5: (0.6, 20), 6: (1.2, -20), 7: (0.7, -30), 8: (1, 35), 9: (0.5, 0)}
SSTEM = Grid((250, 253, 255), (100, 300, 1000, 3000), tuple(t / 20 for t in range(1, 20)))


def folder(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"needs {variable}")
    return Path(path)


def line(name: str, found: dict[str, tuple[float, Interval]]) -> str:
    return f"{name}: " + ", ".join(f"{score} {value:.3f} ({interval})" for score, (value, interval) in found.items())


class Trained:
    """Networks by the name of their variant, and their affinities of sections 10-19, as they are or with a defect."""

    def __init__(self, data: Path, runs: Path) -> None:
        self.data, self.runs = data, runs
        with np.load(data / "isbi2012" / "isbi2012_train.npz") as held:
            image, self.truth = held["raw"][10:], held["neurites"][10:].astype(np.uint64)
            self.membrane = held["membrane"][10:].astype(bool)
        self.images = {AS_IT_IS: image, **damaged(image)}
        self.predictors: dict[str, Predictor] = {}
        self.found: dict[tuple[str, str], NDArray[np.uint8]] = {}
        self.options: dict[tuple[str, bool], Options] = {}

    def affinities(self, name: str, kind: str = AS_IT_IS) -> NDArray[np.uint8]:
        if name not in self.predictors:
            self.predictors[name] = self._trained(name) if name in VARIANTS else Predictor(name)
        if (name, kind) not in self.found:
            self.found[name, kind] = self.predictors[name].predict(self.images[kind])
        return self.found[name, kind]

    def _trained(self, name: str) -> Predictor:
        from infra.runtimes.openvino_session import run_onnx
        from models.training.export import export_checkpoint

        note = Training("isbi2012, sections 0-9", "non-commercial")
        return Predictor(export_checkpoint(self.train(name), self.runs / f"{name}-model", run=run_onnx, training=note))

    def train(self, name: str) -> Path:
        """Train a variant, or go on, in a folder of its name; returns the checkpoint."""
        from services.training import TrainConfig, train

        variant = VARIANTS[name]
        recipe = yaml.safe_load((ZOO / variant.recipe).read_text())
        for key, change in variant.changes.items():
            recipe[key] = {**recipe[key], **change} if isinstance(change, dict) else change
        if variant.weights:
            recipe["initial_weights"] = str(self.train(variant.weights).resolve())
            first = variant.recursion and str(self.train(variant.recursion).resolve())
            recipe["network"] = {**recipe["network"], "recursion": first}
        return train(TrainConfig.model_validate(recipe), self.runs / name, self.data)

    def terms(self, name: str, *kinds: str, planar: bool = False) -> Terms:
        """Terms of sections 15-19 at the options that are best on sections 10-14 of the image as it is."""
        views = sections if planar else lambda found, truth: (found, truth)
        if (name, planar) not in self.options:
            self.options[name, planar] = chosen(*views(self.affinities(name)[:, :5], self.truth[:5]), SSTEM)
            print(f"{name}: {self.options[name, planar]}")
        options = self.options[name, planar]
        found = [self.affinities(name, kind)[:, 5:] for kind in kinds or (AS_IT_IS,)]
        return terms([table_at(*views(one, self.truth[5:]), options) for one in found])

    def membrane_precision(self, name: str) -> float:
        """Average precision of finding membrane by a low affinity within sections 15-19; others are neurites."""
        lower = self.affinities(name)[1:, 5:].min(axis=0)
        counts = (np.bincount(lower[where], minlength=256) for where in (self.truth[5:] > 0, self.membrane[5:]))
        return average_precision(EdgeHistogram(*counts)).cut


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained(folder("PETAVOXEL_DATA"), folder("PETAVOXEL_RUNS"))


def damaged(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Copies of sections 10-19 with one kind of defect each among sections 15-19."""
    copies = {kind: image.copy() for kind in DEFECTS}
    copies["missing"][7] = 128
    copies["half missing"][6, 256:] = 0
    copies["slip"][7] = np.roll(image[7], (7, -6), (0, 1))
    copies["defocus"][8] = ndimage.gaussian_filter(image[8], 3)
    for section, (contrast, brightness) in CONTRASTS.items():
        changed = (image[section].astype(np.float32) - 128) * contrast + 128 + brightness
        copies["contrast"][section] = np.clip(changed, 0, 255).astype(np.uint8)
    return copies


def of_seeds(name: str) -> list[str]:
    """The variants that differ from this one in their seed, and itself."""
    return [name, *(f"{name}, seed {n}" for n in SEEDS)]


def compare(what: str, first: Sequence[Terms], second: Sequence[Terms]) -> None:
    """Print the scores of both sides, an item per seed, their mean difference and what that says of the claim."""
    found = difference(first, second)
    print(f"\n{what}")
    for one, other in zip(first, second, strict=True):
        print(line("with", scored(one)), line("without", scored(other)), sep="\n")
    print(line("difference", found), ", ".join(f"{name}: {verdict(one)}" for name, one in found.items()), sep="\n")


def seeds(trained: Trained, name: str, *kinds: str, planar: bool = False) -> list[Terms]:
    """`Trained.terms` of all seeds of a variant."""
    return [trained.terms(each, *kinds, planar=planar) for each in of_seeds(name)]


def has_learnt(trained: Trained, *found: Terms, planar: bool = False) -> bool:
    """Whether networks are worth comparing: each one's segmentation is better than one segment for all."""
    truth = trained.truth[5:]
    if planar:
        _, truth = sections(np.zeros((3, *truth.shape), np.uint8), truth)
    single = scored(terms([contingency_table(np.ones_like(truth), truth)]))["voi"][0]
    return all(scored(one)["voi"][0] < single for one in found)


@pytest.mark.parametrize("planar", [False, True])
def test_auxiliary_affinities(trained: Trained, planar: bool) -> None:
    first, second = (seeds(trained, name, planar=planar) for name in ("small", "no-auxiliary"))
    compare(f"auxiliary affinities, {'sections' if planar else 'volume'}", first, second)
    assert has_learnt(trained, *first, planar=planar)


@pytest.mark.parametrize("kinds", [(AS_IT_IS,), *((kind,) for kind in DEFECTS), DEFECTS], ids=" and ".join)
def test_simulated_defects(trained: Trained, kinds: tuple[str, ...]) -> None:
    first, second = (seeds(trained, name, *kinds) for name in ("small", "no-defects"))
    compare(f"simulated defects, {', '.join(kinds)}", first, second)
    assert has_learnt(trained, *first) or has_learnt(trained, *second)


@pytest.mark.parametrize("planar", [False, True])
def test_3d_beside_2d(trained: Trained, planar: bool) -> None:
    first, second = (seeds(trained, name, planar=planar) for name in ("small", "planar"))
    compare(f"3D beside 2D, {'sections' if planar else 'volume'}", first, second)
    assert has_learnt(trained, *first, planar=planar)


@pytest.mark.parametrize("planar", [False, True])
def test_shipped_network_beside_2d(trained: Trained, planar: bool) -> None:
    """A 2D U-Net with as many parameters, trained for as long on the same processor (see `PLANAR_STEPS`)."""
    first, second = (trained.terms(name, planar=planar) for name in ("sstem-affinity", "large planar"))
    compare(f"sstem-affinity beside 2D, {'sections' if planar else 'volume'}", [first], [second])
    assert has_learnt(trained, first, planar=planar)


@pytest.mark.parametrize("without", ["vd2d", "plain"])
def test_recursion(trained: Trained, without: str) -> None:
    first, second = (trained.terms(name, planar=True) for name in ("recursive", without))
    compare(f"recursive VD2D3D beside {without}, sections", [first], [second])
    for name in ("recursive", without):
        print(f"{name}: average precision of membrane voxels {trained.membrane_precision(name):.3f}")
    assert has_learnt(trained, first, planar=True)


def test_agglomeration_beats_the_bare_watershed() -> None:
    with np.load(folder("PETAVOXEL_DATA") / "fib25" / "fib25_train.npz") as held:
        image, truth = held["raw"], held["neurons"][110:].astype(np.uint64)
    path = os.environ.get("PETAVOXEL_AFFINITIES")
    found = np.load(path)[:, -50:] if path else Predictor("fib25-affinity").predict(image)[:, 110:]
    validation, test = np.s_[..., :125], np.s_[..., 125:]
    tried = []
    for grid in (FIB25, FIB25_SIZES):
        options = chosen(found[validation], truth[validation], grid)
        print(options)
        tried.append([terms([table_at(found[test], truth[test], options)])])
    compare("agglomeration of FIB-25", *tried)
    assert difference(*tried)["voi"][0] < 0
