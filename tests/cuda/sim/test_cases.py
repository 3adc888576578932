"""Every case of every family on the simulated GPU: values, gradients, gradients of gradients."""

import pytest
from cases import CASES

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
        for family, case in CASES
    ],
)
def test_case(case):
    check_case(case, device="cuda")
