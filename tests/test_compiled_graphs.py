"""Compiled functions against eager ones, with the JIT: random graphs, and every layer."""

import inspect

import graphs
import numpy as np
import pytest

import numbagrad as ng

L = ng.layers


# Seeds whose graphs hold most of the ops in `graphs`; each takes seconds to compile.
# tests/nojit tries many more, where that takes no time.
@pytest.mark.parametrize(("seed", "chunk", "order"), [(4, None, 2), (33, 1, 1), (178, 4, 1)])
def test_random_graph(seed, chunk, order):
    graphs.check(graphs.random_steps(np.random.default_rng(seed), 7), chunk, seed, order)


RNG = np.random.default_rng(0)
IMAGES, ROWS = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 6, 6, 4), (4, 4)))
LAYERS = {
    "Linear": (lambda: L.Linear(4, 4), ROWS),
    "Conv2d": (lambda: L.Conv2d(4, 4, 3, padding=1), IMAGES),
    "BatchNorm2d": (lambda: L.BatchNorm2d(4), IMAGES),
    "BatchNorm1d": (lambda: L.BatchNorm1d(4), ROWS),
    "MaxPool2d": (lambda: L.MaxPool2d(2), IMAGES),
    "AvgPool2d": (lambda: L.AvgPool2d(2), IMAGES),
    "Flatten": (lambda: L.Flatten(), IMAGES),
    "ReLU": (lambda: L.ReLU(), ROWS),
    "LeakyReLU": (lambda: L.LeakyReLU(), ROWS),
    "GELU": (lambda: L.GELU(), ROWS),
    "Sigmoid": (lambda: L.Sigmoid(), ROWS),
    "Tanh": (lambda: L.Tanh(), ROWS),
    "Dropout": (lambda: L.Dropout(0.4), ROWS),
    "Embedding": (lambda: L.Embedding(7, 4), np.array([[1, 2], [3, 6], [0, 0], [1, 1]])),
}


def test_every_layer_is_tried():
    containers = {"Module", "ModuleList", "Sequential"}
    found = inspect.getmembers(L, lambda x: inspect.isclass(x) and issubclass(x, L.Module))
    assert LAYERS.keys() == {name for name, _ in found if name[0] != "_"} - containers


def two_steps(name, mode, wrap):
    """Return outputs, gradients and state after two calls of a layer."""
    make, host = LAYERS[name]
    ng.random.seed(1)
    layer = getattr(make(), mode)()
    inner = L.Parameter(np.ones_like(host) if host.dtype == np.float32 else [1.0])

    @wrap
    def step(x):
        layer.zero_grad()
        inner.grad = None
        # What multiplies the input, or else the output, has a gradient in every layer.
        out = layer(x * inner) if host.dtype == np.float32 else layer(x) * inner
        (out * out * ng.tanh(out)).sum().backward()  # of out^2, batch norm's would be 0
        return out

    outs = {f"out {k}": step(ng.asarray(host)).numpy() for k in range(2)}
    grads = {f"grad {k}": p.grad.numpy() for k, p in enumerate([inner, *layer.parameters()])}
    return outs | grads | layer.state_dict()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, mode):
    results = two_steps(name, mode, ng.compile)
    for what, expected in two_steps(name, mode, lambda step: step).items():
        np.testing.assert_allclose(results[what], expected, rtol=1e-5, atol=1e-5, err_msg=what)
