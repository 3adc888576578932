"""Whole training steps: they agree with the CPU's, and give the same bits each time."""

import numpy as np
import pytest
from cuda_device import SIMULATED, Training, convnet, eager, momentum, perceptron

import numbagrad as ng

# Of the largest number in each array: float32 sums in another order, through all layers and back.
TOLERANCE = 1e-3

SMALL = {
    "perceptron": (perceptron, 3, (4,), 3),
    "convnet": (convnet, 3, (2, 2, 1), 3),
}
ZOO = {
    "mlp": (ng.models.mlp, 33, (28, 28, 1), 10),
    "lenet": (ng.models.lenet, 33, (28, 28, 1), 10),
    "convnet6": (ng.models.convnet6, 9, (32, 32, 3), 10),
    "resnet8": (ng.models.resnet8, 9, (32, 32, 3), 10),
}
NETWORKS = SMALL if SIMULATED else SMALL | ZOO

each_network = pytest.mark.parametrize(
    ("network", "batch", "shape", "classes"), NETWORKS.values(), ids=NETWORKS
)
each_way = pytest.mark.parametrize("wrap", [eager, ng.compile], ids=["eager", "compiled"])


def run(network, batch, shape, classes, wrap, device="cuda", steps=2):
    # Not Adam, whose first steps follow the sign of a gradient, however small it is.
    return Training(network, momentum, wrap, device).run((batch,) * steps, shape, classes)


@each_way
@each_network
def test_agrees_with_the_cpu(network, batch, shape, classes, wrap):
    losses, states = run(network, batch, shape, classes, wrap)
    expected_losses, expected = run(network, batch, shape, classes, eager, "cpu")
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)
    assert states.keys() == expected.keys()
    for name, state in states.items():
        largest = np.abs(expected[name]).max(initial=1e-3)
        np.testing.assert_allclose(
            state, expected[name], rtol=0, atol=TOLERANCE * largest, err_msg=name
        )


@each_way
@each_network
def test_same_bits_each_time(network, batch, shape, classes, wrap):
    first_losses, first = run(network, batch, shape, classes, wrap, steps=3)
    losses, states = run(network, batch, shape, classes, wrap, steps=3)
    assert losses == first_losses
    for name, state in states.items():
        np.testing.assert_array_equal(state, first[name], err_msg=name)
