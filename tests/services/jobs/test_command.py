import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cutting_proxy import CuttingProxy
from manifests import check
from typer.main import get_command
from typer.testing import CliRunner

from models.catalog import Model
from models.errors import InvalidInput, NotFound, PetavoxelError, RuntimeUnavailable
from services.cli.jobs import NO_JOBS
from services.cli.main import app
from services.jobs.client import Jobs
from services.jobs.command import PACKED, JobCommand, job_command

IMAGE, OUT = "gs://bucket/em.zarr", "gs://bucket/out"


def manifest(*words: str) -> dict:
    result = CliRunner().invoke(app, ["submit", *words, "--kuberay"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "&id" not in result.stdout  # YAML that a human can edit
    return yaml.safe_load(result.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["segment", IMAGE, OUT, "--box", "0:64,0:64,0:64", "--no-skeletons"],
        ["predict", IMAGE, OUT, "--chunk", "64,64,64"],
        ["watershed", OUT, "--high", "0.99"],
        ["agglomerate", OUT, "--threshold=0.3"],
        ["relabel", OUT],
        ["skeletonize", "precomputed://gs://bucket/labels", OUT, "--dust", "10"],
        ["mesh", OUT, "/mnt/meshes"],
        ["export-precomputed", OUT, "gs://bucket/name", "--image"],
        ["evaluate", "segmentation", OUT, "gs://bucket/truth", "--out", "gs://bucket/scores"],
    ],
)
def test_every_command_on_ray_becomes_a_valid_ray_job(words: list[str]) -> None:
    found = manifest(*words)
    check(found)
    name = 2 if words[0] == "evaluate" else 1
    entrypoint = shlex.split(found["spec"]["entrypoint"])
    assert entrypoint == ["petavoxel", *words[:name], "--address", "auto", *words[name:]]
    assert len(found["metadata"]["name"]) <= 47  # KubeRay adds its own


def test_manifest_with_gpus_environment_and_account() -> None:
    given = ["--accelerator", "nvidia-l4", "--pods", "7", "--container", "registry/petavoxel:1", "--service-account"]
    found = manifest("segment", IMAGE, OUT, *given, "emreader", "--env", "A=b=c", "--env", "PETAVOXEL_STALL_S=1800")
    check(found)
    assert yaml.safe_load(found["spec"]["runtimeEnvYAML"]) == {"env_vars": {"A": "b=c", "PETAVOXEL_STALL_S": "1800"}}
    cluster = found["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 7
    worker, head = group["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]
    assert worker["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["containers"][0]["image"] == "registry/petavoxel:1-gpu"
    assert head["containers"][0]["image"] == "registry/petavoxel:1-cpu"
    pods = [worker, head, found["spec"]["submitterPodTemplate"]["spec"]]
    assert {pod["serviceAccountName"] for pod in pods} == {"emreader"}
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_no_option_of_submit_hides_one_of_a_command() -> None:
    def commands(group: Any) -> Iterator[Any]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command)
            elif name != "submit":
                yield command

    root = get_command(app)
    own = {name for option in root.commands["submit"].params for name in option.opts if name.startswith("-")}
    assert "--pods" in own
    for command in commands(root):
        options = {name for option in command.params for name in option.opts}
        if "--address" in options and command.name not in NO_JOBS:
            assert own & options == {"--address"}, command.name


def test_pods_have_a_place_for_models_of_a_registry() -> None:
    cluster = manifest("segment", IMAGE, OUT)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        [cache] = [one["value"] for one in container["env"] if one["name"] == "PETAVOXEL_MODEL_CACHE"]
        assert any(cache.startswith(f"{mount['mountPath']}/") for mount in container["volumeMounts"])


def test_another_job_has_another_name() -> None:
    one, same, other = (manifest("segment", IMAGE, out) for out in (OUT, OUT, f"{OUT}2"))
    assert one == same
    assert one["metadata"]["name"] != other["metadata"]["name"]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["nonsense"], InvalidInput, "no command 'nonsense'"),
        (["evaluate"], InvalidInput, "no command 'evaluate'; petavoxel evaluate --help"),
        (["view", OUT], InvalidInput, "a command that ends and takes --address, got 'view'"),
        (["serve"], InvalidInput, "got 'serve'"),
        (["jobs"], InvalidInput, "got 'jobs'"),
        (["segment", "em.zarr", OUT], InvalidInput, "IMAGE: expected a URL or an absolute path.* got 'em.zarr'"),
        (["segment", IMAGE, "../out"], InvalidInput, "OUT: expected a URL or an absolute path"),
        (["segment", IMAGE, OUT, "--model", "missing"], NotFound, "no such model.*fib25-affinity"),
        (["segment", IMAGE, OUT, "--env", "novalue"], InvalidInput, "expected NAME=VALUE, got 'novalue'"),
        (["segment", IMAGE, OUT, "--endpoints", "petavoxel", "--kuberay"], InvalidInput, "no application 'petavoxel'"),
        (["segment", IMAGE, OUT], InvalidInput, "--address: expected that of a Ray dashboard.* got none"),
        (["segment", IMAGE, OUT, "--address", "auto"], InvalidInput, "got 'auto'"),
        (["segment", IMAGE, OUT, "--address", "ray://host:10001"], InvalidInput, "got 'ray://host:10001'"),
        (["segment", IMAGE, OUT, "--address", "http://host:port"], InvalidInput, "got 'http://host:port'"),
    ],
)
def test_what_cannot_run_there_is_told_here(words: list[str], error: type[PetavoxelError], message: str) -> None:
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["submit", *words], catch_exceptions=False, env={"RAY_API_SERVER_ADDRESS": ""})


