"""Model cards: what a network expects and returns, and where the exported file that ships with the card is.

A card is `card.json` beside `model.onnx`. It carries every convention that a caller needs, so nothing is guessed: an
unknown key, a digest that differs, or a volume with another voxel size is an error. Only the standard library and numpy
are used here, since cards are read where neither torch nor a runtime is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import typing
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidModel, InvalidVolume, NotFound
from models.geometry import Triple, VoxelSize

CARD_NAME = "card.json"
ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True)
class Architecture:
    """Family of the network and the fields of its configuration, enough to rebuild it."""

    family: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Normalisation:
    """Image of `dtype` to the network's float32 input: (value - shift) * scale, with the same constants everywhere.

    A floating `dtype` admits every floating image; an integer one only itself, because the intensity range would have
    to be guessed otherwise.
    """

    dtype: str
    shift: float
    scale: float

    def __post_init__(self) -> None:
        try:
            real = np.dtype(self.dtype).kind in "uif"
        except TypeError:
            real = False
        if not real or not math.isfinite(self.shift) or not math.isfinite(self.scale) or self.scale == 0:
            raise InvalidModel(f"card: normalisation expects a real dtype and finite constants, got {self}")

    def check_dtype(self, dtype: np.dtype[Any]) -> None:
        """Refuse, with `InvalidVolume`, an image dtype that the network was not trained on."""
        expected = np.dtype(self.dtype)
        if dtype != expected and not (dtype.kind == expected.kind == "f"):
            raise InvalidVolume(
                f"image: the model expects dtype {expected}, got {dtype}; "
                f"convert the image to {expected} with the intensity range that fits"
            )

    def apply(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Return the float32 network input of an image of any shape."""
        centred = image.astype(np.float32) - np.float32(self.shift)
        centred *= np.float32(self.scale)
        return centred


@dataclass(frozen=True)
class Output:
    """What the channels mean: the value at voxel p of channel c tells about p and p + offsets[c]."""

    kind: str
    offsets: tuple[Triple, ...]
    anchor: str = "p"

    def __post_init__(self) -> None:
        if self.kind != "affinity" or self.anchor != "p" or not self.offsets:
            raise InvalidModel(f'card: output expects kind "affinity", anchor "p" and offsets, got {self}')


@dataclass(frozen=True)
class PatchRules:
    """Patch extents z, y, x that the network takes.

    `divisor` divides every extent, `shape` is the largest extent used by default, `margin` voxels on either side are
    discarded, and `overlap` voxels between what is left of neighbouring patches are blended.
    """

    divisor: Triple
    shape: Triple
    margin: Triple
    overlap: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        for axis, d, p, m, o in zip("zyx", self.divisor, self.shape, self.margin, self.overlap, strict=True):
            if d < 1 or m < 0 or o < 0 or p % d or p - 2 * m - o < max(1, o):
                raise InvalidModel(f"card: patch extent {p}, divisor {d}, margin {m}, overlap {o} on {axis} do not fit")


@dataclass(frozen=True)
class Segmentation:
    """What makes segments of a network's affinities, chosen on its validation data; affinities are from 0 to 1.

    Voxels stay apart up to an affinity of `low` and always join from `high` on; basins below `basin_voxels` join their
    neighbour of largest affinity, if that is at least `basin_affinity`; segments merge down to a mean affinity of
    `threshold`.
    """

    low: float = 0.0
    high: float = 0.996
    basin_voxels: int = 300
    basin_affinity: float = 0.0
    threshold: float = 0.22

    def __post_init__(self) -> None:
        fractions = (self.low, self.high / 1.004, self.basin_affinity, self.threshold)  # from 256/255 on is never
        if not all(0 <= fraction <= 1 for fraction in fractions) or not 0 <= self.basin_voxels < 2**53:
            raise InvalidModel(f"segmentation: expected affinities from 0 to 1 and voxels from 0, got {self}")
        if max(1, round(255 * self.low)) > round(255 * self.high):
            raise InvalidModel(f"segmentation: low must not exceed high, and high not be 0, got {self}")


