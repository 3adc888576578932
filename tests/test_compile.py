"""`ng.compile`: what it gives is what the function gives, whatever is cut, folded and planned."""

import errno
import json
import logging
import subprocess
import sys
import types
from collections import namedtuple

import numpy as np
import pytest
from numba import config

import numbagrad as ng
from numbagrad.compiler import function
from numbagrad.dispatch import Split
from numbagrad.errors import GraphError, TraceError
from numbagrad.jit import write_atomically

L = ng.layers


def network():
    """Return a network with state of its own: dropout, batch norm and all."""
    ng.random.seed(3)
    return L.Sequential(
        # A bias would have a gradient of rounding alone, which Adam makes steps of.
        L.Conv2d(1, 4, 3, padding=1, bias=False),
        L.BatchNorm2d(4),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Dropout(0.3),
        L.Linear(16, 8),
        L.GELU(),
        L.Dropout(0.2),
        L.Linear(8, 3),
    )


def batches(count, size=6):
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.normal(size=(size, 4, 4, 1)).astype(np.float32)
        yield ng.asarray(images), ng.asarray(rng.integers(0, 3, size))


OPTIMIZERS = {
    "momentum": lambda p: ng.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: ng.optim.Adam(p, lr=0.01),
}


def six_steps(optimizer, wrap, size=6):
    """Return the losses, and all state and gradients, after six steps."""
    model = network()
    opt = OPTIMIZERS[optimizer](list(model.parameters()))

    @wrap
    def step(images, labels):
        opt.zero_grad()
        loss = ng.softmax_cross_entropy(model(images), labels)
        loss.backward()
        opt.step()
        return loss

    losses = []
    for number, batch in enumerate(batches(6, size)):
        if number == 3:
            opt.lr = opt.lr / 2
        losses.append(step(*batch).item())
    grads = {f"grad {k}": p.grad.numpy() for k, p in enumerate(model.parameters())}
    return np.array(losses), model.state_dict() | opt.state_dict() | grads


