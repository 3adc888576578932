"""What is measured, case by case: training steps, inference, the optimiser, the cost of a call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import numbagrad as ng

from . import scaling
from .measure import INPUT_SETS, Case, Contender, Run
from .optional import jax
from .peers import IMAGE, torch_compiled, torch_tensor
from .results import COMPILED, OURS
from .twins import jax_adam, jax_moments, jax_twin, torch_twin

LEARNING_RATE = 1e-3
# Of the loss, before, and after one and two steps. Adam's first steps are all of one length: where
# a gradient is next to nothing, rounding decides which way they go.
STEP_TOLERANCE = 1e-2

# ------------------------------------------------------------ training steps

# Networks with the extent and the channels of their images, batch sizes, and those of them at which
# torch.compile takes part: it needs up to a minute for each.
STEPS = [
    ("mlp", 28, 1, (1, 32, 128), (1, 128)),
    ("lenet", 28, 1, (1, 32, 128), (1, 128)),
    ("convnet6", 32, 3, (1, 32, 64, 128), (1, 64)),
    ("resnet8", 32, 3, (1, 64, 128), (1, 64)),
]
# Those that have a target, see `results.targets`.
TARGETED = (("lenet", 128), ("convnet6", 64), ("mlp", 128))

Batch = tuple[np.ndarray, np.ndarray]


def step_cases() -> list[Case]:
    """Return a training step (forward, loss, backward, Adam) of each network and batch size."""
    return [
        Case(
            "steps",
            f"{name}, batch {batch}",
            "",
            partial(_prepare_step, name, size, channels, batch, batch in compiled),
            tolerance=STEP_TOLERANCE,
            quick=(name, batch) in TARGETED,
        )
        for name, size, channels, batches, compiled in STEPS
        for batch in batches
    ]


def _prepare_step(
    name: str, size: int, channels: int, batch: int, worth: bool, seed: int, compiled: bool
):
    ng.random.seed(seed)
    model = ng.models.get(name, in_channels=channels, image_size=size)
    batches = batches_of(seed, batch, size, channels)
    ways, reference = _step_ways(model, batches)
    ways = {OURS: loss_way(partial(our_step, model, batches)), **ways}
    if compiled and worth:
        theirs = partial(torch_step, model, batches, compiled=True)
        ways["PyTorch compiled"] = loss_way(theirs)
        if has_images(model):
            ways["PyTorch compiled channels_last"] = loss_way(partial(theirs, channels_last=True))
    return ways, reference


def batches_of(seed: int, batch: int, size: int, channels: int) -> list[Batch]:
    """Return random batches of images with labels."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(size=(batch, size, size, channels)).astype(np.float32),
            rng.integers(0, 10, batch),
        )
        for _ in range(INPUT_SETS)
    ]


def _step_ways(model: ng.layers.Module, batches: list[Batch]) -> tuple[dict, Callable]:
    """Return our compiled step and the peers', and the reference that all are held to."""
    theirs = partial(torch_step, model, batches)
    ways = {
        COMPILED: loss_way(partial(our_step, model, batches, compiled=True)),
        "PyTorch": loss_way(theirs),
        "JAX": loss_way(partial(_jax_step, model, batches)),
    }
    if has_images(model):
        ways["PyTorch channels_last"] = loss_way(partial(theirs, channels_last=True))
    exact = torch_step(model, batches, dtype=torch.float64)
    return ways, lambda k: [beside_a_guess(exact(k))]


def has_images(model: ng.layers.Module) -> bool:
    """Say whether a network convolves: then PyTorch's memory formats differ."""
    return any(isinstance(layer, ng.layers.Conv2d) for layer in model.modules())


def loss_way(make: Callable[[], Run]) -> Contender:
    """Return the contender whose run returns a loss."""
    return Contender(make, lambda loss: [beside_a_guess(loss)])


def beside_a_guess(loss: Any) -> np.ndarray:
    """Return a loss and that of guessing among ten classes: what is off is a share of the larger.

    After a step of Adam's on one image a loss may be next to nothing.
    """
    return np.array([as_numpy(loss), np.log(10.0)])


