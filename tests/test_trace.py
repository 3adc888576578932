"""The staging interpreter: a traced step replays as the eager one runs, bit for bit."""

import inspect
import re

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.compiler import trace
from numbagrad.errors import GraphError, ShapeError, TraceError

L = ng.layers


def network():
    """Dropout, batch norm and all: everything with state of its own."""
    ng.random.seed(3)
    return L.Sequential(
        L.Conv2d(1, 4, 3, padding=1),
        L.BatchNorm2d(4),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Dropout(0.3),
        L.Linear(16, 8),
        L.BatchNorm1d(8),
        L.GELU(),
        L.Linear(8, 3),
    )


def batches(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.normal(size=(6, 4, 4, 1)).astype(np.float32)
        yield ng.asarray(images), ng.asarray(rng.integers(0, 3, 6))


OPTIMIZERS = {
    "sgd": lambda p: ng.optim.SGD(p, lr=0.05),
    "momentum": lambda p: ng.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: ng.optim.Adam(p, lr=0.01),
    "adamw": lambda p: ng.optim.AdamW(p, lr=0.01),
}


def ten_steps(optimizer, traced):
    """Return the losses, and all state and gradients after ten steps."""
    model = network()
    opt = OPTIMIZERS[optimizer](model.parameters())

    def step(images, labels):
        opt.zero_grad()
        loss = ng.softmax_cross_entropy(model(images), labels)
        loss.backward()
        opt.step()
        return loss

    run = trace(step, *next(batches(1))) if traced else step
    losses = []
    for number, batch in enumerate(batches(10)):
        if number == 5:
            opt.lr = 0.003  # state too: a replayed step reads it
        losses.append(run(*batch).item())
    grads = [p.grad.numpy() for p in model.parameters()]
    return losses, [*model.state_dict().values(), *opt.state_dict().values(), *grads]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_steps_replay_bit_for_bit(optimizer):
    eager, traced = ten_steps(optimizer, False), ten_steps(optimizer, True)
    assert eager[0] == traced[0]
    for one, other in zip(eager[1], traced[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_dropout_draws_fresh_numbers_at_each_replay():
    ng.random.seed(0)
    drop = trace(lambda x: ng.dropout(x, 0.5), ng.asarray(np.ones(64, np.float32)))
    x = ng.asarray(np.ones(64, np.float32))
    assert (drop(x).numpy() != drop(x).numpy()).any()


def test_tracing_changes_nothing():
    layer = L.BatchNorm1d(2)
    before = {name: value.copy() for name, value in layer.state_dict().items()}
    grads = [ng.asarray([1.0, 2.0]) for _ in layer.parameters()]
    versions = [p.version for p in layer.parameters()]
    for p, grad in zip(layer.parameters(), grads, strict=True):
        p.grad = grad
    opt = ng.optim.SGD(layer.parameters(), lr=0.1)

    def step(x):
        opt.zero_grad()
        (layer(x) * x).sum().backward()
        opt.step()

    trace(step, ng.asarray([[1.0, 2.0], [3.0, 5.0]]))
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert all(p.grad is grad for p, grad in zip(layer.parameters(), grads, strict=True))
    assert [p.version for p in layer.parameters()] == versions


def test_a_failed_trace_leaves_no_symbol_behind():
    layer = L.Linear(2, 1)

    def broken(x):
        layer(x).sum().backward()
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        trace(broken, ng.asarray([[1.0, 2.0]]))
    assert layer.weight.grad is None
    layer(ng.asarray([[1.0, 2.0]])).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy(), [[1], [2]])


def line_of(function, text):
    """Return the place of the line of a function that holds a text, as an error names it."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + k for k, line in enumerate(lines) if text in line]
    return f"{__file__}:{number}"


def test_a_value_read_while_tracing_is_refused_by_line():
    def looks(x):
        loss = (x * x).sum()  # made
        y = x + 1
        if loss.item() > 3:  # read
            return y
        return x

    with pytest.raises(TraceError) as error:
        trace(looks, ng.asarray([1.0]))
    read, made = line_of(looks, "# read"), line_of(looks, "# made")
    assert re.search(rf"^{re.escape(read)} .* \(made at {re.escape(made)}\)", str(error.value))


@pytest.mark.parametrize("read", [bool, float, "{:.3f}".format, ng.Array.tolist, np.asarray])
def test_every_way_to_read_a_value_is_refused(read):
    with pytest.raises(TraceError, match=r"^\S*test_trace\.py:\d+ needs the value"):
        trace(lambda x: x * read(x.sum()), ng.asarray([1.0, 2.0]))


def halve(opt):
    opt.lr = opt.lr * 0.5


STATE_READS = {
    "float": lambda model, opt: float(model.bias),
    "numpy": lambda model, opt: model.weight.numpy(),
    "compare": lambda model, opt: opt.lr > 0.1,
    "schedule": lambda model, opt: halve(opt),
    "state_dict": lambda model, opt: model.state_dict(),
}


@pytest.mark.parametrize("name", STATE_READS)
def test_a_state_read_while_tracing_is_refused_by_line(name):
    model = L.Linear(2, 1)
    opt = ng.optim.SGD(model.parameters(), lr=0.5)

    def looks(x):
        STATE_READS[name](model, opt)
        return model(x)

    with pytest.raises(TraceError, match="Parameter or Buffer") as error:
        trace(looks, ng.asarray([[1.0, 2.0]]))
    function = halve if name == "schedule" else STATE_READS[name]
    line = f"{__file__}:{function.__code__.co_firstlineno + (name == 'schedule')}"
    assert str(error.value).startswith(f"{line} needs the value")
    assert opt.lr == 0.5


BUILDS = {
    "module": lambda: L.Linear(2, 3),
    "batch norm": lambda: L.BatchNorm1d(2),
    "parameter": lambda: L.Parameter([1.0, 2.0]),
    "optimizer": lambda: ng.optim.SGD(WEIGHT, lr=0.1),
}
WEIGHT = L.Parameter([1.0, 2.0])


@pytest.mark.parametrize("name", BUILDS)
def test_what_holds_state_is_built_outside(name):
    with pytest.raises(TraceError, match=r"^\S*test_trace\.py:\d+ makes .* before the function"):
        trace(lambda x: (BUILDS[name](), x)[1], ng.asarray([1.0, 2.0]))


def test_gradients_that_add_up_are_read_when_replayed():
    w = ng.asarray([2.0], requires_grad=True)
    w.grad = ng.asarray([10.0])
    add = trace(lambda x: (w * x).sum().backward(), ng.asarray([3.0]))
    assert w.grad.item() == 10
    add(ng.asarray([1.0]))
    add(ng.asarray([1.0]))
    assert w.grad.item() == 12
    w.grad = None
    with pytest.raises(GraphError, match="zero_grad"):
        add(ng.asarray([1.0]))


def test_arguments_are_checked():
    double = trace(lambda x: {"twice": x + x, "both": (x, None)}, ng.asarray([1.0, 2.0]))
    result = double(ng.asarray([3.0, 4.0]))
    np.testing.assert_array_equal(result["twice"].numpy(), [6, 8])
    assert result["both"][1] is None
    with pytest.raises(ShapeError, match=r"float32\[2\].*float32\[3\]"):
        double(ng.asarray([1.0, 2.0, 3.0]))
    with pytest.raises(TypeError, match=r"ng\.asarray"):
        double(1.0)
    with pytest.raises(TraceError, match="returns arrays"):
        trace(lambda x: 1.0, ng.asarray([1.0]))


def test_equations_can_be_read():
    w = ng.asarray([2.0, 3.0], requires_grad=True)
    text = str(trace(lambda x: ng.relu(x * w) + 0.5, ng.asarray([1.0])))
    assert text.splitlines()[1:] == [
        "  v1: float32[2] = multiply(v0, const float32[2])",
        "  v2: float32[2] = relu(v1)",
        "  v3: float32[2] = add(v2, 0.5)",
        "  return v3",
    ]
