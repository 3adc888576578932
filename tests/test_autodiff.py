"""The tape: accumulation, graphs of any shape, gradients of gradients, memory, threads."""

import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbagrad as ng
from numbagrad.dispatch import Op, apply
from numbagrad.errors import DTypeError, GraphError, ShapeError
from numbagrad.layers import Parameter
from numbagrad.testing import check_grads


def leaf(values, dtype=None):
    return ng.asarray(values, dtype=dtype, requires_grad=True)


def close(x, expected, rtol=1e-5):
    np.testing.assert_allclose(x.numpy(), expected, rtol=rtol)


# ----------------------------------------------------------------- backward


def test_gradients_add_up():
    x = leaf([1.0, 2.0])
    (x * x).sum().backward()
    first = x.grad
    (x * 3.0).sum().backward()
    close(x.grad, [5.0, 7.0])
    close(first, [2.0, 4.0])  # a value, not a buffer that is written to


def test_a_node_used_more_than_once():
    x = leaf(3.0)
    y = x * x
    (y * y + y + y).backward()  # x^4 + 2 x^2
    close(x.grad, 4 * 27 + 4 * 3)


def test_diamond():
    x = leaf(2.0)
    left, right = ng.exp(x), x * 3.0
    (left * right).backward()
    close(x.grad, np.exp(2) * (3 * 2 + 3))


def test_operand_on_both_sides():
    x = leaf([1.0, -2.0])
    (x * x - x / x).sum().backward()
    close(x.grad, [2.0, -4.0])


def test_deep_graph():
    x = leaf(1.0)
    y = x
    for _ in range(5000):  # recursion would not survive this
        y = y + x
    y.backward()
    close(x.grad, 5001)


def test_gradient_of_a_middle_value_is_not_kept():
    x = leaf(2.0)
    y = x * x
    (y * 3.0).backward()
    assert y.grad is None
    close(x.grad, 12)


def test_initial_gradient():
    x = leaf([1.0, 2.0])
    (x * x).backward(ng.asarray([1.0, 10.0]))
    close(x.grad, [2.0, 40.0])


