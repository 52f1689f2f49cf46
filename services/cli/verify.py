"""`petavoxel verify`."""

from __future__ import annotations

from typing import Annotated

import typer

SHOWN = 100
"""Damages listed; --json has all."""


def verify(
    out: Annotated[str, typer.Argument(help="Output prefix of a run, on a disk or a bucket.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make the next run redo what is damaged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read every output again, compare checksums, and list what is damaged or missing."""
    import json

    from models.errors import StorageFailed
    from services.verify import repair as drop_markers
    from services.verify import verify as check

    found = check(out)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        for damage in found.damages[:SHOWN]:
            print(f"{damage.stage}: chunk {damage.chunk} (box {damage.box}): {damage.output}: {damage.cause}")
        if len(found.damages) > SHOWN:
            print(f"and {len(found.damages) - SHOWN} more: --json")
        print(f"{out}: {found.chunks} chunks, {found.outputs} outputs checked, {len(found.damages)} damaged")
    if not found.damages:
        return
    if not repair:
        raise StorageFailed(f"{out}: {len(found.damages)} outputs are damaged; --repair has the next run redo them")
    again = drop_markers(out, found)
    whole = f", and for it the stages {', '.join(again)}" if again else ""
    raise StorageFailed(f"{out}: {len(found.damages)} outputs are damaged; the next run redoes them{whole}")
