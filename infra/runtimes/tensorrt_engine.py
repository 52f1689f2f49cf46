"""From ONNX to a TensorRT engine, and the folder that keeps engines.

An engine fits one GPU, one version of TensorRT, one network, one precision and one range of shapes; its file name is a
digest of all of them. Building takes from seconds to minutes, so engines are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from infra.runtimes.typed_onnx import typed_onnx
from models.errors import InvalidModel, RuntimeUnavailable
from models.geometry import Triple

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """Shapes an engine takes: extents from `smallest` to `largest`, tuned for `largest`; batches up to `batch`."""

    smallest: Triple
    largest: Triple
    batch: int


def build_engine(
    module: ModuleType,
    onnx_path: Path,
    *,
    precision: str,
    profile: Profile,
    compute_capability: str | None = None,
) -> bytes:
    """Build a serialised engine with `tensorrt` or `tensorrt_rtx`.

    Parameters
    ----------
    module
        From `infra.runtimes.tensorrt_modules.load`.
    precision
        "fp32" (without TF32), "bf16" or "fp16".
    compute_capability
        With TensorRT-RTX, the GPU to build for, as in "SM120"; default the GPU of this machine.

    Raises `InvalidModel` where the network cannot be parsed, `RuntimeUnavailable` where no engine can be built.
    """
    trt: Any = module
    messages: list[str] = []
    builder = trt.Builder(_collector(trt, messages))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(typed_onnx(onnx_path, precision)):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise InvalidModel(f"{onnx_path}: TensorRT cannot parse the network ({errors})")
    config = builder.create_builder_config()
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if compute_capability is not None:
        _target(trt, config, compute_capability)
    shapes = builder.create_optimization_profile()
    largest = (profile.batch, 1, *profile.largest)
    shapes.set_shape(network.get_input(0).name, min=(1, 1, *profile.smallest), opt=largest, max=largest)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeUnavailable(f"TensorRT: no engine for {onnx_path} in {precision} ({_last(messages)})")
    return bytes(engine)


def cached_engine(folder: Path, key: dict[str, Any], build: Callable[[], bytes]) -> bytes:
    """Return the engine that `key` describes from `folder`, or build and keep it.

    A file carries its SHA-256 in front, so a damaged one is built anew. Where it cannot be kept, a warning says so.
    """
    text = json.dumps(key, sort_keys=True, default=asdict)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.engine"
    if path.is_file():
        content = path.read_bytes()
        digest, engine = content[:32], content[32:]
        if hashlib.sha256(engine).digest() == digest:
            return engine
        logger.warning("engine %s is damaged and is built anew", path)
    engine = build()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as stream:
            stream.write(hashlib.sha256(engine).digest() + engine)
        os.replace(stream.name, path)
    except OSError as error:
        logger.warning("engine %s cannot be kept and will be built again: %s", path, error)
        return engine
    logger.info("engine %s kept for %s", path, text)
    return engine


def engine_folder() -> Path:
    """Where engines are kept: `petavoxel/engines` in the user's cache folder (`XDG_CACHE_HOME`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "petavoxel" / "engines"


def _target(trt: Any, config: Any, compute_capability: str) -> None:
    known = getattr(trt, "ComputeCapability", None)
    target = getattr(known, compute_capability, None)
    if target is None:
        raise RuntimeUnavailable(f"TensorRT: this module cannot build for another GPU ({compute_capability})")
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)


def collect_messages(trt: Any) -> tuple[Any, list[str]]:
    """A TensorRT logger, and the list that its warnings and errors go to."""
    messages: list[str] = []
    return _collector(trt, messages), messages


def _collector(trt: Any, messages: list[str]) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)
            logger.debug("TensorRT: %s", message)

    return Collector()


def _last(messages: list[str]) -> str:
    return messages[-1] if messages else "no reason given"
