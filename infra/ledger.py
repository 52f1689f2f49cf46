"""What is done: one marker per stage and chunk, written after the chunk's output is stored.

A marker holds the stage's key (a digest of everything that decides the output: input identity, configuration, model)
and its outputs with their checksums. A chunk is done when its marker's key is the one asked for, so a rerun redoes what
is missing or was made with something else. Markers, not the existence of outputs, say what is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.objects import Folder
from infra.written import Written
from models.errors import StorageFailed
from models.geometry import Chunk


@dataclass(frozen=True)
class Ledger:
    """Markers of the stage `stage` whose outputs are decided by `key`, below `folder`/progress/`stage`."""

    folder: Folder
    stage: str
    key: str

    def mark(self, chunk: Chunk, outputs: Sequence[Written], report: dict[str, Any] | None = None) -> None:
        """Say that `chunk` is done and all of `outputs` are stored; `report` holds figures of the chunk."""
        self._markers.write_json(
            f"{chunk.name}.json",
            {
                **(report or {}),
                "box": str(chunk.box),
                "key": self.key,
                "outputs": [self._described(output) for output in outputs],
            },
        )

    def done(self) -> dict[str, dict[str, Any]]:
        """Markers by chunk, only those made under this key; a damaged marker counts as not done."""
        names = [name for name in self._markers.names() if name.endswith(".json")]
        with ThreadPoolExecutor(16) as readers:
            markers = readers.map(self._read, names)
            return {
                name.removesuffix(".json"): marker
                for name, marker in zip(names, markers, strict=True)
                if marker.get("key") == self.key
            }

    def _described(self, output: Written) -> dict[str, Any]:
        name = output.url.removeprefix(f"{self.folder.url}/")
        place = {"box": str(output.box), "level": output.level} if output.box else {}
        return {"name": name, "checksum": output.checksum, **place}

    @property
    def _markers(self) -> Folder:
        return self.folder / "progress" / self.stage

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return self._markers.read_json(name)
        except StorageFailed:
            return {}


def digest(*parts: object) -> str:
    """A short, stable digest of JSON-able parts: what keys are made of."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
