"""Every case of every family, on the CPU; and no op without a case."""

import numpy as np
import pytest
from cases import CASES

from numbagrad.array import Array
from numbagrad.dispatch import interpreter, make_call, registry
from numbagrad.testing import _cast, _evaluate, check_case


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{family}-{case.name}") for family, case in CASES]
)
def test_case(case):
    check_case(case)


def test_every_op_has_a_case():
    reached = set()

    def infer_only(op, inputs, params, targets):
        """Give zeros of the right shape: no kernel is compiled or run."""
        reached.add(op.name)
        call = make_call(op, tuple(x.spec for x in inputs), params)
        specs = call.outputs[: len(op.outputs)]
        return tuple(Array(np.zeros(spec.shape, spec.dtype), *spec) for spec in specs)

    with interpreter(infer_only):
        for _, case in CASES:
            arrays = [Array(x, x.shape, x.dtype, "cpu") for x in map(np.asarray, case.inputs)]
            _evaluate(case.function, arrays, case.grad)
    ours = {name for name, op in registry.items() if isinstance(op.kernel, str)}
    assert ours <= reached, f"no case reaches {ours - reached}"
