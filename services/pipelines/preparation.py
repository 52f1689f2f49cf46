"""Checks what `petavoxel segment` and its phases are asked for, and claims the output prefix; nothing is computed here.

`run.json` holds the whole run, so that later phases need nothing but the prefix. What a phase is asked to change, it
changes there; the keys of the stages then say what has to be computed again.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError

from infra.cluster import largest_memory
from infra.objects import Folder
from infra.planner import PatchPlan
from infra.registry import fetch, locate
from infra.volumes import Volume, open_volume
from models.catalog import Model
from models.errors import InvalidInput, InvalidVolume, NotFound, RunConflict, RuntimeUnavailable, StorageFailed
from models.geometry import Box, Triple, VoxelSize, triple
from services.engine import Wanted, find_engine
from services.pipelines.stage import inference_threads
from services.predict import patch_plan
from services.run import Engine, Run, SegmentOptions, finished_with, predict_key, stage_keys
from services.stages.pyramid import pyramid_factors

logger = logging.getLogger(__name__)

ROOT_BYTES_PER_VOXEL = 62
"""Memory of the octree's root per voxel of `Octree.root_faces`: 0.39 edges of small basins of 160 bytes on FIB-25."""

Finder = Callable[[Wanted], Engine]


@dataclass(frozen=True)
class Request:
    """What `petavoxel segment` was asked for.

    `box` is in voxels of the image; `chunk` None lets the patch plan decide; `any_voxel_size` lets a network run on
    voxels that it was not trained for; `voxel_size_nm` supplies what the image does not say; `endpoints` names the
    application of running endpoints that predict, None for workers of the run's own.
    """

    image: str
    out: str
    model: str
    options: SegmentOptions
    box: str | None = None
    chunk: Triple | None = None
    any_voxel_size: bool = False
    voxel_size_nm: VoxelSize | None = None
    endpoints: str | None = None


@dataclass(frozen=True)
class Checked:
    """A request whose image, model and box fit each other; `reference` is what workers find the model by.

    `options` are the request's, and those of the model's card where it has none.
    """

    request: Request
    options: SegmentOptions
    reference: str
    model: Model
    image: Volume
    voxel_size: VoxelSize
    domain: Box
    plan: PatchPlan
    chunk_shape: Triple


def check(request: Request) -> Checked:
    """Check image, model and box; so that mistakes end before a cluster is joined.

    Raises `NotFound`, `InvalidVolume`, `InvalidModel`, `InvalidConfig` or `InvalidInput` for what cannot be used.
    """
    reference = locate(request.model)
    model = fetch(reference)
    image = open_volume(request.image, voxel_size_nm=request.voxel_size_nm)
    voxel_size = _check_image(image, model, request.any_voxel_size)
    domain = Box.parse(request.box) if request.box else image.box
    if not image.box.contains(domain) or domain.size == 0:
        raise InvalidInput(f"box: expected voxels within the image's {image.box}, got {domain}")
    plan = patch_plan(model.card, image.info.shape)
    chunk_shape = triple(request.chunk or plan.stride, "chunk", minimum=8)
    options = request.options.completed(model.card)
    return Checked(request, options, reference, model, image, voxel_size, domain, plan, chunk_shape)


