"""`petavoxel mesh`: a segmentation of any size to surface meshes."""

from __future__ import annotations

from collections.abc import Iterator

from infra.ledger import digest
from infra.meshes import PrecomputedMeshes
from infra.objects import Folder
from infra.volumes import open_volume
from models.errors import InvalidVolume
from services.pipelines.claim import claim
from services.pipelines.levels import label_levels
from services.pipelines.skeletonize import regroup_stages
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.meshes import MeshJob, MeshOptions, manifests, plan_details, surface_chunks


def mesh(segmentation: str, out: str, *, options: MeshOptions) -> Summary:
    """Make the meshes of a label volume, on the Ray that this process belongs to.

    Writes `out`/precomputed/, in nm. A second call goes on where the first stopped. Raises `InvalidVolume` for anything
    but a label volume with a voxel size, `RunConflict` where `out` holds something else.
    """
    job = mesh_job(segmentation, out, options)
    folder, summary = Folder(out), Summary()
    described = {"key": job.key, "segmentation": job.segmentation, "options": options.model_dump(mode="json")}
    claim(folder, described)
    if not folder.exists("progress/complete.json"):
        for stage in mesh_stages(job):
            run_stage(stage, summary)
        folder.write_json("progress/complete.json", {"key": job.key})
    folder.remove("work")
    return summary


def mesh_job(segmentation: str, out: str, options: MeshOptions) -> MeshJob:
    """What is to be done; raises `InvalidVolume` for what has no meshes."""
    volume = open_volume(segmentation)
    shapes, factors = label_levels(volume, most=options.levels + 1)
    details = plan_details(shapes, factors, options)
    size = volume.info.voxel_size_nm
    if size is None:
        raise InvalidVolume(f"{segmentation}: expected a known voxel size, the volume has none")
    folder = Folder(out)
    key = digest("mesh", volume.url, volume.identity(), options.model_dump())
    offset = volume.info.offset_voxels
    precomputed, work = folder.at("precomputed"), folder.at("work")
    return MeshJob(volume.url, details, size, offset, options, precomputed, work, folder.url, key)


def mesh_stages(job: MeshJob) -> Iterator[Stage]:
    """The stages of meshes, in order."""
    PrecomputedMeshes(job.out).create(job.sharding.shard_bits)
    for number, detail in enumerate(job.details):
        yield Stage(job.ledger(f"mesh_{number}"), tuple(detail.grid), surface_chunks, (job, number))
    yield from regroup_stages(job.exchange, job.sharding, job.ledger, "meshes")
    yield Stage(job.ledger("meshes"), tuple(job.exchange.units()), manifests, (job,))
