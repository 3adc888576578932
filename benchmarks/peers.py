"""The same work in numbagrad, PyTorch, JAX and NumPy, each with its own layout and its own way.

Inputs are made in NumPy, images as NHWC and filters as HWIO, and converted before the clock runs:
PyTorch gets NCHW and OIHW, in its default memory format and in ``channels_last``; numbagrad and
JAX take them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import numbagrad as ng

from .measure import INPUT_SETS, Contender, Run
from .optional import jax
from .results import COMPILED, OURS

# What an array means decides how PyTorch wants it laid out.
PLAIN, IMAGE, FILTER = "plain", "image", "filter"
TO_TORCH = {IMAGE: (0, 3, 1, 2), FILTER: (3, 2, 0, 1)}
FROM_TORCH = {IMAGE: (0, 2, 3, 1), FILTER: (2, 3, 1, 0)}


@dataclass(frozen=True)
class Operation:
    """An operation and its operands, for every library.

    Attributes
    ----------
    inputs
        For each operand what it means and its shape.
    output
        What the result means.
    ng, torch, jax, numpy
        The operation in each library; None leaves the library out.
    gradients
        Measure the operation and the gradients of all operands, else the operation alone.
    compiled
        Let ``ng.compile`` and ``torch.compile`` take part. The latter needs some 10 s for each
        case, so only some have it.
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    ng: Callable
    torch: Callable
    jax: Callable | None = None
    numpy: Callable | None = None
    output: str = PLAIN
    gradients: bool = False
    compiled: bool = False

    def draw(self, seed: int, count: int = INPUT_SETS) -> list[list[np.ndarray]]:
        """Return fresh inputs: for each set the operands, then the gradient of the output."""
        rng = np.random.default_rng(seed)
        sets = [
            [rng.standard_normal(shape, np.float32) for _, shape in self.inputs]
            for _ in range(count)
        ]
        if self.gradients:
            for operands in sets:
                out = self.ng(*map(ng.asarray, operands))
                operands.append(rng.standard_normal(out.shape, np.float32))
        return sets

    @property
    def meanings(self) -> list[str]:
        """What each array of a set means."""
        return [meaning for meaning, _ in self.inputs] + [self.output] * self.gradients

    @property
    def results(self) -> list[str]:
        """What each array of the result means: the output, then the gradients."""
        return [self.output] + [meaning for meaning, _ in self.inputs] * self.gradients


def contenders(operation: Operation, seed: int, compiled: bool) -> dict[str, Contender]:
    """Return every library's way to run the operation on the same inputs."""
    sets = operation.draw(seed)
    ways = {OURS: our_way(operation, sets), "PyTorch": torch_way(operation, sets)}
    if operation.compiled:
        ways[COMPILED] = our_compiled_way(operation, sets)
    if IMAGE in operation.meanings:
        ways["PyTorch channels_last"] = torch_way(operation, sets, channels_last=True)
    if compiled and operation.compiled:
        ways["PyTorch compiled"] = torch_way(operation, sets, compiled=True)
    if operation.jax is not None:
        ways["JAX"] = _jax(operation, sets)
    if operation.numpy is not None and not operation.gradients:
        ways["NumPy"] = Contender(
            lambda: lambda k: operation.numpy(*sets[k]), lambda out: [np.asarray(out)]
        )
    return ways


def reference(operation: Operation, seed: int) -> Callable[[int], list[np.ndarray]]:
    """Return the function that computes the k-th result in float64: NumPy, else PyTorch."""
    sets = operation.draw(seed)

    def expected(k: int) -> list[np.ndarray]:
        doubled = [[array.astype(np.float64) for array in sets[k]]]
        if operation.numpy is not None and not operation.gradients:
            return [operation.numpy(*doubled[0])]
        way = torch_way(operation, doubled)
        return way.arrays(way.make()(0))

    return expected


# ---------------------------------------------------------------- numbagrad


def our_way(operation: Operation, sets: list, device: str = "cpu") -> Contender:
    """Return our way to run an operation in eager mode."""

    def make() -> Run:
        operands = [[ng.asarray(array, device=device) for array in arrays] for arrays in sets]
        if not operation.gradients:
            return lambda k: (operation.ng(*operands[k]),)
        grads = [arrays.pop() for arrays in operands]
        for x in (x for arrays in operands for x in arrays):
            x.requires_grad = True

        def run(k: int) -> tuple:
            for x in operands[k]:
                x.grad = None
            out = operation.ng(*operands[k])
            out.backward(grads[k])
            return out, *(x.grad for x in operands[k])

        return run

    return Contender(make, lambda results: [x.numpy() for x in results])