@pytest.mark.parametrize("wrong", [["--boxx", "1"], ["--threshold", "high"], []])
def test_wrong_options_are_those_of_the_command(wrong: list[str]) -> None:
    words = ["segment", IMAGE, *([OUT, *wrong] if wrong else [])]
    result = CliRunner().invoke(app, ["submit", *words, "--address", "http://127.0.0.1:1"])
    assert result.exit_code == 2
    assert "petavoxel segment" in result.output


def test_options_that_name_local_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert manifest("evaluate", "segmentation", OUT, OUT, "--out", "scores")
    (tmp_path / "scores").mkdir()
    with pytest.raises(InvalidInput, match=r"--out: .* got 'scores', which is a path on this machine"):
        manifest("evaluate", "segmentation", OUT, OUT, "--out", "scores")


@pytest.mark.parametrize("form", ["--model {}", "--model={}"])
def test_a_local_model_travels_in_a_package(model: Model, form: str) -> None:
    options = tuple(form.format(model.folder).split())
    command = job_command(("predict",), (IMAGE, OUT, *options), {"image": IMAGE}, {"model": str(model.folder)})
    with command.packed() as (there, folder):
        assert folder
        packed = folder / PACKED / model.folder.name
        assert sorted(path.name for path in packed.iterdir()) == sorted(path.name for path in model.folder.iterdir())
        assert f"{PACKED}/{model.folder.name}" in there.entrypoint
        assert str(model.folder) not in there.entrypoint
    assert not folder.exists()
    with pytest.raises(InvalidInput, match="a manifest cannot carry files"):
        CliRunner().invoke(app, ["submit", "predict", IMAGE, OUT, *options, "--kuberay"], catch_exceptions=False)


def test_models_that_the_cluster_has_stay_where_they_are() -> None:
    for name in ("fib25-affinity", "/models/on/the/cluster"):
        command = job_command(("predict",), (IMAGE, OUT, "--model", name), {}, {"model": name})
        with command.packed() as (there, folder):
            assert (there, folder) == (command, None)


def test_words_survive_the_shell() -> None:
    words = ("gs://bucket/a b.zarr", "$(true)", "it's")
    assert shlex.split(JobCommand(("segment",), words).entrypoint)[4:] == list(words)


def test_who_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.jobs.client.ANSWER_S", 0.3)
    with (
        CuttingProxy(0, None) as silent,
        pytest.raises(RuntimeUnavailable, match=r"expected a Ray dashboard, got.*timed"),
    ):
        Jobs(silent.address)