@pytest.mark.parametrize(("optimizer", "size", "chunk"), [("adam", 6, None), ("momentum", 7, 2)])
def test_training_step(optimizer, size, chunk):
    expected, expected_state = six_steps(optimizer, lambda step: step, size)
    losses, state = six_steps(optimizer, ng.compile(chunk=chunk), size)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert state.keys() == expected_state.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value, expected_state[name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_many_threads_give_the_bits_of_one():
    rng = np.random.default_rng(1)
    x = ng.asarray(rng.normal(size=(64, 12, 12, 3)).astype(np.float32))
    weight = L.Parameter(rng.normal(size=(3, 3, 3, 8)).astype(np.float32))
    norm = L.BatchNorm2d(8)

    @ng.compile
    def step(x):
        weight.grad = None
        out = ng.relu(norm(ng.conv2d(x, weight, padding=1)))
        (out * out).sum().backward()
        return out

    results = []
    for threads in (1, ng.get_num_threads()):
        ng.set_num_threads(threads)
        results.append((step(x).numpy().copy(), weight.grad.numpy().copy()))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


# ------------------------------------------------------------------ its key


def counted(function):
    """Return a function and the list of times that it was traced."""
    runs = []

    def run(*args, **kwargs):
        runs.append(args)
        return function(*args, **kwargs)

    return ng.compile(run), runs


class Setting:
    __slots__ = ("value",)  # no dict to look into: only the object itself tells

    def __init__(self, value):
        self.value = value


def test_objects_that_take_the_place_of_others_are_noticed():
    setting = Setting(0.0)
    f = ng.compile(lambda x: x * setting.value)
    for k in range(20):  # a new object is often where the last one was
        setting = Setting(float(k))
        assert f(ng.asarray([1.0])).tolist() == [k]


class Scale:
    def __init__(self, by):
        self.options = types.SimpleNamespace(by=by)

    def __call__(self, x):
        return x * self.options.by


def test_callable_objects_are_looked_into():
    f = ng.compile(lambda scale, x: scale(x))
    scale, x = Scale(2.0), ng.asarray([1.0])
    assert f(scale, x).tolist() == [2]
    scale.options = types.SimpleNamespace(by=3.0)
    assert f(scale, x).tolist() == [3]


@pytest.mark.parametrize(
    "changed", [-0.0, float("nan"), np.float32(2.0), np.int32(2), np.float16(2.0)]
)
def test_numbers_are_told_apart_by_value(changed):
    holder = types.SimpleNamespace(by=0.0)
    f = ng.compile(lambda x: x * holder.by)
    x = ng.asarray([1.0])
    f(x)
    holder.by = changed
    np.testing.assert_array_equal(f(x).numpy(), (x * changed).numpy())
    assert np.signbit(f(x).numpy()) == np.signbit(changed)
    holder.by = type(changed)(changed)  # another object of the same value
    f(x)
    assert len(f._variants) == 2


SCALE = 1.0


def test_functions_inside_and_defaults_are_looked_into():
    options = {"a": 2.0, "b": 3.0}

    def helper(x, by=1.0):
        return x * by

    @ng.compile
    def f(x):
        def inner(y):
            return helper(y) * SCALE

        names = list(options)
        return inner(x) * options[names[0]]

    x = ng.asarray([1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SCALE", 1.0)
        assert f(x).tolist() == [2]
        patch.setitem(globals(), "SCALE", 5.0)
        assert f(x).tolist() == [10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "SCALE", 1.0)
        helper.__defaults__ = (7.0,)
        assert f(x).tolist() == [14]
        options.clear()
        options.update({"b": 2.0, "a": 3.0})  # the same values under other names
        assert f(x).tolist() == [14]
        options.update({"b": 3.0})
        assert f(x).tolist() == [21]


def test_a_part_of_an_old_gradient():
    w = ng.layers.Parameter([1.0, 2.0, 3.0])

    def step(x):
        old = w.grad[1:]
        w.grad = None
        (w * x).sum().backward()
        return old

    for f in (step, ng.compile(step)):
        w.grad = ng.asarray([10.0, 20.0, 30.0])
        assert f(ng.asarray([1.0, 1.0, 1.0])).tolist() == [20, 30]
        assert w.grad.tolist() == [1, 1, 1]


def test_compiles_once_for_each_kind_of_arguments():
    double, runs = counted(lambda x, times=2: x * times)
    x = ng.asarray([1.0, 2.0])
    for _ in range(3):
        assert double(x).tolist() == [2.0, 4.0]
    assert len(runs) == 1
    assert double(x, times=3).tolist() == [3.0, 6.0]
    assert double(ng.asarray([1.0, 2.0, 3.0])).tolist() == [2.0, 4.0, 6.0]
    assert double(ng.asarray([[1, 2]])).tolist() == [[2, 4]]
    assert len(runs) == 4


def test_floats_are_traced_and_ints_are_not():
    scale, runs = counted(lambda x, a: x * a)
    x = ng.asarray([1.0, 2.0])
    assert scale(x, 0.5).tolist() == [0.5, 1.0]
    assert scale(x, 0.25).tolist() == [0.25, 0.5]
    assert len(runs) == 1
    assert scale(x, 3).tolist() == [3.0, 6.0]
    assert len(runs) == 2


def test_a_modules_mode_is_part_of_the_key():
    ng.random.seed(0)
    model = L.Dropout(0.5)

    @ng.compile
    def run(x):
        return model(x)

    x = ng.asarray(np.ones((4, 16), np.float32))
    assert 0 < (run(x).numpy() == 0).sum() < 64
    model.eval()
    assert (run(x).numpy() == 1).all()
    model.train()
    assert (run(x).numpy() == 0).any()


def test_what_a_function_reads_from_around_it_is_part_of_the_key():
    power = 2

    @ng.compile
    def raised(x):
        return x * power

    x = ng.asarray([3.0])
    assert raised(x).tolist() == [6.0]
    power = 5
    assert raised(x).tolist() == [15.0]


def test_captured_arrays_are_read_at_each_call():
    shift = ng.asarray([1.0, 2.0])
    number = ng.asarray(1.0)

    @ng.compile
    def shifted(x):
        return x + shift + (number * 2.0)

    x = ng.asarray([0.0, 0.0])
    assert shifted(x).tolist() == [3.0, 4.0]
    shift[0] = 10.0
    assert shifted(x).tolist() == [12.0, 4.0]
    number[...] = 5.0  # a product of numbers is computed while compiling
    assert shifted(x).tolist() == [20.0, 12.0]


def test_numpy_arrays_around_may_change():
    scale, table = np.array([2.0], np.float32), {"shift": np.zeros(1, np.float32)}
    f = ng.compile(lambda x: x * ng.asarray(scale) + ng.asarray(table["shift"]))
    assert f(ng.asarray([1.0])).tolist() == [2.0]
    scale[0] = 3
    assert f(ng.asarray([1.0])).tolist() == [3.0]
    table["shift"][0] = 1
    assert f(ng.asarray([1.0])).tolist() == [4.0]
    scale[0], table["shift"][0] = 2, 0
    assert f(ng.asarray([1.0])).tolist() == [2.0]


def test_methods():
    class Trainer:
        def __init__(self, factor):
            self.factor = ng.asarray(factor)

        @ng.compile
        def run(self, x):
            return x * self.factor

    x = ng.asarray([1.0, 2.0])
    assert Trainer([2.0, 2.0]).run(x).tolist() == [2.0, 4.0]
    assert Trainer([3.0, 3.0]).run(x).tolist() == [3.0, 6.0]


class Emitted:
    """Stands in for a compiled step: nothing is compiled, a call gives the source."""

    is_current = True

    def __init__(self, source, *_):
        self.source = source

    def __call__(self, *arrays):
        return self.source.text


@pytest.mark.parametrize(
    ("model", "shape"),
    [("mlp", (784,)), ("lenet", (28, 28, 1)), ("convnet6", (32, 32, 3)), ("resnet8", (32, 32, 3))],
)
def test_a_last_batch_finds_the_source_of_the_others(model, shape, monkeypatch):
    monkeypatch.setattr(function, "CPUExecutable", Emitted)
    model = getattr(ng.models, model)()
    opt = ng.optim.Adam(model.parameters())

    @ng.compile(dynamic=["batch"])
    def step(images, labels):
        opt.zero_grad()
        ng.softmax_cross_entropy(model(images), labels).backward()
        opt.step()

    texts = [
        step(np.zeros((batch, *shape), np.float32), np.zeros(batch, np.int64))
        for batch in (64, 16, 48, 80, 7)
    ]
    assert len(set(texts)) == 1
    assert " batch = memory[" in texts[0]


def test_one_source_for_all_batch_sizes():
    weight = L.Parameter(np.ones((3, 2), np.float32))

    @ng.compile(dynamic=["batch"])
    def step(x):
        weight.grad = None
        loss = (ng.relu(x @ weight) * x.sum(axis=1, keepdims=True)).mean()
        loss.backward()
        return loss

    sources = set()
    for rows in (64, 48, 80, 200):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        value = step(ng.asarray(x)).item()
        sources.add(step.source)
        out = x @ np.ones((3, 2))
        expected = (np.maximum(out, 0) * x.sum(axis=1, keepdims=True)).mean()
        assert value == pytest.approx(expected, rel=1e-5)
        slope = x.T @ ((out > 0) * x.sum(axis=1, keepdims=True)) / (2 * rows)
        np.testing.assert_allclose(weight.grad.numpy(), slope, rtol=1e-4, atol=1e-6)
    assert len(sources) == 1
    (source,) = sources
    assert "batch" in source


def test_bad_dynamic():
    with pytest.raises(ValueError, match=r'\[\] or \["batch"\]'):
        ng.compile(lambda x: x, dynamic="batch")


def test_layers_and_settings_may_be_replaced():
    ng.random.seed(0)
    model = L.Sequential(L.Linear(2, 2), L.Dropout(0.0))
    holder = type("Holder", (), {})()
    holder.model, holder.factor = model, 1.0

    @ng.compile
    def run(x):
        return holder.model(x) * holder.factor

    x = ng.asarray([[1.0, 2.0]])
    for change in (
        lambda: setattr(holder, "factor", 3.0),
        lambda: model.eval(),
        lambda: setattr(model[1], "p", 0.9),
        lambda: model.train(),
        lambda: setattr(holder, "model", L.Sequential(L.Linear(2, 2))),
        lambda: None,
    ):
        if not (model.training and model[1].p):
            np.testing.assert_allclose(
                run(x).numpy(), (holder.model(x) * holder.factor).numpy(), rtol=1e-6
            )
        change()
    assert run(x).numpy() == pytest.approx((holder.model(x) * holder.factor).numpy())


def test_objects_as_arguments_are_told_apart():
    @ng.compile
    def apply_to(x, function):
        return function(x)

    x = ng.asarray([1.0, 2.0])
    for k in (2.0, 3.0, 4.0):
        assert apply_to(x, lambda t, k=k: t * k).tolist() == [k, 2 * k]


def test_a_list_that_the_function_fills_does_not_compile_it_each_time():
    seen = []

    @ng.compile
    def run(x):
        seen.append(x.shape)
        return x + 1.0

    for _ in range(3):
        assert run(ng.asarray([1.0])).tolist() == [2.0]
    assert seen == [(1,)]


@ng.compile
def increased(x):
    return ng.relu(x) + 1.0


def test_what_the_package_holds_is_not_watched():
    def run(x):
        return ng.tanh(increased(x))

    compiled, runs = counted(run)
    for _ in range(3):
        compiled(ng.asarray([1.0]))
        increased(ng.asarray([1.0]))  # which keeps count of its own calls
    assert len(runs) == 1


def test_libraries_are_not_looked_through():
    settings = types.SimpleNamespace(factor=2.0)
    logger = logging.getLogger("numbagrad.tests")

    def step(x):
        logger.debug("%s", json.dumps({"step": 1}))
        return x * settings.factor

    watched = function._holders(
        step
    )  # what is compared at each call: behind a logger are all others
    assert [x for x in watched if x is not step] == [settings]
    compiled = ng.compile(step)
    assert compiled(ng.asarray([1.0])).tolist() == [2.0]
    settings.factor = 3.0
    assert compiled(ng.asarray([1.0])).tolist() == [3.0]


# ---------------------------------------------------------------- gradients


def test_gradients_add_up_over_calls():
    weight = L.Parameter(np.float32([1.0, 1.0]))
    f = ng.compile(lambda x: (weight * x).sum().backward() or x)
    x = ng.asarray([1.0, 2.0])
    for k in (1, 2, 3):
        f(x)
        assert weight.grad.tolist() == [k, 2 * k]
    weight.grad = None
    f(x)
    assert weight.grad.tolist() == [1.0, 2.0]


def test_gradients_that_are_forgotten_first_do_not_matter():
    weight, frozen = L.Parameter(np.ones(2, np.float32)), L.Parameter(np.ones(2, np.float32))

    def step(x):
        weight.grad = frozen.grad = None
        (x * weight).sum().backward()
        return x + 1

    compiled, runs = counted(step)
    for k in range(3):
        compiled(ng.asarray([1.0, k]))
        assert weight.grad.tolist() == [1.0, k]
        assert frozen.grad is None
        frozen.grad = ng.asarray([1.0, 1.0])
    assert len(runs) == 1


def test_gradients_are_read_and_written_as_attributes():
    weight = L.Parameter(np.float32([1.0]))

    @ng.compile
    def halve():
        weight.grad = weight.grad * 0.5

    @ng.compile
    def replace(x):
        old = weight.grad
        weight.grad = None
        (weight * x).sum().backward()
        weight.grad = old * 0.5 + weight.grad

    for value in (2.0, 4.0):
        weight.grad = ng.asarray([value])
        halve()
        assert weight.grad.tolist() == [value / 2]
        replace(ng.asarray([3.0]))
        assert weight.grad.tolist() == [value / 4 + 3]


@pytest.mark.parametrize("size", [3, 20_000], ids=["small", "pooled"])
@pytest.mark.parametrize(
    "keep",
    [lambda g: g, lambda g: g.reshape((-1, 1)), np.asarray, lambda g: g[1:]],
    ids=["gradient", "reshaped", "numpy", "slice"],
)
def test_gradients_that_somebody_holds_stay(keep, size):
    weight, other = (L.Parameter(np.ones(size, np.float32)) for _ in range(2))

    @ng.compile
    def step(x):
        weight.grad = other.grad = None
        ((weight + other) * x).sum().backward()

    held = []
    for k in range(4):
        step(ng.asarray(np.full(size, k, np.float32)))
        held.append(keep(weight.grad))
        assert np.all(other.grad.numpy() == k)
    for k, gradient in enumerate(held):
        assert np.all(np.asarray(gradient) == k)


@pytest.mark.parametrize("by_eager", [False, True], ids=["assigned", "added to"])
@pytest.mark.parametrize("size", [3, 20_000], ids=["small", "pooled"])
def test_gradients_that_the_parameter_let_go_of_stay(size, by_eager):
    weight = L.Parameter(np.ones(size, np.float32))

    @ng.compile
    def step(x):
        weight.grad = None
        (weight * x).sum().backward()

    held = []
    for k in range(6):
        step(ng.asarray(np.full(size, k, np.float32)))
        held.append(weight.grad)
        if by_eager:
            weight.sum().backward()
        else:
            weight.grad = None
    for k, gradient in enumerate(held):
        assert np.all(gradient.numpy() == k)


def test_gradients_of_other_batches_stay():
    weight = L.Parameter(np.ones(3, np.float32))

    @ng.compile(dynamic=["batch"])
    def step(x):
        weight.grad = None
        (weight * x).sum().backward()

    def batch(rows, value):
        return ng.asarray(np.full((rows, 3), value, np.float32))

    for _ in range(2):
        step(batch(4, 1.0)), step(batch(6, 1.0))
    step(batch(4, 1.0)), step(batch(4, 2.0))
    held = weight.grad
    step(batch(6, 3.0)), step(batch(4, 4.0))
    assert held.tolist() == [8.0] * 3
    assert weight.grad.tolist() == [16.0] * 3


def test_gradients_that_nobody_holds_are_written_over():
    weight = L.Parameter(np.ones(3, np.float32))

    @ng.compile
    def step(x):
        weight.grad = None
        (weight * x).sum().backward()

    places = set()
    for k in range(3):
        step(ng.asarray([0.0, 1.0, k]))
        places.add(weight.grad.numpy().tolist() == [0.0, 1.0, k] and id(weight.grad))
    assert len(places) == 1
    step(weight.grad)  # now it is an argument, too
    assert weight.grad.tolist() == [0.0, 1.0, 2.0]


def test_parameters_as_arguments_train():
    weight = L.Parameter(np.float32([2.0]))
    opt = ng.optim.SGD([weight], lr=0.5)

    @ng.compile
    def step(params, x):
        opt.zero_grad()
        (params[0] * x).sum().backward()
        opt.step()

    for expected in (1.5, 1.0):
        step([weight], ng.asarray([1.0]))
        assert weight.tolist() == [expected]


def test_a_differentiated_call_runs_the_function_itself():
    f = ng.compile(lambda x: (x * x).sum())
    x = ng.asarray([1.0, 2.0])
    assert f(x).item() == 5.0
    assert ng.grad(f)(x).tolist() == [2.0, 4.0]
    assert ng.grad(lambda z: f(z) + (z * z).sum())(x).tolist() == [4.0, 8.0]
    outer = ng.compile(lambda x: f(x) * 2.0)
    assert outer(x).item() == 10.0


# ------------------------------------------------------- arguments, results


def test_nested_arguments_and_results():
    @ng.compile
    def run(pair, options):
        x, y = pair
        return {"sum": x + y, "both": (x, [y * options["scale"]])}

    x, y = ng.asarray([1.0]), ng.asarray([2.0])
    out = run((x, y), {"scale": 3.0})
    assert out["sum"].tolist() == [3.0]
    assert out["both"][0] is x
    assert out["both"][1][0].tolist() == [6.0]


def test_results_are_values():
    state = L.Buffer(np.float32([1.0, 2.0, 3.0]))

    @ng.compile
    def run(x):
        before = ng.reshape(state, (3, 1))
        ng.ops.optimisation.assign(state, state + x)
        return before, ng.reshape(x, (3, 1)), x * 2.0

    x = ng.asarray([1.0, 1.0, 1.0])
    first = run(x)
    second = run(x)
    assert first[2].tolist() == second[2].tolist() == [2.0, 2.0, 2.0]
    assert first[1].tolist() == [[1.0], [1.0], [1.0]]
    assert first[0].tolist() == [[1.0], [2.0], [3.0]]
    assert second[0].tolist() == [[2.0], [3.0], [4.0]]
    assert state.tolist() == [3.0, 4.0, 5.0]


def test_arguments_are_not_assigned_to():
    def run(x):
        x[0] = 9.0
        return x

    with pytest.raises(TraceError, match="assigns to elements of its argument number 1"):
        ng.compile(run)(ng.asarray([1.0, 2.0]))


def test_float_arguments_beside_float64():
    x = np.array([1.0, 2.0])
    scaled = ng.compile(lambda x, a: x * a)(ng.asarray(x), 0.1)
    np.testing.assert_array_equal(scaled.numpy(), x * 0.1)


def test_namedtuples():
    Pair = namedtuple("Pair", "low high")
    out = ng.compile(lambda p: Pair(p.low + 1.0, p.high))(
        Pair(ng.asarray([1.0]), ng.asarray([2.0]))
    )
    assert isinstance(out, Pair)
    assert out.low.tolist() == [2.0]


@pytest.mark.parametrize("name", ["batch", "range", "float32", "size_0", "memory"])
def test_any_name_will_do(name):
    scope = {"ng": ng}
    exec(f"def run({name}):\n    return ng.softmax({name} + 1.0, axis=0)", scope)
    x = ng.asarray(np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4))
    out = ng.compile(scope["run"], dynamic=["batch"])(x)
    np.testing.assert_allclose(out.numpy(), ng.softmax(x, axis=0).numpy(), rtol=1e-6)


def test_dynamic_where_rows_are_as_long_as_the_batch():
    def run(x, y):
        a = ng.exp(x @ ng.permute_dims(y, (1, 0)))
        return -ng.log(a / a.sum(axis=1, keepdims=True)).mean()

    compiled = ng.compile(run, dynamic=["batch"])
    for rows in (6, 4):
        x = ng.asarray(np.linspace(-1, 1, rows * 4, dtype=np.float32).reshape(rows, 4))
        assert compiled(x, x).item() == pytest.approx(run(x, x).item(), rel=1e-5)


def test_dynamic_where_the_batch_is_as_long_as_a_layer_is_wide():
    """Then two constants of the step are one, which they are not for other batches."""
    rng = np.random.default_rng(0)
    shapes = (7, 24), (24,), (24, 10), (10,)
    params = [ng.layers.Parameter(rng.normal(size=s).astype(np.float32)) for s in shapes]

    def run(x, labels):
        hidden = ng.relu(ng.linear(x, *params[:2]))
        ng.softmax_cross_entropy(ng.linear(hidden, *params[2:]) * 1.5, labels).backward()
        ng.optim.clip_by_norm(params, 1.0)
        grads = [param.grad for param in params]
        for param in params:
            param.grad = None
        return grads

    compiled = ng.compile(run, dynamic=["batch"])
    for rows in (24, 4):
        x = ng.asarray(rng.normal(size=(rows, 7)).astype(np.float32))
        labels = ng.asarray(rng.integers(0, 10, rows))
        for mine, its in zip(compiled(x, labels), run(x, labels), strict=True):
            np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-4, atol=1e-6)


def test_dynamic_where_the_first_axis_is_no_batch():
    run = ng.compile(lambda w, x: x @ w, dynamic=["batch"])
    w, x = np.ones((4, 6), np.float32), np.ones((6, 4), np.float32)
    assert run(ng.asarray(w), ng.asarray(x)).tolist() == (x @ w).tolist()


def test_without_arrays():
    ng.random.seed(5)
    expected = [ng.random.uniform((2, 3)).tolist() for _ in range(2)]
    ng.random.seed(5)
    draw = ng.compile(lambda: ng.random.uniform((2, 3)))
    assert [draw().tolist() for _ in range(2)] == expected


def test_second_gradients():
    cube = ng.compile(ng.grad(ng.grad(lambda x: (x * x * x).sum())))
    assert cube(ng.asarray(2.0)).item() == 12.0


# ---------------------------------------------------------------- errors


def test_a_value_in_python_is_refused_by_line():
    @ng.compile
    def run(x):
        if x.sum() > 1:
            return x
        return -x

    with pytest.raises(TraceError, match=r"test_compile\.py"):
        run(ng.asarray([1.0]))


def test_a_bad_label_is_reported_as_by_the_op():
    loss = ng.compile(lambda x, y: ng.softmax_cross_entropy(x, y))
    x = ng.asarray(np.zeros((4, 3), np.float32))
    assert loss(x, ng.asarray([0, 1, 2, 0])).item() == pytest.approx(np.log(3))
    with pytest.raises(IndexError, match=r"labels\[2\] is 3"):
        loss(x, ng.asarray([0, 1, 3, 7]))
    inside = ng.compile(lambda x, y: ng.softmax_cross_entropy(x, y + 1))
    with pytest.raises(IndexError, match=r"labels\[1\] is 3"):
        inside(x, ng.asarray([0, 2, 0, 0]))


@pytest.mark.parametrize("chunk", [0, 1.5])
def test_bad_chunk(chunk):
    with pytest.raises(ValueError, match="chunk"):
        ng.compile(lambda x: x, chunk=chunk)


def test_no_function():
    with pytest.raises(TypeError, match="needs a function, got int"):
        ng.compile(3)


def test_nothing_to_see_before_the_first_call():
    with pytest.raises(GraphError, match="has not been called yet"):
        ng.compile(lambda x: x).source  # noqa: B018


# ---------------------------------------------------------------- the source


def test_source_speaks_of_the_model():
    model = L.Sequential(L.Linear(4, 3))

    @ng.compile
    def predict(images):
        return model(images)

    predict(ng.asarray(np.zeros((5, 4), np.float32)))
    source = predict.source
    for name in ("images", "model_0_weight", "model_0_bias", "matmul_forward("):
        assert name in source
    first = predict.source
    again = ng.compile(predict.function)
    again(ng.asarray(np.zeros((5, 4), np.float32)))
    assert again.source == first


def test_elementwise_chains_are_one_loop():
    @ng.compile
    def run(x, bias):
        h = ng.tanh(x * 2.0 + bias)
        return h * h, h

    x, bias = (
        ng.asarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)),
        ng.asarray([0.5] * 3),
    )
    squares, h = run(x, bias)
    np.testing.assert_allclose(h.numpy(), np.tanh(x.numpy() * 2 + 0.5), rtol=1e-6)
    np.testing.assert_allclose(squares.numpy(), h.numpy() ** 2, rtol=1e-6)
    (line,) = run.report().lines
    assert line.does == "fused_multiply_add_tanh_multiply"


