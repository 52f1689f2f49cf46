"""Checks what a run stored against the checksums in its markers, and makes the next run redo what is damaged.

A repair replaces the markers of what is damaged by failures, and removes what says that the run, and the phases
concerned, are complete. Where a phase was complete, its intermediate results below work/ are gone. A stage reads only
what stages before it wrote, so the markers of those before a damaged one in the same phase go too, as far as they
stored something there, and the next run fills it again. Results do not depend on when they were computed, so new chunks
fit to those that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

from infra.chunk_names import ChunkNames
from infra.ledger import Ledger
from infra.objects import Folder
from infra.volumes import Volume, open_volume
from infra.written import Written
from models.errors import AccessDenied, NotFound, PetavoxelError, StorageFailed
from models.geometry import Box
from services.pipelines.progress import PlannedStage, read_plan

THREADS = 4
AT_ONCE = 4096
"""Chunks that wait for a thread at a time; a run may have 10^7 of them."""
WORK, COMPLETE, PHASE = "work/", "progress/complete.json", "progress/phases/{}.json"


@dataclass(frozen=True)
class Damage:
    """What is wrong with one output of one chunk, or with its marker."""

    stage: str
    key: str
    chunk: str
    box: str
    output: str
    cause: str


@dataclass
class Verification:
    """How many chunks and outputs were checked, what is damaged, and the stages whose intermediates were removed."""

    chunks: int = 0
    outputs: int = 0
    damages: list[Damage] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def as_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        damages = [asdict(damage) for damage in self.damages]
        return {"chunks": self.chunks, "outputs": self.outputs, "damages": damages}


@dataclass
class _Checked:
    chunks: int = 1
    outputs: int = 0
    gone: bool = False
    damages: list[Damage] = field(default_factory=list)


def verify(out: str) -> Verification:
    """Read again every output that a marker names and compare checksums; reads as much as the run wrote.

    The run may be at work meanwhile: what it removes is no damage.

    Raises `NotFound` where no run is, `AccessDenied` where the store refuses.
    """
    folder = Folder(out)
    if not folder.exists("run.json"):
        raise NotFound(f"{folder.url}: expected the output prefix of a run, there is no run.json")
    found, check = Verification(), _Check(folder)
    with ThreadPoolExecutor(THREADS) as threads:
        for plan in read_plan(folder):
            ledger = Ledger(folder, plan.stage, plan.key)
            chunks = ledger.markers().done.get(plan.key, ChunkNames())
            for part in _slices(chunks, AT_ONCE):
                for checked in threads.map(lambda chunk, ledger=ledger: check.chunk(ledger, chunk), part):
                    found.chunks += checked.chunks
                    found.outputs += checked.outputs
                    found.damages += checked.damages
                    if checked.gone:
                        found.gone.add(plan.stage)
    return found


def _marked(ledger: Ledger, chunk: str) -> bool:
    try:
        ledger.marker(chunk)
    except NotFound:
        return False
    except StorageFailed:  # damaged, but there
        return True
    return True


def _slices(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while part := list(islice(rest, size)):
        yield part


def repair(out: str, found: Verification) -> list[str]:
    """Make the next run redo what is damaged; returns the stages that it will redo as a whole, for work/ is gone.

    Nothing is done where nothing is damaged.
    """
    if not found.damages:
        return []
    folder = Folder(out)
    plans = read_plan(folder)
    damaged = {damage.stage for damage in found.damages}
    again = _before(plans, damaged, found.gone)
    folder.delete([COMPLETE])
    folder.delete(PHASE.format(phase) for phase in {p.phase for p in plans if p.stage in damaged and p.phase})
    for plan in again:
        ledger = Ledger(folder, plan.stage, plan.key)
        ledger.forget(ledger.markers().done.get(plan.key, ChunkNames()))
    for damage in found.damages:
        ledger = Ledger(folder, damage.stage, damage.key)
        ledger.mark_failed(damage.chunk, damage.box, f"damaged: {damage.output}: {damage.cause}")
        ledger.forget([damage.chunk])
    return [plan.stage for plan in again]


def _before(plans: list[PlannedStage], damaged: set[str], gone: set[str]) -> list[PlannedStage]:
    """Stages whose intermediates are gone and lie before a damaged stage of the same phase."""
    last = {plan.phase: number for number, plan in enumerate(plans) if plan.stage in damaged}
    return [plan for number, plan in enumerate(plans) if plan.stage in gone and number < last.get(plan.phase, -1)]


class _Check:
    """Checks the outputs of chunks; what lies below work/ only while that is not removed."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._volume = lru_cache(maxsize=64)(self._open)
        self._finished: dict[str, bool] = {}

    def _removed(self, phase: str, *, again: bool = False) -> bool:
        """Whether the run or the phase has finished, which removes its intermediates; `again` asks the store anew."""
        if again or phase not in self._finished:
            self._finished[phase] = self._folder.exists(COMPLETE) or self._folder.exists(PHASE.format(phase))
        return self._finished[phase]

    def chunk(self, ledger: Ledger, chunk: str) -> _Checked:
        """Check all outputs of one chunk; none where its marker is removed before that ends: it will be done again."""
        checked = self._checked(ledger, chunk)
        return checked if not checked.damages or _marked(ledger, chunk) else _Checked(chunks=0)

    def _checked(self, ledger: Ledger, chunk: str) -> _Checked:
        checked = _Checked()
        try:
            marker = ledger.marker(chunk)
            box, outputs = str(marker["box"]), list(marker["outputs"])
        except AccessDenied:
            raise
        except (PetavoxelError, KeyError, TypeError) as error:
            checked.damages.append(Damage(ledger.stage, ledger.key, chunk, "", "marker", f"damaged ({error})"))
            return checked
        for output in outputs:
            causes = self._causes(output)
            if causes is None:
                checked.gone = True
                continue
            checked.outputs += 1
            for cause in causes:
                where = f"{output['name']}{' ' + output['box'] if 'box' in output else ''}"
                checked.damages.append(Damage(ledger.stage, ledger.key, chunk, box, where, cause))
        return checked

    def _causes(self, output: dict[str, Any]) -> list[str] | None:
        """What is wrong with an output; None for an intermediate result that is removed, maybe only just."""
        name = str(output["name"])
        if not name.startswith(WORK):
            return list(self._wrong(output))
        phase = name.removeprefix(WORK).partition("/")[0]
        if self._removed(phase):
            return None
        causes = list(self._wrong(output))
        return None if causes and self._removed(phase, again=True) else causes

    def _wrong(self, output: dict[str, Any]) -> Iterator[str]:
        try:
            written = self._read(output)
        except AccessDenied:
            raise
        except NotFound:
            yield "missing"
        except PetavoxelError as error:
            yield f"cannot be read ({error})"
        else:
            if written.checksum != output["checksum"]:
                yield "other bytes than were written"

    def _read(self, output: dict[str, Any]) -> Written:
        name = str(output["name"])
        url = name if "://" in name or name.startswith("/") else self._folder.at(name)
        if "box" not in output:
            parent, _, last = url.rpartition("/")
            return Written.content(url, Folder(parent).read(last))
        box, level = Box.parse(output["box"]), int(output["level"])
        return Written.voxels(url, box, self._volume(url, level).read(box), level)

    def _open(self, url: str, level: int) -> Volume:
        return open_volume(url, level=level)
