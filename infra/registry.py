"""Models below a prefix of a bucket or disk, and the one way in which a `--model` becomes a verified local folder.

::

    PREFIX/NAME/VERSION/model.onnx
    PREFIX/NAME/VERSION/card.json      written last: a version without it is not there

Versions are positive integers, and the latest is the largest. Objects are only ever created, never replaced, so what a
version holds cannot change, and two pushes at once cannot mix. Engines read files, so what lies in a bucket is copied
into a cache (`Settings.model_cache`), by the digest of its card, and compared with it each time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from infra.objects import Folder
from infra.settings import current_settings
from models.catalog import CARD_NAME, Model, ModelCard, find_model, list_models
from models.errors import InvalidModel, NotFound, PetavoxelError, RunConflict

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Published:
    """A model that a listing shows: where, and what changes when it does. Its card has not been read."""

    url: str
    stamp: str
    sizes: dict[str, int]

    def read_card(self) -> ModelCard:
        """Its card, if the network that it describes is there with the size that it states.

        Raises `InvalidModel` where they do not fit, `StorageFailed` or `AccessDenied` where the store fails.
        """
        card = _card(Folder(self.url))[0]
        size = self.sizes.get(card.file.name)
        if size != card.file.size:
            raise InvalidModel(
                f"{self.url}: expected {card.file.name} with {card.file.size} bytes, got {size or 'none'}"
            )
        return card


class Registry:
    """Models below a prefix: `NAME/VERSION` of a registry, or the subfolders of a plain folder of models."""

    def __init__(self, prefix: str) -> None:
        self._folder = Folder(prefix)

    @property
    def url(self) -> str:
        """The prefix."""
        return self._folder.url

    def published(self) -> list[Published]:
        """Every model, from one listing, by name and version; what has no card yet is not there."""
        below: dict[str, dict[str, tuple[int, str]]] = {}
        for path, found in self._folder.below(depth=3).items():
            folder, _, name = path.rpartition("/")
            below.setdefault(folder, {})[name] = found
        listed = []
        for folder in sorted(below, key=_order):
            files, (name, _, version) = below[folder], folder.partition("/")
            if name and CARD_NAME in files and (not version or _VERSION.fullmatch(version)):
                stamp = " ".join(f"{file}: {files[file][1]}" for file in sorted(files))
                sizes = {file: size for file, (size, _) in files.items()}
                listed.append(Published(self._folder.at(folder), stamp, sizes))
        return listed

    def push(self, model: Model, version: str | None = None) -> tuple[str, bool]:
        """Publish a model as `version`, default its card's; returns where, and whether it was not there before.

        Raises `InvalidModel` for a model that does not fit its card, or whose name or version cannot be published;
        `RunConflict` where that version is another one, or a push of another one was begun there.
        """
        card = model.card if version is None else replace(model.card, version=version)
        if not _NAME.fullmatch(card.name):
            raise InvalidModel(f"model {card.name!r}: expected a name of letters, digits, '.', '_' and '-'")
        if not _VERSION.fullmatch(card.version):
            raise InvalidModel(f"model {card.name}: expected a version 1, 2, 3, …, got {card.version!r}")
        model.verify()
        content = model.onnx_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != card.file.sha256:
            raise InvalidModel(f"model {card.name}: {model.onnx_path} was changed while it was read")
        place = self._folder / card.name / card.version
        there = place.exists(CARD_NAME)
        if there:
            _check_same(place, card)
        if not place.create(card.file.name, content):
            raise RunConflict(
                f"{place.url}: a push that did not end left another network there; delete it, or choose another version"
            )
        if not there and not place.create(CARD_NAME, card.to_json().encode()):
            _check_same(place, card)
        return place.url, not there


def locate(reference: str) -> str:
    """What finds a model again on every machine: a zoo name, an absolute folder, or the URL of one version.

    `reference` is a zoo name, a folder, card or URL of a model, the folder or URL of a model's versions in a registry
    (the latest is meant), or a name in the registry of `Settings.registry`; the last two also with `@VERSION`.

    Raises `NotFound`, which says what there is, and the errors of the store.
    """
    name, version = _split(reference)
    if name in list_models() and version in (None, find_model(name).card.version):
        return name
    if "://" not in reference:
        path = Path(reference)
        if path.is_file():
            return str(find_model(path).folder.resolve())
        if (path / CARD_NAME).is_file():
            return str(path.resolve())
        registry = current_settings().registry
        if _NAME.fullmatch(name) and registry is not None:
            return _version_of(Folder(registry) / name, version)
        if not Path(name).is_dir():
            find_model(reference)  # raises what is wrong with it
    return _version_of(Folder(name), version)


def fetch(reference: str) -> Model:
    """The verified model that `locate` finds, in a local folder.

    Raises what `locate` raises, and `InvalidModel` where card and network do not fit.
    """
    found = locate(reference)
    if "://" not in found:
        return find_model(found)
    return _cached(Folder(found))


def describe(reference: str) -> tuple[str, ModelCard, list[str]]:
    """Where `locate` finds a model, its card, and the versions beside it, lowest first; the network is not read.

    Raises what `locate` raises, and `InvalidModel` for a broken card.
    """
    found = locate(reference)
    place = Folder(str(find_model(found).folder) if found in list_models() else found)
    parent, _, version = place.url.rpartition("/")
    card = _card(place)[0]
    return place.url, card, _versions(Folder(parent)) if _VERSION.fullmatch(version) else [card.version]


def save(model: Model, target: str) -> str:
    """Write a model into an empty folder or prefix, the card last, or leave it as it is there; returns its URL.

    Raises `RunConflict` where something else is there.
    """
    place = Folder(target)
    if place.occupied() and not place.exists(model.card.file.name):
        raise RunConflict(f"{place.url}: expected an empty folder or this model, there is something else")
    if not place.create(model.card.file.name, model.onnx_path.read_bytes()) or not place.create(
        CARD_NAME, model.card.to_json().encode()
    ):
        raise RunConflict(f"{place.url}: another model is there")
    return place.url


def _split(reference: str) -> tuple[str, str | None]:
    name, at, version = reference.rpartition("@")
    return (name, version) if at and name and _VERSION.fullmatch(version) else (reference, None)


def _version_of(folder: Folder, version: str | None) -> str:
    """The URL of a version, the latest for None, or of the model that the folder is."""
    if folder.exists(CARD_NAME):
        held = _card(folder)[0].version
        if version in (None, held):
            return folder.url
        raise NotFound(f"model {folder.url}: expected version {version}, there is {held}")
    there = _versions(folder)
    if version is None and there:
        return folder.at(there[-1])
    if version in there:
        return folder.at(version)
    if not there:
        raise NotFound(f"model {folder.url}: expected {CARD_NAME}, or versions that have one, there is neither")
    raise NotFound(f"model {folder.url}: expected one of the versions {', '.join(there)}, got {version}")


def _versions(folder: Folder) -> list[str]:
    """What is published below a name, lowest first."""
    parts = (path.partition("/") for path in folder.below(depth=2))
    return sorted((one for one, _, name in parts if name == CARD_NAME and _VERSION.fullmatch(one)), key=int)


def _card(place: Folder) -> tuple[ModelCard, bytes]:
    """A stored card and its bytes; in a registry it says what its place says."""
    content = place.read(CARD_NAME)
    try:
        card = ModelCard.from_json(content.decode(), place.at(CARD_NAME))
    except UnicodeDecodeError as error:
        raise InvalidModel(f"{place.at(CARD_NAME)}: not a readable card ({error})") from error
    name, version = place.url.rsplit("/", 2)[-2:]
    if _VERSION.fullmatch(version) and (card.name, card.version) != (name, version):
        raise InvalidModel(f"{place.url}: its card is that of {card.name} {card.version}")
    return card, content


def _check_same(place: Folder, card: ModelCard) -> None:
    held = _card(place)[0]
    if held != card:
        what = "another card" if held.file == card.file else f"another network (SHA-256 {held.file.sha256[:12]}…)"
        raise RunConflict(f"{place.url}: is published with {what}; versions never change, choose another one")


def _cached(place: Folder) -> Model:
    """A local copy of a stored model."""
    card, content = _card(place)
    cache = Path(current_settings().model_cache).expanduser()
    target = cache / f"{card.name}-{card.version}-{hashlib.sha256(content).hexdigest()[:32]}"
    if target.is_dir():
        try:
            return find_model(target)
        except PetavoxelError as error:
            logger.warning("%s: copied again: %s", place.url, error)
            shutil.rmtree(target, ignore_errors=True)
    network = place.read(card.file.name)
    if len(network) != card.file.size or hashlib.sha256(network).hexdigest() != card.file.sha256:
        raise InvalidModel(f"{place.at(card.file.name)}: {len(network)} bytes that are not those of its card")
    cache.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=cache, prefix=".making-"))
    try:
        (making / card.file.name).write_bytes(network)
        (making / CARD_NAME).write_bytes(content)
        try:
            os.rename(making, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return find_model(target)


def _order(folder: str) -> tuple[str, int, str]:
    name, _, version = folder.partition("/")
    return name, int(version) if version.isdigit() else 0, version