@pytest.mark.parametrize("grad", [[1.0], [[1.0, 1.0]]])
def test_initial_gradient_of_another_shape(grad):
    x = leaf([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"grad has shape .*; the result has shape \(2,\)"):
        (x * x).backward(ng.asarray(grad))


def test_initial_gradient_of_another_dtype():
    x = leaf([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"dtype float64 .* dtype float32"):
        (x * x).backward(ng.asarray([1.0, 1.0], dtype="float64"))


def test_backward_of_many_elements():
    with pytest.raises(ShapeError, match=r"shape \(2,\), not one element; reduce it first"):
        leaf([1.0, 2.0]).backward()


def test_backward_of_a_leaf():
    x = leaf(2.0)
    x.backward()
    close(x.grad, 1)


def test_backward_without_gradients():
    with pytest.raises(GraphError, match="does not depend on any array with requires_grad"):
        (ng.asarray(1.0) * 2).backward()


def test_used_up_graph():
    x = leaf(3.0)
    y = x * x
    y.backward()
    with pytest.raises(GraphError, match=r"multiply: .* used up .*\(retain_graph=True"):
        y.backward()


def test_retain_graph():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    close(x.grad, 12)


def test_create_graph():
    x = leaf(2.0)
    (x * x * x).backward(create_graph=True)
    slope, x.grad = x.grad, None
    slope.backward()
    close(x.grad, 12)


def test_leaf_assigned_to_since():
    x = leaf(3.0)
    y = x * x
    with ng.no_grad():
        x[()] = 5.0
    y.backward()
    close(x.grad, 6)  # at the value that y was made of


# ----------------------------------------------------------- what is recorded


def test_no_grad():
    x = leaf(2.0)
    with ng.no_grad():
        y = x * x
        with ng.enable_grad():
            z = x * x
    assert not y.requires_grad
    assert z.requires_grad
    assert (x * x).requires_grad


def test_no_grad_as_a_decorator():
    @ng.no_grad()
    def square(x):
        return x * x

    assert not square(leaf(2.0)).requires_grad


def test_no_grad_ends_after_an_error():
    x = leaf(2.0)
    with pytest.raises(ZeroDivisionError), ng.no_grad():
        raise ZeroDivisionError
    assert (x * x).requires_grad


def test_detach():
    x = leaf(3.0)
    (x * x.detach()).backward()
    close(x.grad, 3)


def test_integers_stop_gradients():
    x = leaf([1.0, 3.0, 2.0])
    assert not ng.argmax(x).requires_grad
    assert not (x > 1.5).requires_grad


def test_integers_have_no_gradients():
    with pytest.raises(DTypeError, match="only floats have gradients, got dtype int64"):
        ng.asarray([1, 2], requires_grad=True)
    with pytest.raises(DTypeError, match="only floats can be differentiated"):
        ng.grad(lambda x: x.sum())(ng.asarray([1, 2]))


def test_threads_record_on_their_own():
    x = leaf(2.0)
    inside, done = threading.Event(), threading.Event()

    def other():
        with ng.no_grad():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    assert (x * x).requires_grad
    done.set()
    thread.join()


def test_two_threads_differentiate():
    def work(number, results):
        x = leaf(float(number))
        for _ in range(50):
            x.grad = None
            (x * x * x).backward()
        results[number] = x.grad.item()

    results = {}
    threads = [threading.Thread(target=work, args=(n, results)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1: 3.0, 2: 12.0, 3: 27.0}


# ------------------------------------------------------ functions of functions


def test_grad_of_grad_of_grad():
    def f(x):
        return x * x * x * x

    close(ng.grad(ng.grad(ng.grad(f)))(ng.asarray(2.0)), 48)


def test_grad_inside_a_function():
    def gradient_penalty(x):
        return (ng.grad(lambda y: (y * y * y).sum())(x) ** 2).sum()  # 9 x^4

    close(ng.grad(gradient_penalty)(ng.asarray([1.0, 2.0])), [36.0, 288.0])


def test_grad_at_a_recorded_array():
    x = leaf(2.0)
    ng.grad(lambda y: y * y * y)(x).backward()
    close(x.grad, 12)


def test_closure():
    weight = leaf(3.0)
    slope = ng.grad(lambda x: x * x * weight)(ng.asarray(2.0))
    close(slope, 12)
    assert weight.grad is None  # grad() has no side effects


def test_perturbations_are_told_apart():
    # d/dx x d/dy (x + y) = 1
    inner = lambda x: x * ng.grad(lambda y: x + y)(ng.asarray(1.0))  # noqa: E731
    close(ng.grad(inner)(ng.asarray(1.0)), 1)


def test_value_and_grad_argnums():
    def f(x, scale, y, *, power):
        return (x**power * scale * y).sum()

    x, y = ng.asarray(2.0), ng.asarray(5.0)
    value, slope = ng.value_and_grad(f, argnums=2)(x, 10.0, y, power=3)
    assert (value.item(), slope.item()) == (400.0, 80.0)
    value, (by_y, by_x) = ng.value_and_grad(f, argnums=(-1, 0))(x, 10.0, y, power=3)
    assert (by_y.item(), by_x.item()) == (80.0, 600.0)
    assert not value.requires_grad


def test_value_and_grad_without_that_argument():
    with pytest.raises(TypeError, match="argnums names argument 2, but 1 were given"):
        ng.grad(lambda x: x, argnums=2)(ng.asarray(1.0))


def test_grad_of_many_elements():
    with pytest.raises(ShapeError, match=r"must return a scalar, got shape \(2,\)"):
        ng.grad(lambda x: x * x)(ng.asarray([1.0, 2.0]))


def test_vjp_of_inputs_that_do_not_matter():
    x, y = ng.asarray([1.0, 2.0]), ng.asarray([[3.0]])
    _, pullback = ng.vjp(lambda x, y: x * 2.0, x, y)
    by_x, by_y = pullback(ng.asarray([1.0, 1.0]))
    close(by_x, [2.0, 2.0])
    assert by_y.shape == (1, 1)
    close(by_y, [[0.0]])
    _, pullback = ng.vjp(lambda x: ng.asarray(1.0), x)
    close(pullback()[0], [0.0, 0.0])


def test_vjp_more_than_once():
    _, pullback = ng.vjp(lambda x: x * x, ng.asarray([1.0, 2.0]))
    for scale in (1.0, 3.0):
        close(pullback(ng.asarray([scale, scale]))[0], [2 * scale, 4 * scale])


def test_vjp_of_no_array():
    with pytest.raises(TypeError, match="must return an Array, got float"):
        ng.vjp(lambda x: 1.0, ng.asarray(1.0))


# ------------------------------------------------------------- dynamic graphs


def test_loop_that_depends_on_data():
    def halve(x):  # until below 1
        while x.item() >= 1:
            x = x * 0.5
        return x

    for start, slope in [(0.7, 1.0), (3.0, 0.25), (100.0, 2.0**-7)]:
        close(ng.grad(halve)(ng.asarray(start)), slope)


def test_branch_that_depends_on_data():
    f = ng.grad(lambda x: x * x if x > 0 else -x)
    close(f(ng.asarray(3.0)), 6)
    close(f(ng.asarray(-3.0)), -1)


@given(st.integers(0, 8), st.floats(-0.9, 0.9))
def test_recurrence_with_a_shared_weight(steps, value):
    # h_t = w h_(t-1) + 1 from 0: a geometric sum, with d/dw = sum t w^(t-1).
    w = leaf(value, "float64")
    h = w * 0.0
    for _ in range(steps):
        h = h * w + 1.0
    h.backward()
    close(h, sum(value**t for t in range(steps)), 1e-12)
    np.testing.assert_allclose(
        w.grad.item(), sum(t * value ** (t - 1) for t in range(1, steps)), atol=1e-12
    )


def test_x_is_given_another_value_by_name():
    x = leaf(3.0)
    y = x
    y = y * y
    y = y * x
    y.backward()
    close(x.grad, 27)


# --------------------------------------------------------------------- states


def test_parameter_changed_between_forward_and_backward():
    weight = Parameter([1.0, 2.0])
    loss = (weight * weight).sum()
    ng.assign(weight, [3.0, 4.0])
    with pytest.raises(GraphError, match=r"multiply: a Parameter .* was changed after the op ran"):
        loss.backward()


def test_parameter_changed_whose_value_no_gradient_needs():
    weight = Parameter([1.0, 2.0])
    loss = (weight + weight).sum()
    ng.assign(weight, [3.0, 4.0])
    loss.backward()
    close(weight.grad, [2.0, 2.0])


# --------------------------------------------------------------------- memory


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("function", [ng.exp, ng.tanh, ng.relu, ng.max, lambda x: x * x])
@pytest.mark.parametrize("ending", ["backward", "dropped", "grad", "create_graph"])
def test_memory_is_freed_without_the_garbage_collector(function, ending):
    x = leaf([1.0, 2.0])
    middle = function(x)
    out = middle.sum()
    watched = [weakref.ref(x), weakref.ref(middle), weakref.ref(out)]
    if ending == "backward":
        out.backward()
    elif ending == "create_graph":
        out.backward(create_graph=True)
        x.grad = None  # it refers to the graph, and the graph to x
    elif ending == "grad":
        ng.grad(lambda x: function(x).sum())(x)
    del x, middle, out
    assert [reference() for reference in watched] == [None, None, None]


@pytest.mark.usefixtures("_no_collector")
def test_backward_frees_what_it_used():
    x = leaf([1.0, 2.0])
    middle = ng.exp(x)
    buffer = weakref.ref(middle._data)
    out = middle.sum()
    del middle
    assert buffer() is not None  # exp's vjp needs its result
    out.backward()
    assert buffer() is None


# --------------------------------------------------------------- wrong vjps


def _with_vjp(vjp):
    return Op("doubtful", lambda x, y: (x.shape, x.dtype), "add_forward", vjp,
              arrange=ng.dispatch.registry["add"].arrange)  # fmt: skip


@pytest.mark.parametrize(
    ("vjp", "message"),
    [
        (lambda grad_out: grad_out, "doubtful: its vjp returned 1 gradients for 2 inputs"),
        (lambda grad_out: (grad_out.sum(), None), r"doubtful: .* shape \(\), .* shape \(2,\)"),
        (lambda grad_out: (None, ng.astype(grad_out, "float64")), "doubtful: .* dtype float64"),
    ],
)
def test_wrong_vjp(vjp, message):
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    with pytest.raises((GraphError, ShapeError), match=message):
        apply(_with_vjp(vjp), x, y).sum().backward()


# ----------------------------------------------------------------- properties

UNARY = [ng.tanh, ng.sigmoid, ng.exp, ng.erf, ng.gelu, lambda x: x * x, ng.negative]
BINARY = [ng.add, ng.multiply, ng.subtract, lambda x, y: x / (y * y + 1.0)]
SHAPES = [(), (3,), (2, 3), (2, 1), (1, 3)]


@st.composite
def graphs(draw):
    """Draw a recipe: shapes of inputs, then steps that take any earlier values."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    steps = []
    for number in range(draw(st.integers(1, 6))):
        any_earlier = st.integers(0, len(shapes) + number - 1)
        if draw(st.booleans()):
            steps.append((draw(st.sampled_from(UNARY)), (draw(any_earlier),)))
        else:
            steps.append((draw(st.sampled_from(BINARY)), (draw(any_earlier), draw(any_earlier))))
    return shapes, steps


@given(graphs())
def test_any_graph_against_finite_differences(graph):
    shapes, steps = graph
    rng = np.random.default_rng(0)

    def evaluate(*inputs):
        values = list(inputs)
        for function, operands in steps:
            # Tamed, or powers of powers leave finite differences no digits.
            values.append(ng.tanh(function(*(values[k] for k in operands))))
        return values[-1]

    check_grads(evaluate, *(rng.normal(size=shape) for shape in shapes))


def test_two_leaves_that_get_one_gradient_do_not_share_it():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = ng.asarray([3.0, 4.0], requires_grad=True)
    (x + y).sum().backward()
    x.grad[0] = 99.0
    np.testing.assert_array_equal(y.grad.numpy(), [1, 1])


def test_gradients_stay_linked_to_parameters_of_the_function():
    w = ng.asarray(2.0, requires_grad=True)
    slope = ng.grad(lambda x: w * x * x)(ng.asarray(3.0))  # 2 w x
    (slope + w).backward()
    assert w.grad.item() == 7
    with ng.no_grad():
        assert not ng.grad(lambda x: w * x * x)(ng.asarray(3.0)).requires_grad


def test_one_no_grad_serves_several_threads():
    off = ng.no_grad()
    inside, go_on = threading.Event(), threading.Event()
    seen = []

    def enter_first():
        with off:
            inside.set()
            go_on.wait(10)
        seen.append((ng.asarray([1.0], requires_grad=True) * 2).requires_grad)

    thread = threading.Thread(target=enter_first)
    thread.start()
    inside.wait(10)
    with off:
        go_on.set()
        thread.join()
    assert seen == [True]
    assert (ng.asarray([1.0], requires_grad=True) * 2).requires_grad


def test_a_gradient_that_is_no_array_is_refused():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="pass an Array of shape"):
        (x * x).backward(np.ones(2, np.float32))
