"""detect_anomaly: the op, the line and the layer of the first NaN or infinity."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import NonFiniteError, TraceError
from numbagrad.layers import Linear, Module, Parameter, Sequential


def refused(f, *, infinity=True):
    """Return the message of the error that a function meets."""
    with pytest.raises(NonFiniteError) as caught, ng.detect_anomaly(infinity=infinity):
        f()
    return str(caught.value)


def line_of(f, text):
    """Return file and line where a function's source has some text."""
    code = f.__code__
    with open(code.co_filename) as file:
        lines = file.read().splitlines()
    number = next(k for k in range(code.co_firstlineno, len(lines) + 1) if text in lines[k - 1])
    return f"{code.co_filename}:{number}"


def test_forward():
    x = ng.asarray([[1.0, 2.0], [-1.0, 0.0]])

    def f():
        y = x + 0.0
        y = ng.log(y)  # here
        return ng.exp(y) * 2.0

    message = refused(f)
    assert message == (
        "log made NaN at (1, 0) of shape (2, 2) (2 of 4 elements are not finite), "
        f"at {line_of(f, '# here')}"
    )


def test_backward():
    x = ng.asarray([4.0, 0.0], requires_grad=True)

    def f():
        y = x.sqrt()  # here
        y.sum().backward()

    message = refused(f)
    assert "divide made an infinity at (1,)" in message
    assert f"in the gradient of sqrt, which ran at {line_of(f, '# here')}" in message


def test_backward_of_what_ran_before():
    loss = ng.asarray([0.0], requires_grad=True).sqrt().sum()
    assert "which ran before detect_anomaly() was entered" in refused(loss.backward)


class Root(Module):
    def forward(self, x):
        return x.sqrt()


def model():
    layers = Sequential(Linear(2, 2), Sequential(Root(), Linear(2, 1)))
    layers[0].weight = Parameter([[0.0, 0.0], [0.0, 0.0]])
    layers[0].bias = Parameter([0.0, 0.0])
    return layers


def test_the_layer_in_forward():
    net = model()
    net[0].bias = Parameter([1.0, -1.0])
    message = refused(lambda: net(ng.asarray([[1.0, 1.0]])))
    assert message.startswith("sqrt made NaN at (0, 1)")
    assert message.endswith("in layer '1.0' (Root())")
    assert message.count("in layer") == 1


def test_the_layer_in_backward():
    net = model()
    message = refused(lambda: net(ng.asarray([[1.0, 1.0]])).sum().backward())
    assert "in the gradient of sqrt, which ran at" in message
    assert message.endswith("in layer '1.0' (Root())")


def test_the_layer_in_a_checkpoint():
    net = model()
    message = refused(lambda: ng.checkpoint(net)(ng.asarray([[1.0, 1.0]])).sum().backward())
    assert "in the gradient of sqrt, which ran at" in message
    assert message.endswith("in layer '1.0' (Root())")


def test_values_from_outside():
    x = ng.asarray([1.0, np.nan], dtype="float32")
    assert refused(lambda: x * 2.0).startswith("multiply was given NaN at (1,) of shape (2,) (1 of")


def test_an_update():
    weight = Parameter([1.0])
    optimizer = ng.optim.SGD([weight], 1e30)

    def step():
        optimizer.zero_grad()
        (weight * 1e30).sum().backward()
        optimizer.step()

    assert refused(step).startswith("sgd_update made an infinity")


def test_infinities_on_purpose():
    mask, x = ng.asarray([True, False]), ng.asarray([1.0, 2.0])
    with ng.detect_anomaly(infinity=False):
        close = ng.softmax(ng.where(mask, x, -np.inf), axis=0)
    assert close.tolist() == [1, 0]
    assert "made NaN" in refused(lambda: ng.log(x - 3.0), infinity=False)


def test_nothing_changes_where_all_is_finite():
    def run():
        x = ng.asarray([0.5, 2.0], requires_grad=True)
        (ng.tanh(x) * x).sum().backward()
        return x.grad.numpy()

    expected = run()
    with ng.detect_anomaly():
        np.testing.assert_array_equal(run(), expected)


def test_it_ends():
    x = ng.asarray([0.0], requires_grad=True)
    refused(lambda: ng.log(x))
    assert ng.log(x).tolist() == [-np.inf]
    ng.log(x).sum().backward()


def test_inside_one_another():
    x = ng.asarray([0.0], requires_grad=True)
    with ng.detect_anomaly():
        loss = (x + 1.0).log().sum()
        with ng.detect_anomaly():
            loss.backward()
        message = refused(lambda: x.sqrt().sum().backward())
    assert "which ran at" in message


def test_in_a_compiled_function():
    @ng.compile
    def step(x):
        with ng.detect_anomaly():
            return ng.log(x)

    with pytest.raises(TraceError, match=r"test_anomaly.py:\d+ looks for NaN while a function is"):
        step(ng.asarray([1.0]))
