"""Reads volume URLs: which store, which path, which format, which dataset inside a file.

::

    [FORMAT://][file://|gs://|s3://|memory://]PATH[:MEMBER]

FORMAT is zarr, zarr2, zarr3 or precomputed and is only needed where the name does not say it; MEMBER is the dataset of
an HDF5 file or the key of an .npz.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import InvalidInput

Scheme = Literal["file", "gs", "s3", "memory"]

_FORMAT = re.compile(r"^(zarr|zarr2|zarr3|precomputed)://(.*)$", re.DOTALL)
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)$", re.DOTALL)
_MEMBER = re.compile(r"^(.*\.(?:h5|hdf5|hdf|npz)):(.+)$", re.DOTALL | re.IGNORECASE)
_SCHEMES: dict[str, Scheme] = {"file": "file", "gs": "gs", "gcs": "gs", "s3": "s3", "memory": "memory"}
_SUFFIXES = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".npy": "npy",
    ".npz": "npz",
}


@dataclass(frozen=True)
class Location:
    """Where a volume lies: `path` is an absolute local path, or bucket/key without a trailing slash."""

    scheme: Scheme
    path: str
    format: str | None = None
    member: str | None = None

    @classmethod
    def parse(cls, url: str | os.PathLike[str]) -> Location:
        """Read a URL or local path; raises `InvalidInput` where the scheme is unknown or the path is missing."""
        text = given = os.fspath(url)
        prefix = _FORMAT.match(text)
        explicit = prefix.group(1) if prefix else None
        text = prefix.group(2) if prefix else text
        matched = _SCHEME.match(text)
        name = matched.group(1).lower() if matched else "file"
        if name not in _SCHEMES:
            raise InvalidInput(f"{given}: expected a local path, file://, gs://, s3:// or memory://, got {name}://")
        scheme = _SCHEMES[name]
        path = matched.group(2) if matched else text
        inside = _MEMBER.match(path)
        member = inside.group(2) if inside else None
        path = inside.group(1) if inside else path
        if scheme != "file":
            path = path.strip("/")
        if not path:
            raise InvalidInput(f"{given!r}: expected a path of a volume")
        if scheme == "file":
            path = os.path.abspath(path)
        return cls(scheme, path, explicit or _format_of(path), member)

    def __str__(self) -> str:
        """A URL that parses to this location from any working directory."""
        store = self.path if self.scheme == "file" else f"{self.scheme}://{self.path}"
        by_name = self.format is None or self.format == _format_of(self.path)
        return f"{'' if by_name else f'{self.format}://'}{store}{f':{self.member}' if self.member else ''}"

    def beside(self, suffix: str) -> Location:
        """The location whose path has `suffix` appended."""
        return Location(self.scheme, self.path + suffix)

    def child(self, name: str) -> Location:
        """The location `name` below this one, of the same format."""
        return Location(self.scheme, f"{self.path}/{name.strip('/')}", self.format)


def _format_of(path: str) -> str | None:
    suffix = Path(path).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    return "zarr" if any(part.lower().endswith(".zarr") for part in path.split("/")) else None
