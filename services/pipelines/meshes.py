"""`petavoxel mesh`: a segmentation of any size to surface meshes."""

from __future__ import annotations

from collections.abc import Iterator

from infra.ledger import digest
from infra.meshes import PrecomputedMeshes
from infra.objects import Folder
from services.label_pair import voxels_identity
from services.pipelines.claim import claim
from services.pipelines.levels import checked_labels, label_levels
from services.pipelines.skeletonize import regroup_stages
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.meshes import MeshJob, MeshOptions, manifests, plan_details, surface_chunks
from services.stages.pyramid import level_of_voxels


def prepare_meshes(segmentation: str, out: str, options: MeshOptions) -> MeshJob:
    """Check a label volume and claim the output prefix; nothing is computed yet.

    Raises `InvalidVolume` for anything but a label volume with a voxel size, `RunConflict` where `out` holds something
    else.
    """
    folder, (volume, voxel_size) = Folder(out), checked_labels(segmentation)
    shapes, factors = label_levels(volume, voxel_size)
    first = level_of_voxels(voxel_size, factors, options.voxel_nm)
    job = MeshJob(
        segmentation=volume.url,
        details=plan_details(shapes, factors, first, options),
        voxel_size_nm=voxel_size,
        offset_voxels=volume.info.offset_voxels,
        options=options,
        out=folder.at("precomputed"),
        work=folder.at("work"),
        ledgers=folder.url,
        key=digest("mesh", volume.url, voxels_identity(volume), options.model_dump()),
    )
    claim(folder, {"key": job.key, "segmentation": volume.url, "options": options.model_dump(mode="json")})
    return job


def mesh(job: MeshJob) -> Summary:
    """Make the meshes of a label volume, on the Ray that this process belongs to: precomputed/, in nm.

    A second call goes on where the first stopped. Raises `ChunkFailed` where chunks failed repeatedly.
    """
    folder, summary = Folder(job.ledgers), Summary()
    if not folder.exists("progress/complete.json"):
        for stage in mesh_stages(job):
            run_stage(stage, summary)
        folder.write_json("progress/complete.json", {"key": job.key})
    folder.remove("work")
    return summary


def mesh_stages(job: MeshJob) -> Iterator[Stage]:
    """The stages of meshes, in order."""
    PrecomputedMeshes(job.out).create(job.sharding.shard_bits)
    for number, detail in enumerate(job.details):
        yield Stage(job.ledger(f"mesh_{number}"), detail.grid, surface_chunks, (job, number))
    yield from regroup_stages(job.exchange, job.sharding, job.ledger, "meshes")
    yield Stage(job.ledger("meshes"), job.exchange.units(), manifests, (job,))