def as_numpy(loss: Any) -> np.ndarray:
    """Return any library's loss as a NumPy array."""
    if isinstance(loss, torch.Tensor):
        return loss.detach().cpu().numpy()
    return loss.numpy() if isinstance(loss, ng.Array) else np.asarray(loss)


def our_step(
    model: ng.layers.Module, batches: list[Batch], compiled: bool = False, device: str = "cpu"
) -> Run:
    """Return the function that does a step on the k-th batch, written as in the README."""
    model = copy.deepcopy(model).to(device)  # the twins start from the same weights
    model.train()
    optimizer = ng.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    arrays = [tuple(ng.asarray(each, device=device) for each in batch) for batch in batches]

    def step(images: ng.Array, labels: ng.Array) -> ng.Array:
        loss = ng.softmax_cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = ng.compile(step) if compiled else step
    return lambda k: run(*arrays[k])


def torch_step(
    model: ng.layers.Module,
    batches: list[Batch],
    channels_last: bool = False,
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    graph: bool = False,
) -> Run:
    """Return the same for the model's twin in PyTorch, with its fused Adam, the fastest it has.

    With ``graph``, the step is captured as a CUDA graph once, and replayed.
    """
    twin = torch_twin(model, batches[0][0].shape).to(device, dtype)
    if channels_last:
        twin = twin.to(memory_format=torch.channels_last)
    tensors = [
        (
            torch_tensor(IMAGE, images, channels_last, device).to(dtype),
            torch.from_numpy(labels).to(device),
        )
        for images, labels in batches
    ]
    # A learning rate in memory, and a step count too, are what a graph can be captured with.
    optimizer = torch.optim.Adam(twin.parameters(), lr=LEARNING_RATE, fused=True, capturable=graph)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(twin(images), labels)

    if compiled:
        loss_of = torch_compiled(loss_of)

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    if graph:
        return _captured(step, twin, optimizer, tensors)
    return lambda k: step(*tensors[k])


def _captured(
    step: Callable, twin: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: list
) -> Run:
    """Return a step as a CUDA graph: batches are copied to where it reads them, then it runs."""
    places = [torch.empty_like(each).copy_(each) for each in tensors[0]]
    before = copy.deepcopy(twin.state_dict())
    side = torch.cuda.Stream()  # PyTorch wants the first steps on a stream of their own
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*places)
    torch.cuda.current_stream().wait_stream(side)
    # Forget these steps, in place: the graph holds addresses.
    twin.load_state_dict(before)
    for moments in optimizer.state.values():
        for moment in moments.values():
            moment.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*places)

    def replay(k: int) -> torch.Tensor:
        for place, each in zip(places, tensors[k], strict=True):
            place.copy_(each)
        graph.replay()
        return loss

    return replay


def _jax_step(model: ng.layers.Module, batches: list[Batch]) -> Run:
    forward, params, stats = jax_twin(model)
    arrays = [tuple(map(jax.numpy.asarray, batch)) for batch in batches]

    def loss_of(params: list, stats: list, images: Any, labels: Any) -> tuple:
        stats = list(stats)
        logs = jax.nn.log_softmax(forward(params, stats, images))
        return -logs[np.arange(len(labels)), labels].mean(), stats

    @partial(jax.jit, donate_argnums=0)
    def update(state: tuple, images: Any, labels: Any) -> tuple:
        params, stats, moments = state
        slope = jax.value_and_grad(loss_of, has_aux=True)
        (loss, stats), grads = slope(params, stats, images, labels)
        params, moments = jax_adam(params, grads, moments, LEARNING_RATE)
        return (params, stats, moments), loss

    state = params, stats, jax_moments(params)

    def step(k: int) -> jax.Array:
        nonlocal state
        state, loss = jax.block_until_ready(update(state, *arrays[k]))
        return loss

    return step


# ------------------------------------------------------------------- scaling


