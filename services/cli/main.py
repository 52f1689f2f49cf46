"""Registers the commands and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import sys
from typing import Annotated

import typer

from models.errors import PetavoxelError
from services.cli.datasets import app as datasets_app
from services.cli.demo import demo
from services.cli.evaluate import app as evaluate_app
from services.cli.export import export
from services.cli.export_precomputed import export_precomputed
from services.cli.jobs import jobs, logs, stop, submit
from services.cli.mesh import mesh
from services.cli.models import app as models_app
from services.cli.report import report
from services.cli.segment import agglomerate, predict, relabel, segment, watershed
from services.cli.serve import serve, token
from services.cli.skeletonize import skeletonize
from services.cli.status import status
from services.cli.train import train
from services.cli.verify import verify
from services.cli.view import view

app = typer.Typer(
    name="petavoxel",
    help="From electron-microscope volumes to neurons, skeletons and scores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(segment)
app.command()(predict)
app.command()(watershed)
app.command()(agglomerate)
app.command()(relabel)
app.command()(skeletonize)
app.command()(mesh)
app.command()(export_precomputed)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(datasets_app, name="datasets")
app.add_typer(models_app, name="models")
app.command()(report)
app.command()(status)
app.command()(verify)
app.command()(view)
app.command()(serve)
app.command()(token)
app.command(context_settings={"ignore_unknown_options": True})(submit)
app.command()(jobs)
app.command()(logs)
app.command()(stop)
app.command()(train)
app.command()(export)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("petavoxel"))
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens in detail.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    logging.basicConfig(
        level=logging.INFO if verbose or not sys.stderr.isatty() else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Run the command line; a user's mistake ends in one line on standard error and a non-zero exit code."""
    try:
        app()
    except PetavoxelError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on where it stopped", 130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _fail(f"{error.filename or 'storage'}: {error.strerror}", 5)


def _fail(message: str, code: int) -> None:
    print(f"petavoxel: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code) if code == 130 else sys.exit(code)
