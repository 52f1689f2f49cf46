"""One run of a pipeline: what goes in, where it comes out, and what decides each stage's output.

A `Run` travels to every worker, so it holds descriptions only: URLs, boxes, options.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.ledger import Ledger, digest
from infra.objects import Folder
from infra.volumes import Volume, open_volume
from models.catalog import ModelCard, Segmentation
from models.errors import InvalidConfig
from models.geometry import Box, Chunk, ChunkGrid, Triple, VoxelSize
from models.octree import Octree
from services.stages.skeletonize import SkeletonOptions

Fraction = Annotated[float, Field(ge=0, le=1)]
Group = TypeVar("Group", bound=BaseModel)
_USUAL = Segmentation()


class WatershedOptions(BaseModel):
    """Affinities, 0 to 1, up to which voxels stay apart (`low`) and from which they always join (`high`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: Fraction = _USUAL.low
    high: Annotated[float, Field(ge=0, le=1.004)] = _USUAL.high

    @model_validator(mode="after")
    def _ordered(self) -> WatershedOptions:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} and {self.high}")
        return self


class AgglomerationOptions(BaseModel):
    """How supervoxels become segments.

    Basins below `basin_voxels` join their neighbour of largest affinity if that is at least `basin_affinity`; then
    pairs merge in the order of their mean affinity down to `threshold`. The merge tree goes down to `tree_floor`, or to
    the threshold if that is lower, so that every threshold from there on is a cut through it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    basin_voxels: Annotated[int, Field(ge=0)] = _USUAL.basin_voxels
    basin_affinity: Fraction = _USUAL.basin_affinity
    threshold: Fraction = _USUAL.threshold
    tree_floor: Fraction = 0.1

    @property
    def floor(self) -> float:
        """Mean affinity down to which the merge tree is made."""
        return min(self.tree_floor, self.threshold)


class SegmentOptions(BaseModel):
    """Everything besides image and model that decides the result of `petavoxel segment`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    runtime: Literal["auto", "openvino", "tensorrt", "torch"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    augment: bool = False
    watershed: WatershedOptions = WatershedOptions()
    agglomeration: AgglomerationOptions = AgglomerationOptions()
    skeletons: SkeletonOptions | None = SkeletonOptions()

    def completed(self, card: ModelCard) -> SegmentOptions:
        """These options, and those of the model's card where none were given.

        Raises `InvalidConfig` where they do not fit each other.
        """
        chosen = asdict(card.segmentation)
        try:
            groups = {
                "watershed": _filled(self.watershed, chosen),
                "agglomeration": _filled(self.agglomeration, chosen),
            }
        except ValidationError as error:
            wrong = "; ".join(found["msg"] for found in error.errors())
            raise InvalidConfig(f"options, beside those of the model {card.name}: {wrong}") from error
        return self.model_copy(update=groups)


def _filled(options: Group, chosen: dict[str, Any]) -> Group:
    """`options` with what is chosen where nothing was given."""
    missing = type(options).model_fields.keys() - options.model_fields_set
    values = {**options.model_dump(), **{name: value for name, value in chosen.items() if name in missing}}
    return type(options).model_validate(values)


@dataclass(frozen=True)
class Engine:
    """What computes a run's predictions: decided once, where the workers are, and kept to the end.

    Engines round differently, so runtime, precision and name are part of the predictions' key. `name` has the version,
    and for a GPU its kind, since kernels are chosen for it. `gpu` says whether workers need one; `device` is where it
    was looked at, and decides nothing.
    """

    runtime: Literal["openvino", "tensorrt", "torch"]
    precision: str
    name: str
    gpu: bool
    device: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.precision}"

    def same(self, other: Engine) -> bool:
        """Whether the other one rounds as this one does."""
        return (self.runtime, self.precision, self.name) == (other.runtime, other.precision, other.name)


LAST = {"predict": "predict", "watershed": "region_graph", "agglomerate": "cut", "relabel": "skeletonize"}
"""The last stage of each phase; its key is that of what the phase leaves."""


def finished_with(folder: Folder, phase: str) -> str | None:
    """The key that a phase of the run in `folder` last finished with; None: never, "": it is being done again."""
    marker = f"progress/phases/{phase}.json"
    return str(folder.read_json(marker).get("key", "")) if folder.exists(marker) else None


