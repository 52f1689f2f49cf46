"""OME-Zarr metadata, 0.4 for zarr 2 and 0.5 for zarr 3: where each level of a pyramid lies, in nanometres.

OME places the centres of voxels. A level that averages f voxels per axis therefore begins (f - 1) / 2 fine voxels
further on than the level it came from, though the corners of both coincide; Neuroglancer reads it the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.volumes.info import VolumeInfo, nearest_voxels
from models.errors import InvalidVolume
from models.geometry import Triple, VoxelSize

_NANOMETRES = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}
_Transform = tuple[list[float], list[float]]


def multiscale_of(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first multiscale image in a group's attributes, None where there is none."""
    holder = attributes.get("ome", attributes)
    multiscales = holder.get("multiscales") if isinstance(holder, Mapping) else None
    first = multiscales[0] if isinstance(multiscales, Sequence) and multiscales else None
    return first if isinstance(first, Mapping) and first.get("datasets") else None


def axis_names(multiscale: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the image's axes; before OME-Zarr 0.3 they were always t, c, z, y, x."""
    return tuple(str(axis.get("name")) for axis in _axes(multiscale))


def placement(multiscale: Mapping[str, Any], level: int, url: str) -> dict[str, Any]:
    """`voxel_size_nm` and `offset_voxels` of a level; empty where the axes have no units of length."""
    axes = _axes(multiscale)
    spatial = axes[-3:]
    if not all(axis.get("unit") in _NANOMETRES for axis in spatial):
        return {}
    units = [_NANOMETRES[str(axis["unit"])] for axis in spatial]
    size, shift = _transform(multiscale, level, len(axes), url)
    first_size, _ = _transform(multiscale, 0, len(axes), url)
    z, y, x = (s * u for s, u in zip(size[-3:], units, strict=True))
    corner = [(t - (s - s0) / 2) * u for t, s, s0, u in zip(shift[-3:], size[-3:], first_size[-3:], units, strict=True)]
    voxel_size: VoxelSize = (z, y, x)
    return {"voxel_size_nm": voxel_size, "offset_voxels": nearest_voxels(corner, voxel_size, url)}


def ome_attributes(
    info: VolumeInfo, factors: Sequence[Triple], paths: Sequence[str], name: str, *, zarr_version: int
) -> dict[str, Any]:
    """Attributes of a pyramid's group: `factors` of each level against the finest, whose info is `info`, at `paths`."""
    unit = {} if info.voxel_size_nm is None else {"unit": "nanometer"}
    channel = [] if info.channels is None else [{"name": "c", "type": "channel"}]
    finest = info.voxel_size_nm or (1.0, 1.0, 1.0)
    datasets = []
    for factor, path in zip(factors, paths, strict=True):
        size = [s * f for s, f in zip(finest, factor, strict=True)]
        shift = [o * s + (f - 1) / 2 * s for o, s, f in zip(info.offset_voxels, finest, factor, strict=True)]
        transforms = [
            {"type": "scale", "scale": [1.0] * len(channel) + size},
            {"type": "translation", "translation": [0.0] * len(channel) + shift},
        ]
        datasets.append({"path": path, "coordinateTransformations": transforms})
    multiscale = {
        "name": name,
        "axes": [*channel, *({"name": axis, "type": "space", **unit} for axis in "zyx")],
        "datasets": datasets,
    }
    if zarr_version == 2:
        return {"multiscales": [{"version": "0.4", **multiscale}]}
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}}


def _axes(multiscale: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    axes = multiscale.get("axes") or ["t", "c", "z", "y", "x"]
    return [axis if isinstance(axis, Mapping) else {"name": str(axis)} for axis in axes]


def _transform(multiscale: Mapping[str, Any], level: int, rank: int, url: str) -> _Transform:
    """Scale and translation of a level, the image's own transforms applied after the level's."""
    scale, shift = [1.0] * rank, [0.0] * rank
    steps = [
        *multiscale["datasets"][level].get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ]
    for step in steps:
        kind = step.get("type")
        values = [float(value) for value in step.get(kind, ())]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or len(values) != rank:
            raise InvalidVolume(f"{url}: expected scale and translation of {rank} axes, got the transform {step}")
        if kind == "scale":
            scale = [s * v for s, v in zip(scale, values, strict=True)]
            shift = [t * v for t, v in zip(shift, values, strict=True)]
        else:
            shift = [t + v for t, v in zip(shift, values, strict=True)]
    return scale, shift
