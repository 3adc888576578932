"""Optimisers against their formulas, written out in NumPy."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import dispatch
from numbagrad.layers import Buffer, Parameter, Sequential
from numbagrad.optim import SGD, Adam, AdamW

STEPS = 5


def problem(dtype="float32"):
    """Return a start and the gradients of a few steps."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(3, 5)).astype(dtype), rng.normal(size=(STEPS, 3, 5)).astype(dtype)


def run(make, start, gradients):
    param = Parameter(start)
    optimizer = make([param])
    for gradient in gradients:
        param.grad = ng.asarray(gradient)
        optimizer.step()
    return param.numpy()


def sgd(p, gradients, lr, momentum=0, nesterov=False, weight_decay=0):
    v = 0
    for g in gradients:
        g = g + weight_decay * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    return p


def adam(p, gradients, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    m = s = 0
    for t, g in enumerate(gradients, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * g**2
        m_hat, s_hat = m / (1 - betas[0] ** t), s / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(s_hat) + eps)
    return p


@pytest.mark.parametrize(
    ("kind", "options", "formula"),
    [
        (SGD, {"lr": 0.1}, sgd),
        (SGD, {"lr": 0.1, "weight_decay": 0.1}, sgd),
        (SGD, {"lr": 0.1, "momentum": 0.9}, sgd),
        (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, sgd),
        (Adam, {"lr": 0.01}, adam),
        (Adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}, adam),
        (AdamW, {"lr": 0.01, "weight_decay": 0.1}, lambda *a, **k: adam(*a, decoupled=True, **k)),
    ],
)
def test_follows_its_formula(kind, options, formula):
    start, gradients = problem()
    got = run(lambda params: kind(params, **options), start, gradients)
    wanted = formula(start.astype(np.float64), gradients.astype(np.float64), **options)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


def test_bias_correction_keeps_its_digits():
    # 1 - 0.999999^t in float32 would be wrong by percents.
    start, gradients = problem()
    options = {"lr": 0.01, "betas": (0.9, 0.999999)}
    got = run(lambda params: Adam(params, **options), start, gradients)
    wanted = adam(start.astype(np.float64), gradients.astype(np.float64), **options)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_lr_changes_between_steps():
    start, gradients = problem()
    param = Parameter(start)
    optimizer = SGD([param], lr=0.1)
    buffer = optimizer._lr
    for lr, gradient in zip((0.1, 0.5), gradients, strict=False):
        optimizer.lr = lr
        assert optimizer.lr == lr
        param.grad = ng.asarray(gradient)
        optimizer.step()
    assert optimizer._lr is buffer
    wanted = start - np.float32(0.1) * gradients[0] - np.float32(0.5) * gradients[1]
    np.testing.assert_allclose(param.numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_parameters_without_gradient_stay():
    moving, still = Parameter([1.0]), Parameter([1.0])
    optimizer = SGD([moving, still], lr=0.5, momentum=0.9)
    moving.grad = ng.asarray([1.0])
    optimizer.step()
    assert (moving.item(), still.item()) == (0.5, 1.0)
    optimizer.zero_grad()
    assert moving.grad is None


def test_step_writes_in_place_and_a_later_backward_says_so():
    param = Parameter([2.0])
    data = param._data
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    SGD([param], lr=0.5).step()
    assert param._data is data
    assert param.item() == 0.0
    with pytest.raises(ng.errors.GraphError, match="before the optimiser's step"):
        loss.backward()


def test_saved_state_goes_on_where_it_stopped():
    start, gradients = problem()
    whole = run(Adam, start, gradients)
    first = Parameter(start)
    optimizer = Adam([first], lr=1e-3)
    for gradient in gradients[:2]:
        first.grad = ng.asarray(gradient)
        optimizer.step()
    second = Parameter(first.numpy())
    resumed = Adam([second], lr=0.5)
    resumed.load_state_dict(optimizer.state_dict())
    for gradient in gradients[2:]:
        second.grad = ng.asarray(gradient)
        resumed.step()
    np.testing.assert_array_equal(second.numpy(), whole)


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = Adam([Parameter([1.0])], lr=0.25)
    state = Adam([Parameter([1.0, 2.0])], lr=0.5).state_dict()
    with pytest.raises(ng.errors.DataError, match=r"does not fit: mean\.0 .*\n.*square\.0"):
        optimizer.load_state_dict(state)
    assert optimizer.lr == 0.25


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: SGD([], lr=0.1), ValueError, "SGD: there are no parameters"),
        (lambda p: SGD([p, p], lr=0.1), ValueError, "given twice"),
        (lambda p: SGD([Buffer([1.0])], lr=0.1), TypeError, r"params\[0\] is a Buffer"),
        (lambda p: SGD([p], lr=-0.1), ValueError, "lr must be at least 0 .*, got -0.1"),
        (lambda p: SGD([p], lr=float("nan")), ValueError, "SGD: lr must be .*, got nan"),
        (lambda p: SGD([p], lr=float("inf")), ValueError, "SGD: lr must be .*, got inf"),
        (lambda p: SGD([p], lr=1e39), ValueError, "finite in float32, got 1e\\+39"),
        (lambda p: Adam([p], lr="0.1"), ValueError, "Adam: lr must be at least 0 .*, got '0.1'"),
        (lambda p: Adam([p], betas=0.9), ValueError, "betas must be two numbers .* got 0.9"),
        (lambda p: Adam([p], betas=("a", 0.9)), ValueError, "betas must be two numbers"),
        (lambda p: Adam([p]).load_state_dict(None), TypeError, "arrays by name.*got NoneType"),
        (lambda p: SGD([p], lr=0.1, momentum=-1), ValueError, "momentum must be at least 0"),
        (lambda p: SGD([p], lr=0.1, nesterov=True), ValueError, "needs momentum"),
        (lambda p: Adam([p], betas=(0.9, 1.0)), ValueError, "Adam: betas"),
        (lambda p: AdamW([p], weight_decay=-1), ValueError, "AdamW: weight_decay"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(Parameter([1.0]))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0], ng.errors.ShapeError, r"assign: a state of shape \(2,\) cannot take .* \(1,\)"),
        (ng.asarray([1, 2]), ng.errors.DTypeError, "assign: a state of dtype float32 .* int64"),
    ],
)
def test_assign_names_itself(value, error, message):
    with pytest.raises(error, match=message):
        ng.assign(Buffer([1.0, 2.0]), value)
    with pytest.raises(TypeError, match=r"assign: only Parameters and Buffers .* got Array"):
        ng.assign(ng.asarray([1.0, 2.0]), value)


