"""JSON bodies of requests and replies."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from models.catalog import ModelCard, Segmentation
from models.errors import InvalidInput, InvalidModel
from models.geometry import Triple, VoxelSize

VoxelSizeNm = tuple[
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
]


class Reference(BaseModel):
    """A box of a stored volume, as the body of `POST /v1/boundary`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"volume": "gs://bucket/em.zarr", "box": "0:64,0:64,0:64"}]},
    )

    volume: Annotated[str, Field(min_length=1, description="URL of an image (z, y, x) below an allowed prefix.")]
    box: Annotated[str, Field(max_length=200, description="z0:z1,y0:y1,x0:x1 in voxels, half-open.")]
    model: Annotated[str | None, Field(description="Name of a model; default the server's first.")] = None
    version: Annotated[str | None, Field(description="Version of the model; default the highest.")] = None
    level: Annotated[int, Field(ge=0, le=63, description="Level of a pyramid, 0 the finest.")] = 0
    voxel_size_nm: Annotated[VoxelSizeNm | None, Field(description="z, y, x; if the volume has none.")] = None
    any_voxel_size: Annotated[bool, Field(description="Accept voxels unlike the training's.")] = False
    output: Annotated[
        str | None, Field(description="URL below an allowed prefix, where a volume is made from the result.")
    ] = None


class SegmentSettings(BaseModel):
    """How affinities become segments: the options of `petavoxel segment`, those of the model's card where not given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Annotated[float | None, Field(ge=0, le=1, description="Affinity up to which voxels stay apart.")] = None
    high: Annotated[float | None, Field(ge=0, le=1.004, description="Affinity from which voxels always join.")] = None
    basin_voxels: Annotated[
        int | None, Field(ge=0, lt=2**53, description="Basins below this size join a neighbour.")
    ] = None
    basin_affinity: Annotated[float | None, Field(ge=0, le=1, description="Affinity that such a neighbour needs.")] = (
        None
    )
    threshold: Annotated[float | None, Field(ge=0, le=1, description="Mean affinity down to which segments merge.")] = (
        None
    )

    def completed(self, card: ModelCard) -> Segmentation:
        """What is given, and the card's options else; raises `InvalidInput` where they do not fit each other."""
        given = {name: getattr(self, name) for name in SegmentSettings.model_fields}
        try:
            return replace(card.segmentation, **{name: value for name, value in given.items() if value is not None})
        except InvalidModel as error:
            raise InvalidInput(str(error)) from error


class SegmentReference(Reference, SegmentSettings):
    """A box of a stored volume to segment, as the body of `POST /v1/segment`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"volume": "gs://bucket/em.zarr", "box": "0:64,0:64,0:64", "threshold": 0.3}]},
    )


class Written(BaseModel):
    """The reply when the result was written to a volume; labels have no offsets."""

    output: str
    box: str
    shape: tuple[int, ...]
    dtype: str
    offsets: tuple[Triple, ...] | None
    anchor: str | None
    voxel_size_nm: VoxelSize | None
    model: str
    version: str
    sha256: str
    precision: str


class ModelInfo(BaseModel):
    """What a model expects and returns, from its card."""

    name: str
    version: str
    sha256: str
    architecture: str
    input_dtype: str
    input_axes: str
    output_kind: str
    output_dtype: str
    output_axes: str
    offsets: tuple[Triple, ...]
    anchor: str
    voxel_size_nm: VoxelSize
    patch_shape: Triple
    training_data: str
    training_terms: str
    scores: tuple[dict[str, Any], ...]
    segmentation: dict[str, float]

    @classmethod
    def of(cls, card: ModelCard) -> ModelInfo:
        """The public part of a card."""
        return cls(
            name=card.name,
            version=card.version,
            sha256=card.file.sha256,
            architecture=card.architecture.family,
            input_dtype=card.normalisation.dtype,
            input_axes=card.axes,
            output_kind=card.output.kind,
            output_dtype="uint8",
            output_axes=f"c{card.axes}",
            offsets=card.output.offsets,
            anchor=card.output.anchor,
            voxel_size_nm=card.voxel_size_nm,
            patch_shape=card.patch.shape,
            training_data=card.training.data,
            training_terms=card.training.terms,
            scores=tuple({"dataset": s.dataset, "split": s.split, "values": s.values} for s in card.scores),
            segmentation=asdict(card.segmentation),
        )


class ModelList(BaseModel):
    """Models that the server holds; the first is the default."""

    models: tuple[ModelInfo, ...]


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """Replicas that run, by deployment; those of `models` have run their first models once."""

    status: str
    replicas: dict[str, int]
