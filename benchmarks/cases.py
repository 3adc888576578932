"""What is measured, case by case: operations. (Whole networks are in ``networks.py``.)

A case is measured alone (``forward``) and, where that makes sense, together with the gradients of
all its operands (``forward + gradients``): the second is what training does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import numbagrad as ng

from . import networks, scaling
from .measure import Case
from .optional import jax
from .peers import (
    FILTER,
    IMAGE,
    PLAIN,
    Operation,
    contenders,
    jax_avg_pool,
    jax_batch_norm,
    jax_conv,
    jax_max_pool,
    reference,
)
from .results import FORWARD, GRADIENTS

F = torch.nn.functional


def _case(family: str, name: str, part: str, operation: Operation, quick: bool = True) -> Case:
    def prepare(seed: int, compiled: bool) -> tuple:
        return contenders(operation, seed, compiled), reference(operation, seed)

    return Case(family, name, part, prepare, quick=quick)


def _both(family: str, name: str, quick: bool = True, **operation: Any) -> list[Case]:
    """Return the operation alone, and with its gradients (all that a quick run measures)."""
    return [
        _case(family, name, FORWARD, Operation(**operation), quick=False),
        _case(family, name, GRADIENTS, Operation(**operation, gradients=True), quick),
    ]


# ------------------------------------------------------------ matrix products

# (m, k, n): out is m x n
GEMM = [
    (16, 16, 16),
    (64, 64, 64),
    (128, 128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (1536, 1536, 1536),
    (8192, 64, 32),  # tall
    (32, 256, 8192),  # wide
    (128, 784, 128),  # the first layer of the MLP
    (97, 131, 53),  # nothing divides
]


def _gemm() -> list[Case]:
    def product(a, b):
        return a @ b

    return [
        _case(
            "gemm",
            f"{m} x {k} x {n}",
            "",
            Operation(
                ((PLAIN, (m, k)), (PLAIN, (k, n))),
                ng=product,
                torch=product,
                jax=product,
                numpy=product,
            ),
        )
        for m, k, n in GEMM
    ]


# --------------------------------------------------------------- convolutions


@dataclass(frozen=True)
class Conv:
    """A convolution: square images, square filters."""

    what: str
    batch: int
    size: int
    channels: int
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def name(self) -> str:
        """What it is and its extents."""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return (
            f"{self.what} {self.kernel}x{self.kernel} {self.channels}->{self.filters}{stride}, "
            f"{self.batch} of {self.size}x{self.size}"
        )


CONVOLUTIONS = [
    Conv("LeNet's first", 128, 28, 1, 6, 5, padding=2),
    Conv("first layer", 64, 32, 3, 32, 3, padding=1),
    Conv("first layer", 4, 224, 3, 64, 7, stride=2, padding=3),
    Conv("", 64, 32, 16, 16, 3, padding=1),
    Conv("", 32, 32, 32, 32, 3, padding=1),
    Conv("", 64, 16, 64, 64, 3, padding=1),
    Conv("", 32, 16, 64, 128, 3, padding=1),
    Conv("", 64, 8, 128, 128, 3, padding=1),
    Conv("", 16, 8, 256, 256, 3, padding=1),
    Conv("", 32, 16, 64, 256, 1),
    Conv("", 32, 16, 256, 64, 1),
    Conv("LeNet's second", 128, 14, 6, 16, 5),
    Conv("", 32, 16, 32, 64, 5, padding=2),
    Conv("", 64, 32, 16, 32, 3, stride=2, padding=1),
    Conv("shortcut", 64, 16, 32, 64, 1, stride=2),
    Conv("depthwise", 32, 32, 64, 64, 3, padding=1, groups=64),
]


def _convolutions() -> list[Case]:
    cases = []
    for number, conv in enumerate(CONVOLUTIONS):
        window = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
        depth = conv.channels // conv.groups
        cases += _both(
            "conv",
            conv.name.strip(),
            quick=number % 2 == 1,
            inputs=(
                (IMAGE, (conv.batch, conv.size, conv.size, conv.channels)),
                (FILTER, (conv.kernel, conv.kernel, depth, conv.filters)),
            ),
            output=IMAGE,
            ng=lambda x, weight, window=window: ng.conv2d(x, weight, **window),
            torch=lambda x, weight, window=window: F.conv2d(x, weight, **window),
            jax=lambda x, weight, window=window: jax_conv(x, weight, **window),
        )
    return cases


# -------------------------------------------------------------------- pooling


def _pooling() -> list[Case]:
    shape = (64, 32, 32, 32)
    cases = []
    for images in ((128, 28, 28, 6), shape):
        n, h, w, c = images
        cases += _both(
            "pooling",
            f"max 2x2, {n} of {h}x{w}x{c}",
            inputs=((IMAGE, images),),
            output=IMAGE,
            ng=lambda x: ng.max_pool2d(x, 2),
            torch=lambda x: F.max_pool2d(x, 2),
            jax=lambda x: jax_max_pool(x, 2),
        )
    cases += _both(
        "pooling",
        "max 3x3 stride 2, 64 of 32x32x32",
        inputs=((IMAGE, shape),),
        output=IMAGE,
        ng=lambda x: ng.max_pool2d(x, 3, stride=2, padding=1),
        torch=lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
        jax=lambda x: jax_max_pool(x, 3, 2, 1),
    )
    cases += _both(
        "pooling",
        "mean 2x2, 64 of 32x32x32",
        inputs=((IMAGE, shape),),
        output=IMAGE,
        ng=lambda x: ng.avg_pool2d(x, 2),
        torch=lambda x: F.avg_pool2d(x, 2),
        jax=lambda x: jax_avg_pool(x, 2),
    )
    cases += _both(
        "pooling",
        "mean of the image, 64 of 8x8x64",
        inputs=((IMAGE, (64, 8, 8, 64)),),
        ng=lambda x: ng.mean(x, (1, 2)),
        torch=lambda x: x.mean((2, 3)),
        jax=lambda x: x.mean((1, 2)),
    )
    return cases


# ---------------------------------------------------------------------- norms


def _norms() -> list[Case]:
    cases = []
    for shape in ((64, 32, 32, 32), (64, 16, 16, 64), (32, 8, 8, 128)):
        channels = shape[-1]
        mean = np.zeros(channels, np.float32)
        var = np.ones(channels, np.float32)
        running = ng.layers.Buffer(mean), ng.layers.Buffer(var)

        def ours(x, weight, bias, running=running):
            return ng.batch_norm(x, weight, bias, *running, training=True)

        def theirs(x, weight, bias):
            # Running statistics of the operands' dtype, updated as ours are.
            mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
            return F.batch_norm(x, mean, var, weight, bias, training=True)

        n, h, w, c = shape
        cases += _both(
            "norms",
            f"batch norm, {n} of {h}x{w}x{c}",
            inputs=((IMAGE, shape), (PLAIN, (c,)), (PLAIN, (c,))),
            output=IMAGE,
            ng=ours,
            torch=theirs,
            jax=lambda x, weight, bias: jax_batch_norm(x, weight, bias)[0],
            compiled=shape == (64, 16, 16, 64),
        )
    return cases


# -------------------------------------------------------------------- softmax


def _softmax() -> list[Case]:
    cases = []
    for rows, classes in ((128, 10), (1024, 1000)):
        cases += _both(
            "softmax",
            f"softmax, {rows} x {classes}",
            inputs=((PLAIN, (rows, classes)),),
            ng=ng.softmax,
            torch=lambda x: F.softmax(x, -1),
            jax=jax.nn.softmax,
            compiled=classes == 1000,
        )
        labels = np.random.default_rng(rows).integers(0, classes, rows)
        rows_of, ours, theirs = np.arange(rows), ng.asarray(labels), torch.from_numpy(labels)
        cases += _both(
            "softmax",
            f"cross-entropy, {rows} x {classes}",
            inputs=((PLAIN, (rows, classes)),),
            ng=lambda x, labels=ours: ng.softmax_cross_entropy(x, labels),
            torch=lambda x, labels=theirs: F.cross_entropy(x, labels),
            jax=lambda x, rows=rows_of, labels=labels: -jax.nn.log_softmax(x)[rows, labels].mean(),
        )
    return cases


# ---------------------------------------------------------------- elementwise


def _elementwise() -> list[Case]:
    cases = []
    for size in (10_000, 1_000_000):
        cases += _both(
            "elementwise",
            f"relu, {size:,}",
            inputs=((PLAIN, (size,)),),
            ng=ng.relu,
            torch=F.relu,
            jax=jax.nn.relu,
            numpy=lambda x: np.maximum(x, 0),
        )
    cases += _both(
        "elementwise",
        "add a bias, 8192 x 128",
        inputs=((PLAIN, (8192, 128)), (PLAIN, (128,))),
        ng=lambda x, bias: x + bias,
        torch=lambda x, bias: x + bias,
        jax=lambda x, bias: x + bias,
        numpy=lambda x, bias: x + bias,
    )
    cases += _both(
        "elementwise",
        "gelu, 1,000,000",
        inputs=((PLAIN, (1_000_000,)),),
        ng=ng.gelu,
        torch=F.gelu,
        jax=lambda x: jax.nn.gelu(x, approximate=False),
    )
    cases += _both(
        "elementwise",
        "chain tanh(x y + x) exp(-y y), 1,000,000",
        inputs=((PLAIN, (1_000_000,)), (PLAIN, (1_000_000,))),
        ng=lambda x, y: ng.tanh(x * y + x) * ng.exp(-y * y),
        torch=lambda x, y: torch.tanh(x * y + x) * torch.exp(-y * y),
        jax=lambda x, y: jax.numpy.tanh(x * y + x) * jax.numpy.exp(-y * y),
        numpy=lambda x, y: np.tanh(x * y + x) * np.exp(-y * y),
        compiled=True,
    )
    return cases


# ------------------------------------------------------- everything, by family

FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "gemm": _gemm,
    "conv": _convolutions,
    "pooling": _pooling,
    "norms": _norms,
    "softmax": _softmax,
    "elementwise": _elementwise,
    "optimiser": networks.optimiser_cases,
    "dispatch": networks.dispatch_cases,
    "steps": networks.step_cases,
    "inference": networks.inference_cases,
    scaling.FAMILY: networks.scaling_cases,  # by a command of its own: see `scaling`
}
