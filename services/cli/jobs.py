"""`petavoxel submit`, `jobs`, `logs` and `stop`: commands as jobs on a Ray cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from services.jobs.client import Job, Jobs
    from services.jobs.command import JobCommand

Address = Annotated[
    str, typer.Option(metavar="URL", help="Ray's dashboard, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS")
]
NO_JOBS = ("serve", "submit", "jobs", "logs", "stop")
"""Commands with `--address` that are no jobs: they do not end, or speak to the dashboard themselves."""

Id = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `petavoxel jobs` shows it.")]


def submit(
    context: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND [ARGS]…", help="A command that takes --address, and its options.")
    ],
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ray's dashboard, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS"),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment of the job's processes; repeatable.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and do not follow it.")] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="Print a RayJob for KubeRay instead, with a cluster of its own.")
    ] = False,
    container: Annotated[
        str | None, typer.Option(metavar="IMAGE:TAG", help="KubeRay: image; -cpu or -gpu is added to the tag.")
    ] = None,
    pods: Annotated[int, typer.Option(help="KubeRay: workers, pods of 4 processors.", min=1)] = 4,
    accelerator: Annotated[
        str | None, typer.Option(metavar="TYPE", help="KubeRay: a GPU per pod, as GKE names it, e.g. nvidia-l4.")
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="NAME", help="KubeRay: account of the pods, for the bucket's access.")
    ] = None,
) -> None:
    """Run a command as a job on a Ray cluster, follow its log and end with its exit code.

    Ctrl-C leaves the job running.
    """
    from models.errors import InvalidInput

    checked, environment = _checked(context, command), _environment(env or [])
    if kuberay:
        from services.jobs.manifest import JobCluster, manifest_yaml

        image = {"image": container} if container else {}
        cluster = JobCluster(pods=pods, accelerator=accelerator, service_account=service_account, **image)
        print(manifest_yaml(checked, cluster, environment), end="")
        return
    if address is None:
        raise InvalidInput("--address: expected that of a Ray dashboard, http://HOST:8265, got none")
    found = _jobs(address)
    job = found.submit(checked, environment)
    if detach:
        print(job)
        return
    print(f"petavoxel: {job} submitted to {found.address}", file=sys.stderr)
    _follow(found, job)


def jobs(
    address: Address, as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects.")] = False
) -> None:
    """List the jobs of a cluster, the latest first."""
    found = _jobs(address).all()
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(job) for job in found], indent=1))
        return
    print(f"{'job':<32} {'status':<9} {'exit':>4}  {'began':<19} {'took':>9}  command")
    for job in found:  # a line each, however long: for grep and awk
        code = "" if job.exit_code is None else job.exit_code
        began, took = _times(job)
        print(f"{job.id:<32} {job.status:<9} {code:>4}  {began:<19} {took:>9}  {job.command}")


def logs(
    job: Id,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, and end with its exit code.")
    ] = False,
) -> None:
    """Print what a job has written."""
    found = _jobs(address)
    if follow:
        found.find(job)
        _follow(found, job)
    else:
        print(found.logs(job), end="")


def stop(job: Id, address: Address) -> None:
    """End a job; submitting the same command again goes on where it stopped."""
    found = _jobs(address)
    before = found.find(job)
    if before.over:
        print(f"{job}: had ended already, {before.status}")
        return
    print(f"{job}: {found.stop(job).status}")


def _jobs(address: str) -> Jobs:
    from services.jobs.client import Jobs

    return Jobs(address)


def _follow(found: Jobs, job: str) -> None:
    try:
        ended = found.follow(job, _write)
    except KeyboardInterrupt:
        told = f"--address {found.address}"
        print(
            f"petavoxel: {job} goes on; follow it again with: petavoxel logs -f {job} {told}; "
            f"end it with: petavoxel stop {job} {told}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    if ended.exit_code:
        why = f": {' '.join(ended.message.split())}" if ended.message else ""
        print(f"petavoxel: {job}: {ended.status}, exit code {ended.exit_code}{why}", file=sys.stderr)
    raise typer.Exit(ended.exit_code or 0)


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _checked(context: typer.Context, words: list[str]) -> JobCommand:
    """The command behind the words, parsed as it will be on the cluster: wrong options are told here and now."""
    from models.errors import InvalidInput
    from services.jobs.command import job_command

    command: Any = context.find_root().command
    name: list[str] = []
    while hasattr(command, "commands"):
        following = command.commands.get(words[len(name)]) if len(name) < len(words) else None
        if following is None:
            given = " ".join(words[: len(name) + 1])
            known = " ".join(["petavoxel", *name, "--help"])
            raise InvalidInput(f"submit: no command {given!r}; {known} lists them")
        command = following
        name.append(words[len(name)])
    kinds = {parameter.name: parameter.param_type_name for parameter in command.params}
    if "address" not in kinds or name[0] in NO_JOBS:
        raise InvalidInput(f"submit: expected a command that ends and takes --address, got {' '.join(name)!r}")
    rest = words[len(name) :]
    given = command.make_context(" ".join(name), list(rest), parent=context.parent).params
    positional = {key: value for key, value in given.items() if kinds[key] == "argument"}
    named = {key: value for key, value in given.items() if kinds[key] != "argument"}
    return job_command(tuple(name), tuple(rest), positional, named)


def _environment(given: list[str]) -> dict[str, str]:
    from models.errors import InvalidInput

    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InvalidInput(f"--env: expected NAME=VALUE, got {name + equals!r}")
    return {name: value for name, _, value in pairs}


def _times(job: Job) -> tuple[str, str]:
    """When a job began and how long it took or has been running."""
    import time
    from datetime import timedelta

    if job.began is None:
        return "", ""
    took = timedelta(seconds=round((job.ended or time.time()) - job.began))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.began)), str(took)