def prepare(checked: Checked, *, predictions_only: bool = False) -> Run:
    """Check the output prefix, and claim it with `run.json`; nothing is computed yet.

    With `predictions_only` a prefix that holds the same predictions fits, whatever its options for later phases: the
    run has those.

    On a cluster its workers are asked for their runtime; see `services.engine`. Raises `RuntimeUnavailable` where no
    worker has the runtime, `RunConflict` where the output prefix holds something else, or was begun with another
    runtime, `StorageFailed` where what it holds is damaged.
    """
    request, model, image = checked.request, checked.model, checked.image
    domain, chunk_shape = checked.domain, checked.chunk_shape
    folder, options, threads = Folder(request.out), checked.options, inference_threads()
    wanted = Wanted(checked.reference, options.runtime, options.precision, threads)
    engine = _engine(folder, wanted, _finder(request.endpoints, model))
    source = {
        "image": image.url,
        "image_identity": image.identity(),
        "box": str(domain),
        "model": {"name": model.card.name, "version": model.card.version, "sha256": model.card.file.sha256},
        "patches": str(checked.plan),
    }
    predict = predict_key(source, engine, options.augment, chunk_shape)
    keys = stage_keys(predict, options, pyramid_factors(domain.shape, checked.voxel_size))
    run = Run(
        image=image.url,
        image_identity=image.identity(),
        out=folder.url,
        model=checked.reference,
        model_name=model.card.name,
        model_sha256=model.card.file.sha256,
        voxel_size_nm=checked.voxel_size,
        offset_voxels=image.info.offset_voxels,
        volume_shape=image.info.shape,
        domain=domain,
        chunk_shape=chunk_shape,
        threads=threads,
        engine=engine,
        options=options,
        keys=keys,
        endpoints=request.endpoints,
    )
    if predictions_only:
        run = _as_held(run)
    description = {
        **source,
        **_described(run),
        "versions": {name: importlib.metadata.version(name) for name in ("petavoxel", "ray", "numpy", "openvino")},
    }
    _claim(run.folder, description)
    if ray.is_initialized():
        _warn_of_root(run, largest_memory())
    return run


def _warn_of_root(run: Run, memory: float) -> None:
    """Say, before the work of days, that its last step may find no room."""
    needed = ROOT_BYTES_PER_VOXEL * run.octree.root_faces
    if needed > memory:
        logger.warning(
            "%s: agglomerating %s voxels will take about %.0f GB in one worker, by experience with FIB-25; the "
            "cluster's largest node has %.0f GB for workers. Predictions and supervoxels need no such node, so one "
            "may join for `petavoxel agglomerate` alone, or --box may choose a part",
            run.folder.url,
            "×".join(map(str, run.domain.shape)),
            needed / 1e9,
            memory / 1e9,
        )


def _finder(endpoints: str | None, model: Model) -> Finder:
    """Who is asked for the engine: the cluster's workers, or endpoints."""
    if endpoints is None:
        return find_engine
    from services.served import ServedModel  # with Serve and FastAPI behind it

    def ask(wanted: Wanted) -> Engine:
        found = ServedModel.find(endpoints, model.card).asked_engine()
        if wanted.runtime not in ("auto", found.runtime) or wanted.precision not in ("auto", found.precision):
            raise RuntimeUnavailable(
                f"endpoints {endpoints}: expected {wanted.runtime} in {wanted.precision}, they have {found}"
            )
        return found

    return ask


def _engine(folder: Folder, wanted: Wanted, find: Finder) -> Engine:
    """What computes the predictions: that of the run which the prefix holds, where it is still to be had, or anew."""
    held = folder.read_json("run.json") if folder.exists("run.json") else {}
    if "engine" not in held:
        return find(wanted)
    try:
        begun = TypeAdapter(Engine).validate_python(held["engine"])
        key = held["keys"]["predict"]
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(folder, error) from error
    if wanted.runtime not in ("auto", begun.runtime) or wanted.precision not in ("auto", begun.precision):
        return find(wanted)  # another run, by what is asked; the claim says so
    if finished_with(folder, "predict") == key:
        return begun  # nothing is predicted any more
    asked = replace(wanted, runtime=begun.runtime, precision=begun.precision)
    try:
        found = find(asked)
    except RuntimeUnavailable as error:
        raise RunConflict(f"{folder.url}: its predictions were begun with {begun}; {error}") from error
    if not begun.same(found):
        raise RunConflict(
            f"{folder.url}: its predictions were begun with {begun}, the workers have {found}; one run never mixes "
            "them. Go on where it was begun, or choose another OUT"
        )
    if wanted.runtime == "auto":
        logger.info("%s: goes on with %s, as it was begun", folder.url, begun)
    return begun