def norm_step(width, chunk=None, shortcut=False, pool=None):
    """Return a compiled step of a convolution, its batch norm and what follows, and a batch."""
    ng.random.seed(0)
    conv, norm = L.Conv2d(width, width, 3, padding=1, bias=False), L.BatchNorm2d(width)

    def step(x):
        for p in (conv.weight, norm.weight, norm.bias):
            p.grad = None
        out = norm(conv(x))
        out = ng.relu(out + x if shortcut else out)
        out = pool(out, 2) if pool else out
        (out * out).sum().backward()
        return out, conv.weight.grad, norm.weight.grad, norm.bias.grad, norm.running_mean + 0.0

    x = np.random.default_rng(0).normal(size=(5, 4, 4, width)).astype(np.float32)
    return ng.compile(step, chunk=chunk), step, ng.asarray(x)


@pytest.mark.parametrize(
    ("width", "chunk", "options"),
    [(20, 2, {}), (3, None, {"pool": ng.max_pool2d}), (16, 2, {"shortcut": True})],
)
def test_batch_norm_gives_the_numbers_of_eager(width, chunk, options):
    run, _, x = norm_step(width, chunk, **options)
    twin = norm_step(width, chunk, **options)[1]  # with running statistics of its own
    for value, expected in zip(run(x), twin(x), strict=True):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_batch_norm_is_one_loop_with_its_neighbours():
    run, _, x = norm_step(8, shortcut=True)
    run(x)
    ops = [op for line in run.report().lines for op in line.does.split(", ")]
    assert "fused_batch_norm_add_relu" in "".join(ops)
    assert not {"batch_norm", "batch_norm_backward_sums", "batch_norm_backward_input"} & {*ops}
    assert "One loop for batch_norm (subtract, multiply, add), add, relu" in run.source
    assert "batch_norm_backward_sums (multiply, sum, sum)" in run.source


