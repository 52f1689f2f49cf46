"""Checks rendered manifests against the schemas of Kubernetes and of the custom resources that the chart uses."""

from __future__ import annotations

import functools
import gzip
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Manifest = dict[str, Any]
ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The definitions are a megabyte: 20 s in pure Python."""

_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_ENDPOINT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["port"],
    "properties": {"port": {"type": "string"}, "interval": {"type": "string"}},
}


def _monitor(endpoints: str) -> Manifest:
    """The part of a PodMonitor's or ServiceMonitor's spec that the chart uses (monitoring.coreos.com/v1)."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", endpoints],
        "properties": {
            "jobLabel": {"type": "string"},
            "podTargetLabels": {"type": "array", "items": {"type": "string"}},
            "selector": {"type": "object", "additionalProperties": False, "properties": {"matchLabels": _LABELS}},
            endpoints: {"type": "array", "minItems": 1, "items": _ENDPOINT},
        },
    }


def _object(required: list[str], **properties: Any) -> Manifest:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXT = {"type": "string"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_ROUTE = _object(
    ["parentRefs", "rules"],
    parentRefs={
        "type": "array",
        "items": _object(["name"], name=_TEXT, namespace=_TEXT, sectionName=_TEXT, port=_PORT),
    },
    hostnames={"type": "array", "items": _TEXT},
    rules={
        "type": "array",
        "items": _object(
            ["backendRefs"],
            matches={
                "type": "array",
                "items": _object(["path"], path=_object([], type={"enum": ["Exact", "PathPrefix"]}, value=_TEXT)),
            },
            timeouts=_object([], request={"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}),
            backendRefs={"type": "array", "items": _object(["name", "port"], name=_TEXT, port=_PORT)},
        ),
    },
)
SPECS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _monitor("podMetricsEndpoints"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _monitor("endpoints"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _ROUTE,
}
"""Written for these tests after the projects' references: the charts of both are not at hand."""


def check(manifest: Manifest) -> None:
    """Raise `jsonschema.ValidationError` or `kubernetes_validate.ValidationError` for a broken manifest."""
    kind = (manifest["apiVersion"], manifest["kind"])
    if kind[0] == "ray.io/v1":
        jsonschema.Draft7Validator(ray_schema(kind[1])).validate(manifest)
        for template in pod_templates(manifest):
            _check_builtin({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]})
    elif kind in SPECS:
        jsonschema.Draft7Validator(SPECS[kind]).validate(manifest["spec"])
    else:
        _check_builtin(manifest)


def _check_builtin(manifest: Manifest) -> None:
    import kubernetes_validate

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a schema that is missing is only warned of
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@functools.cache
def ray_schema(kind: str) -> Manifest:
    """Schema of a whole manifest of KubeRay's RayService, RayJob or RayCluster, from its resource definition."""
    folder = Path(os.environ.get("PETAVOXEL_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))
    path = folder / f"ray.io_{kind.lower()}s.yaml.gz"
    if not path.exists():
        pytest.skip(f"KubeRay's resource definitions are not in {folder}; PETAVOXEL_KUBERAY_CRDS names their folder")
    with gzip.open(path, "rt") as file:
        definition = next(document for document in yaml.load_all(file, LOADER) if document)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _closed(node: Any) -> Any:
    """A resource definition's OpenAPI schema as JSON schema that refuses unknown keys, as the API server does."""
    if isinstance(node, list):
        return [_closed(part) for part in node]
    if not isinstance(node, dict):
        return node
    out = {key: _closed(part) for key, part in node.items() if not key.startswith("x-kubernetes")}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("anyOf", None)
        out["type"] = ["integer", "string"]
    elif node.get("nullable"):
        out["type"] = [node["type"], "null"]
    open_object = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and "type" in node and not open_object:
        out["additionalProperties"] = False
    if isinstance(node.get("required"), list):
        defaults = [name for name, part in node.get("properties", {}).items() if "default" in part]
        out["required"] = [name for name in node["required"] if name not in defaults]
    return out


def pod_templates(manifest: Any) -> Iterator[Manifest]:
    """All pod templates within a manifest, and the manifest itself if it is a pod."""
    if isinstance(manifest, dict):
        if isinstance(manifest.get("spec"), dict) and "containers" in manifest["spec"]:
            yield manifest
        for part in manifest.values():
            yield from pod_templates(part)
    elif isinstance(manifest, list):
        for part in manifest:
            yield from pod_templates(part)


def named(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """The manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def selects(selector: Manifest, labels: Manifest) -> bool:
    """Whether labels match a selector of `matchLabels`."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
