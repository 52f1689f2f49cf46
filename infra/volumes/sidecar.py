"""`FILE.json` beside a file whose format holds no metadata: the JSON document of `VolumeInfo`."""

from __future__ import annotations

import json

from infra.settings import Settings
from infra.volumes.info import VolumeInfo
from infra.volumes.location import Location
from infra.volumes.stores import Objects
from models.errors import InvalidVolume


def with_sidecar(info: VolumeInfo, location: Location, settings: Settings) -> VolumeInfo:
    """`info` completed by the sidecar, unchanged where there is none; raises `InvalidVolume` for a broken one."""
    beside = location.beside(".json")
    text = Objects(beside, settings).read()
    if text is None:
        return info
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidVolume(f"{beside}: expected JSON: {error}") from error
    return info.with_document(document, str(beside))


def write_sidecar(info: VolumeInfo, location: Location, settings: Settings) -> None:
    """Write the sidecar of the file at `location`."""
    Objects(location.beside(".json"), settings).write("", json.dumps(info.document(), indent=2).encode())


def delete_sidecar(location: Location, settings: Settings) -> None:
    """Delete the sidecar of the file at `location`, if there is one."""
    beside = Objects(location.beside(".json"), settings)
    if beside.read() is not None:
        beside.delete_all()