def test_assign_refuses_another_device():
    here = ng.asarray([1.0])
    # Nothing is read, so no such device is needed.
    elsewhere = ng.Array(None, here.spec._replace(device="cuda"))
    with pytest.raises(ng.errors.DeviceError, match="assign: arrays on different devices"):
        ng.assign(Buffer([1.0]), elsewhere)


def test_a_gradient_of_another_shape_is_refused():
    param = Parameter([1.0, 2.0])
    param.grad = ng.asarray([1.0])
    with pytest.raises(ng.errors.ShapeError, match=r"sgd_update: a parameter of shape \(2,\)"):
        SGD([param], lr=0.1).step()


def test_takes_a_generator_and_shows_itself():
    model = Sequential(ng.layers.Linear(2, 3))
    assert repr(Adam(model.parameters(), lr=0.1)) == "Adam(9 parameters, lr=0.1)"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("momentum_update", {"weight_decay": 0.0, "momentum": 0.9, "nesterov": False}),
        (
            "adam_update",
            {"beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "decoupled": False},
        ),
    ],
)
def test_tiny_moments_become_zero(name, params):
    # Numbers with fewer digits than float32 has slow processors down several times.
    moment = ng.asarray(np.float32([1e-38, -1e-38, 1e-30, -1e-30]))
    zeros, lr = ng.asarray(np.zeros(4, np.float32)), ng.asarray(np.float32(0.1))
    inputs = (zeros, zeros, moment, lr)
    if name == "adam_update":
        inputs = (zeros, zeros, moment, moment * moment, lr, ng.asarray(np.int64(3)))
    for kept in ng.apply(dispatch.registry[name], *inputs, **params)[1:]:
        assert (kept.numpy()[:2] == 0).all()
    kept = ng.apply(dispatch.registry[name], *inputs, **params)[1].numpy()
    np.testing.assert_allclose(kept[2:], 0.9 * moment.numpy()[2:], rtol=1e-6)


# ------------------------------------------------- clipping, and schedules


def test_clipping_leaves_gradients_of_other_dtypes_theirs():
    params = [Parameter(np.ones(2, dtype)) for dtype in (np.float32, np.float64)]
    params.append(Parameter([1.0]))  # has no gradient
    for param in params[:2]:
        param.grad = param * 3.0
    norm = ng.optim.clip_by_norm(params, 3.0)
    assert norm.item() == pytest.approx(6)
    for param in params[:2]:
        assert param.grad.dtype == param.dtype
        np.testing.assert_allclose(param.grad.numpy(), [1.5, 1.5], rtol=1e-6)
    params[0].grad = params[0] * 0.0
    ng.optim.clip_by_norm(params[:1], 1.0)
    assert params[0].grad.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no parameter has a gradient; call backward"):
        ng.optim.clip_by_norm(params[2:], 1.0)


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (ng.optim.cosine, {0: 1, 0.5: 0.5, 1: 0}),
        (ng.optim.step_decay(at=(0.25, 0.5), factor=0.5), {0: 1, 0.25: 0.5, 0.5: 0.25, 1: 0.25}),
        (ng.optim.warmup(0.5, lambda progress: 1.0), {0: 0, 0.25: 0.5, 0.5: 1, 1: 1}),
        (ng.optim.warmup(0.0), {0: 1, 1: 0}),
        (ng.optim.warmup(1.0), {0: 0, 0.5: 0.5, 1: 0}),
        (ng.optim.one_cycle(0.5, 0.1, 0.01), {0: 0.1, 0.25: 0.55, 0.5: 1, 1: 0.01}),
        (ng.optim.one_cycle(0.0, 0.1, 0.01), {0: 1, 1: 0.01}),
        (ng.optim.one_cycle(1.0, 0.1, 0.01), {0: 0.1, 1: 0.01}),
    ],
)
def test_schedules(schedule, corners):
    for progress, value in corners.items():
        assert schedule(progress) == pytest.approx(value, abs=1e-12)
    assert all(0 <= schedule(progress) <= 1 for progress in np.linspace(0, 1, 101))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ng.optim.step_decay(at=(2,)), "step_decay: at must be from 0 to 1, got 2"),
        (lambda: ng.optim.step_decay(factor=0), "step_decay: factor must be above 0"),
        (lambda: ng.optim.warmup(-1), "warmup: share must be from 0 to 1, got -1"),
        (lambda: ng.optim.warmup(0.1, "cosine"), "warmup: then must be a schedule"),
        (lambda: ng.optim.one_cycle(peak=5), "one_cycle: peak must be from 0 to 1, got 5"),
    ],
)
def test_schedules_say_what_would_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
