"""The Grafana dashboard: what an operator asks first of endpoints, chunks, buckets and nodes.

Names of Ray's series are those of Ray 2.60; petavoxel's own counters pass through Ray, which puts `ray_` before them.
"""

from __future__ import annotations

from typing import Any

Panel = dict[str, Any]
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_PODS = 'namespace="$namespace",pod=~"$release.*"'
_SERVE = f'{_PODS},application="petavoxel"'
_WIDTH, _HEIGHT = 8, 7


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    panels: list[Panel] = []
    top = 0
    for title, row in (("Endpoints", _endpoints()), ("Pipelines", _pipelines()), ("Cluster", _cluster())):
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )
        top += 1
        for index, panel in enumerate(row):
            place = {"x": index % 3 * _WIDTH, "y": top + index // 3 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            panels.append({**panel, "gridPos": place})
        top += (len(row) + 2) // 3 * _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "petavoxel",
        "uid": "petavoxel",
        "tags": ["petavoxel", "ray"],
        "editable": True,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    namespaces = "label_values(ray_node_cpu_count, namespace)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {"name": "namespace", "type": "query", "datasource": _SOURCE, "query": namespaces, "refresh": 2},
        {"name": "release", "type": "textbox", "query": "", "label": "Pods begin with"},
    ]


def _panel(title: str, unit: str, queries: dict[str, str], *, stack: bool = False, help_text: str = "") -> Panel:
    targets = [
        {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
        for index, (legend, query) in enumerate(queries.items())
    ]
    custom = {"fillOpacity": 20 if stack else 0, "stacking": {"mode": "normal" if stack else "none"}}
    defaults = {"unit": unit, "min": 0, "custom": custom}
    return {
        "type": "timeseries",
        "title": title,
        "description": help_text,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _rate(series: str, by: str, labels: str = _PODS) -> str:
    return f"sum by ({by}) (rate({series}{{{labels}}}[$__rate_interval]))"


def _quantile(q: float, series: str, by: str = "", labels: str = _PODS) -> str:
    groups = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({groups}) (rate({series}_bucket{{{labels}}}[$__rate_interval])))"


def _endpoints() -> list[Panel]:
    latency = "ray_serve_http_request_latency_ms"
    routes = f'{_SERVE},route=~"/v.*"'
    return [
        _panel(
            "Requests", "reqps", {"{{route}} {{status_code}}": _rate(f"{latency}_count", "route, status_code", _SERVE)}
        ),
        _panel(
            "Latency",
            "ms",
            {f"p{100 * q:g}": _quantile(q, latency, labels=routes) for q in (0.5, 0.9, 0.99)},
            help_text="Requests to models, from their first byte to the reply.",
        ),
        _panel(
            "Errors",
            "reqps",
            {"{{status_code}}": _rate(f"{latency}_count", "status_code", f'{_SERVE},status_code=~"4..|5.."')},
            help_text="429: more requests than may wait; 503: no replica; 504: the deadline.",
        ),
        _panel(
            "Waiting and running",
            "short",
            {
                "waiting {{deployment}}": f"sum by (deployment) (ray_serve_deployment_queued_queries{{{_SERVE}}})",
                "running {{deployment}}": f"sum by (deployment) (ray_serve_replica_processing_queries{{{_SERVE}}})",
            },
        ),
        _panel(
            "Replicas",
            "short",
            {
                "{{deployment}}": f"sum by (deployment) (ray_serve_deployment_replica_healthy{{{_SERVE}}})",
                "{{deployment}} wanted": f"max by (deployment) (ray_serve_autoscaling_target_replicas{{{_SERVE}}})",
            },
        ),
        _panel(
            "Model, without waiting",
            "ms",
            {
                f"p{100 * q:g} {{{{deployment}}}}": _quantile(
                    q, "ray_serve_deployment_processing_latency_ms", "deployment", routes
                )
                for q in (0.5, 0.99)
            },
        ),
        _panel(
            "Batch size",
            "short",
            {f"p{100 * q:g}": _quantile(q, "ray_petavoxel_batch_size") for q in (0.5, 0.9)},
            help_text="Patches that went through a network together.",
        ),
        _panel("Model loads", "short", {"{{model}}": _rate("ray_petavoxel_model_loads_total", "model")}),
        _panel(
            "Replica starts",
            "short",
            {"{{deployment}}": _rate("ray_serve_deployment_replica_starts_total", "deployment")},
        ),
    ]


def _pipelines() -> list[Panel]:
    return [
        _panel("Voxels", "short", {"voxels per second": _rate("ray_petavoxel_voxels_total", "namespace")}),
        _panel("Chunks", "short", {"{{stage}}": _rate("ray_petavoxel_chunks_total", "stage")}),
        _panel("Bucket requests", "reqps", {"{{kind}}": _rate("ray_petavoxel_bucket_requests_total", "kind")}),
        _panel("Bucket traffic", "Bps", {"{{direction}}": _rate("ray_petavoxel_bucket_bytes_total", "direction")}),
        _panel("Tasks", "short", {"{{State}}": f"sum by (State) (ray_tasks{{{_PODS}}})"}, stack=True),
        _panel("Actors", "short", {"{{State}}": f"sum by (State) (ray_gcs_actors_count{{{_PODS}}})"}, stack=True),
    ]


def _cluster() -> list[Panel]:
    return [
        _panel(
            "Nodes", "short", {"{{node_type}}": f"sum by (node_type) (ray_cluster_active_nodes{{{_PODS}}})"}, stack=True
        ),
        _panel("CPU", "percent", {"{{pod}}": f"ray_node_cpu_utilization{{{_PODS}}}"}),
        _panel("GPU", "percent", {"{{pod}} {{GpuIndex}}": f"ray_node_gpus_utilization{{{_PODS}}}"}),
        _panel("Memory", "bytes", {"{{pod}}": f"ray_node_mem_used{{{_PODS}}}"}),
        _panel(
            "Object store",
            "bytes",
            {
                "used": f"sum(ray_object_store_used_memory{{{_PODS}}})",
                "spilled": f"sum(ray_object_store_fallback_memory{{{_PODS}}})",
            },
        ),
        _panel("Disk", "percent", {"{{pod}}": f"ray_node_disk_utilization_percentage{{{_PODS}}}"}),
    ]
