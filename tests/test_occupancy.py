"""How many blocks share a multiprocessor, against NVIDIA's occupancy calculator."""

import pytest

from numbagrad.cuda_support import Occupancy, occupancy


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "arch", "expected"),
    [
        (256, 32, 0, "sm_90", Occupancy(8, 64, "registers")),
        (256, 33, 0, "sm_90", Occupancy(6, 48, "registers")),
        (256, 16, 0, "sm_90", Occupancy(8, 64, "warps")),
        (32, 16, 0, "sm_90", Occupancy(32, 32, "blocks")),
        (128, 16, 48 * 1024, "sm_80", Occupancy(3, 12, "shared memory")),
        (128, 16, 48 * 1024, "sm_90", Occupancy(4, 16, "shared memory")),
        (1024, 64, 0, "sm_90", Occupancy(1, 32, "registers")),
        (1024, 128, 0, "sm_90", Occupancy(0, 0, "registers")),
    ],
)
def test_occupancy(threads, registers, shared, arch, expected):
    assert occupancy(threads, registers, shared, arch) == expected
    assert expected.fraction == expected.warps / 64
