"""`petavoxel models …`: the shipped zoo, and registries on buckets or disks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from models.catalog import ModelCard

app = typer.Typer(help="Models: the shipped zoo, and registries on buckets or disks.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="Registry: PREFIX/NAME/VERSION, gs://…, s3://… or a folder.")
]


@app.callback()
def models() -> None:
    """Models: the shipped zoo, and registries on buckets or disks."""


@app.command("list")
def list_(
    prefix: Annotated[
        str | None,
        typer.Argument(help="Registry or folder of models; default the zoo, and PETAVOXEL_REGISTRY if it is set."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models and versions."""
    from infra.settings import current_settings
    from models.errors import NotFound
    from services.publishing import rows, zoo

    registry = current_settings().registry
    prefixes = [prefix] if prefix else [zoo(), *([registry] if registry else [])]
    found = rows(prefixes)
    if not found:
        raise NotFound(f"{', '.join(prefixes)}: expected NAME/VERSION/card.json below it, there is none")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'name':<24} {'version':<8} {'kind':<9} {'voxel nm':<12} {'sha256':<12} {'score':<12} terms")
    for each in found:  # a line each, however long: for grep and awk
        if "error" in each:
            print(f"{each['url']}: broken: {each['error']}")
            continue
        score = each["score"]
        figure = f"{score['metric']} {score['value']:.3g}" if score else ""
        size = _size(each["voxel_size_nm"])
        print(
            f"{each['name']:<24} {each['version']:<8} {each['kind']:<9} {size:<12} {each['sha256'][:12]:<12} "
            f"{figure:<12} {each['terms']}"
        )


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Name, NAME@VERSION, folder or URL of a model, as for --model.")],
    as_json: AsJson = False,
) -> None:
    """Tell what a model expects and returns, its data, terms and scores."""
    from infra.registry import describe

    url, card, versions = describe(model)
    if as_json:
        print(json.dumps({"url": url, "versions": versions, "card": json.loads(card.to_json())}, indent=1))
        return
    print("\n".join(f"{key + ':':<15}{text}" for key, text in _lines(url, card, versions)))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="What to get; default the latest version.")],
    prefix: Prefix,
    to: Annotated[str, typer.Argument(help="Folder that gets model.onnx and card.json.")],
) -> None:
    """Get a model out of a registry; its digest is compared with its card."""
    from infra.registry import fetch, save

    found = fetch(f"{prefix.rstrip('/')}/{model}")
    print(f"{save(found, to)}: {found.card.name} {found.card.version}, SHA-256 {found.card.file.sha256}")


@app.command()
def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, name or URL of a model, or a training run.")],
    prefix: Prefix,
    version: Annotated[str | None, typer.Option(help="1, 2, 3, …; default that of its card.")] = None,
    name: Annotated[str | None, typer.Option(help="Of a training run: its name; default the recipe's.")] = None,
    data: Annotated[str | None, typer.Option(help="Of a training run: what it was trained on.")] = None,
    terms: Annotated[str | None, typer.Option(help="Of a training run: terms of use of data and weights.")] = None,
) -> None:
    """Publish a model, or the best checkpoint of a training run; a version that is there never changes."""
    from infra.registry import Registry
    from services.publishing import publishable

    with TemporaryDirectory(prefix="pvx-push-") as scratch:
        found = publishable(model, Path(scratch), name=name, data=data, terms=terms)
        url, new = Registry(prefix).push(found, version)
    print(f"{url}: {'published' if new else 'was there already, the same'}, SHA-256 {found.card.file.sha256}")


def _lines(url: str, card: ModelCard, versions: list[str]) -> list[tuple[str, str]]:
    rule, rules, chosen = card.normalisation, card.patch, asdict(card.segmentation)
    return [
        ("name", card.name),
        ("version", card.version + (f" of {', '.join(versions)}" if len(versions) > 1 else "")),
        ("where", url),
        ("network", f"{card.architecture.family}, {card.file.size:,} bytes, SHA-256 {card.file.sha256}"),
        ("image", f"{rule.dtype}, voxels of {_size(card.voxel_size_nm)} nm (z, y, x)"),
        ("input", f"(value - {rule.shift:g}) × {rule.scale:g}"),
        ("output", f"{card.output.kind}, offsets {', '.join(map(str, card.output.offsets))}"),
        ("patch", f"{_size(rules.shape)} voxels, multiples of {_size(rules.divisor)}, margin {_size(rules.margin)}"),
        ("segments", " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in chosen.items())),
        ("data", card.training.data),
        ("terms", card.training.terms),
        *(
            ("score", f"{score.dataset}, {score.split}: {', '.join(f'{k} {v:.4g}' for k, v in score.values.items())}")
            for score in card.scores
        ),
    ]


def _size(values: Any) -> str:
    return "×".join(f"{value:g}" for value in values)
