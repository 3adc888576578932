"""What is measured on a GPU. The first cases are those that the targets ask for.

Matrix products and convolutions in true float32 and in tf32; kernels that only move memory; the
host's time for a small op; training steps. PyTorch is the peer, in its two memory formats, as it
comes and as a CUDA graph, and CuPy where it has the operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import numbagrad as ng

from .. import networks, peers, precision
from ..measure import Case, Contender, Run
from ..networks import STEP_TOLERANCE
from ..optional import cupy
from ..peers import FILTER, IMAGE, PLAIN, Operation
from ..results import COMPILED, FORWARD, OURS
from . import clocks
from .results import (
    BY_INPUT,
    BY_WEIGHT,
    CHANNELS_LAST,
    COPY,
    CUPY,
    GRAPH,
    GRAPH_CHANNELS_LAST,
    TF32,
    TORCH,
    TORCH_TF32,
)  # fmt: skip

F = torch.nn.functional

TOLERANCE, TF32_TOLERANCE = 1e-4, 5e-3
CONV_TOLERANCE = 1e-3  # cuDNN may choose Winograd's algorithm


@dataclass(frozen=True)
class Sizes:
    """How large the cases are.

    Attributes
    ----------
    gemm
        Extents of square matrices, the one that has a target first.
    convolutions
        (batch, extent, channels) of the images.
    floats
        In each array of the kernels that move memory: much more than the GPU's cache holds.
    steps
        For each network its name, the extent and channels of its images, and the batch size.
    """

    gemm: tuple[int, ...]
    convolutions: tuple[tuple[int, int, int], ...]
    floats: int
    steps: tuple[tuple[str, int, int, int], ...]


FULL = Sizes(
    gemm=(4096, 2048, 1024, 512),
    convolutions=((256, 32, 64), (256, 16, 128), (256, 8, 256)),
    floats=1 << 25,
    steps=(("lenet", 28, 1, 128), ("convnet6", 32, 3, 512), ("resnet8", 32, 3, 128)),
)
#: For the simulator.
TINY = Sizes(
    gemm=(5,), convolutions=((1, 3, 2),), floats=32, steps=(("mlp", 1, 1, 2),)
)  # fmt: skip


def on_gpu() -> bool:
    """Say whether this is no rehearsal: then ours is simulated, and PyTorch works on the CPU."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM") != "1"


def gpu_works() -> bool:
    """Say whether the GPU still computes: an access out of bounds ends a process's use of it."""
    try:
        ng.asarray([1.0], device="cuda").numpy()
        clocks.synchronize()
    except Exception:
        return False
    return True


def prepare_peers() -> None:
    """Let PyTorch choose its fastest algorithms; without `precision`, of those in true float32.

    Raises
    ------
    RuntimeError
        If this PyTorch cannot use the GPU.
    """
    if on_gpu() and not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU: it is needed as the peer")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # is on by default


def their_device() -> str:
    """Return where PyTorch works."""
    return "cuda" if on_gpu() else "cpu"


# ------------------------------------------------------------------ precision


our_tf32 = partial(precision.ours, "high")
their_tf32 = partial(precision.theirs, "high")


def within(
    context: Callable[[], AbstractContextManager],
    way: Contender,
    tolerance: float = TF32_TOLERANCE,
) -> Contender:
    """Return a contender that works in a context; its results are as exact as tf32 makes them."""

    def make() -> Run:
        with context():
            run = way.make()

        def run_within(k: int) -> Any:
            with context():
                return run(k)

        return run_within

    return replace(way, make=make, tolerance=tolerance)


# ----------------------------------------------------------------- operations


def _cupy_way(operation: Operation, sets: list) -> Contender:
    def make() -> Run:
        operands = [[cupy.asarray(array) for array in arrays] for arrays in sets]
        return lambda k: (operation.numpy(*operands[k]),)

    return Contender(make, lambda results: [cupy.asnumpy(x) for x in results])


