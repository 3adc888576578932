"""Small convolutional networks. All take NHWC images and give one number for each class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from . import ops
from .array import Array
from .errors import nearest, whole_number
from .layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)
from .pretrained import load_into


def mlp(
    in_channels: int = 1,
    classes: int = 10,
    image_size: int = 28,
    hidden: int | tuple[int, ...] = (128,),
) -> Sequential:
    """Build a multilayer perceptron: linear layers with ReLU in between.

    Parameters
    ----------
    in_channels, image_size
        The images are (image_size, image_size, in_channels).
    classes
        Numbers in the output.
    hidden
        Width of each hidden layer; an int stands for one layer.

    Examples
    --------
    >>> mlp(hidden=(64, 32)).output_spec((5, 28, 28, 1)).shape
    (5, 10)
    """
    if not isinstance(hidden, (tuple, list)):
        hidden = (hidden,)
    widths = (in_channels * whole_number("mlp", "image_size", image_size) ** 2, *hidden)
    layers: list[Module] = [Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [Linear(inputs, outputs), ReLU()]
    return Sequential(*layers, Linear(widths[-1], classes))


def lenet(
    in_channels: int = 1,
    classes: int = 10,
    image_size: int = 28,
    *,
    pretrained: str | None = None,
) -> Sequential:
    """Build LeNet-5, with ReLU and max pooling in place of the original's tanh and averages.

    LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition"
    (1998). The first convolution keeps the size of the image: for 28x28 this is the original's
    padding to 32x32. An image of less than 16x16 has no detail to spare: there the first pooling
    is left out and the second convolution keeps the size too.

    Parameters
    ----------
    in_channels, image_size
        The images are (image_size, image_size, in_channels).
    classes
        Numbers in the output.
    pretrained
        ``"mnist"``: with weights that come with numbagrad, right on 99.4 % of its test images.

    Examples
    --------
    >>> lenet().output_spec((5, 28, 28, 1)).shape
    (5, 10)
    >>> lenet(image_size=8).output_spec((5, 8, 8, 1)).shape
    (5, 10)
    """
    if whole_number("lenet", "image_size", image_size, 2) >= 16:
        between, padding, side = [MaxPool2d(2)], 0, (image_size // 2 - 4) // 2
    else:
        between, padding, side = [], 2, image_size // 2
    model = Sequential(
        Conv2d(in_channels, 6, 5, padding=2),
        ReLU(),
        *between,
        Conv2d(6, 16, 5, padding=padding),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(16 * side**2, 120),
        ReLU(),
        Linear(120, 84),
        ReLU(),
        Linear(84, classes),
    )
    if pretrained is not None:
        load_into(model, "lenet", pretrained, (image_size, image_size, in_channels), classes)
    return model


def convnet6(in_channels: int = 3, classes: int = 10, image_size: int = 32) -> Sequential:
    """Build six 3x3 convolutions with BatchNorm and ReLU, then one linear layer.

    Two convolutions each with 32, 64 and 128 channels, and 2x2 max pooling after each two, in the
    manner of VGG (Simonyan and Zisserman, 2015).

    Parameters
    ----------
    in_channels, image_size
        The images are (image_size, image_size, in_channels), 8x8 or more.
    classes
        Numbers in the output.

    Examples
    --------
    >>> convnet6().output_spec((5, 32, 32, 3)).shape
    (5, 10)
    """
    whole_number("convnet6", "image_size", image_size, 8)
    layers: list[Module] = []
    for channels in (32, 64, 128):
        for _ in range(2):
            # BatchNorm subtracts the mean, so that a bias before it would have no effect.
            layers += [
                Conv2d(in_channels, channels, 3, padding=1, bias=False),
                BatchNorm2d(channels),
                ReLU(),
            ]
            in_channels = channels
        layers.append(MaxPool2d(2))
    return Sequential(*layers, Flatten(), Linear(128 * (image_size // 8) ** 2, classes))


class ResidualBlock(Module):
    """Two convolutions, added to what came in: ``relu(shortcut(x) + conv2(relu(conv1(x))))``.

    Where the stride or the channels change, the shortcut is a 1x1 convolution; else it is ``x``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(out_channels)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Sequential(
                Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels)
            )
        self.relu = ReLU()

    def forward(self, x: Array) -> Array:
        """(n, h, w, in_channels) to (n, h / stride, w / stride, out_channels)."""
        residual = self.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return self.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class GlobalAvgPool2d(Module):
    """The mean of each channel over the image."""

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) to (n, c)."""
        return ops.mean(x, (1, 2))


def resnet8(in_channels: int = 3, classes: int = 10, image_size: int = 32) -> Sequential:
    """Build a residual network of three blocks with 16, 32 and 64 channels.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2016); eight layers
    deep, as in the MLPerf Tiny benchmark (Banbury et al., 2021).

    Parameters
    ----------
    in_channels
        The images are (image_size, image_size, in_channels).
    classes
        Numbers in the output.
    image_size
        Any will do: the mean over the image has no size.

    Examples
    --------
    >>> resnet8().output_spec((5, 32, 32, 3)).shape
    (5, 10)
    """
    return Sequential(
        Conv2d(in_channels, 16, 3, padding=1, bias=False),
        BatchNorm2d(16),
        ReLU(),
        ResidualBlock(16, 16),
        ResidualBlock(16, 32, stride=2),
        ResidualBlock(32, 64, stride=2),
        GlobalAvgPool2d(),
        Linear(64, classes),
    )


MODELS: dict[str, Callable[..., Module]] = {
    "convnet6": convnet6,
    "lenet": lenet,
    "mlp": mlp,
    "resnet8": resnet8,
}

NAMES = tuple(MODELS)


def get(name: str, **arguments: Any) -> Module:
    """Build the model of this name.

    Parameters
    ----------
    name
        ``"convnet6"``, ``"lenet"``, ``"mlp"`` or ``"resnet8"``.
    arguments
        What its function takes: ``in_channels``, ``classes``, ``image_size``.

    Raises
    ------
    ValueError
        If there is no such model; the message names the nearest.
    TypeError
        If the model takes no such argument; likewise.

    Examples
    --------
    >>> get("mlpp")
    Traceback (most recent call last):
    ValueError: no model is called 'mlpp'; did you mean 'mlp'? Known: convnet6, lenet, mlp, resnet8
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; {nearest(name, MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for argument in arguments:
        if argument not in known:
            raise TypeError(f"{name} takes no argument {argument!r}; {nearest(argument, known)}")
    return MODELS[name](**arguments)


__all__ = ["convnet6", "get", "lenet", "mlp", "resnet8"]
