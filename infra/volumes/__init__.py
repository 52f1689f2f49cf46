"""Volumes behind one door: `open_volume(url)` and `create_volume(url, info)`, whatever the format and the store.

| format | URL | levels | written by several processes |
|---|---|---|---|
| zarr 3, sharded or not; zarr 2 | `….zarr`, `zarr2://…` | OME-Zarr 0.5, 0.4 | yes, in boxes aligned to write_shape |
| Neuroglancer precomputed | `precomputed://…` | yes | yes, in such boxes |
| HDF5 | `file.h5:/dataset` | no | one after the other, the file is locked |
| TIFF stack, page = z | `file.tif` | no | in disjoint boxes |
| npy | `file.npy` | no | in disjoint boxes |
| npz | `file.npz:key` | no | never, it is read only |

The first two lie on local disks, `gs://`, `s3://` and (zarr) `memory://`; .npy and .npz can be read from there too.
"""

from infra.volumes.base import Volume
from infra.volumes.info import VolumeInfo
from infra.volumes.opening import create_pyramid, create_volume, delete_volume, open_volume

__all__ = ["Volume", "VolumeInfo", "create_pyramid", "create_volume", "delete_volume", "open_volume"]