def _prepare(operation: Operation, sets: int, tf32: bool, seed: int, compiled: bool) -> tuple:
    """Return the contenders of an operation, and its float64 reference by PyTorch."""
    drawn = operation.draw(seed, sets)
    device = their_device()
    ways = {OURS: peers.our_way(operation, drawn, "cuda")}
    if operation.compiled:
        ways = {COMPILED: peers.our_compiled_way(operation, drawn, "cuda")}
    ways[TORCH] = peers.torch_way(operation, drawn, device=device)
    if IMAGE in operation.meanings:
        ways[CHANNELS_LAST] = peers.torch_way(operation, drawn, True, device=device)
    if operation.numpy is not None and on_gpu():
        ways[CUPY] = _cupy_way(operation, drawn)
    if tf32 and on_gpu():
        if precision.OURS_IN_TF32:
            ways[TF32] = within(our_tf32, ways[OURS])
        ways[TORCH_TF32] = within(their_tf32, ways.get(CHANNELS_LAST, ways[TORCH]))

    def expected(k: int) -> list[np.ndarray]:
        doubled = [[array.astype(np.float64) for array in drawn[k]]]
        way = peers.torch_way(operation, doubled, device=device)
        return way.arrays(way.make()(0))

    return ways, expected


def gemm_cases(sizes: Sizes) -> list[Case]:
    """Return products of square matrices."""

    def product(a: Any, b: Any) -> Any:
        return a @ b

    return [
        Case(
            "gemm",
            f"{n} x {n} x {n}",
            "",
            partial(
                _prepare,
                Operation(((PLAIN, (n, n)),) * 2, ng=product, torch=product, numpy=product),
                2,
                True,
            ),
            tolerance=TOLERANCE,
            sets=2,
        )
        for n in sizes.gemm
    ]


def convolution_cases(sizes: Sizes) -> list[Case]:
    """Return 3x3 convolutions, and each of their gradients alone."""
    cases = []
    for batch, extent, channels in sizes.convolutions:
        images, filters = (batch, extent, extent, channels), (3, 3, channels, channels)
        name = f"3x3 {channels}->{channels}, {batch} of {extent}x{extent}"
        forward = Operation(
            ((IMAGE, images), (FILTER, filters)),
            ng=lambda x, weight: ng.conv2d(x, weight, padding=1),
            torch=lambda x, weight: F.conv2d(x, weight, padding=1),
            output=IMAGE,
        )
        prepare = partial(_prepare, forward, 2, True)
        cases.append(Case("conv", name, FORWARD, prepare, CONV_TOLERANCE, sets=2))
        for part in (BY_INPUT, BY_WEIGHT):
            prepare = partial(_prepare_gradient, images, filters, part)
            cases.append(Case("conv", name, part, prepare, CONV_TOLERANCE, sets=2))
    return cases


