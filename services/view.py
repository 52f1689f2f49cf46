"""Shows a run or an image: in Neuroglancer, whose Python package brings its own client, or as a picture.

Voxels are read when the viewer asks for them, so a volume of any size opens at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons
from infra.volumes import Volume, open_volume
from infra.volumes.location import Location
from models.errors import InvalidInput, InvalidVolume, NotFound, StorageFailed
from models.geometry import Box, Triple, VoxelSize
from services.overlay import Slice, middle_planes, picture, write_overlay

__all__ = ["Scene", "find_scene", "start_viewer", "write_overlay", "write_picture"]

_PICTURE_VOXELS = 1024  # a picture of a larger volume shows this much of its middle along each axis


@dataclass(frozen=True)
class Scene:
    """What is to be seen. `box` is the part of the image that the segmentation covers, in the image's voxels.

    The first voxel of `segmentation` is the first of `box`. `skeletons` and `meshes` are URLs of precomputed ones.
    """

    title: str
    box: Box
    voxel_size_nm: VoxelSize
    image: Volume | None = None
    segmentation: Volume | None = None
    skeletons: str | None = None
    meshes: str | None = None

    @property
    def offset_voxels(self) -> Triple:
        """Position of the image's voxel (0, 0, 0) in the physical frame, in voxels."""
        if self.image is not None:
            return self.image.info.offset_voxels
        return (0, 0, 0) if self.segmentation is None else self.segmentation.info.offset_voxels


def find_scene(target: str, segmentation: str | None = None, voxel_size_nm: VoxelSize | None = None) -> Scene:
    """Find what there is to see at `target`: a run's output prefix, or an image (z, y, x).

    `segmentation` (a URL) takes the place of the run's own; it has the shape of the image, or of the run's box.
    `voxel_size_nm` (z, y, x) holds for an image that does not know its own. Raises `NotFound` where nothing is there,
    `InvalidVolume` where volumes do not fit each other or a voxel size is not known.
    """
    folder = None if Location.parse(target).member else Folder(target)
    if folder is not None and folder.exists("run.json"):
        return _scene_of_run(folder, segmentation)
    image = open_volume(target, voxel_size_nm=voxel_size_nm)
    if image.info.channels is not None:
        raise InvalidVolume(f"{image.url}: expected an image (z, y, x), got {image.info.channels} channels")
    if image.info.voxel_size_nm is None:
        raise InvalidVolume(f"{image.url}: its voxel size is not known; say it with --voxel-size")
    labels = None if segmentation is None else _labels(segmentation, (image.info.shape,))
    return Scene(image.url, image.box, image.info.voxel_size_nm, image, labels)


def write_picture(scene: Scene, path: str | Path) -> str:
    """Write three orthogonal slices through the middle of the scene as PNG and return the caption.

    Of a large scene the middle is shown, and only the slices are read. Raises `InvalidInput` where there is no image,
    `StorageFailed` where the file cannot be written, and the errors of reading.
    """
    if scene.image is None:
        raise InvalidInput(f"{scene.title}: expected a run with an image for a picture, it has none")
    box = _middle(scene.box)
    slices = []
    seen: set[int] = set()
    for axis, plane in middle_planes(box):
        image = scene.image.read(plane).squeeze(axis)
        labels: tuple[NDArray[Any], ...] = ()
        if scene.segmentation is not None:
            z, y, x = scene.box.start
            labels = (scene.segmentation.read(plane.shifted((-z, -y, -x))).squeeze(axis),)
            seen.update(int(segment) for segment in np.unique(labels[0]) if segment)
        slices.append(Slice(axis, plane.start[axis], image, labels))
    size = " x ".join(f"{extent:g}" for extent in scene.voxel_size_nm)
    caption = f"{scene.title}   |   box {box} (z, y, x)   |   voxel {size} nm (z, y, x)"
    if scene.segmentation is not None:
        caption += f"   |   {len(seen)} segments in these slices"
    content = picture(slices, voxel_size_nm=scene.voxel_size_nm, caption=caption)
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise StorageFailed(f"{path}: the picture cannot be written ({error.strerror})") from error
    return caption


def start_viewer(scene: Scene, *, port: int = 0, host: str = "127.0.0.1") -> Any:
    """Serve the scene with Neuroglancer's own server and return its viewer; `str(viewer)` is the URL to open.

    What the client reads by itself, OME-Zarr and precomputed with all levels, it gets as it is stored (see
    `services.object_routes`); other formats are sliced here. `port` 0 takes a free one. The server runs in a thread of
    this process until `neuroglancer.stop()`. Raises `InvalidInput` where the port is taken.
    """
    import neuroglancer

    from services.neuroglancer_sources import image_source, segmentation_source, space

    neuroglancer.set_server_bind_address(host, port)
    try:
        viewer = neuroglancer.Viewer()
    except OSError as error:
        raise InvalidInput(f"port: expected a free one on {host}, got {port} ({error.strerror})") from error
    corner = [a + b for a, b in zip(scene.offset_voxels, scene.box.start, strict=True)]
    direct = _direct_sources(scene, str(viewer))
    with viewer.txn() as state:
        state.dimensions = space(scene.voxel_size_nm)
        if scene.image is not None:
            state.layers["image"] = neuroglancer.ImageLayer(
                source=direct.get("image") or image_source(scene.image, scene.voxel_size_nm, scene.offset_voxels),
                shader=_shader(scene),
            )
        sources = []
        if scene.segmentation is not None:
            own = segmentation_source(scene.segmentation, scene.voxel_size_nm, _three(corner))
            sources = [direct.get("segmentation") or own]
        sources += [direct[name] for name in ("skeletons", "meshes") if name in direct]
        if sources:
            state.layers["segmentation"] = neuroglancer.SegmentationLayer(source=sources)
            state.layers["segmentation"].segments = _largest(scene)
            state.layers["segmentation"].not_selected_alpha = 0.3  # the others stay visible in slices
        state.position = [a + n / 2 for a, n in zip(corner[::-1], scene.box.shape[::-1], strict=True)]
        # Voxels per screen pixel: the whole box where it is small, else a part in full resolution.
        state.cross_section_scale = min(1.0, max(scene.box.shape) / 600)
        state.projection_scale = 1.5 * max(
            n * size / min(scene.voxel_size_nm) for n, size in zip(scene.box.shape, scene.voxel_size_nm, strict=True)
        )
        state.layout = "4panel"
    return viewer


