"""Every case of every family with the kernels as plain Python, SIMD vectors as NumPy rows."""

import pytest
from cases import CASES

from numbagrad.testing import check_case


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{family}-{case.name}") for family, case in CASES]
)
def test_case(case):
    check_case(case)