def _prepare_gradient(images: tuple, filters: tuple, part: str, seed: int, compiled: bool) -> tuple:
    """Return the contenders for one gradient of a convolution, without the forward pass."""
    rng = np.random.default_rng(seed)
    sets = [
        [rng.standard_normal(shape, np.float32) for shape in (images, filters, images)]
        for _ in range(2)
    ]
    meanings = IMAGE, FILTER, IMAGE
    result = IMAGE if part == BY_INPUT else FILTER
    mask = [part == BY_INPUT, part == BY_WEIGHT, False]
    device = their_device()

    def ours() -> Run:
        pullbacks = []
        for x, weight, grad_out in sets:
            x, weight, grad_out = (
                ng.asarray(array, device="cuda") for array in (x, weight, grad_out)
            )
            if part == BY_INPUT:
                _, pullback = ng.vjp(lambda x, w=weight: ng.conv2d(x, w, padding=1), x)
            else:
                _, pullback = ng.vjp(lambda w, x=x: ng.conv2d(x, w, padding=1), weight)
            pullbacks.append(partial(pullback, grad_out))
        return lambda k: pullbacks[k]()

    def theirs(channels_last: bool = False, dtype: torch.dtype = torch.float32) -> Contender:
        def make() -> Run:
            operands = [
                [
                    peers.torch_tensor(meaning, array, channels_last, device).to(dtype)
                    for meaning, array in zip(meanings, arrays, strict=True)
                ]
                for arrays in sets
            ]

            def run(k: int) -> tuple:
                x, weight, grad_out = operands[k]
                gradients = torch.ops.aten.convolution_backward(
                    grad_out, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
                )
                return (gradients[mask.index(True)],)

            return run

        return Contender(make, lambda out: [peers.from_torch(result, each) for each in out])

    ways = {
        OURS: Contender(ours, lambda out: [x.numpy() for x in out]),
        TORCH: theirs(),
        CHANNELS_LAST: theirs(channels_last=True),
    }
    if on_gpu():
        if precision.OURS_IN_TF32:
            ways[TF32] = within(our_tf32, ways[OURS])
        ways[TORCH_TF32] = within(their_tf32, ways[CHANNELS_LAST])
    exact = theirs(dtype=torch.float64)
    return ways, lambda k: exact.arrays(exact.make()(k))


# ----------------------------------------------- kernels that only move memory


