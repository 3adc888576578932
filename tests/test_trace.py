"""The staging interpreter: a traced step replays as the eager one runs, bit for bit."""

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


def test_values_are_refused_while_tracing():
    x = ng.asarray([1.0, 2.0])
    state = L.Buffer(np.float32(1))
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+"):
        trace(lambda x: x if x.sum() > 1 else -x, x)
    with pytest.raises(TraceError, match="Parameter or Buffer"):
        trace(lambda x: x * state.item(), x)


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
