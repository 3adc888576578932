"""Sums and softmax on the simulator: rows shared by teams and by blocks, pieces of the sum."""

import numpy as np
import pytest

from numbagrad import cuda_support as cs
from numbagrad import kernels_cuda as kernels
from numbagrad.kernels_cuda import CHAIN, LANES, LONG_ROW

memory = cs.memory()
rng = np.random.default_rng(7)
ROWS = [0, 1, 2, 3, LANES, LANES + 1, LONG_ROW, LONG_ROW + 1, 3 * LONG_ROW - 1]
# Sizes of (outer, reduce, inner)
SHAPES = [*((3, reduce, 1) for reduce in ROWS), (0, 3, 1), (2, 9, 5), (1, CHAIN + 1, 9)]
FLOATS = [np.float32, np.float64]


def tolerance(dtype):
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_sums(shape, dtype, pieces):
    x = rng.normal(size=shape).astype(dtype)
    expected = 0.5 * x.sum(axis=1)
    parts = memory.empty(pieces * expected.size if pieces > 1 else 0, dtype)
    out = memory.empty(expected.size, dtype)
    flat = memory.from_host(x.ravel())
    kernels.sum_forward(flat, shape[1], shape[2], dtype(0.5), out, parts, 0)
    np.testing.assert_allclose(memory.to_host(out), expected.ravel(), **tolerance(dtype))


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize("pieces", [1, 4])
def test_sums_of_a_batch_norm(rows, channels, pieces):
    x, grad = rng.normal(size=(2, rows, channels))
    mean, var = x.mean(axis=0), x.var(axis=0)
    expected = np.stack([grad.sum(0), (grad * (x - mean)).sum(0) / np.sqrt(var + 0.1)])
    sums = memory.empty(expected.shape, np.float64)
    parts = memory.empty(pieces * expected.size if pieces > 1 else 0, np.float64)
    inputs = [memory.from_host(a) for a in (x, grad, mean, var)]
    kernels.batch_norm_backward_sums(*inputs, np.float64(0.1), sums, parts, 0)
    np.testing.assert_allclose(memory.to_host(sums), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [1, 4, 7])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (50, 3), (28, 5), (9, 2)])
def test_statistics_of_blocks_are_those_of_all_rows(rows, channels, block):
    x = 100 + rng.normal(size=(rows, channels))
    parts = [x[first : first + block] for first in range(0, rows, block)]
    means = np.stack([part.mean(0) for part in parts])
    squares = np.stack([((part - part.mean(0)) ** 2).sum(0) for part in parts])
    mean, var = memory.empty((channels,), np.float32), memory.empty((channels,), np.float32)
    kernels.batch_norm_statistics(
        *(memory.from_host(x.astype(np.float32)) for x in (means, squares)),
        block,
        rows,
        mean,
        var,
        0,
    )
    np.testing.assert_allclose(memory.to_host(mean), x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(memory.to_host(var), x.var(0), rtol=1e-4, atol=1e-7)


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def run(launcher, *args, like):
    out = memory.empty(like.size, like.dtype)
    launcher(*(memory.from_host(a.ravel()) for a in args), *like.shape[1:], out, 0)
    return memory.to_host(out).reshape(like.shape)


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax(shape, dtype):
    x, grad = rng.normal(size=(2, *shape)).astype(dtype)
    y = softmax(x) if x.size else x
    log_y = np.log(y)
    for launcher, args, expected in (
        (kernels.softmax_forward, (x,), y),
        (kernels.log_softmax_forward, (x,), log_y),
        (kernels.softmax_backward, (y, grad), y * (grad - (grad * y).sum(1, keepdims=True))),
        (kernels.log_softmax_backward, (log_y, grad), grad - y * grad.sum(1, keepdims=True)),
    ):
        result = run(launcher, *args, like=x)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, **tolerance(dtype))


@pytest.mark.parametrize("count", [1, LANES + 1, LONG_ROW + 1])
def test_softmax_of_what_is_no_number(count):
    x = np.zeros((4, count, 1), np.float32)
    x[0, -1], x[1, 0], x[2] = np.nan, np.inf, -np.inf
    y = run(kernels.softmax_forward, x, like=x)
    assert np.isnan(y[:3]).all()
    np.testing.assert_allclose(y[3], 1 / count, rtol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, LANES + 1, LONG_ROW + 1])
def test_cross_entropy(classes):
    logits = rng.normal(size=(5, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 5)
    gpu = [memory.from_host(a) for a in (logits, labels)]
    loss, probs = memory.empty(5, np.float32), memory.empty(logits.shape, np.float32)
    error = memory.empty(1, np.int64)
    kernels.softmax_cross_entropy_forward(*gpu, 0, loss, probs, error, 0)
    expected = softmax(logits)
    np.testing.assert_allclose(memory.to_host(probs), expected, rtol=1e-5)
    picked = expected[np.arange(5), labels]
    np.testing.assert_allclose(memory.to_host(loss), -np.log(picked), rtol=1e-5, atol=1e-6)