def bandwidth_cases(sizes: Sizes) -> list[Case]:
    """Return kernels whose time should be that of their bytes: see `results.bytes_of`.

    Each has one set of inputs: they are larger than any cache, so nothing is found there again.
    """
    n = sizes.floats
    rows = (n // 32, 32) if n < 1 << 20 else (n // 1024, 1024)
    images = (n // 32, 2, 2, 8) if n < 1 << 20 else (n // (32 * 32 * 128), 32, 32, 128)
    channels = images[-1]
    running = [
        ng.layers.Buffer(np.full(channels, value, np.float32), device="cuda") for value in (0, 1)
    ]

    def their_norm(x: Any, weight: Any, bias: Any) -> Any:
        mean, var = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
        return F.batch_norm(x, mean, var, weight, bias, training=True)

    flat = (PLAIN, (n,))
    operations = {
        COPY: Operation((flat,), ng=ng.copy, torch=torch.clone, numpy=lambda x: x.copy()),
        "relu": Operation((flat,), ng=ng.relu, torch=F.relu),
        "add": Operation(
            (flat,) * 2,
            ng=lambda x, y: x + y,
            torch=lambda x, y: x + y,
            numpy=lambda x, y: x + y,
        ),
        "chain tanh(x y + x) exp(-y y)": Operation(
            (flat,) * 2,
            ng=lambda x, y: ng.tanh(x * y + x) * ng.exp(-y * y),
            torch=lambda x, y: torch.tanh(x * y + x) * torch.exp(-y * y),
            compiled=True,
        ),
        "sum": Operation((flat,), ng=ng.sum, torch=torch.sum, numpy=lambda x: x.sum()),
        "sum of rows": Operation(
            ((PLAIN, rows),),
            ng=lambda x: ng.sum(x, 1),
            torch=lambda x: x.sum(1),
            numpy=lambda x: x.sum(1),
        ),
        "sum of columns": Operation(
            ((PLAIN, rows),),
            ng=lambda x: ng.sum(x, 0),
            torch=lambda x: x.sum(0),
            numpy=lambda x: x.sum(0),
        ),
        "softmax": Operation(
            ((PLAIN, rows),), ng=ng.softmax, torch=lambda x: F.softmax(x, -1)
        ),
        "batch norm": Operation(
            ((IMAGE, images), (PLAIN, (channels,)), (PLAIN, (channels,))),
            ng=lambda x, weight, bias: ng.batch_norm(x, weight, bias, *running, training=True),
            torch=their_norm,
            output=IMAGE,
        ),
        "max pooling 2x2": Operation(
            ((IMAGE, images),),
            ng=lambda x: ng.max_pool2d(x, 2),
            torch=lambda x: F.max_pool2d(x, 2),
            output=IMAGE,
        ),
    }  # fmt: skip
    return [
        Case(
            "bandwidth",
            name,
            f"{n:,} floats",
            partial(_prepare, operation, 1, False),
            # Sums over all cancel: what is left is small beside what was added up.
            tolerance=1e-2 if name == "sum" else TOLERANCE,
            sets=1,
        )
        for name, operation in operations.items()
    ]


# ---------------------------------------------------------------- calls, steps


def launch_cases() -> list[Case]:
    """Return calls of one small op; what counts is the host's time."""
    return [
        Case("launch", name, "", partial(_prepare_call, shapes, function))
        for name, shapes, function in networks.CALLS
        if name.rpartition(", ")[2] in ("an op without gradient", "sum", "matrix product")
    ]


def _prepare_call(shapes: tuple, function: Callable, seed: int, compiled: bool) -> tuple:
    sets = networks.operands_of(seed, shapes)

    def way(asarray: Callable, asnumpy: Callable) -> Contender:
        def make() -> Run:
            operands = [list(map(asarray, each)) for each in sets]
            return lambda k: function(*operands[k])

        return Contender(make, lambda out: [asnumpy(out)])

    ways = {
        OURS: way(partial(ng.asarray, device="cuda"), lambda x: x.numpy()),
        TORCH: way(partial(torch.tensor, device=their_device()), lambda x: x.cpu().numpy()),
    }
    if on_gpu():
        ways[CUPY] = way(cupy.asarray, cupy.asnumpy)
    return ways, lambda k: [np.asarray(function(*(x.astype(np.float64) for x in sets[k])))]


def step_cases(sizes: Sizes) -> list[Case]:
    """Return a training step (forward, loss, backward, Adam) of each network."""
    return [
        Case(
            "steps",
            f"{name}, batch {batch}",
            "",
            partial(_prepare_step, name, extent, channels, batch),
            tolerance=STEP_TOLERANCE,
        )
        for name, extent, channels, batch in sizes.steps
    ]


def _prepare_step(
    name: str, extent: int, channels: int, batch: int, seed: int, compiled: bool
) -> tuple:
    ng.random.seed(seed)
    model = ng.models.get(name, in_channels=channels, image_size=extent)
    batches = networks.batches_of(seed, batch, extent, channels)
    ours = partial(networks.our_step, model, batches, device="cuda")
    theirs = partial(networks.torch_step, model, batches, device=their_device())
    ways = {
        OURS: networks.loss_way(ours),
        COMPILED: networks.loss_way(partial(ours, compiled=True)),
        TORCH: networks.loss_way(theirs),
    }
    if on_gpu():
        ways[GRAPH] = networks.loss_way(partial(theirs, graph=True))
        if precision.OURS_IN_TF32:
            ways[TF32] = within(our_tf32, ways[COMPILED], 2 * STEP_TOLERANCE)
    if networks.has_images(model):
        last = partial(theirs, channels_last=True)
        ways[CHANNELS_LAST] = networks.loss_way(last)
        if on_gpu():
            ways[GRAPH_CHANNELS_LAST] = networks.loss_way(partial(last, graph=True))
            ways[TORCH_TF32] = within(their_tf32, ways[GRAPH_CHANNELS_LAST], 2 * STEP_TOLERANCE)
    exact = theirs(dtype=torch.float64)
    return ways, lambda k: [networks.beside_a_guess(exact(k))]


def all_cases(sizes: Sizes) -> list[Case]:
    """Return everything, in the order of importance: a run may be cut off."""
    gemm = gemm_cases(sizes)
    return [
        gemm[0],
        *convolution_cases(sizes),
        *step_cases(sizes),
        *bandwidth_cases(sizes),
        *launch_cases(),
        *gemm[1:],
    ]
