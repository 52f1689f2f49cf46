"""The values' schema refuses what is wrong, and what is generated from the values is up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from helm_cli import CHART, EXAMPLES, Helm

ROOT = CHART.parents[1]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown at the top": ({"replicas": 2}, "replicas"),
    "unknown in a section": ({"serve__enable": True}, "enable"),
    "unknown option of serve": ({"serve__config__modles": ["x"]}, "modles"),
    "host is not for pods": ({"serve__config__host": "127.0.0.1"}, "host"),
    "option of serve out of range": ({"serve__config__max_bytes": 0}, "max_bytes"),
    "no models": ({"serve__config__models": []}, "models"),
    "unknown in a worker group": ({"serve__workerGroups__cpu__minReplica": 1}, "minReplica"),
    "bad name of a worker group": ({"serve__workerGroups": {"Not_A_Name": {}}}, "Not_A_Name"),
    "unknown in a toleration": ({"head__tolerations": [{"keys": "x"}]}, "keys"),
    "unknown in a security context": ({"securityContext__readOnlyRootFileSystem": True}, "readOnlyRootFileSystem"),
    "a quantity with a typing mistake": ({"worker__resources__limits__memory": "12 GB"}, "memory"),
    "a choice that does not exist": ({"ray__gcsFaultTolerance__backend": "etcd"}, "backend"),
    "unknown in a job": ({"pipelines__jobs__x": {"args": ["segment"], "retries": 1}}, "retries"),
    "a string for a number": ({"serve__workerGroups__cpu__maxReplicas": "4"}, "maxReplicas"),
    "more workers at least than at most": ({"serve__workerGroups__cpu__minReplicas": 9}, "minReplicas 9 is above"),
    "a job without arguments": ({"pipelines__jobs__x": {}}, "args are needed"),
    "a job on a cluster that is not there": (
        {"pipelines__jobs__x": {"args": ["segment"], "cluster": "shared"}},
        "needs pipelines.enabled",
    ),
    "Redis without address": ({"ray__gcsFaultTolerance__backend": "redis"}, "host:port is needed"),
    "a route without gateway": ({"gateway__enabled": True}, "name the gateway"),
    "a gradual upgrade without gateway": (
        {"serve__upgrade__strategy": "NewClusterWithIncrementalUpgrade"},
        "needs a gateway class",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused(helm: Helm, case: str) -> None:
    overrides, message = WRONG[case]
    done = helm.try_template(**overrides)
    assert done.returncode != 0
    assert message in done.stderr


def _sections(schema: dict[str, Any], values: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of the values whose schema names its keys."""
    schema = SCHEMA["definitions"].get(schema.get("$ref", "").rpartition("/")[2], schema)
    if not isinstance(values, dict):
        return
    if schema.get("additionalProperties") is False:
        yield values
    for key, value in values.items():
        part = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        if isinstance(part, dict):
            yield from _sections(part, value)


@pytest.mark.parametrize("path", [CHART / "values.yaml", *EXAMPLES], ids=lambda path: path.stem)
def test_a_mistyped_key_is_refused_wherever_it_is(path: Any) -> None:
    values = yaml.safe_load(path.read_text())
    validator = jsonschema.Draft7Validator(SCHEMA)
    validator.validate(values)
    sections = list(_sections(SCHEMA, values))
    assert len(sections) > (20 if path.name == "values.yaml" else 8)
    for section in sections:
        section["mistyped"] = 1
        assert not validator.is_valid(values), section
        del section["mistyped"]


def test_the_schema_leaves_no_object_open() -> None:
    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and where != "/properties/global":
                assert "additionalProperties" in node, where
            for key, part in node.items():
                walk(part, f"{where}/{key}")

    walk(SCHEMA, "")
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_generated_files_are_up_to_date() -> None:
    script = "import json; from charts.generator.chart import generated; print(json.dumps(generated()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    for name, text in json.loads(done.stdout).items():
        assert (CHART / name).read_text() == text, f"{name} is old: run make chart"


def test_every_value_is_described() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from charts.generator.values import read_values
    finally:
        sys.path.remove(str(ROOT))
    entries = read_values((CHART / "values.yaml").read_text())
    paths = {entry.path for entry in entries}
    assert ("serve", "workerGroups") in paths
    assert ("serve", "workerGroups", "cpu") not in paths
    assert ("spot", "nodeSelector", "cloud") not in paths
    readme = (CHART / "README.md").read_text()
    for entry in entries:
        if not entry.is_section:
            assert f"`{'.'.join(entry.path)}`" in readme
            assert entry.description, entry.path
