"""Whole training steps: they agree with the CPU's, and give the same bits each time."""

import numpy as np
import pytest
from cuda_device import SIMULATED, Training, convnet, eager, momentum, perceptron

import numbagrad as ng

# How far a step may be from the CPU's: its loss, and all gradients and all states taken together,
# by their Euclidean norms. An input of a ReLU that is 0 but for rounding may be let through here
# and not there: that alone has been seen to move the gradients of a ResNet-8 by 3e-3, where they
# agree to 1e-5 without. (Each op by itself is held to 1e-4: see test_cases.py.)
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-2

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


def joined(arrays):
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def run(network, batch, shape, classes, wrap, device="cuda", steps=3):
    # Not Adam, whose first steps follow the sign of a gradient, however small it is.
    return Training(network, momentum, wrap, device).run((batch,) * steps, shape, classes)


@each_way
@each_network
def test_agrees_with_the_cpu(network, batch, shape, classes, wrap):
    losses, states = run(network, batch, shape, classes, wrap, steps=1)
    expected_losses, expected = run(network, batch, shape, classes, eager, "cpu", steps=1)
    np.testing.assert_allclose(losses, expected_losses, rtol=LOSS_TOLERANCE)
    assert states.keys() == expected.keys()
    for kind in (True, False):  # gradients, and then the rest
        names = [name for name in states if name.startswith("grad") == kind]
        result, wanted = (joined(each[name] for name in names) for each in (states, expected))
        assert np.linalg.norm(result - wanted) <= NORM_TOLERANCE * np.linalg.norm(wanted)


@each_way
@each_network
def test_same_bits_each_time(network, batch, shape, classes, wrap):
    first_losses, first = run(network, batch, shape, classes, wrap)
    losses, states = run(network, batch, shape, classes, wrap)
    assert losses == first_losses
    for name, state in states.items():
        np.testing.assert_array_equal(state, first[name], err_msg=name)
