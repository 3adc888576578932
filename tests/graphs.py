"""Random graphs of ops, and what a compiled function must give on them: eager's values."""

import numpy as np

import numbagrad as ng

ROWS, WIDTH = 6, 5
RUNNING = (
    ng.layers.Buffer(np.zeros(WIDTH, np.float32)),
    ng.layers.Buffer(np.ones(WIDTH, np.float32)),
)


def normalised(x, training):
    scale = ng.asarray(np.linspace(0.5, 1.5, WIDTH, dtype=np.float32))
    return ng.batch_norm(x, scale, scale * 0.1, *RUNNING, training=training, momentum=0.0, eps=0.1)


UNARY = [
    lambda x: -x,
    lambda x: ng.tanh(x),
    lambda x: ng.sigmoid(x),
    lambda x: ng.relu(x),
    lambda x: ng.gelu(x),
    lambda x: ng.exp(x * 0.1),
    lambda x: x * x * 0.1,
    lambda x: ng.softmax(x),
    lambda x: x - x.mean(axis=1, keepdims=True),  # a column
    lambda x: x - x.mean(axis=0),  # needs the whole batch
    lambda x: x * ng.tanh(x).sum(axis=0) * 0.1,
    lambda x: x * x.sum() * 0.01,
    lambda x: normalised(x, True),
    lambda x: normalised(x, False),
    lambda x: ng.reshape(ng.reshape(x, (WIDTH * ROWS,)), (ROWS, WIDTH)),
    lambda x: ng.permute_dims(ng.permute_dims(x, (1, 0)) * 2.0, (1, 0)),
    lambda x: ng.concat([x[:2], x[2:]], axis=0),
]
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x - y * 0.5,
    lambda x, y: x * y * 0.3,
    lambda x, y: ng.maximum(x, y),
    lambda x, y: ng.where(x > y, x, y * 0.5),
    lambda x, y: (x @ ng.permute_dims(y, (1, 0))) @ x * 0.02,
]


def random_steps(rng, count):
    """Return steps, each a function with the numbers of the values that it takes."""
    steps = []
    for k in range(count):
        functions, operands = (UNARY, 1) if rng.integers(2) else (BINARY, 2)
        function = functions[rng.integers(len(functions))]
        steps.append((function, *rng.integers(0, k + 2, operands).tolist()))
    return steps


def run(steps, x, weight, bias):
    values = [x @ weight + bias, x * bias]
    for function, *operands in steps:
        values.append(function(*(values[k] for k in operands)))
    return values[-1], values[len(values) // 2]


def check(steps, chunk, seed, order=2):
    """Compare values, gradients and, of order 2, gradients of gradients with eager ones."""
    rng = np.random.default_rng(seed)
    shapes = (ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH,)
    arrays = [ng.asarray(rng.normal(size=shape).astype(np.float32) * 0.5) for shape in shapes]

    def loss(x, weight, bias):
        last, middle = run(steps, x, weight, bias)
        return (last * last).mean() + middle.sum() * 0.1

    def slope(x, weight, bias):
        return (ng.grad(loss, 1)(x, weight, bias) * weight).sum()

    def everything(x, weight, bias):
        gradients = [ng.grad(f, (0, 1, 2))(x, weight, bias) for f in (loss, slope)[:order]]
        return run(steps, x, weight, bias), *gradients

    compiled = ng.compile(everything, chunk=chunk)
    for result, expected in zip(compiled(*arrays), everything(*arrays), strict=True):
        for mine, its in zip(result, expected, strict=True):
            scale = max(1.0, float(np.abs(its.numpy()).max()))
            np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=2e-4, atol=2e-5 * scale)
