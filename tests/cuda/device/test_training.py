"""A tiny convolutional network trains alike on the GPU and on the CPU."""

from copy import deepcopy

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import layers, optim

rng = np.random.default_rng(3)
IMAGES = rng.normal(size=(4, 6, 6, 1)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2])
ng.random.seed(3)
MODEL = layers.Sequential(
    layers.Conv2d(1, 2, 3, padding=1, bias=False),  # BatchNorm would undo a bias
    layers.BatchNorm2d(2),
    layers.ReLU(),
    layers.MaxPool2d(2),
    layers.Flatten(),
    layers.Linear(18, 3),
)


def train(device, make_optimizer):
    """Return the losses of three steps and all states after them."""
    model = deepcopy(MODEL).to(device)
    optimizer = make_optimizer(model.parameters())
    x, labels = ng.asarray(IMAGES, device=device), ng.asarray(LABELS, device=device)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ng.softmax_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.smoke
@pytest.mark.parametrize(
    "make_optimizer",
    [lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: optim.Adam(p, lr=0.01)],
    ids=["SGD", "Adam"],
)
def test_training(make_optimizer):
    losses, states = train("cuda", make_optimizer)
    expected_losses, expected = train("cpu", make_optimizer)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for name, state in states.items():
        np.testing.assert_allclose(state, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
