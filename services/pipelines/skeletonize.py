"""`petavoxel skeletonize`: a segmentation of any size to skeletons."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from infra.exchange import Exchange
from infra.ledger import Ledger, digest
from infra.objects import Folder
from infra.shards import Sharding
from infra.skeletons import PrecomputedSkeletons
from models.errors import InvalidVolume
from models.geometry import Box
from services.label_pair import voxels_identity
from services.pipelines.claim import claim
from services.pipelines.levels import checked_labels, label_levels
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.pyramid import level_of_voxels
from services.stages.regroup import regroup
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob, join, trace


def prepare_skeletons(segmentation: str, out: str, options: SkeletonOptions, *, box: str | None = None) -> SkeletonJob:
    """Check a label volume, choose the level of its pyramid to trace, and claim the output prefix.

    Raises `InvalidVolume` for anything but a label volume with a voxel size, `RunConflict` where `out` holds something
    else.
    """
    volume, voxel_size = checked_labels(segmentation)
    domain = Box.parse(box) if box else volume.box
    if not volume.box.contains(domain) or domain.size == 0:
        raise InvalidVolume(f"box: expected voxels within {volume.box}, got {domain}")
    folder = Folder(out)
    _, factors = label_levels(volume, voxel_size)
    level = level_of_voxels(voxel_size, factors, options.voxel_nm)
    key = digest("skeletonize", volume.url, voxels_identity(volume), str(domain), options.model_dump(), level)
    described = {"key": key, "segmentation": volume.url, "box": str(domain), "options": options.model_dump(mode="json")}
    claim(folder, described)
    return SkeletonJob(
        segmentation=volume.url,
        domain=domain,
        voxel_size_nm=voxel_size,
        offset_voxels=volume.info.offset_voxels,
        options=options,
        out=folder.url,
        work=folder.at("work"),
        ledgers=folder.url,
        key=key,
        level=level,
        factor=factors[level],
    )


def skeletonize(job: SkeletonJob) -> Summary:
    """Trace every segment of a label volume, on the Ray that this process belongs to.

    Writes precomputed/, segments/ and, by the options, swc/ID.swc, in nm. A second call goes on where the first
    stopped. Raises `ChunkFailed` where chunks failed repeatedly.
    """
    folder, summary = Folder(job.ledgers), Summary()
    if not folder.exists("progress/complete.json"):
        for stage in skeleton_stages(job):
            run_stage(stage, summary)
        folder.write_json("progress/complete.json", {"key": job.key})
    folder.remove("work")
    return summary


def skeleton_stages(job: SkeletonJob) -> Iterator[Stage]:
    """The stages of skeletons, in order; nothing but the segmentation is needed before."""
    PrecomputedSkeletons(Folder(job.out).at("precomputed")).create(job.sharding.shard_bits)
    yield Stage(job.ledger("skeletonize"), job.grid, trace, (job,))
    yield from regroup_stages(job.exchange, job.sharding, job.ledger, "skeletons")
    yield Stage(job.ledger("skeletons"), job.exchange.units(), join, (job,))


def regroup_stages(
    exchange: Exchange, sharding: Sharding, ledger: Callable[[str], Ledger], name: str
) -> Iterator[Stage]:
    """The passes of an exchange; none for up to 16 sources."""
    for number in range(1, exchange.passes + 1):
        markers = ledger(f"{name}_pass_{number}")
        units = exchange.tasks(number)
        yield Stage(markers, units, regroup, (exchange, sharding, markers, number))
