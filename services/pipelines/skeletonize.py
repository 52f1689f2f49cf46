"""`petavoxel skeletonize`: a segmentation of any size to skeletons."""

from __future__ import annotations

from collections.abc import Iterator

from infra.ledger import digest
from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons
from infra.volumes import open_volume
from models.errors import InvalidVolume, RunConflict
from models.geometry import Box
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob, count, join, select, trace


def skeletonize(segmentation: str, out: str, *, options: SkeletonOptions, box: str | None = None) -> Summary:
    """Trace every segment of a label volume, on the Ray that this process belongs to.

    Writes `out`/swc/ID.swc and `out`/precomputed/, in nm. A second call goes on where the first stopped. Raises
    `InvalidVolume` for anything but a label volume with a voxel size, `RunConflict` where `out` holds another run.
    """
    volume = open_volume(segmentation)
    if volume.info.channels is not None or volume.info.dtype.kind not in "ui":
        raise InvalidVolume(
            f"{segmentation}: expected integer labels (z, y, x), got {volume.info.dtype} {volume.info.axes}"
        )
    if volume.info.voxel_size_nm is None:
        raise InvalidVolume(f"{segmentation}: expected a known voxel size, the volume has none")
    domain = Box.parse(box) if box else volume.box
    if not volume.box.contains(domain) or domain.size == 0:
        raise InvalidVolume(f"box: expected voxels within {volume.box}, got {domain}")
    key = digest("skeletonize", volume.url, volume.identity(), str(domain), options.model_dump())
    folder = Folder(out)
    if folder.exists("run.json"):
        held = folder.read_json("run.json")
        if held.get("key") != key:
            raise RunConflict(f"{out}: holds another run, of {held.get('segmentation') or held.get('image')}")
    folder.write_json(
        "run.json",
        {"key": key, "segmentation": volume.url, "box": str(domain), "options": options.model_dump(mode="json")},
    )
    job = SkeletonJob(
        volume.url,
        domain,
        volume.info.voxel_size_nm,
        volume.info.offset_voxels,
        options,
        out,
        folder.at("work"),
        out,
        key,
    )
    summary = Summary()
    if not folder.exists("progress/complete.json"):
        run_stage(Stage(job.ledger("count"), tuple(job.grid), count, (job,)), summary)
        select(job)
        for stage in skeleton_stages(job):
            run_stage(stage, summary)
        folder.write_json("progress/complete.json", {"key": key})
    folder.remove("work")
    return summary


def skeleton_stages(job: SkeletonJob) -> Iterator[Stage]:
    """The stages after the large segments are known."""
    PrecomputedSkeletons(Folder(job.out).at("precomputed")).create()
    yield Stage(job.ledger("skeletonize"), tuple(job.grid), trace, (job,))
    yield Stage(job.ledger("skeletons"), tuple(job.buckets), join, (job,))
