"""Plans, the shards that they are cut into, and the loop that runs these; threads."""

import os
import subprocess
import sys
import threading
from functools import partial

import numba
import numpy as np
import pytest

import numbagrad as ng
from numbagrad import dispatch
from numbagrad.compiler.trace import trace
from numbagrad.dispatch import Op, Split, Views, apply, apply_into, registry
from numbagrad.jit import njit

BIG = 400_000  # elements: enough for several shards


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


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (0.0, -0.0), ((1, 2), (1, 2.0)), (np.float32(1), 1.0),
     (np.float32(1), np.int32(0x3F800000)), ((np.float64(0), "a"), (np.float64(-0.0), "a"))],
)  # fmt: skip
def test_parameters_of_other_types_are_others(one, other):
    assert given_back(one) == repr(one)
    assert given_back(other) == repr(other)


def given_back(value):
    return repr(dispatch.plan_for(echo, (zeros(1),), {"v": value}).call.v)


echo = Op("echo", lambda x, *, v: (x.shape, x.dtype), {"cpu": lambda *args: None})


@pytest.mark.parametrize("make", [float, np.float32, lambda nan: (1, float(nan))])
def test_nan_finds_its_plan(make):
    one, other = (dispatch.plan_for(echo, (zeros(1),), {"v": make("nan")}) for _ in range(2))
    assert one is other


def test_parameter_that_is_not_hashable():
    with pytest.raises(TypeError, match=r"echo: parameter v must be hashable, .* got a list"):
        apply(echo, zeros(1), v=[1])


@pytest.mark.parametrize("run", [apply, partial(apply_into, ())], ids=["apply", "apply_into"])
@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (registry["add"], (zeros(2), np.zeros(2, np.float32)),
         r"add: y is a numpy.ndarray; ops take Arrays: pass ng.asarray\(y\)"),
        (registry["add"], ([1.0], zeros(2)), "add: x is a list"),
        (registry["exp"], (2.0,), "exp: x is a float"),
        (Op("all", lambda x, *arrays: None), (zeros(2), zeros(2), None), r"all: arrays\[1\] is a"),
    ],
    ids=["ndarray", "list", "float", "None"],
)  # fmt: skip
def test_inputs_that_are_no_arrays(run, op, inputs, message):
    ng.add(zeros(2), zeros(2))  # its plan would fit NumPy arrays, too
    with pytest.raises(TypeError, match=message):
        run(op, *inputs)
    with pytest.raises(TypeError, match=message):
        trace(lambda: run(op, *inputs))


def test_errors_of_the_ops_own_stay():
    op = Op("broken", lambda x: x.nothing, {"cpu": None})
    with pytest.raises(AttributeError, match="nothing"):
        apply(op, zeros(1))


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


def test_a_small_kernel_runs_in_a_function_of_its_own():
    """It is emitted for the plan: nothing is left to decide when it is called."""
    x = zeros(2, 3)
    plan = plan_of("add", x, x)
    known = plan.run.__globals__
    assert known["flat"](x._data).shape == (6,)
    assert known["spec_out0"] == x.spec
    (out,) = plan.run((x, x), None)
    assert out.spec is known["spec_out0"]


def test_kernels_are_given_what_they_were_compiled_for():
    """A plan enters the kernel without a look at types: other ones must never reach it."""
    for dtype in ("float32", "float64", "int64", "uint8"):
        for shape in ((), (3,), (0, 2), (2, 3)):
            host = np.ones(shape, dtype)
            np.testing.assert_array_equal(
                (ng.asarray(host) + ng.asarray(host)).numpy(), host + host
            )


def test_numbers_beside_arrays_are_told_apart():
    """They are made arrays once; 0.0 is not -0.0, 1 not True and NaN not another number."""
    x = zeros(1) + 1.0
    assert [(x / y).item() for y in (0.0, -0.0, 0, 1, True)] == [np.inf, -np.inf, np.inf, 1, 1]
    assert np.isnan((x * float("nan")).item())
    assert (zeros(1, dtype=np.float64) + 0.1).item() == 0.1


# ------------------------------------------------------------------ shards


def test_words_of_a_shard():
    shards = plan_of("exp", zeros(BIG)).shards
    starts, sizes = shards.bounds[:-1], np.diff(shards.bounds)
    # An array is its address, which is added later, 0 as all threads share it, and its extent.
    expected = np.stack([4 * starts, 0 * starts, sizes] * 2, axis=1)
    np.testing.assert_array_equal(shards.words, expected)
    assert shards.addresses.tolist() == [0, 3]


def test_shards_with_everything():
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
    assert plan.shards.words[:, -2].tolist() == [8] * plan.shards.count  # scratch, one a thread


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


