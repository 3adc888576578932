"""Every case of every family on the simulated GPU: values, gradients, gradients of gradients."""

import pytest
from cases import CASES

from numbagrad.testing import check_case

FIRST = {family: case for family, case in reversed(CASES)}  # of each family: the smoke test


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{family}-{case.name}",
            marks=[pytest.mark.smoke] if case is FIRST[family] else [],
        )
        for family, case in CASES
    ],
)
def test_case(case):
    check_case(case, device="cuda")
