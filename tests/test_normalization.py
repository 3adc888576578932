"""Batch normalisation: its exactness, its state, and what errors say."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import Spec, State
from numbagrad.errors import DTypeError, ShapeError


def floats(*shape):
    return ng.asarray(np.ones(shape, np.float32))


def buffer(value):
    value = np.array(value, np.float32)
    return State(value, Spec(value.shape, value.dtype))


def normalised(x, *running, **options):
    one, zero = floats(x.shape[-1]), ng.asarray(np.zeros(x.shape[-1], np.float32))
    running = running or (buffer(zero.numpy()), buffer(one.numpy()))
    return ng.batch_norm(x, one, zero, *running, **{"training": True, **options})


def test_a_mean_far_from_zero_costs_no_digits():
    x = np.random.default_rng(0).normal(size=(50_000, 3)).astype(np.float32) + 4096
    running = buffer(np.zeros(3)), buffer(np.ones(3))
    normalised(ng.asarray(x), *running, momentum=1.0)
    np.testing.assert_allclose(running[0].numpy(), x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(running[1].numpy(), x.astype(np.float64).var(0, ddof=1), rtol=1e-4)


def test_blocks_of_rows_with_unlike_means():
    ramp = np.linspace(-300, 700, 1000)[:, None] + np.zeros(19)
    x = (ramp + np.random.default_rng(0).normal(size=ramp.shape)).astype(np.float32)
    running = buffer(np.zeros(19)), buffer(np.ones(19))
    normalised(ng.asarray(x), *running, momentum=1.0)
    np.testing.assert_allclose(running[0].numpy(), x.astype(np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(running[1].numpy(), x.astype(np.float64).var(0, ddof=1), rtol=1e-5)


def test_running_statistics_stay_in_evaluation():
    running = buffer([3.0]), buffer([4.0])
    out = normalised(ng.asarray([[5.0]]), *running, training=False, eps=0.0)
    assert out.item() == 1.0
    assert (running[0].item(), running[1].item()) == (3.0, 4.0)


def test_the_same_bits_for_any_threads():
    rng = np.random.default_rng(1)
    x = ng.asarray(rng.normal(size=(64, 16, 16, 8)).astype(np.float32))
    grad_out = ng.asarray(rng.normal(size=x.shape).astype(np.float32))
    most, results = ng.get_num_threads(), []
    try:
        for count in (1, most):
            ng.set_num_threads(count)
            out, pullback = ng.vjp(lambda x: normalised(x), x)
            results.append((out.numpy(), pullback(grad_out)[0].numpy()))
    finally:
        ng.set_num_threads(most)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3), (0, 3)])
def test_one_value_per_channel_is_too_few(shape):
    with pytest.raises(ShapeError, match=r"expected more than 1 value per channel"):
        normalised(floats(*shape))


def test_refuses():
    with pytest.raises(ShapeError, match=r"x must be \(..., channels\), got shape \(3,\)"):
        normalised(floats(3))
    with pytest.raises(ShapeError, match=r"running_mean has shape \(2,\).* so it must be \(3,\)"):
        normalised(floats(4, 3), buffer([0, 0]), buffer([1, 1]))
    with pytest.raises(DTypeError, match="float32 and float64"):
        normalised(floats(4, 3).astype("float64"))
    with pytest.raises(TypeError, match=r"batch_norm: x is a numpy\.ndarray"):
        normalised(np.ones((4, 3), np.float32), buffer([0, 0, 0]), buffer([1, 1, 1]))
    with pytest.raises(TypeError, match="only Parameters and Buffers"):
        normalised(floats(4, 1), floats(1), floats(1))