def our_compiled_way(operation: Operation, sets: list, device: str = "cpu") -> Contender:
    """Return our way to run an operation compiled."""

    def both(*operands: ng.Array) -> tuple:
        *primals, grad = operands
        out, pullback = ng.vjp(operation.ng, *primals)
        return out, *pullback(grad)

    def make() -> Run:
        operands = [[ng.asarray(array, device=device) for array in arrays] for arrays in sets]
        if operation.gradients:
            function = ng.compile(both)
            return lambda k: function(*operands[k])
        function = ng.compile(operation.ng)
        return lambda k: (function(*operands[k]),)

    return Contender(make, lambda results: [x.numpy() for x in results])


# ------------------------------------------------------------------ PyTorch


def torch_tensor(
    meaning: str, array: np.ndarray, channels_last: bool = False, device: str = "cpu"
) -> torch.Tensor:
    """Convert an array of ours."""
    if meaning in TO_TORCH:
        array = array.transpose(TO_TORCH[meaning])
    tensor = torch.from_numpy(np.array(array, order="C")).to(device)
    if channels_last and meaning in TO_TORCH:
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor


def from_torch(meaning: str, tensor: torch.Tensor) -> np.ndarray:
    """Convert a tensor into our layout."""
    array = tensor.detach().cpu().numpy()
    return array.transpose(FROM_TORCH[meaning]) if meaning in FROM_TORCH else array


def torch_compiled(function: Callable) -> Callable:
    """Compile for the shapes at hand: what earlier cases compiled makes no shape dynamic."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def torch_way(
    operation: Operation,
    sets: list,
    channels_last: bool = False,
    compiled: bool = False,
    device: str = "cpu",
) -> Contender:
    """Return PyTorch's way to run an operation."""

    def make() -> Run:
        operands = [
            [
                torch_tensor(meaning, array, channels_last, device)
                for meaning, array in zip(operation.meanings, arrays, strict=True)
            ]
            for arrays in sets
        ]
        function = torch_compiled(operation.torch) if compiled else operation.torch
        if not operation.gradients:

            def forward(k: int) -> tuple:
                with torch.no_grad():
                    return (function(*operands[k]),)

            return forward
        grads = [tensors.pop() for tensors in operands]
        for tensor in (tensor for tensors in operands for tensor in tensors):
            tensor.requires_grad_()

        def run(k: int) -> tuple:
            out = function(*operands[k])
            return out, *torch.autograd.grad(out, operands[k], grads[k])

        return run

    def arrays(results: Sequence[torch.Tensor]) -> list[np.ndarray]:
        pairs = zip(operation.results, results, strict=True)
        return [from_torch(meaning, tensor) for meaning, tensor in pairs]

    return Contender(make, arrays)


# ---------------------------------------------------------------------- JAX


def _jax(operation: Operation, sets: list) -> Contender:
    def make() -> Run:
        operands = [[jax.numpy.asarray(array) for array in arrays] for arrays in sets]
        if operation.gradients:

            @jax.jit
            def function(*operands: Any) -> tuple:
                *operands, grad = operands
                out, pullback = jax.vjp(operation.jax, *operands)
                return out, *pullback(grad)
        else:
            function = jax.jit(lambda *operands: (operation.jax(*operands),))
        return lambda k: jax.block_until_ready(function(*operands[k]))

    return Contender(make, lambda results: [np.asarray(x) for x in results])


def jax_conv(x: Any, weight: Any, stride: int = 1, padding: int = 0, groups: int = 1) -> Any:
    """Convolve NHWC images with HWIO filters."""
    return jax.lax.conv_general_dilated(
        x,
        weight,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def jax_max_pool(x: Any, size: int, stride: int | None = None, padding: int = 0) -> Any:
    """Return the largest of each window of NHWC images."""
    window, steps = (1, size, size, 1), (1, stride or size, stride or size, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, steps, pads)


def jax_avg_pool(x: Any, size: int) -> Any:
    """Return the mean of each window of NHWC images."""
    window = (1, size, size, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / size**2


def jax_batch_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> tuple[Any, Any, Any]:
    """Return the normalised batch, its mean and its variance."""
    rows = tuple(range(x.ndim - 1))
    mean = x.mean(rows)
    var = ((x - mean) ** 2).mean(rows)
    return (x - mean) * jax.lax.rsqrt(var + eps) * weight + bias, mean, var
