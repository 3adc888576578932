"""The checks of `numbagrad.testing` fail where they should."""

import itertools

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.dispatch import Op, Split, Views, apply
from numbagrad.testing import Case, check_case, check_grads, check_op

X = np.linspace(-2, 2, 5)


def triple(x, out):
    for i in range(x.size):
        out[i] = 3 * x[i]


def make(kernel=triple, vjp=lambda grad_out: grad_out * 3.0, split=((1,), (1,)), **options):
    """Make an op that triples, or does so wrongly; its kernel is plain Python."""
    op = Op(
        "triple",
        lambda x: (x.shape, x.dtype),
        {"cpu": kernel},
        vjp,
        arrange=lambda call: Views(((call.inputs[0].size,),), ((call.outputs[0].size,),)),
        split=(lambda call: [Split(call.inputs[0].size, *split)]) if split else None,
        **options,
    )
    return lambda x: apply(op, x)


def check(f, **options):
    return check_op(f, X, reference=lambda x: 3 * x, **options)


def test_nothing_wrong():
    assert "triple" in check(make())


def add_to(x, out):
    for i in range(x.size):
        out[i] += 3 * x[i]


def overrun(x, out):
    triple(x, out)
    if x.size < X.size:
        out.base[x.size] = 0  # another shard's


def to_itself(x, out):
    for i in range(x.size):
        out[i] = x[i] = 3 * x[i]


def by_position(x, out):
    for i in range(x.size):
        out[i] = 3 * x[i] + i * 1e-7


counter = itertools.count()


def never_the_same(x, out):
    for i in range(x.size):
        out[i] = 3 * x[i] + next(counter) * 1e-15


def use_scratch(x, out, scratch):
    for i in range(x.size):
        scratch[0] += 1
        out[i] = 3 * x[i]
        if np.isnan(scratch[0]):
            out[i] = 0


def twice(x):
    return x * 2.0


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (twice, "the value differs from the reference in 4 of 5 elements"),
        (lambda x: x.sum(), r"the value has shape \(\), the reference \(5,\)"),
        (lambda x: ng.astype(x * 3.0, "float64"), "float32 inputs give .* dtype float64"),
        (make(add_to), "triple: output 0 in shards .* differs to the bit"),
        (make(add_to, split=None), "triple: output 0 in shards .* of 1 differs to the bit"),
        (make(by_position), "triple: output 0 in shards .* of 5 differs to the bit"),
        (make(overrun), "triple: output 0 in shards .* of 5 differs to the bit"),
        (make(split=((1,), ("sum",))), "triple: output 0 in shards"),
        (make(use_scratch, workspace=lambda call: [((1,), call.outputs[0].dtype)]),
         "triple: output 0 in shards"),
        (make(to_itself), "triple: input 0 differs to the bit from what it was before"),
        (make(vjp=lambda grad_out: grad_out * 2.0), "gradient of order 1 for input 0"),
        (make(vjp=lambda grad_out: ng.asarray(grad_out.numpy() * 3)), "needs the value"),
    ],
)  # fmt: skip
def test_something_wrong(f, message):
    with pytest.raises((AssertionError, ng.errors.TraceError), match=message):
        check(f)


def test_large_enough_for_a_sum_of_shards():
    x = np.random.default_rng(0).normal(size=(1 << 16, 4))
    check_op(lambda x: x.sum(axis=0), x, reference=lambda x: x.sum(0), grad=False)


def test_another_result_each_time():
    with pytest.raises(AssertionError, match="differs to the bit"):
        check_op(make(never_the_same, split=None), X, grad=False)


def multiply(x, y, out):
    out[:] = x * y


def square(x, out):
    out[:] = x * x


def test_gradient_of_one_input_alone():
    def vjp(grad_out, x, y, needs):
        return (grad_out * y if all(needs) else grad_out, grad_out * x)

    op = Op("product", lambda x, y: (x.shape, x.dtype), {"cpu": multiply}, vjp)
    with pytest.raises(AssertionError, match="gradient of order 1 for input 0 alone differs"):
        check_op(lambda x, y: apply(op, x, y), X, X + 5)


def test_second_order():
    # Right gradients, computed so that they cannot be differentiated: 2 x, with x cut off.
    op = Op("square", lambda x: (x.shape, x.dtype), {"cpu": square},
            lambda grad_out, x: grad_out * x.detach() * 2.0)  # fmt: skip
    check_grads(lambda x: apply(op, x), X, order=1)
    with pytest.raises(AssertionError, match="gradient of order 2 for input 0"):
        check_grads(lambda x: apply(op, x), X)


def test_names_both_numbers():
    with pytest.raises(AssertionError, match=r"is .* along a random direction; finite .* give"):
        check_grads(make(vjp=lambda grad_out: grad_out), X)


def test_integer_results_have_no_gradients():
    with pytest.raises(AssertionError, match="int64 results have no gradients: pass grad=False"):
        check_op(ng.argmax, X)


def test_case_that_misses_its_op():
    with pytest.raises(AssertionError, match="doubling does not reach exp"):
        check_case(Case("doubling", twice, (X,), ops=("exp", "multiply")))
