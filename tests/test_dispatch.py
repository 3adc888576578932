"""Plans, shards and the drivers that run them; threads."""

import inspect
import threading

import numba
import numpy as np
import pytest

import numbagrad as ng
from numbagrad import dispatch
from numbagrad.dispatch import Op, Split, Views, apply, apply_into, registry
from numbagrad.jit import njit

BIG = 200_000  # elements: enough for several shards


def plan_of(name, *arrays, **params):
    return dispatch.plan_for(registry[name], arrays, params)


def zeros(*shape, dtype=np.float32):
    return ng.asarray(np.zeros(shape, dtype))


@pytest.fixture
def _threads():
    before = ng.get_num_threads()
    yield
    ng.set_num_threads(before)


# -------------------------------------------------------------------- plans


def test_plan_is_made_once():
    x = zeros(3, 7)
    assert plan_of("exp", x) is plan_of("exp", zeros(3, 7))
    assert plan_of("exp", x) is not plan_of("exp", zeros(7, 3))
    assert plan_of("exp", x) is not plan_of("exp", zeros(3, 7, dtype=np.float64))


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(dispatch, "MAX_PLANS", 3)
    for size in range(1, 8):
        ng.exp(zeros(size))
    assert len(registry["exp"]._plans) <= 3


def test_small_calls_stay_whole():
    assert plan_of("exp", zeros(100)).shards is None


@pytest.mark.usefixtures("_threads")
def test_shards_depend_on_shapes_only():
    bounds = []
    for count in (1, numba.config.NUMBA_NUM_THREADS):
        ng.set_num_threads(count)
        registry["exp"]._plans.clear()
        bounds.append(plan_of("exp", zeros(BIG)).shards.bounds.tolist())
    assert bounds[0] == bounds[1]
    assert (bounds[0][0], bounds[0][-1]) == (0, BIG)


@pytest.mark.parametrize(("size", "shards"), [(7, 3), (16, 16), (100, 7), (2, 1)])
def test_shard_bounds(size, shards):
    bounds = dispatch.shard_bounds(size, shards)
    widths = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(widths)) == (0, size, shards)
    assert widths.max() - widths.min() <= 1


# ------------------------------------------------------------------ drivers


def test_text_of_a_driver():
    driver = plan_of("exp", zeros(BIG)).shards.driver
    text = inspect.getsource(driver.py_func)
    assert "for shard in prange(bounds.size - 1):" in text
    assert "x0[lo * rows[0] : hi * rows[0]]" in text
    assert "out0[lo * rows[1] : hi * rows[1]]" in text


def test_kernels_cut_alike_share_a_driver():
    x = zeros(BIG)
    assert plan_of("exp", x).shards.driver is plan_of("tanh", x).shards.driver


def test_driver_with_everything():
    """One sliced and one whole input, a parameter of its own for each shard, one that all share,
    a sliced output, a partial one and workspace."""

    @njit
    def kernel(x, table, first, factor, out, total, scratch):
        total[0] = 0
        for i in range(x.size):
            scratch[0] = table[0] + factor * x[i]
            out[i] = scratch[0] + first
            total[0] += x[i]

    def split(call):
        size = call.inputs[0].size
        return [Split(size, (1, 0), (1, "sum"), lambda scalars, lo, hi: (lo, scalars[1]))]

    op = Op(
        "everything",
        lambda x, table: ((x.shape, x.dtype), ((1,), x.dtype)),
        {"cpu": kernel},
        outputs=("out", "total"),
        arrange=lambda call: Views(
            tuple(s.shape for s in call.inputs), tuple(s.shape for s in call.outputs), (0, 2)
        ),
        split=split,
        workspace=lambda call: [((1,), call.inputs[0].dtype)],
    )
    x, table = ng.asarray(np.arange(BIG, dtype=np.float64)), ng.asarray([10.0], dtype="float64")
    out, total = apply(op, x, table)
    (plan,) = op._plans.values()
    bounds = plan.shards.bounds
    firsts = np.repeat(bounds[:-1], np.diff(bounds))
    np.testing.assert_array_equal(out.numpy(), 10 + 2 * np.arange(BIG) + firsts)
    assert total.tolist() == [BIG * (BIG - 1) / 2]
    text = inspect.getsource(plan.shards.driver.py_func)
    for argument in ("x1,", "param0[shard]", "param1,", "out1[shard]", "work0[shard]"):
        assert argument in text


