"""Where a Fourier transform does a convolution faster than the direct way: forward and backward, one thread.

`pytest -m slow -s tests/benchmarks/test_convolution_speed.py` prints the table.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.geometry import Triple
from models.networks.convolution_choice import Measurements

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CASES: list[tuple[int, Triple, Triple]] = [
    (8, (16, 48, 48), (3, 3, 3)),
    (8, (16, 48, 48), (5, 5, 5)),
    (8, (16, 48, 48), (7, 7, 7)),
    (8, (16, 48, 48), (9, 9, 9)),
    (16, (1, 160, 160), (1, 3, 3)),
    (16, (1, 160, 160), (1, 5, 5)),
    (16, (1, 160, 160), (1, 9, 9)),
    (16, (1, 160, 160), (1, 15, 15)),
]
"""Feature maps, their extents, and the kernel."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_kernels_large_and_small() -> None:
    print("\nkernel, maps: direct fp32, by transform fp32, direct bf16; ms")
    ratios = {}
    for width, extents, kernel in CASES:
        convolution = nn.Conv3d(width, width, kernel, padding="same", bias=False)
        maps = torch.randn(1, width, *extents)
        direct, transformed = Measurements().of(convolution, maps)
        with torch.autocast("cpu", torch.bfloat16):
            halved, _ = Measurements().of(convolution, maps)
        ratios[kernel] = transformed / direct
        print(
            f"{'×'.join(map(str, kernel))}, {width} of {'×'.join(map(str, extents))}: "
            f"{1000 * direct:.0f}, {1000 * transformed:.0f}, {1000 * halved:.0f}"
        )
    assert ratios[9, 9, 9] < 1 < ratios[1, 3, 3]
