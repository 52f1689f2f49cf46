"""The models that a server holds: those of its configuration, and those that appear in its model folder."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from infra.registry import Published, Registry, fetch, locate
from models.catalog import ModelCard
from models.errors import AccessDenied, InvalidConfig, NotFound, PetavoxelError, StorageFailed

logger = logging.getLogger(__name__)

REFRESH_S = 1.0
"""For how long a request waits for the model folder's list; a slower store is waited for beside the requests."""


@dataclass(frozen=True)
class Entry:
    """One served model: its card, and what a replica finds it by (see `infra.registry.locate`)."""

    card: ModelCard
    path: str

    @property
    def key(self) -> str:
        """What tells it from all others, in routing, logs and metrics."""
        return f"{self.card.name}:{self.card.version}"

    @property
    def content(self) -> str:
        """The key and the digest: a model that was exchanged under its name is another one."""
        return f"{self.key}:{self.card.file.sha256[:16]}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """The same, also from a model that had this name and version before."""
        return self.key, self.path, self.card.file.sha256

    def __reduce__(self) -> tuple[Any, ...]:
        """Entries go with every call to a replica: as text that is made once, and read once per process."""
        return _unpacked, (self._packed, self.path)

    @cached_property
    def _packed(self) -> str:
        return self.card.to_json()


@lru_cache(maxsize=256)
def _unpacked(card: str, path: str) -> Entry:
    return Entry(ModelCard.from_json(card), path)


Probe = Callable[[Entry], Awaitable[str | None]]
"""Loads a model somewhere and runs it once; returns what is wrong with it, or None."""


class Catalog:
    """Models by name and version; the first of the configuration is the default, and never empty.

    `folder` holds further models, or a registry's names and versions, on a disk or a bucket (`infra.registry`). A
    version that appears there beside others becomes the one that is meant without a version when `probe` has loaded it,
    so nobody waits for that, and a broken one never takes the place of one that works. The versions that are there at
    the start are meant at once, and tried from the first `refresh` on: nothing says which of them worked before.

    Raises `NotFound` or `InvalidModel` for models of the configuration that cannot be served, `InvalidConfig` where two
    have one name and version, and the errors of the store.
    """

    def __init__(
        self, models: Iterable[str], folder: str | None = None, rescan_s: float = 10.0, probe: Probe | None = None
    ) -> None:
        self._fixed: dict[str, Entry] = {}
        for name in models:
            path = locate(name)
            entry = Entry(fetch(path).card, path)
            if entry.key in self._fixed:
                raise InvalidConfig(f"models: two of them are called {entry.key!r}")
            self._fixed[entry.key] = entry
        if folder is not None and "://" not in folder and not Path(folder).is_dir():
            raise InvalidConfig(f"model_folder: expected a folder, got {folder!r}")
        self._registry = None if folder is None else Registry(folder)
        self._rescan_s, self._probe = rescan_s, probe
        self._waiting: dict[tuple[str, str, str], str | None] = {}  # for their probe; what was wrong the last time
        self._known: dict[str, tuple[str, Entry | None]] = {}
        self._scanning: asyncio.Task[None] | None = None
        if self._registry is not None:
            self._scan(self._registry)
        self._entries = self._joined()
        self._untried = {entry.identity for entry in self.entries}
        # The first requests must not live with a broken version for all of `rescan_s`.
        self._scanned = time.monotonic() if probe is None else -math.inf

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All models, those of the configuration first."""
        return tuple(self._entries.values())

    @property
    def default(self) -> Entry:
        """What a request gets that names no model."""
        return self.entries[0]

    def find(self, name: str | None = None, version: str | None = None) -> Entry:
        """A model; of several versions the highest that works. Raises `NotFound`, which lists what there is."""
        if name is None and version is None:
            return self.default
        name = self.default.card.name if name is None else name
        found = [e for e in self.entries if e.card.name == name and version in (None, e.card.version)]
        if not found:
            asked = name[:100] if version is None else f"{name[:100]} version {version[:50]}"
            raise NotFound(f"model {asked!r}: this server has {', '.join(self._entries)}")
        return max(self._ready(found) or found, key=lambda entry: _version(entry.card.version))

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, lowest first; raises `NotFound` where there is none."""
        self.find(name)
        return tuple(sorted((e.card.version for e in self.entries if e.card.name == name), key=_version))

    async def refresh(self) -> None:
        """Look through the folder again, if the last time is long enough ago.

        A store that fails changes nothing: what is known is still good.
        """
        if time.monotonic() - self._scanned < self._rescan_s or (self._registry is None and self._probe is None):
            return
        if self._scanning is None or self._scanning.done():
            self._scanning = asyncio.create_task(self._rescan())
            await asyncio.wait({self._scanning}, timeout=REFRESH_S)

    async def _rescan(self) -> None:
        try:
            if self._registry is not None:
                await asyncio.to_thread(self._scan, self._registry)
        except PetavoxelError as error:
            logger.error("model folder: %s", error)
            return
        finally:
            self._scanned = time.monotonic()
        joined = self._joined()
        if self._probe is not None:
            served = {entry.card.name for entry in self.entries}
            new = [e.identity for key, e in joined.items() if self._entries.get(key) != e and e.card.name in served]
            still = {entry.identity for entry in joined.values()} & self._waiting.keys()
            self._waiting = dict.fromkeys(new) | {identity: self._waiting[identity] for identity in still}
        self._entries = joined
        if self._probe is not None:
            waiting = [entry for entry in joined.values() if entry.identity in self._waiting]
            for name in dict.fromkeys(entry.card.name for entry in joined.values()):
                await self._try_first(name, self._probe)
            for entry in waiting:
                await self._try(entry, self._probe)

    async def _try_first(self, name: str, probe: Probe) -> None:
        """Try what is meant without a version, if it was there at the start and another one could take its place."""
        while len(self._ready(e for e in self.entries if e.card.name == name)) > 1:
            entry = self.find(name)
            if entry.identity not in self._untried:
                return
            await self._try(entry, probe)
            self._untried.discard(entry.identity)

    async def _try(self, entry: Entry, probe: Probe) -> None:
        """Take a version that works out of the waiting ones; another one waits from now on."""
        try:
            wrong = await probe(entry)
        except PetavoxelError as error:
            wrong = str(error)
        if wrong is None:
            self._waiting.pop(entry.identity, None)
            logger.info("model %s: works", entry.key)
        elif wrong != self._waiting.get(entry.identity):
            self._waiting[entry.identity] = wrong
            logger.error("model %s: not used unless it is asked for by version: %s", entry.key, wrong)

    def _ready(self, entries: Iterable[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.identity not in self._waiting]

    def _scan(self, registry: Registry) -> None:
        """Read cards that are new or changed; a broken model is logged once and left out."""
        found: dict[str, tuple[str, Entry | None]] = {}
        for model in registry.published():
            before = self._known.get(model.url)
            if before is not None and before[0] == model.stamp:
                found[model.url] = before
                continue
            try:
                found[model.url] = (model.stamp, self._entry(model))
            except (AccessDenied, StorageFailed) as error:  # may pass; it is tried again
                logger.error("model folder %s: %s", model.url, error)
                if before is not None:
                    found[model.url] = before
        self._known = found

    def _entry(self, model: Published) -> Entry | None:
        try:
            entry = Entry(model.read_card(), model.url)
        except (AccessDenied, StorageFailed):
            raise
        except PetavoxelError as error:
            logger.error("model folder %s: left out: %s", model.url, error)
            return None
        logger.info("model %s of %s: served from now on", entry.key, model.url)
        return entry

    def _joined(self) -> dict[str, Entry]:
        entries = dict(self._fixed)
        for _, entry in self._known.values():
            if entry is not None:
                entries.setdefault(entry.key, entry)
        return entries


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Orders "2" before "10", and "1.2" before "1.10"."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)
