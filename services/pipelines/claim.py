"""Claims an output prefix for one run, so that no two kinds of output mix below it."""

from __future__ import annotations

from typing import Any

from infra.objects import Folder
from models.errors import RunConflict


def claim(folder: Folder, description: dict[str, Any]) -> None:
    """Write `run.json`, which holds the run's `key`, or find it there; raises `RunConflict` where something else is."""
    if not folder.exists("run.json"):
        if folder.occupied():
            raise RunConflict(f"{folder.url}: expected an empty output prefix or one of a run, there is something else")
        folder.write_json("run.json", description)
        return
    held = folder.read_json("run.json")
    if held.get("key") != description["key"]:
        different = [name for name in description if name != "key" and held.get(name) != description[name]]
        raise RunConflict(
            f"{folder.url}: holds another run; different: {', '.join(different) or 'its input'}. "
            f"Choose another OUT, or delete this one"
        )
