"""jvp, jacobian, hessian, checkpoint, custom_vjp: derivatives of functions, and their memory."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbagrad as ng
from numbagrad.array import Array
from numbagrad.dispatch import interpreter, state
from numbagrad.errors import DTypeError, GraphError, ShapeError
from numbagrad.layers import BatchNorm1d, Buffer, Dropout, Linear, Parameter, ReLU, Sequential


def normal(*shape, seed=0, dtype="float64", requires_grad=False):
    values = np.random.default_rng(seed).normal(size=shape)
    return ng.asarray(values, dtype=dtype, requires_grad=requires_grad)


def close(x, expected, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(np.asarray(x), np.asarray(expected), rtol=rtol, atol=atol)


# ---------------------------------------------------------------------- jvp


def test_jvp_of_a_linear_function_is_the_function():
    a, x, t = normal(3, 4), normal(4, seed=1), normal(4, seed=2)
    out, tangent = ng.jvp(lambda x: a @ x, (x,), (t,))
    close(out, a.numpy() @ x.numpy())
    close(tangent, a.numpy() @ t.numpy(), 1e-12)
    assert not out.requires_grad
    assert not tangent.requires_grad


UNARY = [ng.tanh, ng.exp, ng.sigmoid, lambda x: x * x, lambda x: ng.softmax(x, axis=-1)]
BINARY = [ng.add, ng.multiply, lambda x, y: x / (y * y + 1.0), lambda x, y: x - y.sum()]
SHAPES = [(), (3,), (2, 3), (2, 1), (0, 3)]


@st.composite
def functions(draw):
    """Draw shapes of two inputs and a function of them."""
    x, y = draw(st.sampled_from(SHAPES[:4])), draw(st.sampled_from(SHAPES[:4]))
    pick = lambda options: draw(st.sampled_from(options))  # noqa: E731
    inner, left, right, outer = pick(BINARY), pick(UNARY[:4]), pick(UNARY[:4]), pick(UNARY[:4])
    return (x, y), lambda a, b: outer(inner(ng.tanh(left(a)), ng.tanh(right(b))))


@given(functions())
def test_jvp_is_the_transpose_of_vjp(drawn):
    """<u, J t> = <J^T u, t> for any u and t."""
    shapes, f = drawn
    primals = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    tangents = [normal(*shape, seed=k + 2) for k, shape in enumerate(shapes)]
    out, tangent = ng.jvp(f, primals, tangents)
    value, pullback = ng.vjp(f, *primals)
    np.testing.assert_array_equal(out.numpy(), value.numpy())
    assert tangent.spec == out.spec
    u = normal(*out.shape, seed=9)
    left = float((u * tangent).sum())
    right = sum(float((g * t).sum()) for g, t in zip(pullback(u), tangents, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)


@given(functions())
def test_jvp_against_finite_differences(drawn):
    shapes, f = drawn
    primals = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    tangents = [normal(*shape, seed=k + 2) for k, shape in enumerate(shapes)]
    _, tangent = ng.jvp(f, primals, tangents)
    step = 1e-6
    moved = [
        f(*(x + sign * step * t for x, t in zip(primals, tangents, strict=True))).numpy()
        for sign in (1, -1)
    ]
    close(tangent, (moved[0] - moved[1]) / (2 * step), 1e-5, 1e-6)


def test_jvp_of_what_does_not_depend_on_the_primals():
    x = ng.asarray([1.0, 2.0])
    _, tangent = ng.jvp(lambda x: ng.asarray([1.0, 2.0, 3.0]), (x,), (x,))
    close(tangent, [0, 0, 0])
    _, tangent = ng.jvp(lambda x, y: y * 2.0, (x, x), (x, x))
    close(tangent, [2, 4])


def test_jvp_of_the_identity():
    x, t = ng.asarray([1.0, 2.0]), ng.asarray([3.0, 4.0])
    out, tangent = ng.jvp(lambda x: x, (x,), (t,))
    close(out, [1, 2])
    close(tangent, [3, 4])


def test_derivatives_of_derivatives():
    cube, one = lambda x: x * x * x, ng.asarray(1.0)
    slope = lambda x: ng.jvp(cube, (x,), (one,))[1]  # noqa: E731
    x = ng.asarray(2.0)
    close(slope(x), 12)
    close(ng.grad(slope)(x), 12)
    close(ng.jvp(slope, (x,), (one,))[1], 12)
    close(ng.jvp(ng.grad(cube), (x,), (one,))[1], 12)
    close(ng.grad(ng.grad(slope))(x), 6)


def test_jvp_stays_linked_to_parameters_and_tangents():
    w, t = Parameter(3.0), ng.asarray(2.0, requires_grad=True)
    _, tangent = ng.jvp(lambda x: w * x * x, (ng.asarray(5.0),), (t,))  # 2 w x t
    tangent.backward()
    assert (w.grad.item(), t.grad.item()) == (20, 30)


def test_perturbations_are_told_apart():
    one = ng.asarray(1.0)
    inner = lambda x: x * ng.jvp(lambda y: x + y, (one,), (one,))[1]  # noqa: E731
    close(ng.jvp(inner, (one,), (one,))[1], 1)


def test_jvp_compiles():
    f = ng.compile(lambda x, t: ng.jvp(lambda x: ng.tanh(x @ x), (x,), (t,)))
    x, t = normal(3, 3, dtype="float32"), normal(3, 3, seed=1, dtype="float32")
    out, tangent = ng.jvp(lambda x: ng.tanh(x @ x), (x,), (t,))
    close(f(x, t)[0], out, 1e-5)
    close(f(x, t)[1], tangent, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("primals", "tangents", "error", "message"),
    [
        (([1.0],), ([1.0, 2.0],), ShapeError, r"tangents\[0\] has shape \(2,\).*shape \(1,\)"),
        (([1.0],), ([1.0], [1.0]), ShapeError, "1 primals need as many tangents, got 2"),
        (([1],), ([1],), DTypeError, "only floats can be differentiated"),
    ],
)
def test_wrong_tangents(primals, tangents, error, message):
    primals, tangents = (tuple(map(ng.asarray, xs)) for xs in (primals, tangents))
    with pytest.raises(error, match=message):
        ng.jvp(lambda x: x, primals, tangents)


def test_primals_that_are_no_tuple():
    with pytest.raises(TypeError, match=r"jvp: primals must be a tuple .* passed as \(x,\)"):
        ng.jvp(lambda x: x, ng.asarray(1.0), ng.asarray(1.0))


def test_only_what_leads_to_the_inputs_is_computed():
    ran = []
    probe = ng.custom_vjp(lambda w: w * 2.0, lambda grad_out: ran.append(1) or grad_out * 2.0)
    w, x = Parameter([1.0]), ng.asarray([2.0])
    with ng.no_grad():
        close(ng.grad(lambda x: (probe(w) * x).sum())(x), [2])
    assert not ran


# --------------------------------------------------------- jacobian, hessian


@pytest.mark.parametrize("out_size", [2, 5])
def test_jacobian_by_rows_and_by_columns(out_size):
    a, x = normal(out_size, 3), normal(3, 2, seed=1)
    result = ng.jacobian(lambda x: a @ x)(x)
    assert result.shape == (out_size, 2, 3, 2)
    close(result, np.einsum("ik,jl->ijkl", a.numpy(), np.eye(2)), 1e-12)


def test_jacobian_argnums():
    f = lambda x, scale, y: ng.stack([x * scale, x * y.sum()])  # noqa: E731
    x, y = ng.asarray([1.0, 2.0]), ng.asarray([3.0, 4.0, 5.0])
    by_x, by_y = ng.jacobian(f, argnums=(0, -1))(x, 10.0, y)
    close(by_x, [np.eye(2) * 10, np.eye(2) * 12])
    close(by_y, [np.zeros((2, 3)), np.outer([1, 2], np.ones(3))])


@given(st.sampled_from(SHAPES), st.sampled_from(UNARY[:4]))
def test_jacobian_of_elementwise_functions_is_diagonal(shape, f):
    x = normal(*shape)
    matrix = ng.jacobian(f)(x).numpy()
    assert matrix.shape == shape + shape
    slopes = ng.grad(lambda x: f(x).sum())(x).numpy()
    close(matrix.reshape(x.size, x.size), np.diag(slopes.reshape(-1)))


def test_hessian_of_a_quadratic_form():
    a, x = normal(4, 4), normal(4, seed=1)
    close(ng.hessian(lambda x: x @ (a @ x))(x), a.numpy() + a.numpy().T, 1e-12)


def test_hessian_of_two_arguments():
    x, y = ng.asarray([1.0, 2.0]), ng.asarray([[3.0]])
    (xx, xy), (yx, yy) = ng.hessian(lambda x, y: (x * x * y).sum(), argnums=(0, 1))(x, y)
    assert [part.shape for part in (xx, xy, yx, yy)] == [(2, 2), (2, 1, 1), (1, 1, 2), (1, 1, 1, 1)]
    close(xx, np.eye(2) * 6)
    close(xy.reshape(2), [2, 4])
    close(yx.reshape(2), [2, 4])
    close(yy, [[[[0]]]])


def test_gradient_of_a_hessian():
    close(ng.grad(lambda x: ng.hessian(lambda y: y**4)(x))(ng.asarray(2.0)), 48)


def test_jacobian_compiles():
    f = lambda x: ng.tanh(x * x)  # noqa: E731
    x = ng.asarray([0.5, 1.0])
    close(ng.compile(lambda x: ng.jacobian(f)(x))(x), ng.jacobian(f)(x), 1e-5)


def test_wrong_jacobians():
    x = ng.asarray([1.0, 2.0])
    with pytest.raises(TypeError, match="jacobian: the function must return an Array, got tuple"):
        ng.jacobian(lambda x: (x, x))(x)
    with pytest.raises(DTypeError, match=r"jacobian: the function must return floats, got .*int64"):
        ng.jacobian(ng.argmax)(x)
    with pytest.raises(TypeError, match="jacobian: argnums names argument 1, but 1 were given"):
        ng.jacobian(lambda x: x, argnums=1)(x)
    with pytest.raises(ShapeError, match=r"must return a scalar, got shape \(2,\)"):
        ng.hessian(lambda x: x)(x)


# --------------------------------------------------------------- checkpoint


def network():
    ng.random.seed(5)
    return Sequential(
        Linear(4, 8), BatchNorm1d(8), ReLU(), Dropout(0.5), Linear(8, 8), Dropout(0.3), Linear(8, 4)
    )


def trained(wrap, steps=3):
    """Train for some steps and return all that must not depend on checkpoints."""
    model = network()
    optimizer = ng.optim.SGD(model.parameters(), 0.1)
    f, losses = wrap(model), []
    x = normal(16, 4, dtype="float32", requires_grad=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (f(f(x) * 0.5) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*model.state_dict().values(), x.grad.numpy(), np.array(losses)]


def require_same_bits(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_checkpoint_changes_no_bit():
    """Dropout draws the same numbers, and statistics are updated once."""
    require_same_bits(trained(ng.checkpoint), trained(lambda model: model))


def test_checkpoint_inside_a_checkpoint():
    def wrap(model):
        head, tail = Sequential(*list(model)[:4]), Sequential(*list(model)[4:])
        return ng.checkpoint(lambda x: ng.checkpoint(tail)(ng.checkpoint(head)(x)))

    require_same_bits(trained(wrap), trained(lambda model: model))


def test_checkpoint_in_a_compiled_step():
    results = []
    for wrap in (lambda model: model, ng.checkpoint):
        model = network()
        f = wrap(model)

        @ng.compile
        def step(x, model=model, f=f):
            model.zero_grad()
            loss = (f(x) ** 2).mean()
            loss.backward()
            return loss, [p.grad for p in model.parameters()]

        losses = [step(normal(16, 4, dtype="float32")) for _ in range(2)]
        grads = [g.numpy() for _, grads in losses for g in grads]
        results.append([*grads, *model.state_dict().values()])
    require_same_bits(*results)


def test_checkpoint_with_second_derivatives():
    def f(wrap):
        inner = wrap(lambda x, y: ng.tanh(x * y) * x)
        return lambda x: inner(inner(x, x + 1.0), x).sum()

    x, plain = normal(3), f(lambda g: g)
    for one in (f(ng.checkpoint), ng.checkpoint(plain), ng.checkpoint(f(ng.checkpoint))):
        require_same_bits([ng.hessian(one)(x).numpy()], [ng.hessian(plain)(x).numpy()])
        close(ng.jvp(one, (x,), (x,))[1], ng.jvp(plain, (x,), (x,))[1])
    leaf = normal(3, requires_grad=True)
    f(ng.checkpoint)(leaf).backward(create_graph=True)
    slope, leaf.grad = leaf.grad, None
    (slope * x).sum().backward()
    close(leaf.grad, x.numpy() @ ng.hessian(plain)(x).numpy())


def test_derivatives_inside_a_checkpoint():
    f = lambda x: (ng.grad(lambda y: (y * y * y).sum())(x) * x).sum()  # 3 x^3  # noqa: E731
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    ng.checkpoint(f)(x).backward()
    close(x.grad, [9, 36])


def test_checkpoint_more_than_once():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = ng.checkpoint(lambda x: (x * x).sum())(x)
    y.backward(retain_graph=True)
    y.backward()
    close(x.grad, [4, 8])
    with pytest.raises(GraphError, match="used up by an earlier backward"):
        y.backward()


def test_checkpoint_of_several_results_and_unused_ones():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    left, _, n = ng.checkpoint(lambda x, *, k: (ng.exp(x) * k, ng.tanh(x), k))(x, k=3.0)
    assert n == 3.0
    left.sum().backward()
    close(x.grad, 3 * np.exp([1, 2]))


def test_arguments_that_are_assigned_to_afterwards():
    x = ng.asarray([3.0], requires_grad=True)
    h = x * 1.0
    y = ng.checkpoint(lambda h: h * h)(h)
    h[0] = 100.0
    y.sum().backward()
    close(x.grad, [6])


def test_checkpoint_without_recording():
    x = ng.asarray(2.0, requires_grad=True)
    with ng.no_grad():
        assert not ng.checkpoint(lambda x: x * x)(x).requires_grad


def buffers_alive(f):
    """Return how many bytes that ops made outlive a call, and its result."""
    made, run = {}, state.interpreters[-1]

    def noting(op, inputs, params, targets):
        outputs = run(op, inputs, params, targets)
        for out in outputs:
            made[id(out._data)] = weakref.ref(out._data), out.nbytes
        return outputs

    with interpreter(noting):
        result = f()
    alive = sum(size for reference, size in made.values() if reference() is not None)
    return alive, result


def test_the_tape_of_a_checkpoint_holds_less():
    def deep(x):
        for _ in range(20):
            x = ng.tanh(x * 1.01)
        return x

    x = normal(100, requires_grad=True)
    plain, _ = buffers_alive(lambda: deep(x).sum())
    held, out = buffers_alive(lambda: ng.checkpoint(deep)(x).sum())
    assert plain >= 20 * x.nbytes
    assert held <= 2 * x.nbytes
    after, _ = buffers_alive(out.backward)
    assert after <= 2 * x.nbytes  # the gradient


def test_states_changed_between_forward_and_backward():
    weight = Parameter([1.0, 2.0])
    loss = ng.checkpoint(lambda: (weight + 1.0).exp().sum())()
    ng.assign(weight, [3.0, 4.0])
    with pytest.raises(GraphError, match=r"checkpoint.*shape \(2,\).* was changed after"):
        loss.backward()


def test_a_state_that_the_function_itself_changes():
    count, x = Buffer([1.0]), ng.asarray([2.0], requires_grad=True)

    def f(x):
        ng.assign(count, count + 1.0)
        return ng.exp(x * count)

    y = ng.checkpoint(f)(x)
    version = count.version
    ng.assign(count, [7.0])
    y.sum().backward()
    close(x.grad, 2 * np.exp([4.0]))
    assert count.item() == 7.0
    assert count.version == version + 1


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([ng.tanh, ng.exp], "the second call runs exp where the first ran tanh"),
        ([ng.tanh, lambda x: x * 1.0], "runs multiply where the first ran tanh"),
        ([lambda x: ng.tanh(ng.tanh(x)), ng.tanh], "ends before the first one did"),
        ([ng.tanh, lambda x: ng.tanh(ng.tanh(x))], "runs tanh where the first had ended"),
    ],
)
def test_a_function_that_does_something_else(paths, message):
    rest = iter(paths)
    x = ng.asarray([1.0], requires_grad=True)
    y = ng.checkpoint(lambda x: next(rest)(x))(x)
    with pytest.raises(GraphError, match=message):
        y.sum().backward()


def test_backward_inside_a_checkpoint():
    x = ng.asarray([1.0], requires_grad=True)

    def f(x):
        y = (x * x).sum()
        y.backward()
        return y

    with pytest.raises(GraphError, match=r"backward\(\) was called inside the function"):
        ng.checkpoint(f)(x)


# --------------------------------------------------------------- custom_vjp


def test_custom_vjp():
    reversal = ng.custom_vjp(lambda x, *, scale=1.0: x, lambda grad_out, scale: grad_out * -scale)
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = reversal(x, scale=3.0)
    assert y is not x
    (y * y).sum().backward()
    close(x.grad, [-6, -12])
    assert not reversal(x.detach()).requires_grad
    with ng.no_grad():
        assert not reversal(x).requires_grad


def test_custom_vjp_names_what_it_needs():
    asked = []

    def rule(grad_out, y, out, kept, needs, specs):
        asked.append((y.tolist(), out.tolist(), kept.tolist(), needs, specs[1].shape))
        return None, grad_out

    f = ng.custom_vjp(lambda x, y: (x * y, x + y), rule, outputs=("out", "kept"))
    x, y = ng.asarray([2.0]), ng.asarray([3.0], requires_grad=True)
    f(x, y).sum().backward()
    assert asked == [([3.0], [6.0], [5.0], (False, True), (1,))]


def cube():
    return ng.custom_vjp(lambda x: x**3, lambda grad_out, x: grad_out * 3.0 * x * x)


def test_custom_vjp_is_differentiated_again():
    x = ng.asarray(2.0)
    close(ng.grad(ng.grad(cube()))(x), 12)
    close(ng.grad(ng.grad(ng.grad(cube())))(x), 6)
    close(ng.jvp(cube(), (x,), (x,))[1], 24)
    close(ng.hessian(ng.checkpoint(cube()))(x), 12)


def test_custom_vjp_compiles():
    f = ng.compile(ng.grad(lambda x: cube()(x).sum()))
    close(f(ng.asarray([1.0, 2.0])), [3, 12])


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (lambda grad_out: grad_out, GraphError, "product: .* returned 1 gradients for 2 inputs"),
        (lambda grad_out: (grad_out.sum(), None), ShapeError, r"product: .*\(\).*\(2,\)"),
        (lambda grad_out: (None, grad_out.astype("float64")), ShapeError, "product: .*float64"),
        (lambda grad_out: (1.0, None), TypeError, "product: its vjp gave a float, not an Array"),
    ],
)
def test_wrong_rules(rule, error, message):
    def product(x, y):
        return x * y

    x, y = (ng.asarray([1.0, 2.0], requires_grad=True) for _ in range(2))
    out = ng.custom_vjp(product, rule)(x, y).sum()
    with pytest.raises(error, match=message):
        out.backward()


def test_wrong_custom_vjps():
    with pytest.raises(TypeError, match=r"vjp asks for 'z'; .*Known: needs, out, specs, x"):
        ng.custom_vjp(lambda x: x, lambda grad_out, z: grad_out)
    with pytest.raises(TypeError, match="must take at least one array"):
        ng.custom_vjp(lambda *, p: p, lambda grad_out: grad_out)
    x = ng.asarray([1.0])
    with pytest.raises(TypeError, match=r"must return 1 Array \(out\), got float"):
        ng.custom_vjp(lambda x: 1.0, lambda grad_out: grad_out)(x)
    with pytest.raises(TypeError, match="x is a float; ops take Arrays"):
        ng.custom_vjp(lambda x: x, lambda grad_out: grad_out)(1.0)


# ------------------------------------------------------------------- memory


def train_step(wrap):
    model = network()
    optimizer = ng.optim.Adam(model.parameters(), 0.01)
    f = wrap(model)

    def step():
        optimizer.zero_grad()
        (f(normal(16, 4, dtype="float32")) ** 2).mean().backward()
        optimizer.step()

    return step


def steps():
    x = normal(3)
    f = lambda x: (ng.tanh(x * x) * x).sum()  # noqa: E731
    own = ng.custom_vjp(ng.tanh, lambda grad_out, out: grad_out * (1.0 - out * out))
    broken = ng.checkpoint(f)

    def dropped():
        broken(x.detach() * normal(3, requires_grad=True))  # a tape that no backward() uses up

    return {
        "train": train_step(lambda model: model),
        "train, checkpoint": train_step(ng.checkpoint),
        "grad of grad": lambda: ng.grad(lambda x: (ng.grad(f)(x) * x).sum())(x),
        "jvp": lambda: ng.jvp(f, (x,), (x,)),
        "jacobian": lambda: ng.jacobian(lambda x: x * x)(x),
        "hessian": lambda: ng.hessian(f)(x),
        "hessian, checkpoint": lambda: ng.hessian(ng.checkpoint(f))(x),
        "custom_vjp": lambda: ng.hessian(lambda x: own(x).sum())(x),
        "dropped": dropped,
    }


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", steps())
def test_nothing_waits_for_the_garbage_collector(name):
    step = steps()[name]
    gc.collect()
    for _ in range(2):  # compiles, fills caches
        step()
    arrays = lambda: sum(issubclass(type(one), Array) for one in gc.get_objects())  # noqa: E731
    gc.collect()
    before = arrays()
    for _ in range(5):
        step()
    assert arrays() == before
    assert gc.collect() == 0


@pytest.mark.usefixtures("_no_collector")
def test_backward_frees_values_as_it_goes():
    """When an op's gradient is computed, all that later ops saved is gone."""
    later, alive = [], []
    probe = ng.custom_vjp(
        lambda x: x * 1.0,
        lambda grad_out: alive.extend(ref() is not None for ref in later) or grad_out,
    )
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = probe(x)
    for _ in range(3):
        y = ng.exp(y * 0.1)
        later.append(weakref.ref(y._data))
    loss = y.sum()
    del y
    assert all(ref() is not None for ref in later)
    loss.backward()
    assert alive == [False] * 3
