"""values.schema.json from the defaults, their annotations, and the typed configuration of `petavoxel serve`.

Draft 7, which Helm 3 and 4 both check. Every object names its keys, so unknown ones are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from charts.generator.values import Entry
from services.endpoints.config import ServeConfig

Schema = dict[str, Any]
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def values_schema(entries: list[Entry]) -> Schema:
    """The schema of values that have these entries."""
    root: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the petavoxel chart",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "global": {"type": "object", "description": "Helm sets it where this chart is a part of another."}
        },
    }
    for entry in entries:
        _section(root, entry.path[:-1])["properties"][entry.path[-1]] = _schema(entry)
    definitions: Schema = yaml.safe_load((Path(__file__).parent / "definitions.yaml").read_text())
    definitions |= serve_config_schema()
    definitions["workerGroup"] = _section(root, ("worker",))
    definitions["job"] = _section(root, ("pipelines", "job"))
    root["definitions"] = definitions
    return root


def serve_config_schema() -> Schema:
    """`ServeConfig` as definitions; without `host`, since pods listen on all their addresses."""
    text = json.dumps(ServeConfig.model_json_schema()).replace("#/$defs/", "#/definitions/")
    schema = json.loads(text)
    parts: Schema = schema.pop("$defs", {})
    schema["properties"].pop("host")
    schema.pop("description", None)
    schema.pop("title", None)
    return parts | {"serveConfig": schema}


def _section(root: Schema, path: tuple[str, ...]) -> Schema:
    found = root
    for key in path:
        found = found["properties"][key]
    return found


def _schema(entry: Entry) -> Schema:
    if "$ref" in entry.annotation:
        return dict(entry.annotation)
    schema: Schema = {"description": entry.description} if entry.description else {}
    schema["type"] = _TYPES[type(entry.default)]
    if entry.is_section:
        schema |= {"additionalProperties": False, "properties": {}}
    return schema | entry.annotation
