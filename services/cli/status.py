"""`petavoxel status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from services.status import RunStatus, StageStatus

SHOWN = 20
"""Failures and running chunks shown per stage; --json has more."""


def status(
    out: Annotated[str, typer.Argument(help="Output prefix of a run, on a disk or a bucket.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="Look again every so often, until complete.")
    ] = None,
) -> None:
    """Say what is done, running and failed, how fast it goes and how long it will take."""
    import json

    from rich.console import Console
    from rich.live import Live

    from services.status import run_status

    found = run_status(out)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    if watch is None:
        Console().print(_shown(found))
        return
    with Live(_shown(found), console=Console(), auto_refresh=False) as live:
        while not found.complete:
            time.sleep(watch)
            found = run_status(out)
            live.update(_shown(found), refresh=True)


def _shown(found: RunStatus) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "state", "done", "running", "failed", "Mvoxel/s", "left")
    notes = []
    for stage in found.stages:
        rate = "" if stage.voxels_per_s is None else f"{stage.voxels_per_s / 1e6:.2f}"
        counts = (f"{stage.done} of {stage.chunks}", str(len(stage.running) or ""), str(stage.failed or ""))
        table.add_row(stage.stage, stage.state, *counts, rate, _duration(stage.seconds_left))
        notes += _notes(stage)
    return Group(table, *(Text(note, overflow="fold") for note in [*notes, _conclusion(found)]))


def _notes(stage: StageStatus) -> list[str]:
    running = [f"{stage.stage}: running: chunk {c.chunk} (box {c.box}), {c.note}" for c in stage.running[:SHOWN]]
    failed = [f"{stage.stage}: failed: chunk {c.chunk} (box {c.box}): {c.note}" for c in stage.failures[:SHOWN]]
    hidden = stage.failed - len(failed)
    return running + failed + ([f"{stage.stage}: {hidden} more failed chunks: --json"] if hidden > 0 else [])


def _conclusion(found: RunStatus) -> str:
    if found.complete:
        return f"{found.url}: complete"
    if found.alive:
        return f"{found.url}: running, last sign {found.last_sign}"
    last = f", last sign {found.last_sign}" if found.last_sign else ""
    return f"{found.url}: not running{last}; the same command goes on where it stopped"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
