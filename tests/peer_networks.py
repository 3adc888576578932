"""Small networks twice, in numbagrad and in PyTorch, with the same weights.

Run as a script it trains the tiny CNN on a device and prints the losses as JSON: the simulator
needs a process of its own.
"""

import json
import sys

import numpy as np

import numbagrad as ng

L = ng.layers


def lenet():
    """LeNet-5 for 28x28 images."""
    return L.Sequential(
        L.Conv2d(1, 6, 5, padding=2),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Conv2d(6, 16, 5),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Linear(400, 120),
        L.ReLU(),
        L.Linear(120, 84),
        L.ReLU(),
        L.Linear(84, 10),
    )


def tiny():
    """A CNN small enough for the simulator: 5x5 images, 3 classes."""
    return L.Sequential(
        L.Conv2d(1, 2, 3, padding=1),
        L.BatchNorm2d(2),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Linear(8, 3),
    )


def batch(n, size, classes):
    """One fixed batch of images and labels."""
    rng = np.random.default_rng(3)
    images = rng.normal(size=(n, size, size, 1)).astype(np.float32)
    return images, rng.integers(0, classes, n)


def fixed_weights(model):
    """Give a model weights that depend on nothing but their shapes."""
    rng = np.random.default_rng(5)
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith("weight") and value.ndim > 1:
            fan_in = value.size // value.shape[-1]
            value = rng.normal(size=value.shape) / np.sqrt(fan_in)
        elif name.endswith("bias"):
            value = 0.1 * rng.normal(size=value.shape)
        state[name] = value.astype(np.float32)
    model.load_state_dict(state)
    return state


def losses(model, images, labels, steps, device="cpu", optimizer="sgd"):
    """Train on one batch and return the loss of each step."""
    model.to(device)
    if optimizer == "sgd":
        opt = ng.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = ng.optim.Adam(model.parameters(), lr=0.003)
    x, y = ng.asarray(images, device=device), ng.asarray(labels, device=device)
    history = []
    for _ in range(steps):
        opt.zero_grad()
        loss = ng.softmax_cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        history.append(loss.item())
    return history


if __name__ == "__main__":
    network = tiny()
    fixed_weights(network)
    print(json.dumps(losses(network, *batch(4, 5, 3), steps=5, device=sys.argv[1])))
