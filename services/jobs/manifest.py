"""A job as a manifest for KubeRay: a RayJob that brings its own cluster and ends with it.

The pods are those of `charts/petavoxel`, which is the place for everything beyond one job. There are as many
workers from the beginning to the end: a pipeline lays its work out for the processors that it finds as a stage begins.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from models.errors import InvalidInput
from services.jobs.command import JobCommand

Manifest = dict[str, Any]

_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 100,
    "fsGroup": 100,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class JobCluster:
    """The cluster that a RayJob brings: `pods` workers of 4 processors, with a GPU each where `accelerator` is named.

    `image` is a name with tag, to which `-cpu` or `-gpu` is added; `accelerator` a value of GKE's node label.
    """

    image: str = field(default_factory=lambda: f"petavoxel:{importlib.metadata.version('petavoxel')}")
    pods: int = 4
    accelerator: str | None = None
    service_account: str | None = None


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """References within the text would be valid, but nobody could edit it."""
        return True


def manifest_yaml(command: JobCommand, cluster: JobCluster, env: Mapping[str, str]) -> str:
    """The RayJob that runs the command, as YAML; `env` holds environment variables of its processes.

    Its name tells the command and ends with a digest of everything in it: a changed job is another one.

    Raises `InvalidInput` where the command needs a model of this machine, or endpoints that run already.
    """
    return yaml.dump(ray_job(command, cluster, env), Dumper=_Plain, sort_keys=False, width=120)


def ray_job(command: JobCommand, cluster: JobCluster, env: Mapping[str, str]) -> Manifest:
    """`manifest_yaml` before it is text."""
    if command.model:
        raise InvalidInput(
            f"--model: expected a name of the zoo or an absolute path within the pods, got {command.model}: "
            "a manifest cannot carry files; the cluster takes them with --address"
        )
    if command.endpoints:
        raise InvalidInput(
            f"--endpoints: expected none, a RayJob has a cluster of its own, where no application "
            f"{command.endpoints!r} runs; submit it with --address to the cluster that serves"
        )
    spec: Manifest = {
        "entrypoint": command.entrypoint,
        "submissionMode": "K8sJobMode",
        "backoffLimit": 2,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
    }
    if env:
        spec["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": dict(env)}, sort_keys=False)
    spec["submitterPodTemplate"] = _submitter(cluster)
    spec["rayClusterSpec"] = {
        "rayVersion": importlib.metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_ray_parameters()},
            "template": _pod(cluster, "head", {"cpu": "2", "memory": "6Gi"}, None),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": cluster.pods,
                "minReplicas": cluster.pods,
                "maxReplicas": cluster.pods,
                "rayStartParams": _ray_parameters(),
                "template": _pod(cluster, "worker", {"cpu": "4", "memory": "12Gi"}, cluster.accelerator),
            }
        ],
    }
    job = f"petavoxel-{command.name[-1]}-{hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:8]}"
    labels = {"app.kubernetes.io/name": "petavoxel", "petavoxel/job": command.name[-1]}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job, "labels": labels}, "spec": spec}


def _ray_parameters() -> dict[str, str]:
    return {"metrics-export-port": "8080", "object-spilling-directory": "/spill"}


def _pod(cluster: JobCluster, kind: str, resources: dict[str, str], accelerator: str | None) -> Manifest:
    """Template of a Ray pod; requests and limits are the same, so that nothing is promised twice."""
    image = f"{cluster.image}-{'gpu' if accelerator else 'cpu'}"
    amounts = {**resources, "ephemeral-storage": "20Gi"} | ({_GPU: "1"} if accelerator else {})
    mounts = {"tmp": "/tmp", "kernels": "/kernels", "shared-memory": "/dev/shm", "spill": "/spill"}
    spec = {
        **_account(cluster),
        "securityContext": _POD_SECURITY,
        "initContainers": [
            {
                "name": "kernels",
                "image": image,
                "command": ["cp", "-r", "/opt/petavoxel/kernels/.", "/kernels/"],
                "securityContext": _SECURITY,
                "volumeMounts": [{"name": "kernels", "mountPath": "/kernels"}],
            }
        ],
        "containers": [
            {
                "name": f"ray-{kind}",
                "image": image,
                "securityContext": _SECURITY,
                "env": [
                    {"name": "NUMBA_CACHE_DIR", "value": "/kernels"},
                    {"name": "PETAVOXEL_MODEL_CACHE", "value": "/tmp/petavoxel-models"},
                ],
                "resources": {"requests": amounts, "limits": amounts},
                "ports": [{"name": "metrics", "containerPort": 8080}],
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
            }
        ],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "kernels", "emptyDir": {"sizeLimit": "512Mi"}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "3Gi"}},
            {"name": "spill", "emptyDir": {"sizeLimit": "8Gi"}},
        ],
    }
    if accelerator:
        spec["nodeSelector"] = {"cloud.google.com/gke-accelerator": accelerator}
        spec["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    # The driver lives in the head: its node must not be emptied to save money.
    safe = {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}} if kind == "head" else {}
    return {"metadata": {"labels": {"app.kubernetes.io/name": "petavoxel"}, **safe}, "spec": spec}


def _submitter(cluster: JobCluster) -> Manifest:
    amounts = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": f"{cluster.image}-cpu",
        "securityContext": _SECURITY,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        **_account(cluster),
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    return {"spec": spec}


def _account(cluster: JobCluster) -> Manifest:
    named = {"serviceAccountName": cluster.service_account} if cluster.service_account else {}
    return {**named, "automountServiceAccountToken": False}
