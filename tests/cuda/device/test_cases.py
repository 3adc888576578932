"""Every case of every family on the GPU: values, gradients, gradients of gradients.

They are held to a float64 reference and to the CPU's, within `numbagrad.testing.TOLERANCES`; a
second run has to give the same bits. A GPU gets the cases that are too large for the simulator,
too.
"""

import pytest
from cases import CASES, CPU_CASES
from cuda_device import SIMULATED

from numbagrad.testing import check_case

# The smoke test: the first case of each family that test_training.py does not run anyway.
TRAINED = ("convolution", "losses", "normalization", "pooling")
FIRST = {family: case for family, case in reversed(CASES) if family not in TRAINED}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{family}-{case.name}",
            marks=[pytest.mark.smoke] if case is FIRST.get(family) else [],
        )
        for family, case in (CASES if SIMULATED else CASES + CPU_CASES)
    ],
)
def test_case(case):
    check_case(case, device="cuda")