def test_what_is_cheap_is_computed_again_rather_than_kept():
    # Pooling and the gradient of relu read relu's result, but no convolution does: it is made of
    # the convolution's own, which is kept for the batch norm's gradient in any case.
    run, _, x = norm_step(8, pool=ng.avg_pool2d)
    run(x)
    values = [
        value.name
        for region in run.graph.regions
        for node in region.nodes
        for value in node.outputs
        if value.shape == "float32[5,4,4,8]" and value.lives == "whole"
    ]
    assert values == ["conv2d", "relu_backward"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [2, 16, 37])
def test_sums_over_rows_are_added_up_where_their_terms_are_made(width, dtype):
    @ng.compile(chunk=20)
    def run(x, weight):
        h = ng.exp(x * weight)
        return h, h.sum(axis=0), (h - x).mean(axis=0)

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(70, width)).astype(dtype), rng.normal(size=width).astype(dtype)
    h, total, mean = run(ng.asarray(x), ng.asarray(weight))
    expected = np.exp(x.astype(np.float64) * weight)
    np.testing.assert_allclose(h.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(total.numpy(), expected.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(mean.numpy(), (expected - x).mean(axis=0), rtol=1e-5, atol=1e-6)
    first, _ = run.report().lines
    assert first.does == "fused_multiply_exp_sum_subtract"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(70, 37), (3, 1), (9, 4096)])
