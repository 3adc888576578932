"""What the compiler makes of equations: less work, the same values."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import size_of
from numbagrad.compiler.simplify import simplify
from numbagrad.compiler.trace import trace

L = ng.layers


def names(function, *args):
    """Return the names of the ops that are left of a function."""
    equations, _ = simplify(trace(function, *args))
    return [
        f"{equation.op.name}_relu" if equation.params.get("relu") else equation.op.name
        for equation in equations
    ]


def test_what_changes_no_value_is_not_computed():
    one, zero = ng.asarray(1.0), ng.asarray(0.0)

    @ng.compile
    def f(x, c):
        y = ng.exp(x)
        z = -y * 1.0
        z = -z / 1.0 - 0.0
        z = ng.maximum(1.0 * z, z) ** 1.0
        return ng.where(c, z, z) * one - zero

    x = ng.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    c = ng.asarray(np.eye(3, 4, dtype=bool))
    np.testing.assert_array_equal(f(x, c).numpy(), ng.exp(x).numpy())
    assert [node.name for node in f._compiled().plan.nodes] == ["exp"]
    one[...] = 2.0  # another value at the next call
    np.testing.assert_array_equal(f(x, c).numpy(), (ng.exp(x) * 2.0).numpy())


def test_what_may_change_a_value_is_computed():
    @ng.compile
    def f(x):
        y = x * 2.0
        return y + 0.0, y * ng.asarray([[1.0], [1.0]]), x * 1.0, y - (-0.0)

    x = ng.asarray([[-0.0, 3.0]])
    total, broadcast, product, difference = f(x)
    assert not np.signbit(total.numpy()).any()
    assert not np.signbit(difference.numpy()).any()
    assert broadcast.shape == (2, 2)
    product[0, 0] = 5.0
    assert x.tolist() == [[-0.0, 3.0]]


def rough_images(rng, shape):
    """Return images of few values, so that many are equal, most not positive, some undefined."""
    values = np.array([-np.inf, -2, -1, -0.0, 0, 0.5, 1, np.nan], np.float32)
    return rng.choice(values, shape, p=[0.1, 0.25, 0.2, 0.1, 0.1, 0.1, 0.13, 0.02])


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((4, 6), {"kernel_size": 2}),
        ((5, 7), {"kernel_size": 2}),  # what no window sees
        ((5, 5), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((4, 5), {"kernel_size": 2, "stride": 1}),
        ((5, 4), {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
    ],
)
def test_relu_behind_max_pooling(size, window):
    def pooled(x, bias):
        return ng.max_pool2d(ng.relu(x + bias), **window)

    def everything(x, bias, factor):
        grads = ng.grad(lambda x, bias: (pooled(x, bias) * factor).sum(), (0, 1))(x, bias)
        return pooled(x, bias), *grads

    rng = np.random.default_rng(0)
    x = rough_images(rng, (6, *size, 3))
    out = ng.max_pool2d(ng.asarray(x), **window)
    args = [
        ng.asarray(a.astype(np.float32))
        for a in (x, rng.integers(-1, 2, 3), rng.integers(-4, 5, out.shape))
    ]
    run = ng.compile(everything, chunk=2)
    for mine, its in zip(run(*args), everything(*args), strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())
    does = run.report().lines[0].does
    assert does.index("max_pool2d") < does.index("relu")
    assert "relu_backward_sum" in does  # of the pooled images, for the bias


def test_relu_that_others_read_is_in_front_of_max_pooling():
    def run(x):
        h = ng.relu(x)
        return ng.max_pool2d(h, 2), h.mean(), ng.relu(x * 2.0)

    def curve(x):
        slope = ng.grad(lambda x: (ng.max_pool2d(ng.relu(x) * x, 2)).sum())
        return (ng.grad(lambda x: (slope(x) ** 2).sum())(x),)

    x = ng.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32))
    for written in (run, curve):
        compiled = ng.compile(written)
        for mine, its in zip(compiled(x), written(x), strict=True):
            np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-6, atol=1e-6)
        does = compiled.report().lines[0].does
        assert does.index("relu") < does.index("max_pool2d")


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (lambda x, w: x @ w, ((6, 5), (5, 4))),
        (lambda x, w: x @ w, ((2, 3, 5), (2, 5, 4))),
        (lambda x, w: ng.conv2d(x, w, padding=1), ((2, 5, 5, 3), (3, 3, 3, 17))),
        (lambda x, w: ng.conv2d(x, w), ((2, 5, 5, 1), (3, 3, 1, 3))),  # in planes
        (lambda x, w: ng.conv2d(x, w, groups=16), ((2, 5, 5, 16), (3, 3, 1, 16))),  # depthwise
        (lambda x, w: ng.conv2d(x, w, padding=1), ((2, 12, 12, 32), (3, 3, 32, 32))),  # Winograd's
    ],
)
def test_a_bias_that_is_added_by_hand(product, shapes):
    def outputs(x, w, b):
        return ng.tanh(product(x, w) + b), ng.tanh(b + product(x * 2.0, w))

    def loss(*args):
        y, z = outputs(*args)
        return (y * z).mean()

    def everything(*args):
        return *outputs(*args), *ng.grad(loss, (0, 1, 2))(*args)

    rng = np.random.default_rng(0)
    args = [
        ng.asarray(rng.normal(size=shape).astype(np.float32) / shape[0] ** 0.5)
        for shape in (*shapes, shapes[1][-1:])
    ]
    run = ng.compile(everything)
    for mine, its in zip(run(*args), everything(*args), strict=True):
        np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-4, atol=1e-5)
    assert "add" not in names(outputs, *args)


def test_a_bias_stays_where_others_read_the_product_or_states_change():
    weight, other = (L.Parameter(np.ones((2, 2), np.float32) * k) for k in (1, 2))
    bias = ng.asarray([1.0, 2.0])

    @ng.compile
    def run(x):
        y, z = x @ weight, x @ other
        with ng.no_grad():
            ng.assign(other, other + 5.0)
        return y + bias, y * y, z + bias, (x @ weight) + x, (x @ x) + bias[:1]

    x = ng.asarray([[1.0, 2.0], [3.0, 4.0]])
    before = other.numpy().copy()
    results = [y.numpy() for y in run(x)]
    x, w, b = x.numpy(), weight.numpy(), bias.numpy()
    expected = [x @ w + b, (x @ w) ** 2, x @ before + b, x @ w + x, x @ x + b[:1]]
    for mine, its in zip(results, expected, strict=True):
        np.testing.assert_array_equal(mine, its)


# Each way to a convolution, by shapes of images and weight: with tiles, with groups, depthwise, of
# planes, by Winograd's algorithm; and products of many rows, and of few.
PRODUCTS = {
    "tiles": ((2, 6, 6, 5), (3, 3, 5, 20), {"stride": 2}),
    "groups": ((2, 6, 6, 4), (3, 3, 2, 20), {"groups": 2}),
    "depthwise": ((2, 6, 6, 37), (3, 3, 1, 37), {"groups": 37}),
    "planar": ((2, 8, 8, 2), (3, 3, 2, 5), {"padding": 1}),
    "winograd": ((2, 16, 16, 16), (3, 3, 16, 17), {"padding": 1}),
    "matmul": ((70, 600), (600, 37), None),
    "few rows": ((3, 50), (50, 37), None),
}


def product(name, is_biased):
    """Return images, a layer whose outputs are of both signs, with NaN among them."""
    shape, weight, window = PRODUCTS[name]
    rng = np.random.default_rng(5)
    x = rng.normal(size=shape).astype(np.float32)
    x[0, 0] = np.nan
    weight = (rng.normal(size=weight) / size_of(weight[:-1]) ** 0.5).astype(np.float32)
    bias = rng.normal(size=weight.shape[-1:]).astype(np.float32) if is_biased else None
    given = [L.Parameter(value) for value in (weight, bias) if value is not None]
    if window is None:
        return ng.asarray(x), lambda x: ng.linear(x, *given)
    return ng.asarray(x), lambda x: ng.conv2d(x, *given, **window)


@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_store_their_relu(name, is_biased):
    x, apply = product(name, is_biased)

    def run(x):
        return ng.relu(apply(x))

    with ng.no_grad():
        assert names(run, x)[-1].endswith("_relu")
        result = ng.compile(run)(x).numpy()
        np.testing.assert_array_equal(result, run(x).numpy())  # the same bits
    assert np.isnan(result).any()
    assert (result == 0).any()


def test_relu_stays_where_others_read_the_product():
    weight = L.Parameter(np.ones((2, 2), np.float32) - 2 * np.eye(2, dtype=np.float32))

    def run(x):
        y, z = x @ weight, weight @ x
        return ng.relu(y), y * 2.0, ng.relu(z), z

    x = ng.asarray([[1.0, 2.0], [-3.0, 4.0]])
    assert names(run, x).count("relu") == 2
    for mine, its in zip(ng.compile(run)(x), run(x), strict=True):
        np.testing.assert_array_equal(mine.numpy(), its.numpy())


def normalised(name, is_biased):
    """Return images, and a product that running statistics normalise, as a function."""
    x, apply = product(name, is_biased)
    x = ng.asarray(np.nan_to_num(x.numpy()))
    channels = apply(x).shape[-1]
    norm, rng = (
        (L.BatchNorm2d if x.ndim == 4 else L.BatchNorm1d)(channels),
        np.random.default_rng(6),
    )
    with ng.no_grad():
        for state in (norm.weight, norm.bias, norm.running_mean):
            ng.assign(state, rng.normal(size=channels).astype(np.float32))
        ng.assign(norm.running_var, rng.uniform(0.1, 2.0, channels).astype(np.float32))
    norm.eval()
    return x, norm, lambda x: norm(apply(x))


@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_running_statistics_go_into_the_weights_before(name, is_biased):
    x, norm, run = normalised(name, is_biased)
    with ng.no_grad():
        assert names(run, x)[-1] in (name, "conv2d", "matmul")
        compiled = ng.compile(run)
        for _ in range(2):
            result, expected = compiled(x).numpy(), run(x).numpy()
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
            ng.assign(norm.bias, norm.bias + 1.0)  # is noticed


def test_normalisation_stays_where_statistics_or_weights_change():
    x, norm, run = normalised("tiles", True)

    def trained(x):
        norm.train()
        try:
            return run(x)
        finally:
            norm.eval()

    def corrected(x):
        y = run(x)
        ng.assign(norm.bias, norm.bias * 0.5)
        return y

    def both(x):
        y = ng.conv2d(x, weight)
        return norm(y), y

    weight = L.Parameter(np.ones((1, 1, 5, 20), np.float32))
    with ng.no_grad():
        for function in (trained, corrected, both):
            left = names(function, x)
            assert left[left.index("conv2d") + 1 :], function
            state = norm.state_dict()
            results = []
            for each in (ng.compile(function), function):
                norm.load_state_dict(state)
                results.append(as_tuple(each(x)))
            for mine, its in zip(*results, strict=True):
                np.testing.assert_allclose(mine.numpy(), its.numpy(), rtol=1e-4, atol=1e-5)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)
