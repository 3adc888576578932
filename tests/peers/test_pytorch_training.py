"""Training steps that follow PyTorch's, loss by loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import peer_networks
import pytest
import torch
from torch import nn


def twin(model, state, flatten_shape):
    """Build the same network in PyTorch from the layers of ours, with the same weights."""
    modules = []
    flattened = False
    for index, layer in enumerate(model):
        kind = type(layer).__name__
        weight = state.get(f"{index}.weight")
        if kind == "Conv2d":
            r, s, c, k = weight.shape
            module = nn.Conv2d(c, k, (r, s), padding=layer.padding)
            module.weight.data = torch.from_numpy(weight.transpose(3, 2, 0, 1).copy())
        elif kind == "Linear":
            module = nn.Linear(*weight.shape)
            if flattened:  # our flattened images are (h, w, c), PyTorch's (c, h, w)
                h, w, c = flatten_shape
                weight = weight.reshape(h, w, c, -1).transpose(2, 0, 1, 3)
                weight = weight.reshape(h * w * c, -1)
                flattened = False
            module.weight.data = torch.from_numpy(weight.T.copy())
        elif kind == "MaxPool2d":
            module = nn.MaxPool2d(2)
        elif kind == "BatchNorm2d":
            module = nn.BatchNorm2d(weight.shape[0])
        elif kind == "Flatten":
            module, flattened = nn.Flatten(), True
        else:
            module = nn.ReLU()
        if f"{index}.bias" in state:
            module.bias.data = torch.from_numpy(state[f"{index}.bias"].copy())
        modules.append(module)
    return nn.Sequential(*modules)


def their_losses(model, images, labels, steps, optimizer="sgd"):
    if optimizer == "sgd":
        opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = torch.optim.Adam(model.parameters(), lr=0.003)
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    history = []
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        history.append(loss.item())
    return history


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_lenet_ten_steps(optimizer):
    model = peer_networks.lenet()
    state = peer_networks.fixed_weights(model)
    images, labels = peer_networks.batch(16, 28, 10)
    theirs = their_losses(twin(model, state, (5, 5, 16)), images, labels, 10, optimizer)
    ours = peer_networks.losses(model, images, labels, 10, optimizer=optimizer)
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_tiny_cnn_on_cpu_and_simulator():
    model = peer_networks.tiny()
    state = peer_networks.fixed_weights(model)
    images, labels = peer_networks.batch(4, 5, 3)
    theirs = their_losses(twin(model, state, (2, 2, 2)), images, labels, 5)
    np.testing.assert_allclose(peer_networks.losses(model, images, labels, 5), theirs, atol=1e-4)

    done = subprocess.run(
        [sys.executable, Path(peer_networks.__file__), "cuda"],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), theirs, atol=1e-4)