def test_sums_of_all_elements_are_added_up_where_their_terms_are_made(shape, dtype):
    def run(x, y, row, column):
        h = ng.exp(x - y)
        # Elements alone; as the terms are kept, too; with what repeats along rows and columns.
        return ((x - y) ** 2).mean(), h, h.sum(), ng.tanh(x * row).sum(), ng.tanh(x * column).mean()

    rng = np.random.default_rng(0)
    extents = (shape, shape, shape[1:], (shape[0], 1))
    args = [ng.asarray(rng.uniform(-1, 1, size=each).astype(dtype)) for each in extents]
    compiled = ng.compile(run, chunk=20)
    exact = run(*(x.astype(np.float64) for x in args))
    for mine, its in zip(compiled(*args), exact, strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=2e-6, atol=2e-6)
    ops = compiled.report().lines[0].does.split(", ")
    assert not {"sum", "mean"} & {*ops}


def test_sums_of_rows_and_of_all_elements_are_told_apart():
    def run(x):
        y = ng.exp(x)
        return y.sum(), y.sum(axis=0), (y * x).mean(), (y * x).mean(axis=0)

    x = ng.asarray(np.random.default_rng(0).normal(size=(33, 21)).astype(np.float32))
    for mine, its in zip(ng.compile(run, chunk=8)(x), run(x), strict=True):
        np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-5, atol=1e-5)


