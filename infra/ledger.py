"""What is done: one marker per stage and chunk, written after the chunk's output is stored.

::

    progress/STAGE/CHUNK.KEY.json       done: what was stored, with checksums, from what, when, where, at which try
    progress/STAGE/CHUNK.failed.json    given up, or found damaged: the box and the cause

The key is a digest of everything that decides the output (input identity, configuration, model). It is part of the
marker's name, so that one listing tells what is done, however many chunks there are. A chunk is done when it has a
marker of the key that is asked for; a rerun redoes what is missing or was made with something else, and says why.
Markers, not the existence of outputs, say what is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.attempt import attempt_figures, now
from infra.chunk_names import ChunkNames, NameCollector
from infra.objects import Folder
from infra.written import Written
from models.errors import NotFound, StorageFailed
from models.geometry import Chunk

FAILED = "failed"


@dataclass(frozen=True)
class Markers:
    """What one listing says of a stage: names of chunks by the key they were made with, and those that failed."""

    done: dict[str, ChunkNames]
    failed: ChunkNames


@dataclass(frozen=True)
class Ledger:
    """Markers of the stage `stage` whose outputs are decided by `key`, below `folder`/progress/`stage`.

    `made_from` says in words what the key is a digest of: input identity, model digest, options by name.
    """

    folder: Folder
    stage: str
    key: str
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def mark(self, chunk: Chunk, outputs: Sequence[Written], report: Mapping[str, Any] | None = None) -> None:
        """Say that `chunk` is done and all of `outputs` are stored; `report` holds figures of the chunk."""
        self._folder.write_json(
            f"{chunk.name}.{self.key}.json",
            {
                **(report or {}),
                **attempt_figures(),
                "box": str(chunk.box),
                "key": self.key,
                "made_from": dict(self.made_from),
                "outputs": [self._described(output) for output in outputs],
            },
        )

    def mark_failed(self, chunk: str, box: str, cause: str, tries: int = 0) -> None:
        """Say that a chunk was given up, or that what is stored of it is damaged."""
        content = {"box": box, "cause": cause, "key": self.key, "time": now(), "tries": tries}
        self._folder.write_json(f"{chunk}.{FAILED}.json", content)

    def markers(self) -> Markers:
        """What is done and what failed, from one listing of names."""
        found: dict[str, NameCollector] = defaultdict(NameCollector)
        for name in self._folder.each_name():
            if name.endswith(".json"):
                chunk, _, key = name.removesuffix(".json").partition(".")
                found[key].add(chunk)
        failed = found.pop(FAILED, NameCollector()).names()
        return Markers({key: names.names() for key, names in found.items()}, failed)

    def marker(self, chunk: str) -> dict[str, Any]:
        """A chunk's marker; raises `NotFound` where it has none, `StorageFailed` where it is damaged."""
        return self._folder.read_json(f"{chunk}.{self.key}.json")

    def failure(self, chunk: str) -> dict[str, Any]:
        """Box, cause, tries and time of a chunk that failed; without a cause where it was done meanwhile."""
        try:
            return self._folder.read_json(f"{chunk}.{FAILED}.json")
        except (NotFound, StorageFailed):
            return {}

    def forget(self, chunks: Iterable[str]) -> None:
        """Remove the markers of chunks, so that they are done again."""
        self._folder.delete(f"{chunk}.{self.key}.json" for chunk in chunks)

    def forget_failures(self, chunks: Iterable[str]) -> None:
        """Remove what is said of failures of these chunks."""
        self._folder.delete(f"{chunk}.{FAILED}.json" for chunk in chunks)

    def with_key(self, key: str) -> Ledger:
        """The markers of the same stage under another key."""
        return Ledger(self.folder, self.stage, key)

    def _described(self, output: Written) -> dict[str, Any]:
        name = output.url.removeprefix(f"{self.folder.url}/")
        place = {"box": str(output.box), "level": output.level} if output.box else {}
        return {"name": name, "checksum": output.checksum, **place}

    @property
    def _folder(self) -> Folder:
        return self.folder / "progress" / self.stage


def why_again(ledger: Ledger, chunks: Iterable[str], markers: Markers) -> str:
    """In words, why these chunks are to be done: missing, failed or damaged before, made with another configuration."""
    wanted = chunks if isinstance(chunks, ChunkNames) else ChunkNames(chunks)
    failed, missing, reasons = markers.failed & wanted, wanted, []
    for key, names in markers.done.items():
        others = names & wanted
        if key != ledger.key and others:
            reasons.append(f"{len(others)} made with another configuration{_difference(ledger, key, min(others))}")
            failed, missing = failed - others, missing - others
    missing -= failed
    if failed:
        reasons.append(f"{len(failed)} failed or damaged before")
    return ", ".join(([f"{len(missing)} missing"] if missing else []) + reasons)


def _difference(ledger: Ledger, key: str, chunk: str) -> str:
    try:
        was = ledger.with_key(key).marker(chunk).get("made_from", {})
    except (NotFound, StorageFailed):
        return ""
    now_ = json.loads(json.dumps(dict(ledger.made_from)))
    names = sorted(name for name in {*was, *now_} if was.get(name) != now_.get(name))
    return f" ({', '.join(f'{name} {was.get(name)} → {now_.get(name)}' for name in names[:5])})" if names else ""


def digest(*parts: object) -> str:
    """A short, stable digest of JSON-able parts: what keys are made of."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