def test_smallest_offender_of_all_shards():
    @njit
    def kernel(x, first, out, error):
        error[0] = dispatch.NO_ERROR
        for i in range(x.size):
            out[i] = x[i]
            if x[i] < 0 and error[0] == dispatch.NO_ERROR:
                error[0] = first + i

    def check(position, inputs, call):
        raise IndexError(f"at {position}")

    op = Op(
        "checked",
        lambda x: (x.shape, x.dtype),
        {"cpu": kernel},
        arrange=lambda call: Views((call.inputs[0].shape,), (call.outputs[0].shape,), (0,)),
        split=lambda call: [Split(BIG, (1,), (1, "min"), lambda scalars, lo, hi: (lo,))],
        check=check,
    )
    host = np.ones(BIG)
    assert apply(op, ng.asarray(host)).tolist() == host.tolist()
    host[[BIG - 1, BIG // 2]] = -1
    with pytest.raises(IndexError, match=f"at {BIG // 2}"):
        apply(op, ng.asarray(host))


# ------------------------------------------------------------------ threads


@pytest.mark.usefixtures("_threads")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one core")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: ng.exp(x) * 1.5,
        lambda x: ng.sum(x),  # partial sums
        lambda x: ng.sum(x.reshape(400, -1), axis=1),
        lambda x: ng.sum(x.reshape(-1, 10), axis=0),
    ],
    ids=["elementwise", "sum", "sum of rows", "sum of columns"],
)
def test_bits_do_not_depend_on_threads(f):
    host = np.random.default_rng(0).normal(size=BIG).astype(np.float32)
    results = []
    for count in (1, 2):
        ng.set_num_threads(count)
        assert ng.get_num_threads() == count
        results.append(f(ng.asarray(host)).numpy())
    np.testing.assert_array_equal(*results)


def test_shards_are_right():
    host = np.random.default_rng(0).normal(size=(BIG // 10, 10))
    x = ng.asarray(host)
    np.testing.assert_allclose((x + x[0]).numpy(), host + host[0])
    np.testing.assert_allclose(ng.sum(x, axis=0).numpy(), host.sum(0))
    np.testing.assert_allclose(ng.sum(x).numpy(), host.sum())
    assert ng.max(x).item() == host.max()


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", 10_000])
def test_wrong_number_of_threads(n):
    with pytest.raises(ValueError, match=f"n must be between 1 and .*, got {n!r}"):
        ng.set_num_threads(n)


def test_interpreters_are_per_thread():
    seen = []

    def spy(op, inputs, params, targets):
        seen.append(threading.current_thread().name)
        return dispatch.run_eagerly(op, inputs, params, targets)

    with dispatch.interpreter(spy):
        thread = threading.Thread(target=lambda: ng.exp(zeros(1)))
        thread.start()
        thread.join()
        assert not seen
        ng.exp(zeros(1))
    assert seen == ["MainThread"]


# ------------------------------------------------------------------- states


def test_apply_into():
    weight = ng.layers.Parameter([1.0, 2.0])
    buffer = weight._data
    apply_into((weight,), registry["add"], weight, weight)
    assert weight.tolist() == [2, 4]
    assert weight._data is buffer
    assert weight.version == 1


def test_apply_into_what_is_not_a_state():
    x = zeros(2)
    with pytest.raises(TypeError, match="add: only Parameters and Buffers are changed in place"):
        apply_into((x,), registry["add"], x, x)


def test_apply_into_a_state_of_another_shape():
    weight = ng.layers.Parameter([1.0, 2.0])
    with pytest.raises(ValueError, match=r"add: a state of shape \(2,\).* of shape \(3,\)"):
        apply_into((weight,), registry["add"], zeros(3), zeros(3))


def test_view_of_a_state_does_not_change_with_it():
    weight = ng.layers.Parameter([1.0, 2.0])
    row = weight.reshape(1, 2)
    ng.assign(weight, [3.0, 4.0])
    assert row.tolist() == [[1, 2]]