def test_long_sums_keep_small_terms():
    # A single chain of additions in each lane would be off by 1e-4.
    x = ng.asarray(np.ones(2**22 + 3, np.float32))
    run = ng.compile(lambda x: (x * 1.1).sum(), chunk=2**22)
    assert run(x).item() == pytest.approx(1.1 * x.size, rel=1e-5)


def test_a_tree_of_chains_is_one_loop():
    run = ng.compile(lambda x, y: ng.tanh(x * 2.0) + ng.exp(y * 0.5) * (y - x))
    x, y = (ng.asarray(np.linspace(a, 1, 12, dtype=np.float32)) for a in (-1, 0))
    expected = np.tanh(x.numpy() * 2) + np.exp(y.numpy() / 2) * (y.numpy() - x.numpy())
    np.testing.assert_allclose(run(x, y).numpy(), expected, rtol=1e-5, atol=1e-6)
    (line,) = run.report().lines
    assert line.does.count("fused") == 1
    assert ", " not in line.does


def zeros(*shape):
    return ng.asarray(np.zeros(shape, np.float32))


def said_again(capfd):
    return [line for line in capfd.readouterr().err.splitlines() if " again" in line]


def test_another_shape_is_announced_once(capfd):
    @ng.compile
    def scaled(x, factor):
        return x * factor

    scaled(zeros(4, 3), 2.0)
    scaled(zeros(4, 3), 3.0)
    assert said_again(capfd) == []
    scaled(zeros(5, 3), 2.0)
    assert said_again(capfd) == [
        "compiling scaled again: x float32[5,3], before float32[4,3] "
        '(compile(dynamic=["batch"]) would serve any batch) ...'
    ]
    scaled(zeros(6, 3), 2.0)
    assert said_again(capfd) == []