def _direct_sources(scene: Scene, viewer_url: str) -> dict[str, str]:
    """URLs that the client reads by itself, by layer."""
    from neuroglancer import server

    from services.neuroglancer_sources import client_format
    from services.object_routes import add_objects

    volumes = {"image": scene.image, "segmentation": scene.segmentation}
    formats = {name: client_format(volume) for name, volume in volumes.items() if volume is not None}
    places = {name: _store(volume) for name, volume in volumes.items() if volume is not None and formats[name]}
    for name, url in (("skeletons", scene.skeletons), ("meshes", scene.meshes)):
        if url is not None:
            places[name], formats[name] = url, "precomputed"
    path = add_objects(server.global_server.app, places)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(viewer_url))
    return {name: f"{formats[name]}://{origin}{path}/{name}" for name in places}


def _store(volume: Volume) -> str:
    """The prefix that a volume lies below, without its format."""
    return str(Location(volume.location.scheme, volume.location.path))


def _scene_of_run(folder: Folder, segmentation: str | None) -> Scene:
    run = folder.read_json("run.json")
    try:
        box = Box.parse(run["box"])
        size = tuple(run["voxel_size_nm"]) if "voxel_size_nm" in run else None
        image = open_volume(run["image"], voxel_size_nm=size) if "image" in run else None
        own = folder.at("segmentation.zarr") if image is not None else run["segmentation"]
    except (KeyError, TypeError) as error:
        raise InvalidVolume(f"{folder.at('run.json')}: expected the description of a run, missing {error}") from error
    shapes = (box.shape,) if image is None or segmentation is None else (box.shape, image.info.shape)
    try:
        labels = _labels(segmentation or own, shapes if image is not None else None)
    except NotFound as error:
        raise NotFound(f"{folder.url}: its segmentation is not there; has the run finished? ({error})") from error
    if labels.info.shape != box.shape:
        box = labels.box  # a segmentation of the whole image
    voxel_size = size or labels.info.voxel_size_nm
    if voxel_size is None:
        raise InvalidVolume(f"{labels.url}: its voxel size is not known")
    skeletons = next((s for s in ("skeletons/precomputed", "precomputed") if (folder / s).exists("info")), None)
    meshes = "meshes/precomputed" if (folder / "meshes/precomputed").exists("info") else None
    z, y, x = voxel_size
    return Scene(
        folder.url, box, (z, y, x), image, labels, skeletons and folder.at(skeletons), meshes and folder.at(meshes)
    )


def _labels(url: str, shapes: tuple[Triple, ...] | None) -> Volume:
    volume = open_volume(url)
    info = volume.info
    if info.channels is not None or info.dtype.kind not in "iu" or (shapes is not None and info.shape not in shapes):
        wanted = "" if shapes is None else f" of shape {' or '.join(map(str, shapes))}"
        raise InvalidVolume(
            f"{volume.url}: expected integer labels (z, y, x){wanted}, got {info.dtype} of shape {info.array_shape()}"
        )
    return volume


def _largest(scene: Scene, count: int = 30) -> list[int]:
    """Segments to select at first: the largest of the middle slice, where there are skeletons those that have one."""
    if scene.segmentation is None:
        return []
    _, plane = middle_planes(_middle(scene.segmentation.box))[0]
    ids, sizes = np.unique(scene.segmentation.read(plane), return_counts=True)
    order = np.argsort(-sizes[ids != 0], kind="stable")[:count]
    wanted = [int(segment) for segment in ids[ids != 0][order]]
    if scene.skeletons is None:
        return wanted
    folder = PrecomputedSkeletons(scene.skeletons)
    return [segment for segment in wanted if folder.has(segment)]


def _shader(scene: Scene) -> str:
    """Contrast from the middle slice, for types whose range says little."""
    if scene.image is None or scene.image.info.dtype == np.uint8:
        return "void main() { emitGrayscale(toNormalized(getDataValue())); }"
    _, plane = middle_planes(_middle(scene.box))[0]
    values = scene.image.read(plane).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5))) if values.size else (0.0, 1.0)
    return (
        f"void main() {{ emitGrayscale((float(toRaw(getDataValue())) - {low:.6e}) / {max(high - low, 1e-12):.6e}); }}"
    )


def _middle(box: Box) -> Box:
    """The middle of a box, at most `_PICTURE_VOXELS` along each axis."""
    shape = [min(n, _PICTURE_VOXELS) for n in box.shape]
    start = [a + (n - s) // 2 for a, n, s in zip(box.start, box.shape, shape, strict=True)]
    return Box.from_shape(_three(shape), _three(start))


def _three(values: list[int]) -> Triple:
    z, y, x = values
    return z, y, x
