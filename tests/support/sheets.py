"""The smallest data that a network can be trained on: parallel sheets with dark faces."""

from pathlib import Path

import numpy as np


def write_sheets(path: Path) -> None:
    """Write six sheets of 40×30×5 voxels side by side, as `raw` (uint8) and `labels` (uint32, from 1)."""
    labels = np.repeat(np.arange(1, 7, dtype=np.uint32), 5)[None, None, :].repeat(40, 0).repeat(30, 1)
    raw = np.where(np.arange(30) % 5 == 0, 50, 180).astype(np.uint8)
    np.savez_compressed(path, raw=np.broadcast_to(raw, labels.shape), labels=labels)
