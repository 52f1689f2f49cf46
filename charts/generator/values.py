"""Reads values.yaml with the comments that describe its keys; YAML parsers drop them.

The file keeps to a form that lines alone tell apart: block mappings with two spaces of indentation, the comment of a
key right above it, and `# @schema {JSON}` as the comment's last line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from models.errors import InvalidConfig

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_ANNOTATION = "@schema "


@dataclass(frozen=True)
class Entry:
    """One key of the values: where it is, its default, its comment, and what the comment adds to its schema."""

    path: tuple[str, ...]
    default: Any
    description: str
    annotation: dict[str, Any] = field(default_factory=dict)

    @property
    def is_section(self) -> bool:
        """Whether its own keys have entries: a mapping that no annotation describes."""
        described = self.annotation.keys() & {"$ref", "additionalProperties"}
        return isinstance(self.default, dict) and not described


def read_values(text: str) -> list[Entry]:
    """The entries of a values file, in its order; raises `InvalidConfig` for a comment that cannot be read."""
    values = yaml.safe_load(text)
    entries: list[Entry] = []
    comment: list[str] = []
    path: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
            continue
        key = _KEY.match(line)
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            if _documented(entries, path):
                entries.append(_entry(tuple(path), values, comment, number))
        comment = []
    return entries


def _documented(entries: list[Entry], path: list[str]) -> bool:
    """Whether all that is above a key is a section: what is within a default is not an entry."""
    sections = {entry.path for entry in entries if entry.is_section}
    return len(path) == 1 or tuple(path[:-1]) in sections


def _entry(path: tuple[str, ...], values: Any, comment: list[str], number: int) -> Entry:
    default = values
    for key in path:
        default = default[key]
    annotation: dict[str, Any] = {}
    if comment and comment[-1].startswith(_ANNOTATION):
        try:
            annotation = json.loads(comment.pop().removeprefix(_ANNOTATION))
        except json.JSONDecodeError as error:
            raise InvalidConfig(f"values.yaml, line {number}: expected JSON after @schema ({error})") from error
    return Entry(path, default, " ".join(comment), annotation)
