"""The same network in PyTorch and in JAX, with the same weights, and Adam for JAX.

Both are built from numbagrad's layers, so that there is one description of each network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import numbagrad as ng
from numbagrad.models import GlobalAvgPool2d, ResidualBlock

from .optional import jax
from .peers import FILTER, jax_batch_norm, jax_conv, jax_max_pool, torch_tensor

L = ng.layers
nn = torch.nn

# ------------------------------------------------------------------ PyTorch


class _TorchBlock(nn.Module):
    """The twin of `ResidualBlock`."""

    def __init__(self, block: ResidualBlock):
        super().__init__()
        parts = block.conv1, block.norm1, block.relu, block.conv2, block.norm2
        self.residual = nn.Sequential(*map(_torch_layer, parts))
        self.shortcut = nn.Identity()
        if block.shortcut is not None:
            self.shortcut = nn.Sequential(*map(_torch_layer, block.shortcut))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, k, h / stride, w / stride)."""
        return nn.functional.relu(self.residual(x) + self.shortcut(x))


def torch_twin(model: L.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    """Build the same network in PyTorch.

    Parameters
    ----------
    model
        Ours.
    shape
        Of a batch of its images, NHWC: tells in what order the first linear layer sees pixels.
    """
    twins, flattened = [], None
    for layer in model:
        twin = _torch_layer(layer)
        if isinstance(layer, L.Flatten):
            flattened = shape
        elif isinstance(layer, L.Linear) and flattened is not None:
            # Flat images are (h, w, c) here and (c, h, w) there.
            _, h, w, c = flattened
            weight = layer.weight.numpy().reshape(h, w, c, -1).transpose(3, 2, 0, 1)
            twin.weight.data = torch.from_numpy(weight.reshape(len(weight), -1).copy())
            flattened = None
        twins.append(twin)
        shape = layer.output_spec(shape).shape
    return nn.Sequential(*twins)


def _torch_layer(layer: L.Module) -> nn.Module:
    match layer:
        case L.Conv2d():
            twin = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                bias=layer.bias is not None,
            )
            twin.weight.data = torch_tensor(FILTER, layer.weight.numpy())
        case L.Linear():
            twin = nn.Linear(layer.in_features, layer.out_features)
            twin.weight.data = torch.from_numpy(layer.weight.numpy().T.copy())
        case L.BatchNorm2d():
            return nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
        case L.MaxPool2d():
            return nn.MaxPool2d(layer.kernel_size)
        case L.ReLU():
            return nn.ReLU()
        case L.Flatten():
            return nn.Flatten()
        case GlobalAvgPool2d():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case ResidualBlock():
            return _TorchBlock(layer)
        case _:
            raise TypeError(f"no twin for a {type(layer).__name__}")
    if layer.bias is not None:
        twin.bias.data = torch.from_numpy(layer.bias.numpy().copy())
    return twin


# ---------------------------------------------------------------------- JAX

# A layer's twin: forward(params, stats, x) -> x. It replaces entries of the list `stats` (the
# running statistics); the caller returns that list from the traced function.
_Forward = Callable[[list, list, Any], Any]


def jax_twin(model: L.Module) -> tuple[_Forward, list, list]:
    """Return the same network as a function, its parameters and its running statistics."""
    params: list = []
    stats: list = []
    return _jax_layer(model, params, stats), params, stats


def _jax_layer(layer: L.Module, params: list, stats: list) -> _Forward:
    def keep(kept: list, *states: L.Buffer) -> int:
        """Append states; return where the first one is."""
        kept.extend(jax.numpy.asarray(np.array(state.numpy())) for state in states)
        return len(kept) - len(states)

    match layer:
        case L.Sequential():
            chain = [_jax_layer(each, params, stats) for each in layer]

            def forward(params, stats, x):
                for each in chain:
                    x = each(params, stats, x)
                return x

        case L.Conv2d():
            weight = keep(params, layer.weight)
            bias = None if layer.bias is None else keep(params, layer.bias)

            def forward(params, stats, x):
                out = jax_conv(x, params[weight], layer.stride, layer.padding)
                return out if bias is None else out + params[bias]

        case L.Linear():
            first = keep(params, layer.weight, layer.bias)

            def forward(params, stats, x):
                return x @ params[first] + params[first + 1]

        case L.BatchNorm2d():
            first = keep(params, layer.weight, layer.bias)
            running = keep(stats, layer.running_mean, layer.running_var)

            def forward(params, stats, x):
                if not layer.training:
                    scale = params[first] * jax.lax.rsqrt(stats[running + 1] + layer.eps)
                    return (x - stats[running]) * scale + params[first + 1]
                out, mean, var = jax_batch_norm(x, params[first], params[first + 1], layer.eps)
                count = x.size // x.shape[-1]
                for k, new in ((running, mean), (running + 1, var * (count / (count - 1)))):
                    stats[k] = stats[k] + layer.momentum * (new - stats[k])
                return out

        case L.MaxPool2d():

            def forward(params, stats, x):
                return jax_max_pool(x, layer.kernel_size)

        case L.ReLU():

            def forward(params, stats, x):
                return jax.nn.relu(x)

        case L.Flatten():

            def forward(params, stats, x):
                return x.reshape(len(x), -1)

        case GlobalAvgPool2d():

            def forward(params, stats, x):
                return x.mean((1, 2))

        case ResidualBlock():
            parts = layer.conv1, layer.norm1, layer.relu, layer.conv2, layer.norm2
            residual = _jax_layer(L.Sequential(*parts), params, stats)
            shortcut = layer.shortcut and _jax_layer(layer.shortcut, params, stats)

            def forward(params, stats, x):
                across = shortcut(params, stats, x) if shortcut else x
                return jax.nn.relu(residual(params, stats, x) + across)

        case _:
            raise TypeError(f"no twin for a {type(layer).__name__}")
    return forward


def jax_adam(params: list, grads: list, moments: tuple, lr: float) -> tuple[list, tuple]:
    """Return the parameters and moments after a step of Adam (Kingma and Ba, 2015)."""
    means, squares, steps = moments
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    steps = steps + 1
    means = [beta1 * m + (1 - beta1) * g for m, g in zip(means, grads, strict=True)]
    squares = [beta2 * v + (1 - beta2) * g * g for v, g in zip(squares, grads, strict=True)]
    correct1, correct2 = 1 - beta1**steps, 1 - beta2**steps
    params = [
        p - lr * (m / correct1) / (jax.numpy.sqrt(v / correct2) + eps)
        for p, m, v in zip(params, means, squares, strict=True)
    ]
    return params, (means, squares, steps)


def jax_moments(params: list) -> tuple:
    """Return Adam's moments at the start."""
    zeros = jax.numpy.zeros_like
    return list(map(zeros, params)), list(map(zeros, params)), jax.numpy.float32(0)