def scaling_cases() -> list[Case]:
    """Return training steps over batch and over depth, and inference on one image."""
    cases = [
        Case(
            scaling.FAMILY,
            str(batch),
            scaling.over_batch(name),
            partial(_prepare_step_of, partial(ng.models.get, name), batch),
            tolerance=1e-2,
            quick=batch in scaling.BATCHES[:2],
        )
        for name in scaling.NETWORKS
        for batch in scaling.BATCHES
    ]
    for part, build in zip(scaling.DEEP, (_deep_mlp, _deep_convnet), strict=True):
        cases += [
            Case(
                scaling.FAMILY,
                str(depth),
                part,
                partial(_prepare_step_of, partial(build, depth), scaling.DEEP_BATCH),
                tolerance=1e-2,
                quick=depth in scaling.DEPTHS[:2],
            )
            for depth in scaling.DEPTHS
        ]
    lenet = partial(_prepare_inference, "lenet", 28, 1, False)
    cases.append(Case(scaling.FAMILY, "1", scaling.INFERENCE, lenet))
    return cases


def _deep_mlp(depth: int) -> ng.layers.Module:
    return ng.models.mlp(hidden=(scaling.WIDTH,) * (depth - 1))


def _deep_convnet(depth: int) -> ng.layers.Module:
    """Return so many convolutions on a quarter of the image's pixels, then a linear layer."""
    layers = [ng.layers.MaxPool2d(2)]
    channels = 1
    for _ in range(depth):
        layers += [ng.layers.Conv2d(channels, scaling.CHANNELS, 3, padding=1), ng.layers.ReLU()]
        channels = scaling.CHANNELS
    linear = ng.layers.Linear(14 * 14 * channels, 10)
    return ng.layers.Sequential(*layers, ng.layers.Flatten(), linear)


def _prepare_step_of(build: Callable[[], ng.layers.Module], batch: int, seed: int, compiled: bool):
    ng.random.seed(seed)
    return _step_ways(build(), batches_of(seed, batch, 28, 1))


# ------------------------------------------------------------------ inference


def inference_cases() -> list[Case]:
    """Return each network's outputs for one image, in evaluation mode."""
    return [
        Case(
            "inference",
            f"{name}, batch 1",
            "",
            partial(_prepare_inference, name, size, channels, True),
            quick=name == "lenet",
        )
        for name, size, channels, _, _ in STEPS
    ]


def _prepare_inference(name: str, size: int, channels: int, worth: bool, seed: int, compiled: bool):
    ng.random.seed(seed)
    model = ng.models.get(name, in_channels=channels, image_size=size)
    model.eval()
    images = [images for images, _ in batches_of(seed, 1, size, channels)]
    ours = partial(_our_forward, model, images)
    theirs = partial(_torch_forward, model, images)
    ways = {
        OURS: Contender(ours, lambda out: [out.numpy()]),
        COMPILED: Contender(partial(ours, compiled=True), lambda out: [out.numpy()]),
        "PyTorch": theirs(),
        "JAX": Contender(partial(_jax_forward, model, images), lambda out: [np.asarray(out)]),
    }
    if has_images(model):
        ways["PyTorch channels_last"] = theirs(channels_last=True)
    if compiled and worth:
        ways["PyTorch compiled"] = theirs(compiled=True)
    exact = theirs(dtype=torch.float64)
    run = exact.make()
    return ways, lambda k: exact.arrays(run(k))


def _our_forward(model: ng.layers.Module, images: list[np.ndarray], compiled: bool = False) -> Run:
    arrays = [ng.asarray(each) for each in images]
    predict = ng.compile(lambda x: model(x)) if compiled else model

    def run(k: int) -> ng.Array:
        with ng.no_grad():
            return predict(arrays[k])

    return run