@dataclass(frozen=True)
class Training:
    """Where the weights come from: data, its terms of use, and the recipe's key figures."""

    data: str
    terms: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Figures reached on one split of one data set."""

    dataset: str
    split: str
    values: dict[str, float]


@dataclass(frozen=True)
class ModelFile:
    """The exported network: file name beside the card, SHA-256 in hexadecimal, size in bytes."""

    name: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or len(self.sha256) != 64 or self.size < 1:
            raise InvalidModel(f"card: file expects a plain name, a SHA-256 and a size, got {self}")


@dataclass(frozen=True)
class ModelCard:
    """Everything a caller must know about one exported network; see the classes of the fields.

    Raises `InvalidModel` for impossible values.
    """

    name: str
    version: str
    architecture: Architecture
    normalisation: Normalisation
    voxel_size_nm: VoxelSize
    axes: str
    output: Output
    patch: PatchRules
    training: Training
    file: ModelFile
    scores: tuple[Score, ...] = ()
    segmentation: Segmentation = Segmentation()

    def __post_init__(self) -> None:
        if not self.name or self.axes != "zyx":
            raise InvalidModel(f'card: expected a name and axes "zyx", got {self.name!r} and {self.axes!r}')
        if not all(math.isfinite(size) and size > 0 for size in self.voxel_size_nm):
            raise InvalidModel(f"card {self.name}: expected a positive voxel size in nm, got {self.voxel_size_nm}")

    @classmethod
    def from_json(cls, text: str, source: str = "card") -> ModelCard:
        """Read a card; raises `InvalidModel` for broken JSON, unknown or missing keys, wrong types or values."""
        card: ModelCard = _typed(cls, _parsed(text, source), source)
        return card

    def to_json(self) -> str:
        """The text that `from_json` reads, with sorted-by-field lines."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check_voxel_size(self, voxel_size_nm: VoxelSize, *, tolerance: float = 0.2) -> None:
        """Refuse, with `InvalidModel`, a volume whose voxel size differs by more than `tolerance` on an axis."""
        for axis, expected, size in zip("zyx", self.voxel_size_nm, voxel_size_nm, strict=True):
            if not abs(size - expected) <= tolerance * expected * (1 + 1e-9):
                raise InvalidModel(
                    f"model {self.name}: expects voxels of {_nm(self.voxel_size_nm)} nm (z, y, x), the volume has "
                    f"{_nm(voxel_size_nm)} nm; {axis} is off by more than {tolerance:.0%}"
                )


@dataclass(frozen=True)
class Model:
    """A card and the folder that it was found in."""

    card: ModelCard
    folder: Path

    @property
    def onnx_path(self) -> Path:
        """The exported network's file."""
        return self.folder / self.card.file.name

    def verify(self) -> None:
        """Compare file and card; raises `NotFound` or `InvalidModel` where the file is missing, cut off or changed."""
        path, expected = self.onnx_path, self.card.file
        if not path.is_file():
            raise NotFound(f"model {self.card.name}: {path} is missing")
        size = path.stat().st_size
        if size != expected.size:
            raise InvalidModel(f"model {self.card.name}: {path} has {size} bytes, the card says {expected.size}")
        digest = sha256_of(path)
        if digest != expected.sha256:
            raise InvalidModel(f"model {self.card.name}: {path} has SHA-256 {digest}, the card says {expected.sha256}")


def list_models(zoo: Path = ZOO) -> list[str]:
    """Names of the models that ship, sorted."""
    return sorted(path.parent.name for path in zoo.glob(f"*/{CARD_NAME}"))


def find_model(name_or_path: str | Path, *, zoo: Path = ZOO) -> Model:
    """Find a model by its name in the zoo, its folder, or its card's path, and verify its file.

    Raises `NotFound`, which lists the known names, or `InvalidModel` where the card or the file is broken.
    """
    text = str(name_or_path)
    candidates = [Path(text), Path(text) / CARD_NAME]
    if text and Path(text).name == text:
        candidates.insert(0, zoo / text / CARD_NAME)
    card_path = next((path for path in candidates if path.is_file()), None)
    if card_path is None:
        known = ", ".join(list_models(zoo)) or "none"
        raise NotFound(f"model {text!r}: no such model, folder or card; known models: {known}")
    try:
        content = card_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{card_path}: not a readable card ({error})") from error
    model = Model(ModelCard.from_json(content, str(card_path)), card_path.parent)
    model.verify()
    return model


def read_scores(text: str, source: str = "scores") -> tuple[Score, ...]:
    """Read a JSON list of scores; raises `InvalidModel` for broken JSON, unknown or missing keys and wrong types."""
    scores: tuple[Score, ...] = _typed(tuple[Score, ...], _parsed(text, source), source)
    return scores


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _nm(voxel_size_nm: VoxelSize) -> str:
    return "×".join(f"{size:g}" for size in voxel_size_nm)


def _parsed(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidModel(f"{source}: not JSON ({error})") from error


def _typed(expected: Any, value: Any, where: str) -> Any:
    """Read JSON `value` as `expected`: a dataclass, tuple, dict, float, int or str; refuse everything else."""
    if is_dataclass(expected):
        return _read_dataclass(typing.cast(type, expected), value, where)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            return tuple(_typed(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    elif origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif expected is Any:
        return value
    elif expected is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif expected in (int, str) and type(value) is expected:
        return value
    raise InvalidModel(f"{where}: expected {_name(expected)}, got {value!r}")


def _read_dataclass(expected: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidModel(f"{where}: expected an object with the fields of {expected.__name__}, got {value!r}")
    hints = typing.get_type_hints(expected)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise InvalidModel(
            f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(f.name for f in _fields(expected))}"
        )
    required = {f.name for f in _fields(expected) if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(value))
    if missing:
        raise InvalidModel(f"{where}: missing key {', '.join(missing)}")
    return expected(**{key: _typed(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _fields(expected: type) -> tuple[Field[Any], ...]:
    return fields(typing.cast(Any, expected))


def _name(expected: Any) -> str:
    return str(expected) if typing.get_origin(expected) else str(getattr(expected, "__name__", expected))