@dataclass(frozen=True)
class Run:
    """A segmentation run; picklable.

    `options` are what was asked for, `engine` is what "auto" became. `endpoints` names the application of running
    endpoints that predict, None where workers do. `domain` is the box that is segmented, in voxels of the image; arrays
    of the run begin at its start. `keys` holds per stage the digest of all that decides its output.
    """

    image: str
    image_identity: str
    out: str
    model: str
    model_name: str
    model_sha256: str
    voxel_size_nm: VoxelSize
    offset_voxels: Triple
    volume_shape: Triple
    domain: Box
    chunk_shape: Triple
    threads: int
    engine: Engine
    options: SegmentOptions
    keys: dict[str, str]
    endpoints: str | None = None

    @property
    def key(self) -> str:
        """A digest of everything that decides the result."""
        return digest("segment", self.keys)

    def phase_key(self, phase: str) -> str:
        """The key of what a phase leaves: that of its last stage."""
        return self.keys[LAST[phase]]

    @property
    def folder(self) -> Folder:
        """The output prefix."""
        return Folder(self.out)

    def work(self, phase: str) -> Folder:
        """What only a running phase needs; removed when the phase has finished."""
        return self.folder / "work" / phase

    @property
    def grid(self) -> ChunkGrid:
        """The chunks, in voxels of the image."""
        return ChunkGrid(self.domain, self.chunk_shape)

    def local(self, box: Box) -> Box:
        """A box of the image in coordinates of the run's arrays."""
        z, y, x = self.domain.start
        return box.shifted((-z, -y, -x))

    def volume(self, name: str, *, writable: bool = False, level: int = 0) -> Volume:
        """Open an array of this run."""
        return open_volume(self.folder.at(name), "r+" if writable else "r", level=level)

    @property
    def octree(self) -> Octree:
        """The tree over the chunks in which seams are closed and segments merge."""
        return Octree(self.grid)

    def ledger(self, stage: str, part: str = "") -> Ledger:
        """The markers of a stage, or of one part of it: a way through the octree at one level."""
        name = f"{stage}_{part}" if part else stage
        return Ledger(self.folder, name, self.keys[stage], self.made_from(stage))

    def made_from(self, stage: str) -> dict[str, Any]:
        """In words, what `keys[stage]` is a digest of: input, model, and the options of this and all earlier stages."""
        options = self.options
        agglomeration = options.agglomeration
        decided: dict[str, dict[str, Any]] = {
            "predict": {
                "image": self.image_identity,
                "model_sha256": self.model_sha256,
                "box": str(self.domain),
                "chunk": list(self.chunk_shape),
                "runtime": self.engine.runtime,
                "precision": self.engine.precision,
                "engine": self.engine.name,
                "augment": options.augment,
            },
            "watershed": {f"watershed.{name}": value for name, value in options.watershed.model_dump().items()},
            "basins": {
                "agglomeration.basin_voxels": agglomeration.basin_voxels,
                "agglomeration.basin_affinity": agglomeration.basin_affinity,
            },
            "merges": {"agglomeration.floor": agglomeration.floor},
            "cut": {"agglomeration.threshold": agglomeration.threshold},
        }
        last = {"seams": "watershed", "region_graph": "watershed"}.get(stage, stage)
        names = list(decided)
        facts: dict[str, Any] = {}
        for name in names[: names.index(last) + 1] if last in names else names:
            facts |= decided[name]
        if stage == "skeletonize" and options.skeletons is not None:
            facts |= {f"skeletons.{name}": value for name, value in options.skeletons.model_dump(mode="json").items()}
        return facts

    def storage_chunk(self) -> Triple:
        """Extent of the pieces that arrays are stored in: it divides the chunk, so no two workers share a piece."""
        z, y, x = (_piece(extent) for extent in self.chunk_shape)
        return z, y, x


def predict_key(source: dict[str, Any], engine: Engine, augment: bool, chunk_shape: Triple) -> str:
    """Key of the predictions; `source` describes image, box and model."""
    return digest("predict", source, engine.runtime, engine.precision, engine.name, augment, chunk_shape)


def stage_keys(predict: str, options: SegmentOptions, split: tuple[Triple, ...]) -> dict[str, str]:
    """Keys of the stages, each from its own options and the keys of the stages before it.

    `predict` is the key of the predictions; `split` the pyramid's factors.
    """
    watershed = digest("watershed", predict, options.watershed.model_dump())
    agglomeration = options.agglomeration
    basins = digest("basins", watershed, agglomeration.basin_voxels, agglomeration.basin_affinity)
    merges = digest("merges", basins, agglomeration.floor)
    seams = digest("seams", watershed)
    cut = digest("cut", merges, agglomeration.threshold)
    skeletons = options.skeletons.model_dump() if options.skeletons else None
    keys = {
        "predict": predict,
        "watershed": watershed,
        "seams": seams,
        "region_graph": digest("region_graph", seams),
        "basins": basins,
        "merges": merges,
        "cut": cut,
        "relabel": digest("relabel", cut),
        "skeletonize": digest("skeletonize", cut, skeletons),
    }
    for level in range(1, len(split) + 1):
        keys[f"pyramid_{level}"] = digest("pyramid", cut, split[:level])
    return keys


def chunk_before(grid: ChunkGrid, chunk: Chunk, axis: int) -> Chunk | None:
    """The neighbour across the chunk's lower face on `axis`, None at the grid's edge."""
    if chunk.index[axis] == 0:
        return None
    index = list(chunk.index)
    index[axis] -= 1
    return grid.chunk((index[0], index[1], index[2]))


def _piece(extent: int) -> int:
    if extent <= 64:
        return extent
    divisors = [d for d in range(16, 65) if extent % d == 0]
    return divisors[-1] if divisors else extent