def test_another_dtype_is_announced(capfd):
    def summed(x, y):
        return x.sum() + y.sum()

    run = ng.compile(summed)
    run(zeros(4), zeros(2))
    run(*[ng.asarray(np.zeros(n)) for n in (4, 3)])
    assert said_again(capfd) == [
        "compiling summed again: x float64[4], before float32[4]; "
        "y float64[3], before float32[2] ..."
    ]


def test_what_dynamic_serves_is_not_announced(capfd):
    weight = zeros(3, 2)
    run = ng.compile(lambda x: ng.relu(x @ weight).sum(), dynamic=["batch"])
    for rows in (8, 12, 6):
        run(zeros(rows, 3))
    assert said_again(capfd) == []


def test_a_new_mode_is_not_announced(capfd):
    model = L.Sequential(L.Linear(3, 2), L.Dropout(0.5))
    run = ng.compile(lambda x: model(x))
    run(zeros(4, 3))
    model.eval()
    run(zeros(5, 3))
    assert said_again(capfd) == []


SECOND = """
import numpy as np, numbagrad as ng
x = ng.asarray(np.arange(12, dtype=np.float32).reshape(4, 3))
step = ng.compile(lambda x: (ng.exp(x * 0.1) @ ng.permute_dims(x, (1, 0))).sum())
print(step(x).item())
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_second_process_finds_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBAGRAD_CACHE_DIR", str(tmp_path))

    def run():
        return subprocess.run(
            [sys.executable, "-c", SECOND], capture_output=True, text=True, check=True
        )

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}

    first = run()
    compiled = files()
    assert any("region" in path.name for path in compiled)
    second = run()
    assert second.stdout == first.stdout
    assert files() == compiled


def test_a_file_in_place_of_the_folder_for_source(cache):
    (cache / "compiled").touch()
    x = ng.asarray([1.0])
    with pytest.warns(UserWarning, match=r"cannot write .*compiled .*; using "):
        assert ng.compile(lambda x: x / (x + 3.0) - x)(x).item() == -0.75
    # A second warning would be an error.
    assert ng.compile(lambda x: x / (x - 3.0) - x)(x).item() == -1.5


def test_no_space_for_source(cache, monkeypatch):
    def full(path, content):
        if path.is_relative_to(cache):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("numbagrad.compiler.modules.write_atomically", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert ng.compile(lambda x: 3.0 / x - (x - 1.0))(ng.asarray([1.0])).item() == 3.0


# --------------------------------------------------------------- users' ops


def make_shift(name, by):
    def kernel(x, out):
        for i in range(x.size):
            out[i] = x[i] + by

    return ng.custom_op(name, cpu=kernel, infer=lambda x: (x.shape, x.dtype))


def test_kernels_of_alike_ops_are_told_apart():
    one, two = make_shift("shift.test", 1), make_shift("shift_test", 2)
    run = ng.compile(lambda x: (one(x), two(x)))
    assert [y.tolist() for y in run(ng.asarray([0.0]))] == [[1.0], [2.0]]


SHIFT = 1.0


def shift_kernel(x, out):
    for i in range(x.size):
        out[i] = x[i] + SHIFT


def test_a_kernel_whose_global_changes(monkeypatch):
    shifted = ng.custom_op("global_shift", cpu=shift_kernel, infer=lambda x: (x.shape, x.dtype))
    run = ng.compile(lambda x: shifted(x) * 1.0)
    x = ng.asarray([0.0])
    assert run(x).tolist() == [1.0]
    monkeypatch.setitem(globals(), "SHIFT", 5.0)
    assert run(x).tolist() == [5.0]


def test_partial_extrema_keep_nan():
    def kernel(x, out):
        out[0] = x[0]
        for i in range(x.size):
            if x[i] > out[0] or x[i] != x[i]:
                out[0] = x[i]

    largest = ng.custom_op(
        "largest_in_test_compile",
        cpu=kernel,
        infer=lambda x: ((1,), x.dtype),
        split=lambda call: [Split(call.inputs[0].size, (1,), ("max",))],
    )
    x = np.float32([1, 2, 3, 4, 5, np.nan, 7, 0])
    assert np.isnan(ng.compile(largest, chunk=2)(ng.asarray(x)).numpy()).all()


def test_custom_op():
    def kernel(x, rate, out):
        for i in range(x.size):
            out[i] = x[i] * rate

    scaled = ng.custom_op(
        "scaled_in_test_compile",
        cpu=kernel,
        infer=lambda x, *, rate=2.0: (x.shape, x.dtype),
        vjp=lambda grad_out, rate: grad_out * rate,
    )
    ng.testing.check_op(lambda x: scaled(x, rate=3.0) + x, np.ones(5), compiled=True)