def partial_op(name, combine, kernel, **options):
    """An op that makes one number of all elements."""
    return Op(
        name,
        lambda x: ((1,), x.dtype),
        {"cpu": njit(kernel)},
        split=lambda call: [Split(call.inputs[0].size, (1,), (combine,))],
        **options,
    )


def test_combine_that_is_not_known():
    with pytest.raises(ValueError, match="combine by 'sum', 'max', 'min', got 'mean'"):
        Split(10, (1,), ("mean",))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_partial_maximum(dtype):
    def kernel(x, out):
        out[0] = x[0]
        for i in range(x.size):
            out[0] = max(out[0], x[i])

    op = partial_op("largest", "max", kernel)
    host = np.zeros(10 * BIG, dtype)
    host[BIG + 1] = 1
    assert apply(op, ng.asarray(host)).tolist() == [1]
    assert dispatch.plan_for(op, (ng.asarray(host),), {}).shards.count > 1


def test_split_that_is_no_list():
    split = Split(BIG, (1,), (1,))
    op = Op("alone", lambda x: (x.shape, x.dtype), {"cpu": print}, split=lambda call: split)
    with pytest.raises(TypeError, match="alone: split must return a list of Splits, got a Split"):
        apply(op, zeros(BIG))


def test_error_in_a_shard():
    def kernel(x, out):
        out[0] = 0
        if x[x.size - 1] < 0:
            raise ValueError("negative end")

    op = partial_op("fails", "sum", kernel)
    host = np.ones(BIG)
    assert apply(op, ng.asarray(host)).item() == 0
    host[-1] = -1
    for _ in range(2):
        with pytest.raises(ValueError, match="negative end"):
            apply(op, ng.asarray(host))
    host[-1] = 1
    assert apply(op, ng.asarray(host)).item() == 0


def test_error_that_does_not_come_again():
    def kernel(x, out):
        out[0] = 0
        if x[0] > 0:
            x[0] = 0  # what only a kernel that works in place may do
            raise ValueError

    with pytest.raises(RuntimeError, match="kernel kernel failed in shard 0, but only once"):
        apply(partial_op("once", "sum", kernel), ng.asarray(np.ones(BIG)))


@pytest.mark.parametrize("size", [1, BIG])
def test_kernel_that_returns_a_value(size):
    def kernel(x, out):
        out[0] = x[0]
        return 1

    with pytest.raises(TypeError, match=r"kernel kernel must write .* nothing; it returns"):
        apply(partial_op("returns", "sum", kernel), ng.asarray(np.ones(size)))


# ------------------------------------------------------------------ threads


@pytest.mark.usefixtures("_threads")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine has one core")
def test_number_of_threads_is_for_all_python_threads(monkeypatch):
    x, seen = zeros(BIG), []
    spread = dispatch._run_on_threads

    def watched(*args):
        seen.append((ng.get_num_threads(), numba.get_num_threads()))
        return spread(*args)

    monkeypatch.setattr(dispatch, "_run_on_threads", watched)
    for count in (1, 2):
        thread = threading.Thread(target=ng.exp, args=(x,))
        ng.set_num_threads(count)
        thread.start()
        thread.join()
        ng.exp(x)
    assert seen == [(2, 2), (2, 2)]  # one thread is the calling one, without a region


@pytest.mark.parametrize("limit", ["affinity", "NUMBA_NUM_THREADS"])
def test_default_number_of_threads(limit):
    """One for each core that the process may use, or what Numba was told."""
    if limit == "affinity" and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to cores")
    confine = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    program = f"""
import os
{confine if limit == "affinity" else "os.environ['NUMBA_NUM_THREADS'] = '1'"}
import numbagrad
print(numbagrad.get_num_threads())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("1\n", 0), run.stderr


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


def split_op(kernel, infer, scalars=(), split_scalars=None):
    """Return an op on one array that is cut into shards once it is large."""
    return Op(
        "cut",
        infer,
        {"cpu": kernel},
        arrange=lambda call: Views((call.inputs[0].shape,), (call.outputs[0].shape,), scalars),
        split=lambda call: [Split(call.inputs[0].size, (1,), (1,), split_scalars)],
        cost=lambda call: (1e9, 1e9),
    )


def test_parameters_that_words_cannot_hold_run_whole():
    @njit
    def kernel(x, nothing, out):
        for i in range(x.size):
            out[i] = x[i] + 1

    op = split_op(kernel, lambda x: (x.shape, x.dtype), (None,))
    assert apply(op, zeros(8)).tolist() == [1.0] * 8
    assert next(iter(op._plans.values())).shards is None


def test_parameters_of_several_types():
    @njit
    def kernel(x, first, out):
        for i in range(x.size):
            out[i] = first

    op = split_op(
        kernel, lambda x: (x.shape, x.dtype), (0,), lambda scalars, lo, hi: (0.5 if lo else 1,)
    )
    with pytest.raises(TypeError, match="kernel: its parameters must have the same types"):
        apply(op, zeros(8))
