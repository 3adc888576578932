"""Every case of every family with the kernels as plain Python, SIMD vectors as NumPy rows."""

import pytest
from cases import CASES, CPU_CASES

from numbagrad.testing import check_case, check_grads, check_op


def named(cases):
    return [pytest.param(case, id=f"{family}-{case.name}") for family, case in cases]


@pytest.mark.parametrize("case", named(CASES))
def test_case(case):
    check_case(case)


@pytest.mark.parametrize("case", named(CPU_CASES))
def test_large_case(case):
    # All that `check_case` does would take minutes.
    check_op(
        case.function,
        *case.inputs,
        reference=case.reference,
        grad=False,
        dtypes=("float32",),
    )
    check_grads(case.function, *case.inputs, order=1)
