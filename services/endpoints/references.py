"""Which volumes a request may name: only those below prefixes that the operator gave."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from infra.volumes.location import Location
from models.errors import AccessDenied, InvalidInput

MAX_URL = 2048
MAX_ENTRIES = 200_000
"""Files of one local volume that are looked through for links: about a second."""
CHECKED_S = 60.0
"""For how long a folder that held no bad link is not looked through again."""


class Prefixes:
    """URL prefixes, below which volumes may be opened; `option` is how the operator allows more.

    Only paths and buckets can be named at all (see `infra.volumes.location`): no URL leads to another host.
    Raises `InvalidInput` for a prefix that is no location.
    """

    def __init__(self, prefixes: Sequence[str], option: str) -> None:
        self._option = option
        self._allowed = [_resolved(Location.parse(prefix)) for prefix in prefixes]
        self._checked: dict[str, float] = {}

    def resolve(self, url: str) -> str:
        """The URL of a volume below a prefix, with symbolic links resolved, ready for `open_volume`.

        Raises `AccessDenied` for everything else, also for a local volume with a link in it that leads out of the
        prefixes, or with too many files to look for one; `InvalidInput` for what is no URL.
        """
        if len(url) > MAX_URL or any(ord(character) < 32 or ord(character) == 127 for character in url):
            raise InvalidInput(f"volume: expected a URL of at most {MAX_URL} printable characters, got {url[:100]!r}")
        if any(part in ("..", ".") for part in url.replace("\\", "/").split("/")):
            raise AccessDenied(f"volume {url[:100]!r}: a URL must not contain '.' or '..' as a part of its path")
        found = _resolved(Location.parse(url))
        if not self._allows(found):
            raise AccessDenied(
                f"volume {url[:100]!r}: this server does not open it; its operator allows prefixes with {self._option}"
            )
        if found.scheme == "file" and time.monotonic() - self._checked.get(found.path, -CHECKED_S) >= CHECKED_S:
            self._check_links(found.path, url)
            self._checked[found.path] = time.monotonic()
        return str(found)

    def _allows(self, found: Location) -> bool:
        for prefix in self._allowed:
            inside = prefix.path.rstrip("/") + "/"
            if found.scheme == prefix.scheme and (found.path == prefix.path or found.path.startswith(inside)):
                return True
        return False

    def _check_links(self, folder: str, url: str) -> None:
        entries, waiting = 0, [folder] if os.path.isdir(folder) else []
        while waiting:
            with os.scandir(waiting.pop()) as listing:
                for entry in listing:
                    entries += 1
                    if entry.is_symlink() and not self._allows(Location("file", os.path.realpath(entry.path))):
                        raise AccessDenied(f"volume {url[:100]!r}: a link in it leads out of the allowed prefixes")
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
            if entries > MAX_ENTRIES:
                raise AccessDenied(
                    f"volume {url[:100]!r}: expected at most {MAX_ENTRIES} files, among which links are looked for; "
                    "store it sharded, or in a bucket"
                )


def _resolved(location: Location) -> Location:
    if location.scheme != "file":
        return location
    return Location(location.scheme, os.path.realpath(location.path), location.format, location.member)