def opened_run(out: str) -> Run:
    """The run that a prefix holds.

    Raises `NotFound` where there is none, `StorageFailed` where its description is damaged.
    """
    folder = Folder(out)
    if not folder.exists("run.json"):
        raise NotFound(f"{folder.url}: expected the output prefix of a run, there is no run.json")
    held = folder.read_json("run.json")
    try:
        return TypeAdapter(Run).validate_python(
            {**held["run"], "out": folder.url, **{name: held[name] for name in ("engine", "options", "keys")}}
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Folder, error: Exception) -> StorageFailed:
    return StorageFailed(f"{folder.at('run.json')}: expected the description of a segmentation, {error}")


def changed_run(run: Run, options: SegmentOptions) -> Run:
    """The run with other options for the phases after prediction; its prefix knows nothing of it before `hold`.

    Raises `InvalidInput` for options that would change the predictions.
    """
    if predicting(options) != predicting(run.options):
        raise InvalidInput("options: expected those of prediction as they are; predictions need a new OUT")
    split = pyramid_factors(run.domain.shape, run.voxel_size_nm)
    return replace(run, options=options, keys=stage_keys(run.keys["predict"], options, split))


def hold(run: Run) -> Run:
    """Change the description in the run's prefix to this run; returns the run."""
    held = run.folder.read_json("run.json")
    if held["keys"] != run.keys:
        run.folder.delete(["progress/complete.json"])
        run.folder.write_json("run.json", {**held, **_described(run)})
    return run


def predicting(options: SegmentOptions) -> tuple[str, str, bool]:
    """The options that decide predictions."""
    return options.runtime, options.precision, options.augment


def _described(run: Run) -> dict[str, Any]:
    rest = TypeAdapter(Run).dump_python(run, mode="json", exclude={"out", "engine", "options", "keys", "endpoints"})
    return {
        "key": run.key,
        "keys": run.keys,
        "engine": asdict(run.engine),
        "options": run.options.model_dump(mode="json"),
        "voxel_size_nm": list(run.voxel_size_nm),
        "offset_voxels": list(run.offset_voxels),
        "chunk_shape": list(run.chunk_shape),
        "run": rest,
    }


def _check_image(image: Volume, model: Model, any_voxel_size: bool) -> VoxelSize:
    info = image.info
    if info.channels is not None:
        raise InvalidVolume(f"{image.url}: expected an image (z, y, x), got {info.channels} channels")
    model.card.normalisation.check_dtype(info.dtype)
    if info.voxel_size_nm is None:
        raise InvalidVolume(
            f"{image.url}: its voxel size is not known; say it with --voxel-size, "
            f"the model {model.card.name} was trained for {model.card.voxel_size_nm} nm"
        )
    if not any_voxel_size:
        model.card.check_voxel_size(info.voxel_size_nm)
    return info.voxel_size_nm


def _as_held(run: Run) -> Run:
    """The run with the options of later phases that its prefix holds, where that holds the same predictions."""
    held = run.folder.read_json("run.json") if run.folder.exists("run.json") else {}
    if (held.get("keys") or {}).get("predict") != run.keys["predict"]:
        return run
    found = opened_run(run.out)
    return replace(run, options=found.options, keys=found.keys)


def _claim(folder: Folder, description: dict[str, Any]) -> None:
    if not folder.exists("run.json"):
        if folder.occupied():
            raise RunConflict(f"{folder.url}: expected an empty output prefix or one of a run, there is something else")
        folder.write_json("run.json", description)
        return
    held = folder.read_json("run.json")
    if held.get("key") == description["key"]:
        return
    hint = "Choose another OUT, or delete this one"
    if (held.get("keys") or {}).get("predict") == description["keys"]["predict"]:
        hint = "Its predictions fit: change the rest with petavoxel watershed, agglomerate and relabel"
    compared = [name for name in description if name not in ("key", "keys", "versions", "run")]
    different = [name for name in compared if held.get(name) != description[name]]
    raise RunConflict(f"{folder.url}: holds another run; different: {', '.join(different) or 'the pipeline'}. {hint}")
