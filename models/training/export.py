"""From a checkpoint to a model that ships: `model.onnx` and its card.

The exported network takes the normalised image and returns probabilities of the nearest-neighbour channels, also where
a network of one channel says what is inside of an object (`models.networks.inference`). Batch
normalisation is folded into the convolutions, which keep their names, so the weights can be read back by name. Nothing
is written unless an engine that runs the file agrees with torch.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import nn

from models.catalog import (
    CARD_NAME,
    Architecture,
    Model,
    ModelCard,
    ModelFile,
    Normalisation,
    Output,
    PatchRules,
    Score,
    Segmentation,
    Training,
    find_model,
    sha256_of,
)
from models.errors import InvalidModel
from models.geometry import NEAREST, Triple, triple
from models.networks.family import Network
from models.networks.inference import Probabilities, discarded, fold_batch_norm
from models.networks.registry import build, described, read_config
from models.training.loop import read_checkpoint
from models.training.targets import INSIDE
from models.training.validation import BASIN_VOXELS, WATERSHED_HIGH

logger = logging.getLogger(__name__)

OPSET = 20
MAX_BYTES = 10_000_000
PARITY = 1e-4
"""Largest difference between an engine in fp32 and torch, on probabilities."""

PATCH, MARGIN = 152, 12
"""Default patch extent and margin in voxels on the axis with the smallest voxels: strides of 128."""

KEPT_CHANNELS = 3
"""The nearest-neighbour affinities come first; auxiliary channels only serve training."""

Runner = Callable[[Path, NDArray[np.float32]], NDArray[np.float32]]
"""Runs an ONNX file, in fp32, on patches (batch, 1, z, y, x), and returns (batch, channels, z, y, x)."""


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    *,
    run: Runner,
    training: Training,
    name: str | None = None,
    version: str = "1",
    image: NDArray[np.uint8] | None = None,
    scores: tuple[Score, ...] = (),
    patch: PatchRules | None = None,
) -> Model:
    """Export a checkpoint of `models.training.loop` to `folder`, with its card, and return the verified model.

    Parameters
    ----------
    checkpoint, folder
        The file that training wrote; the folder that gets `model.onnx` and `card.json` (made if needed).
    run
        The engine that the file is checked with.
    training, version, scores
        What the card says about the weights; steps and configuration are added from the checkpoint.
    name
        The model's name; default the folder's.
    image
        uint8 (z, y, x), at least one patch of 64 voxels per axis, on which engine and torch must agree; default
        synthetic cells.
    patch
        Patch extents that callers use; default from the network and the voxel size.

    Raises `InvalidModel` where the checkpoint is not readable, has no nearest-neighbour channels, or where the engine's
    probabilities are off by more than `PARITY` or not finite.
    """
    content = read_checkpoint(checkpoint)
    network, offsets = _network(content, checkpoint)
    normalisation = Normalisation("uint8", **content["normalisation"])
    z, y, x = (float(size) for size in content["voxel_size_nm"])
    folded = fold_batch_norm(network)
    patches = normalisation.apply(parity_patches(network.config.divisor, image, discarded(network.config)))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        export_onnx(folded, path)
        error = parity_error(Probabilities(network).eval(), path, patches, run)
        if not error <= PARITY:
            raise InvalidModel(f"{checkpoint}: ONNX and torch differ by {error:.2g} on probabilities, limit {PARITY:g}")
        logger.info("%s: ONNX and torch differ by at most %.2g on %s", checkpoint, error, patches.shape)
        card = ModelCard(
            name=name or folder.resolve().name,
            version=version,
            architecture=Architecture(**described(network.config)),
            normalisation=normalisation,
            voxel_size_nm=(z, y, x),
            axes="zyx",
            output=Output("affinity", offsets),
            patch=patch or default_patch((z, y, x), network.config.divisor, discarded(network.config)),
            training=replace(training, details={**_recipe(content), **training.details}),
            file=ModelFile("model.onnx", sha256_of(path), path.stat().st_size),
            scores=scores,
            segmentation=_segmentation(content),
        )
        return write_model(folder, card, path)


def write_model(folder: Path, card: ModelCard, onnx_path: Path) -> Model:
    """Put the file and its card into `folder`, the card last; raises `InvalidModel` where they do not fit."""
    Model(card, onnx_path.parent).verify()
    folder.mkdir(parents=True, exist_ok=True)
    for target, content in ((card.file.name, onnx_path.read_bytes()), (CARD_NAME, card.to_json().encode())):
        partial = folder / (target + ".partial")
        partial.write_bytes(content)
        os.replace(partial, folder / target)
    return find_model(folder / CARD_NAME)


def export_onnx(network: Network, path: Path) -> None:
    """Write `network` as `Probabilities` to one ONNX file, with dynamic batch, z, y and x.

    Input `image` float32 (b, 1, z, y, x), output `affinity` float32 (b, c, z, y, x). Raises `InvalidModel` where the
    file is larger than `MAX_BYTES`.
    """
    module = Probabilities(network).eval()
    config = network.config
    example = tuple(d * n + 2 * m for n, d, m in zip((4, 5, 6), config.divisor, config.margin, strict=True))
    # what is known of extents spares the exporter case distinctions; it refuses to know less than one pooled voxel
    least = [2 * m + max(2, d) for d, m in zip(config.divisor, config.margin, strict=True)]
    z, y, x = (torch.export.Dim(name, min=extent) for name, extent in zip("zyx", least, strict=True))
    with warnings.catch_warnings(), torch.no_grad():
        # torch's exporter trips over its own deprecations; ours still count
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 1, *example),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["affinity"],
            dynamic_shapes=({0: "b", 2: z, 3: y, 4: x},),
            verbose=False,
        )
    if program is None:
        raise InvalidModel("export: torch returned no ONNX program")
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    if model.ByteSize() > MAX_BYTES:
        raise InvalidModel(f"export: the file has {model.ByteSize()} bytes, limit {MAX_BYTES}")
    path.write_bytes(model.SerializeToString(deterministic=True))


def parity_error(module: nn.Module, path: Path, patches: NDArray[np.float32], run: Runner) -> float:
    """Largest absolute difference between `module` in torch and the ONNX file in `run`; NaN where one is not finite."""
    with torch.inference_mode():
        expected = module(torch.from_numpy(patches)).numpy()
    actual = run(path, patches)
    if actual.shape != expected.shape:
        raise InvalidModel(f"{path}: expected an output of shape {expected.shape}, got {actual.shape}")
    return float(np.abs(actual - expected).max())


def parity_patches(
    divisor: Triple, image: NDArray[np.uint8] | None = None, margin: Triple = (0, 0, 0)
) -> NDArray[np.uint8]:
    """Patches (2, 1, z, y, x), uint8, unequal extents: two corners of `image`, or synthetic cells with membranes.

    They hold 32, 48 and 64 voxels or as many as the image has, to multiples of `divisor`; with a margin 4, 24 and 32,
    and the margin around them.
    """
    core = (4, 24, 32) if any(margin) else (32, 48, 64)
    wanted = [n + 2 * m for n, m in zip(core, margin, strict=True)]
    if image is not None and image.ndim == 3 and not any(margin):  # serial sections may be few
        wanted = [min(n, extent) for n, extent in zip(wanted, image.shape, strict=True)]
    shape = tuple(d * max(1, n // d) for d, n in zip(divisor, wanted, strict=True))
    if image is None:
        image = _synthetic_cells(shape)
    if image.dtype != np.uint8 or image.ndim != 3 or any(n < m for n, m in zip(image.shape, shape, strict=True)):
        raise InvalidModel(f"parity: expected a uint8 image of at least {shape}, got {image.dtype} {image.shape}")
    first = image[tuple(slice(0, n) for n in shape)]
    last = image[tuple(slice(-n, None) for n in shape)]
    return np.stack([first, last])[:, None]


def default_patch(
    voxel_size_nm: tuple[float, float, float], divisor: Triple, unknown: Triple = (0, 0, 0)
) -> PatchRules:
    """Patch rules for a network: `PATCH` and `MARGIN` on the finest axis, fewer voxels where voxels are thicker.

    Where the network leaves `unknown` voxels at the faces, these are the margin: it sees nothing beyond.
    """
    finest = min(voxel_size_nm)
    shape, margin = [], []
    for size, d, u in zip(voxel_size_nm, divisor, unknown, strict=True):
        m = u if any(unknown) else max(2, round(MARGIN * finest / size))
        stride = max(16, round((PATCH - 2 * MARGIN) * finest / size))
        shape.append(-(-(stride + 2 * m) // d) * d)
        margin.append(m)
    return PatchRules(divisor, triple(shape, "patch"), triple(margin, "margin"))


def _segmentation(content: dict[str, Any]) -> Segmentation:
    """The options that the checkpoint was validated with, at its best threshold; the usual ones without validation."""
    validation = content.get("provenance", {}).get("validation")
    if not validation:
        return Segmentation()
    high = round(WATERSHED_HIGH / 255, 3)
    return Segmentation(high=high, basin_voxels=BASIN_VOXELS, threshold=float(validation["threshold"]))


def _recipe(content: dict[str, Any]) -> dict[str, Any]:
    return {"steps": int(content["step"]), **content.get("provenance", {})}


def _network(content: dict[str, Any], checkpoint: Path) -> tuple[Network, tuple[Triple, ...]]:
    """The checkpoint's network without its auxiliary channels, and the offsets of what is exported."""
    try:
        offsets = tuple(triple(offset, "offset") for offset in content["offsets"])
        form, state = content["network"], dict(content["state"])
        if offsets != INSIDE:
            if offsets[:KEPT_CHANNELS] != NEAREST:
                raise InvalidModel(f"{checkpoint}: expected nearest-neighbour channels first, got {offsets}")
            form = {**form, "config": {**form["config"], "out_channels": KEPT_CHANNELS}}
        network = build(read_config(**form))
        kept = network.state_dict()
        for key, value in state.items():
            if key in kept and value.ndim and len(value) == len(offsets):
                state[key] = value[: len(kept[key])]
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InvalidModel(f"{checkpoint}: the checkpoint does not describe its network ({error})") from error
    return network.eval(), NEAREST


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's traces: they hold source paths and make the file depend on where it was made."""
    del model.metadata_props[:]
    graph = model.graph
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]


def _synthetic_cells(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bright cells of random centres, darker where two centres are equally near, with noise."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, shape, (40, 3))
    position = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    distance, _ = cKDTree(centres).query(position, k=2)
    membrane = np.exp(-((distance[..., 1] - distance[..., 0]) ** 2) / 4)
    cells: NDArray[np.uint8] = np.clip(170 - 110 * membrane + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)
    return cells
