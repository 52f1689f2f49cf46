"""The models that a server holds: those of its configuration, and those that appear in its model folder."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.catalog import CARD_NAME, Model, ModelCard, find_model
from models.errors import InvalidConfig, NotFound, PetavoxelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One served model: its card, and what a replica finds it by."""

    card: ModelCard
    path: str

    @property
    def key(self) -> str:
        """What tells it from all others, in routing, logs and metrics."""
        return f"{self.card.name}:{self.card.version}"


class Catalog:
    """Models by name and version; the first of the configuration is the default, and never empty.

    Raises `NotFound` or `InvalidModel` for models of the configuration that cannot be served, `InvalidConfig` where two
    have one name and version.
    """

    def __init__(self, models: Iterable[str], folder: str | None = None, rescan_s: float = 10.0) -> None:
        self._fixed: dict[str, Entry] = {}
        for name in models:
            entry = _entry(name, find_model(name))
            if entry.key in self._fixed:
                raise InvalidConfig(f"models: two of them are called {entry.key!r}")
            self._fixed[entry.key] = entry
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None and not self._folder.is_dir():
            raise InvalidConfig(f"model_folder: expected a folder, got {folder!r}")
        self._rescan_s = rescan_s
        self._scanned, self._known = 0.0, {}  # type: float, dict[Path, tuple[int, Entry | None]]
        self._lock = asyncio.Lock()
        if self._folder is not None:
            self._scan(self._folder)
        self._entries = self._joined()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models, those of the configuration first."""
        return tuple(self._entries.values())

    @property
    def default(self) -> Entry:
        """What a request gets that names no model."""
        return self.entries[0]

    def find(self, name: str | None = None, version: str | None = None) -> Entry:
        """A model; of several versions the highest. Raises `NotFound`, which lists what there is."""
        if name is None and version is None:
            return self.default
        name = self.default.card.name if name is None else name
        found = [e for e in self.entries if e.card.name == name and version in (None, e.card.version)]
        if not found:
            asked = name[:100] if version is None else f"{name[:100]} version {version[:50]}"
            raise NotFound(f"model {asked!r}: this server has {', '.join(self._entries)}")
        return max(found, key=lambda entry: _version(entry.card.version))

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, lowest first; raises `NotFound` where there is none."""
        self.find(name)
        return tuple(sorted((e.card.version for e in self.entries if e.card.name == name), key=_version))

    async def refresh(self) -> None:
        """Look through the folder again, if the last time is long enough ago."""
        if self._folder is None or time.monotonic() - self._scanned < self._rescan_s:
            return
        if self._lock.locked():
            return  # another request sees to it; what is known is still good
        async with self._lock:
            await asyncio.to_thread(self._scan, self._folder)
            self._entries = self._joined()

    def _scan(self, folder: Path) -> None:
        """Verify cards that are new or changed; a broken one is logged once and left out."""
        found: dict[Path, tuple[int, Entry | None]] = {}
        for path in sorted(folder.glob(f"*/{CARD_NAME}")):
            try:
                stamp = path.stat().st_mtime_ns
                before = self._known.get(path)
                if before is not None and before[0] == stamp:
                    found[path] = before
                    continue
                found[path] = (stamp, None)
                found[path] = (stamp, _entry(str(path.parent), find_model(path.parent)))
                logger.info("model %s: served from now on", found[path][1])
            except (PetavoxelError, OSError) as error:
                logger.error("model folder %s: left out: %s", path.parent, error)
        self._known, self._scanned = found, time.monotonic()

    def _joined(self) -> dict[str, Entry]:
        entries = dict(self._fixed)
        for _, entry in self._known.values():
            if entry is not None:
                entries.setdefault(entry.key, entry)
        return entries


def _entry(name: str, model: Model) -> Entry:
    """With what a replica finds the model by: zoo names as they are, paths independent of the working directory."""
    return Entry(model.card, name if name == model.card.name else str(model.folder.resolve()))


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Orders "2" before "10", and "1.2" before "1.10"."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)
