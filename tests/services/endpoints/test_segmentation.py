from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
from models.catalog import Segmentation
from models.geometry import NEAREST, Box
from services.endpoints.segmentation import compile_kernels, segment_box

def compiled():
    kernels = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("models."):
            found = {key: value for key, value in vars(module).items() if hasattr(value, "nopython_signatures")}
            kernels |= {f"{name}.{key}": len(value.signatures) for key, value in found.items()}
    return kernels

compile_kernels()
before = compiled()
stored = np.frombuffer(np.random.default_rng(0).bytes(3 * 9 * 10 * 11), np.uint8).reshape(3, 9, 10, 11)
assert not stored.flags.writeable
labels = segment_box(stored, NEAREST, Box((1, 2, 3), (10, 12, 14)), (20, 20, 20), Segmentation(low=0.02))
assert labels.any()
more = {name: count for name, count in compiled().items() if count != before.get(name)}
assert not more, more
print(sum(before.values()))
"""


def test_a_replica_that_has_started_compiles_nothing_more() -> None:
    """Affinities come out of the object store read-only, and kernels are compiled for such arrays apart."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
