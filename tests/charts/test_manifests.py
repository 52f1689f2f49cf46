"""Every manifest that the chart renders, under Helm 3 and 4: its schema, its safety, and whether parts fit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from helm_cli import CHART, EXAMPLES, Helm
from manifests import Manifest, check, named, pod_templates, selects

from services.endpoints.config import ServeConfig

VALUES: list[Path | None] = [None, *EXAMPLES]
POD_GRACE_S = 300
EVERYTHING = {
    "pipelines__enabled": True,
    "monitoring__kind": "ServiceMonitor",
    "ingress__enabled": True,
    "ray__auth__secretName": "ray-token",
    "serve__haProxy": True,
    "serve__service__type": "LoadBalancer",
    "serve__upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"},
    "secrets__files": [{"secretName": "tokens", "mountPath": "/secrets/tokens"}],
    "claims": [{"claimName": "models", "mountPath": "/models", "readOnly": True}],
    "networkPolicy__dashboardFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "pipelines__jobs__one": {"args": ["segment", "a b", "it's"], "submissionMode": "HTTPMode"},
    "worker__rayResources": {"disk": 1},
    "worker__affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]
        }
    },
}


def _values(path: Path | None) -> list[Path]:
    return [] if path is None else [path]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_lint_is_silent(helm: Helm, path: Path | None) -> None:
    options = [option for given in _values(path) for option in ("--values", str(given))]
    done = helm.run("lint", "--strict", str(CHART), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_manifests_keep_to_their_schemas(helm: Helm, path: Path | None) -> None:
    for manifest in helm.template(*_values(path)):
        check(manifest)


def test_all_options_at_once_keep_to_their_schemas(helm: Helm) -> None:
    manifests = helm.template(**EVERYTHING)
    kinds = {manifest["kind"] for manifest in manifests}
    assert kinds >= {
        "RayService",
        "RayCluster",
        "RayJob",
        "Ingress",
        "Service",
        "ServiceMonitor",
        "NetworkPolicy",
        "Pod",
    }
    for manifest in manifests:
        check(manifest)
    [job] = named(manifests, "RayJob")
    assert shlex.split(job["spec"]["entrypoint"]) == ["petavoxel", "segment", "a b", "it's", "--address", "auto"]


def test_the_schemas_find_mistakes(helm4: Helm) -> None:
    [service] = named(helm4.template(), "RayService")
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        check(service)
    [policy] = named(helm4.template(), "NetworkPolicy")
    policy["spec"]["egres"] = []
    with pytest.raises(Exception, match="egres"):
        check(policy)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_pods_are_confined(helm4: Helm, path: Path | None) -> None:
    templates = [template for manifest in helm4.template(*_values(path)) for template in pod_templates(manifest)]
    assert templates
    for template in templates:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        is_head = template["metadata"]["labels"]["app.kubernetes.io/component"] == "head"
        assert is_head or spec["automountServiceAccountToken"] is False
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"][
                "limits"
            ].keys()
            assert not container["image"].endswith(":latest")
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_selectors_find_pods(helm4: Helm, path: Path | None) -> None:
    manifests = helm4.template(*_values(path))
    templates = [template for manifest in manifests for template in pod_templates(manifest)]
    labels = [template["metadata"]["labels"] for template in templates]
    for policy in named(manifests, "NetworkPolicy"):
        assert all(selects(policy["spec"]["podSelector"], each) for each in labels), "no pod stays outside"
    for budget in named(manifests, "PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"], each) for each in labels)
        assert isinstance(budget["spec"]["minAvailable"], int), "percentages need a scale subresource"
    ports = {p["name"] for t in templates for c in t["spec"]["containers"] for p in c.get("ports", [])}
    for monitor in named(manifests, "PodMonitor"):
        assert any(selects(monitor["spec"]["selector"], each) for each in labels)
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    for monitor in named(manifests, "ServiceMonitor"):
        [service] = [
            s for s in named(manifests, "Service") if selects(monitor["spec"]["selector"], s["metadata"]["labels"])
        ]
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {p["name"] for p in service["spec"]["ports"]}
        assert any(selects({"matchLabels": service["spec"]["selector"]}, each) for each in labels)


def _group(manifest: Manifest, name: str) -> Manifest:
    spec = manifest["spec"]
    cluster = spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec
    return next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == name)


def test_gpu_groups_of_gke(helm4: Helm) -> None:
    manifests = helm4.template(CHART / "examples" / "gke-gpu.yaml")
    [service], [job] = named(manifests, "RayService"), named(manifests, "RayJob")
    group = _group(service, "l4")
    assert (group["minReplicas"], group["maxReplicas"], group["idleTimeoutSeconds"]) == (0, 8, 600)
    pod = group["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["containers"][0]["image"].endswith("-gpu")
    assert _group(service, "cpu")["template"]["spec"]["containers"][0]["image"].endswith("-cpu")
    spot = _group(job, "l4")["template"]["spec"]
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {t["key"] for t in spot["tolerations"]} == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["autoscalerOptions"]["version"] == "v2", "idle times per group need it"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert cluster["authOptions"] == {"mode": "token"}
    assert service["spec"]["excludeHeadPodFromServeSvc"] is False, "all workers may go; the head must take requests"
    [account] = named(manifests, "ServiceAccount")
    assert "iam.gke.io/gcp-service-account" in account["metadata"]["annotations"]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # in ray.serve.schema
@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_serve_config_is_what_serve_and_petavoxel_read(helm4: Helm, path: Path | None) -> None:
    from ray.serve.schema import ServeDeploySchema

    [service] = named(helm4.template(*_values(path)), "RayService")
    parsed = yaml.safe_load(service["spec"]["serveConfigV2"])
    deploy = ServeDeploySchema.model_validate(parsed)
    assert deploy.logging_config is not None
    [application] = deploy.applications
    config = ServeConfig.read(application.args)
    given: dict[str, Any] = {"host": "0.0.0.0"}
    for source in [CHART / "values.yaml", *_values(path)]:
        given |= yaml.safe_load(source.read_text())["serve"]["config"]
    assert config == ServeConfig.read(given)
    module, _, function = application.import_path.partition(":")
    assert (module, function) == ("services.deploy", "build")


def test_jobs_call_commands_that_exist(helm4: Helm) -> None:
    from services.cli.main import app

    command: Any = typer.main.get_command(app)
    for path in EXAMPLES:
        for job in named(helm4.template(path), "RayJob"):
            program, name, *words = shlex.split(job["spec"]["entrypoint"])
            assert program == "petavoxel"
            context = command.commands[name].make_context(name, words)
            assert context.params["address"] == "auto"


def test_a_job_runs_again_only_if_it_changes(helm4: Helm) -> None:
    def name(**overrides: Any) -> str:
        [job] = named(helm4.template(**overrides), "RayJob")
        return str(job["metadata"]["name"])

    first = {"pipelines__jobs__cortex": {"args": ["segment", "a", "b"]}}
    assert name(**first) == name(**first, image__tag="other", worker__maxReplicas=3)
    assert name(**first) != name(pipelines__jobs__cortex={"args": ["segment", "a", "c"]})


def test_names_stay_within_kuberays_limits(helm4: Helm) -> None:
    options = ["--set-json", 'pipelines.jobs.abcdefghijklm={"args":["segment","a","b"]}', "--kube-version", "1.34.0"]
    done = helm4.run("template", "a-release-with-a-name-of-forty-characters-x", str(CHART), *options)
    for manifest in filter(None, yaml.safe_load_all(done.stdout)):
        assert len(manifest["metadata"]["name"]) <= 47, manifest["metadata"]["name"]


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_notes(helm4: Helm, path: Path | None) -> None:
    options = [option for given in _values(path) for option in ("--values", str(given))]
    done = helm4.run("install", "release", str(CHART), "--dry-run=client", *options)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl -n default get rayservice release-petavoxel" in notes
    assert "{{" not in notes


def _variables(template: dict[str, Any]) -> dict[str, str]:
    [container] = template["spec"]["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem if path else "defaults")
def test_caches_lie_where_pods_may_write(helm4: Helm, path: Path | None) -> None:
    specs = [each["spec"]["rayClusterConfig"] for each in named(helm4.template(*_values(path)), "RayService")]
    for template in [group["template"] for spec in specs for group in spec["workerGroupSpecs"]]:
        variables = _variables(template)
        [container] = template["spec"]["containers"]
        writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
        for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PETAVOXEL_MODEL_CACHE"):
            assert any(Path(variables[name]).is_relative_to(folder) for folder in writable), name
        assert template["spec"]["terminationGracePeriodSeconds"] == POD_GRACE_S
        assert int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) == POD_GRACE_S - 10


def test_pipelines_know_how_far_their_cluster_grows(helm4: Helm) -> None:
    example = next(path for path in EXAMPLES if path.stem == "gke-gpu")

    def head(manifest: Manifest) -> dict[str, str]:
        spec = manifest["spec"].get("rayClusterSpec") or manifest["spec"].get("rayClusterConfig") or manifest["spec"]
        return _variables(spec["headGroupSpec"]["template"])

    manifests = helm4.template(example, pipelines__enabled=True)
    for kind in ("RayJob", "RayCluster"):
        [manifest] = named(manifests, kind)
        told = head(manifest)
        assert (told["PETAVOXEL_CLUSTER_CPUS"], told["PETAVOXEL_CLUSTER_GPUS"]) == (str(50 * 4 + 16 * 7), "16")
    [service] = named(manifests, "RayService")
    assert "PETAVOXEL_CLUSTER_CPUS" not in head(service)
    limits = {"resources": {"limits": {"cpu": "1500m"}}, "minReplicas": 1, "maxReplicas": 3}
    values: dict[str, Any] = {"pipelines__enabled": True, "pipelines__workerGroups__cpu": limits}
    [fixed] = named(helm4.template(**values, ray__autoscaler__enabled=False, head__numCpus=1), "RayCluster")
    assert head(fixed)["PETAVOXEL_CLUSTER_CPUS"] == "3"
    [own] = named(helm4.template(**values, env={"PETAVOXEL_CLUSTER_CPUS": "99"}), "RayCluster")
    assert head(own)["PETAVOXEL_CLUSTER_CPUS"] == "99"