def _torch_forward(
    model: ng.layers.Module,
    images: list[np.ndarray],
    channels_last: bool = False,
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Contender:
    def make() -> Run:
        twin = torch_twin(model, images[0].shape).to(dtype).eval()
        if channels_last:
            twin = twin.to(memory_format=torch.channels_last)
        tensors = [torch_tensor(IMAGE, each, channels_last).to(dtype) for each in images]
        predict = torch_compiled(twin) if compiled else twin

        def run(k: int) -> torch.Tensor:
            with torch.inference_mode():
                return predict(tensors[k])

        return run

    return Contender(make, lambda out: [out.numpy()])


def _jax_forward(model: ng.layers.Module, images: list[np.ndarray]) -> Run:
    forward, params, stats = jax_twin(model)
    arrays = [jax.numpy.asarray(each) for each in images]
    predict = jax.jit(lambda params, stats, x: forward(params, list(stats), x))
    return lambda k: jax.block_until_ready(predict(params, stats, arrays[k]))


# ----------------------------------------------------------------- optimiser


def optimiser_cases() -> list[Case]:
    """Return a step of Adam on the parameters of two networks, and on one large one."""
    shapes = {
        f"Adam, {name}": [p.shape for p in ng.models.get(name).parameters()]
        for name in ("lenet", "convnet6")
    }
    shapes["Adam, 1,000,000"] = [(1_000_000,)]
    return [
        Case("optimiser", name, "", partial(_prepare_adam, each)) for name, each in shapes.items()
    ]


def _prepare_adam(shapes: list[tuple[int, ...]], seed: int, compiled: bool):
    rng = np.random.default_rng(seed)
    sets = [[rng.normal(size=s).astype(np.float32) for s in shapes] for _ in range(INPUT_SETS + 1)]
    *grads, start = sets
    ways = {
        OURS: Contender(
            partial(_our_adam, start, grads), lambda params: [p.numpy() for p in params]
        ),
        "PyTorch": _torch_adam(start, grads),
        "PyTorch fused": _torch_adam(start, grads, fused=True),
        "JAX": Contender(
            partial(_jax_adam, start, grads), lambda params: list(map(np.asarray, params))
        ),
    }
    if compiled:
        ways["PyTorch compiled"] = _torch_adam(start, grads, compiled=True)
    exact = _torch_adam(start, grads, dtype=torch.float64)
    run = exact.make()
    return ways, lambda k: exact.arrays(run(k))


def _our_adam(start: list, grads: list) -> Run:
    params = [ng.layers.Parameter(value) for value in start]
    optimizer = ng.optim.Adam(params, lr=LEARNING_RATE)
    arrays = [[ng.asarray(grad) for grad in each] for each in grads]

    def step(k: int) -> list:
        for param, grad in zip(params, arrays[k], strict=True):
            param.grad = grad
        optimizer.step()
        return params

    return step


def _torch_adam(
    start: list,
    grads: list,
    fused: bool = False,
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Contender:
    def make() -> Run:
        params = [torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for value in start]
        optimizer = torch.optim.Adam(params, lr=LEARNING_RATE, fused=fused)
        tensors = [[torch.tensor(grad, dtype=dtype) for grad in each] for each in grads]
        update = torch_compiled(optimizer.step) if compiled else optimizer.step

        def step(k: int) -> list:
            for param, grad in zip(params, tensors[k], strict=True):
                param.grad = grad
            update()
            return params

        return step

    return Contender(make, lambda params: [p.detach().numpy().copy() for p in params])


def _jax_adam(start: list, grads: list) -> Run:
    params = list(map(jax.numpy.asarray, start))
    arrays = [list(map(jax.numpy.asarray, each)) for each in grads]
    update = jax.jit(partial(jax_adam, lr=LEARNING_RATE), donate_argnums=(0, 2))
    moments = jax_moments(params)

    def step(k: int) -> list:
        nonlocal params, moments
        params, moments = jax.block_until_ready(update(params, arrays[k], moments))
        return params

    return step


# ------------------------------------------------------- the cost of calling

CHAIN = 100

# Calls of one op on 64 floats, in words that suit all three libraries: name, shapes, function.
VECTOR, SQUARE = (64,), (8, 8)
CALLS: list[tuple[str, tuple, Callable]] = [
    ("64 floats, an op without gradient", (VECTOR, VECTOR), lambda x, y: x * y),
    ("64 floats, x + 1.0", (VECTOR,), lambda x: x + 1.0),
    ("64 floats, sum", (VECTOR,), lambda x: x.sum()),
    ("64 floats, reshape", (VECTOR,), lambda x: x.reshape(8, 8)),
    ("64 floats, x[2:6]", (SQUARE,), lambda x: x[2:6]),
    ("64 floats, matrix product", (SQUARE, SQUARE), lambda x, y: x @ y),
]


def dispatch_cases() -> list[Case]:
    """Return what it costs to call an op at all, on 64 floats.

    Several ops alone; a product recorded on the tape, and walked back through. PyTorch in eager
    mode and NumPy are the only peers: the question makes no sense for what compiles whole
    functions.
    """
    plain = [
        Case("dispatch", name, "", partial(_prepare_op, shapes, function, False))
        for name, shapes, function in CALLS
    ]
    _, shapes, product = CALLS[0]
    return [
        *plain,
        Case(
            "dispatch",
            "64 floats, an op on the tape",
            "",
            partial(_prepare_op, shapes, product, True),
        ),
        Case("dispatch", "64 floats, backward for each op", "", _prepare_backward, per=CHAIN),
    ]


def operands_of(seed: int, shapes: tuple) -> list[list[np.ndarray]]:
    """Return sets of numbers around 1, which stay there when they are multiplied."""
    rng = np.random.default_rng(seed)
    return [
        [rng.uniform(0.9, 1.1, shape).astype(np.float32) for shape in shapes]
        for _ in range(INPUT_SETS)
    ]


def _prepare_op(shapes: tuple, function: Callable, recorded: bool, seed: int, compiled: bool):
    sets = operands_of(seed, shapes)

    def ours() -> Run:
        operands = [list(map(ng.asarray, each)) for each in sets]
        for x, *_ in operands:
            x.requires_grad = recorded
        return lambda k: function(*operands[k])

    def theirs() -> Run:
        operands = [list(map(torch.from_numpy, each)) for each in sets]
        for x, *_ in operands:
            x.requires_grad_(recorded)
        return lambda k: function(*operands[k])

    ways = {
        OURS: Contender(ours, lambda out: [out.numpy()]),
        "PyTorch": Contender(theirs, lambda out: [out.detach().numpy()]),
    }
    if not recorded:  # it has no tape
        numpy = partial(_numpy_op, function, sets)
        ways["NumPy"] = Contender(numpy, lambda out: [np.asarray(out)])
    return ways, lambda k: [function(*(x.astype(np.float64) for x in sets[k]))]


def _numpy_op(function: Callable, sets: list) -> Run:
    return lambda k: function(*sets[k])


def _prepare_backward(seed: int, compiled: bool):
    sets = operands_of(seed, (VECTOR, VECTOR))

    def chain(x: Any, y: Any) -> Any:
        for _ in range(CHAIN):
            x = x * y
        return x.sum()

    def ours() -> Run:
        pairs = [tuple(map(ng.asarray, each)) for each in sets]
        for x, _ in pairs:
            x.requires_grad = True
        outs = [chain(*pair) for pair in pairs]

        def run(k: int) -> ng.Array:
            pairs[k][0].grad = None
            outs[k].backward(retain_graph=True)
            return pairs[k][0].grad

        return run

    def theirs() -> Run:
        pairs = [tuple(map(torch.from_numpy, each)) for each in sets]
        for x, _ in pairs:
            x.requires_grad_()
        outs = [chain(*pair) for pair in pairs]

        def run(k: int) -> torch.Tensor:
            pairs[k][0].grad = None
            outs[k].backward(retain_graph=True)
            return pairs[k][0].grad

        return run

    ways = {
        OURS: Contender(ours, lambda grad: [grad.numpy()]),
        "PyTorch": Contender(theirs, lambda grad: [grad.numpy()]),
    }
    return ways, lambda k: [sets[k][1].astype(np.float64) ** CHAIN]
