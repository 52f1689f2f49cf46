"""The command line `petavoxel …`: one module per command, heavy imports inside the commands."""

from services.cli.main import main

__all__ = ["main"]
