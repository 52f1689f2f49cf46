"""Which volumes a request may name: only those below prefixes that the operator gave."""

from __future__ import annotations

import os
from collections.abc import Sequence

from infra.volumes.location import Location
from models.errors import AccessDenied, InvalidInput

MAX_URL = 2048


class Prefixes:
    """URL prefixes, below which volumes may be opened; `option` is how the operator allows more.

    Raises `InvalidInput` for a prefix that is no location.
    """

    def __init__(self, prefixes: Sequence[str], option: str) -> None:
        self._option = option
        self._allowed = [_resolved(Location.parse(prefix)) for prefix in prefixes]

    def resolve(self, url: str) -> str:
        """The URL of a volume below a prefix, with symbolic links resolved, ready for `open_volume`.

        Raises `AccessDenied` for everything else, `InvalidInput` for what is no URL. Links within a volume's own folder
        are followed: who can make them can write below the prefix anyway.
        """
        if len(url) > MAX_URL or any(ord(character) < 32 or ord(character) == 127 for character in url):
            raise InvalidInput(f"volume: expected a URL of at most {MAX_URL} printable characters, got {url[:100]!r}")
        if any(part in ("..", ".") for part in url.replace("\\", "/").split("/")):
            raise AccessDenied(f"volume {url[:100]!r}: a URL must not contain '.' or '..' as a part of its path")
        found = _resolved(Location.parse(url))
        for prefix in self._allowed:
            inside = prefix.path.rstrip("/") + "/"
            if found.scheme == prefix.scheme and (found.path == prefix.path or found.path.startswith(inside)):
                return str(found)
        raise AccessDenied(
            f"volume {url[:100]!r}: this server does not open it; its operator allows prefixes with {self._option}"
        )


def _resolved(location: Location) -> Location:
    if location.scheme != "file":
        return location
    return Location(location.scheme, os.path.realpath(location.path), location.format, location.member)
