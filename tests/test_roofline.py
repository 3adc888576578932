"""The machine's limits: that they are measured once, and in which units."""

import pytest
from numba import config

import numbagrad as ng
from numbagrad import roofline


def test_speed_is_that_of_the_next_larger_amount():
    roof = roofline.Roof(1.0, {10: 4.0, 100: 2.0})
    assert [roof.speed(size) for size in (0, 10, 11, 1000)] == [4.0, 4.0, 2.0, 2.0]


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_roof_is_measured_once():
    roof = roofline.roof(1)
    assert roof is roofline.roof(1)
    assert 1e8 < roof.peak < 1e13
    assert set(roof.bandwidth) == set(roofline.COPIED)
    assert all(1e8 < speed < 1e13 for speed in roof.bandwidth.values())


def test_work():
    seen = []

    def interpreter(op, inputs, params, targets):
        call = ng.dispatch.plan_for(op, inputs, params).call
        seen.append(roofline.work(op, call))
        return ng.dispatch.run_eagerly(op, inputs, params, targets)

    x = ng.asarray([[1.0, 2.0, 3.0]] * 4)
    with ng.dispatch.interpreter(interpreter):
        _ = x @ ng.permute_dims(x, (1, 0))
        _ = ng.exp(x)
        _ = x.sum()
    assert (2.0 * 4 * 4 * 3, 4 * (12 + 12 + 16)) in seen
    assert (12.0, 4 * (12 + 12)) in seen
    assert (0.0, 4 * (12 + 1)) in seen


@pytest.mark.parametrize(
    "op",
    [op for op in ng.dispatch.registry.values()
     if getattr(op.cost, "__module__", "").endswith(("ops.linalg", "ops.convolution"))],
    ids=lambda op: op.name,
)  # fmt: skip
def test_all_products_count_their_operations(op):
    assert op.name.startswith(roofline.PRODUCTS)
