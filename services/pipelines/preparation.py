"""Checks what `petavoxel segment` and its phases are asked for, and claims the output prefix; nothing is computed here.

`run.json` holds the whole run, so that later phases need nothing but the prefix. What a phase is asked to change, it
changes there; the keys of the stages then say what has to be computed again.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from infra.objects import Folder
from infra.runtimes.session import chosen_runtime
from infra.volumes import Volume, open_volume
from models.catalog import Model, find_model
from models.errors import InvalidInput, InvalidVolume, NotFound, RunConflict, StorageFailed
from models.geometry import Box, Triple, VoxelSize, triple
from services.pipelines.stage import inference_threads
from services.predict import Predictor
from services.run import Run, SegmentOptions, predict_key, stage_keys
from services.stages.pyramid import pyramid_factors


@dataclass(frozen=True)
class Request:
    """What `petavoxel segment` was asked for.

    `box` is in voxels of the image; `chunk` None lets the patch plan decide; `any_voxel_size` lets a network run on
    voxels that it was not trained for; `voxel_size_nm` supplies what the image does not say.
    """

    image: str
    out: str
    model: str
    options: SegmentOptions
    box: str | None = None
    chunk: Triple | None = None
    any_voxel_size: bool = False
    voxel_size_nm: VoxelSize | None = None


def prepare(request: Request) -> Run:
    """Check image, model and output prefix, and claim the prefix with `run.json`; nothing is computed yet.

    Raises `NotFound`, `InvalidVolume`, `InvalidModel` or `InvalidInput` for what cannot be used, `RunConflict` where
    the output prefix holds something else.
    """
    model = find_model(request.model)
    image = open_volume(request.image, voxel_size_nm=request.voxel_size_nm)
    voxel_size = _check_image(image, model, request.any_voxel_size)
    domain = Box.parse(request.box) if request.box else image.box
    if not image.box.contains(domain) or domain.size == 0:
        raise InvalidInput(f"box: expected voxels within the image's {image.box}, got {domain}")
    options, threads = request.options, inference_threads()
    predictor = Predictor(request.model, runtime=options.runtime, precision=options.precision, threads=threads)
    chunk_shape = triple(request.chunk or predictor.plan(image.info.shape).stride, "chunk", minimum=8)
    # Workers must compute what this machine would, so that "auto" cannot differ between them.
    resolved = {"runtime": chosen_runtime(options.runtime), "precision": predictor.session.precision}
    options = options.model_copy(update=resolved)
    source = {
        "image": image.url,
        "image_identity": image.identity(),
        "box": str(domain),
        "model": {"name": model.card.name, "version": model.card.version, "sha256": model.card.file.sha256},
        "patches": str(predictor.plan(image.info.shape)),
    }
    predict = predict_key(source, options, chunk_shape)
    keys = stage_keys(predict, options, pyramid_factors(domain.shape, voxel_size))
    run = Run(
        image=request.image,
        image_identity=image.identity(),
        out=Folder(request.out).url,
        model=str(model.folder),
        model_name=model.card.name,
        model_sha256=model.card.file.sha256,
        voxel_size_nm=voxel_size,
        offset_voxels=image.info.offset_voxels,
        volume_shape=image.info.shape,
        domain=domain,
        chunk_shape=chunk_shape,
        threads=threads,
        options=options,
        keys=keys,
    )
    description = {
        **source,
        **_described(run),
        "versions": {name: importlib.metadata.version(name) for name in ("petavoxel", "ray", "numpy", "openvino")},
    }
    _claim(run.folder, description)
    return run


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
            {**held["run"], "out": folder.url, "options": held["options"], "keys": held["keys"]}
        )
    except (KeyError, ValidationError) as error:
        raise StorageFailed(f"{folder.at('run.json')}: expected the description of a segmentation, {error}") from error


def changed_run(run: Run, options: SegmentOptions) -> Run:
    """The run with other options for the phases after prediction, and its description changed to them.

    Raises `InvalidInput` for options that would change the predictions.
    """
    if predicting(options) != predicting(run.options):
        raise InvalidInput("options: expected those of prediction as they are; predictions need a new OUT")
    split = pyramid_factors(run.domain.shape, run.voxel_size_nm)
    changed = replace(run, options=options, keys=stage_keys(run.keys["predict"], options, split))
    if changed.keys != run.keys:
        run.folder.remove("progress/complete.json")
        run.folder.write_json("run.json", {**run.folder.read_json("run.json"), **_described(changed)})
    return changed


def predicting(options: SegmentOptions) -> tuple[str, str, bool]:
    """The options that decide predictions."""
    return options.runtime, options.precision, options.augment


def _described(run: Run) -> dict[str, Any]:
    rest = TypeAdapter(Run).dump_python(run, mode="json", exclude={"out", "options", "keys"})
    return {
        "key": run.key,
        "keys": run.keys,
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
