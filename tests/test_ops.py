"""Every case of every family, on the CPU; and no op without a case."""

import pytest
from cases import CASES, CPU_CASES

from numbagrad import asarray
from numbagrad.compiler.trace import trace
from numbagrad.dispatch import registry
from numbagrad.ops import convolution
from numbagrad.testing import check_case, value_and_gradients


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{family}-{case.name}") for family, case in CASES + CPU_CASES],
)
def test_case(case):
    check_case(case)


def test_every_op_has_a_case(monkeypatch):
    # Whether there are planes depends on the processor: `test_convolution` checks them on all.
    monkeypatch.setattr(convolution, "_in_planes", lambda columns, *_: columns <= 6)
    reached = set()
    for _, case in CASES + CPU_CASES:
        arrays = [asarray(x) for x in case.inputs]
        traced = trace(
            lambda *inputs: value_and_gradients(case.function, inputs, case.grad),  # noqa: B023
            *arrays,
        )
        reached |= {equation.op.name for equation in traced.equations}
    ours = {name for name, op in registry.items() if isinstance(op.kernel, str)}
    assert ours <= reached
