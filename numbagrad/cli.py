"""The command line: ``numbagrad train``, ``numbagrad demo``, ``numbagrad doctor``."""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import llvmlite
import numba
import numpy as np
import typer

from . import __version__, data, jit, models, ops, optim, random, simd, weights
from .array import asarray
from .device import DEVICES, backend
from .dispatch import get_num_threads, set_num_threads
from .errors import DataError, DeviceError, DTypeError, GraphError, ShapeError, TraceError, nearest
from .train import History, fit, predict
from .training.history import percent

OURS = (DataError, DeviceError, DTypeError, GraphError, ShapeError, TraceError)
DATA = ("cifar10", "digits", "fashion-mnist", "mnist")
OPTIMIZERS = {"adam": 0.003, "sgd": 0.05}  # with the learning rate to start from

app = typer.Typer(
    help="Arrays, gradients and small networks; every operation is a Numba kernel you can read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _command(function: Callable) -> Callable:
    """Register a command that turns the errors a person can mend into one line."""

    @app.command()
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (*OURS, FloatingPointError, OSError) as error:
            print(f"numbagrad: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return command


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    """Return a check that an argument is a known name."""

    def check(name: str) -> str:
        key = name.lower().replace("_", "-")
        if key not in known:
            raise typer.BadParameter(f"{name!r}: {nearest(key, known)}")
        return key

    return check


def _threads(count: int | None) -> int | None:
    if count is not None:
        try:
            set_num_threads(count)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return count


def _learning_rate(lr: float | None) -> float | None:
    if lr is not None and not 0 <= lr <= optim.LARGEST:
        raise typer.BadParameter(f"{lr} is not a number of at least 0 and finite in float32")
    return lr


Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Fixes all that is random.")]


def _folder(text: str) -> Any:
    """Return an option for a folder to write to: one that is there, or can be made."""
    return typer.Option(file_okay=False, writable=True, help=text)


# -------------------------------------------------------------------- train


@_command
def train(
    model: Annotated[
        str, typer.Argument(callback=_one_of(models.NAMES), help="|".join(models.NAMES))
    ],
    dataset: Annotated[
        str, typer.Option("--data", callback=_one_of(DATA), help="|".join(DATA))
    ] = "digits",
    epochs: Annotated[int, typer.Option(min=1, help="Times through the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in each step.")] = 32,
    lr: Annotated[
        float | None,
        typer.Option(
            callback=_learning_rate,
            help="Learning rate at the start, 0.003 for adam and 0.05 for sgd; it falls to 0.",
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(callback=_one_of(tuple(OPTIMIZERS)), help="|".join(OPTIMIZERS))
    ] = "adam",
    seed: Seed = 0,
    device: Annotated[
        str, typer.Option(callback=_one_of((*DEVICES, "auto")), help="cpu|cuda|auto")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(callback=_threads, help="CPU threads.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the training step.")
    ] = True,
    out: Annotated[Path | None, _folder("Folder for model.safetensors and metrics.csv.")] = None,
) -> None:
    """Train a model and say how often it is right on images that it has not seen."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # now: training may be long
    train_set, test_set = data.load(dataset)
    random.seed(seed)
    _, size, _, channels = train_set.images.shape
    network = models.get(
        model, in_channels=channels, classes=len(train_set.classes), image_size=size
    )
    numbers = sum(parameter.size for parameter in network.parameters())
    print(f"{model} with {numbers:,} parameters, {len(train_set):,} images of {dataset}")
    history = fit(
        network,
        train_set,
        test_set,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=OPTIMIZERS[optimizer] if lr is None else lr,
        schedule=optim.cosine,
        seed=seed,
        device=device,
        compile=compile,
    )
    if out is not None:
        notes = {"model": model, "data": dataset, "seed": str(seed)}
        _save(out, network, history, notes)
    print(f"test accuracy {percent(history.test_accuracy)}")


def _save(folder: Path, network: Any, history: History, notes: dict[str, str]) -> None:
    weights.save(folder / "model.safetensors", network, notes)
    jit.write_atomically(folder / "metrics.csv", history.csv().encode())
    print(f"saved {folder / 'model.safetensors'} and {folder / 'metrics.csv'}")


# --------------------------------------------------------------------- demo


@_command
def demo(
    seed: Seed = 0,
    out: Annotated[Path, _folder("Folder for the pictures.")] = Path("runs/demo"),
) -> None:
    """Train LeNet on the digits that come with numbagrad, and draw how it went."""
    out.mkdir(parents=True, exist_ok=True)
    print("LeNet on 8x8 handwritten digits. Kernels are compiled at first use, then cached.")
    started = time.perf_counter()
    train_set, test_set = data.digits()
    random.seed(seed)
    network = models.lenet(image_size=8)
    rng = np.random.default_rng(seed)
    history = fit(
        network,
        train_set,
        test_set,
        epochs=25,
        batch_size=32,
        lr=4e-3,
        schedule=optim.cosine,
        seed=seed,
        transform=lambda images: _augmented(images, rng),
    )
    _save(out, network, history, {"model": "lenet", "data": "digits", "seed": str(seed)})
    _draw(out, history, test_set, predict(network, test_set.images, 32))
    print(f"drawn {out / 'learning_curve.png'} and {out / 'predictions.png'}")
    print(f"all in {time.perf_counter() - started:.1f} s")
    print(f"test accuracy {percent(history.test_accuracy)}")


def _augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slant each digit a little, as another hand would have, and add noise.

    Rows move sideways by up to 0.7 pixels, in proportion to their distance from the middle; then
    columns move up or down likewise. Between pixels the values are interpolated.
    """
    _, height, width, _ = images.shape
    slopes = rng.uniform(-0.2, 0.2, (2, len(images), 1, 1, 1)).astype(np.float32)
    for slope, size in zip(slopes, (height, width), strict=True):
        from_middle = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        shift = slope * from_middle[:, None, None]
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)))
        left, right = padded[:, :, :-2], padded[:, :, 2:]
        moved = np.maximum(shift, 0) * right + np.maximum(-shift, 0) * left
        images = ((1 - np.abs(shift)) * images + moved).swapaxes(1, 2)
    return images + 0.15 * rng.standard_normal(images.shape, dtype=np.float32)


def _draw(folder: Path, history: History, dataset: data.Dataset, classes: np.ndarray) -> None:
    """Draw the learning curve, and digits with what they were taken for, wrong ones first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    history.plot().savefig(folder / "learning_curve.png", dpi=150)
    wrong = classes != dataset.labels
    order = np.argsort(~wrong, kind="stable")[:40]
    figure, panels = pyplot.subplots(4, 10, figsize=(10, 5), layout="constrained")
    for panel, i in zip(panels.flat, order, strict=True):
        panel.imshow(dataset.images[i, :, :, 0], cmap="gray_r")
        panel.set(xticks=[], yticks=[])
        text, colour = dataset.classes[classes[i]], "black"
        if wrong[i]:
            text, colour = f"{text}, not {dataset.classes[dataset.labels[i]]}", "crimson"
        panel.set_title(text, color=colour, fontsize=11)
        panel.spines[:].set(color=colour, linewidth=2 if wrong[i] else 0.5)
    figure.suptitle(f"{wrong.sum()} of {len(classes)} test digits were taken for another")
    figure.savefig(folder / "predictions.png", dpi=150)
    pyplot.close("all")


# ------------------------------------------------------------------- doctor


@_command
def doctor() -> None:
    """Say what numbagrad finds on this machine, and try a kernel."""
    width = simd.VECTOR_BYTES * 8
    facts = {
        "numbagrad": f"{__version__} in {Path(__file__).parent}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "Numba": f"{numba.__version__} with llvmlite {llvmlite.__version__}",
        "CPU": f"{_cpu_name()}, vectors of {width} bits ({width // 32} float32)",
        "features": ", ".join(sorted(_NOTABLE & jit.cpu_features())) or "none of note",
        "threads": f"{get_num_threads()} of {os.cpu_count()} logical cores",
        "kernel cache": _describe_cache(),
        "CUDA": _describe_cuda(),
        "self-test": _self_test(),
    }
    for name, fact in facts.items():
        print(f"{name:>12}  {fact}".replace("\n", "\n" + " " * 14))


_NOTABLE = frozenset({"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "neon", "sve"})


def _cpu_name() -> str:
    import llvmlite.binding

    return llvmlite.binding.get_host_cpu_name()


def _describe_cache() -> str:
    folder = jit.cache_dir()
    kernels = [path.stat().st_size for path in folder.glob("*.nbc")]
    return f"{folder}: {len(kernels)} kernels, {sum(kernels) / 1e6:.1f} MB"


def _describe_cuda() -> str:
    """Say which GPU is used, or why none is and what would mend it."""
    try:
        support = backend("cuda").support
    except DeviceError as error:
        mend = next((mend for sign, mend in _MENDS.items() if sign in str(error)), _MEND)
        return f"{error}\nTo mend it:\n    {mend}\n{_TRY_CUDA}"
    facts = support.describe()
    if facts["simulator"]:
        return (
            f"the simulator of numba-cuda {facts['numba_cuda']}, which is slow; to use a GPU:\n"
            "    unset NUMBA_ENABLE_CUDASIM"
        )
    major, minor = facts["compute_capability"]
    return (
        f"{facts['device']}, compute capability {major}.{minor}, driver for CUDA "
        f"{facts['driver']}, toolkit {facts['toolkit']}, numba-cuda {facts['numba_cuda']}"
    )


_MENDS = {  # by what the reason says
    "numba-cuda": 'pip install "numbagrad[cuda]"',
    "driver library cannot be found": "install driver 580 or newer: https://www.nvidia.com/drivers",
    "NO_DEVICE": "nvidia-smi  # what the driver finds; CUDA_VISIBLE_DEVICES may hide GPUs from us",
    "NUMBA_DISABLE_CUDA": "unset NUMBA_DISABLE_CUDA",
}
_MEND = 'update the driver to 580 or newer, then: pip install --upgrade "numbagrad[cuda]"'
_TRY_CUDA = """\
To try CUDA kernels without a GPU, in a slow simulator:
    export NUMBA_ENABLE_CUDASIM=1"""


def _self_test() -> str:
    """Multiply two matrices and compare with NumPy."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 512, 512)).astype(np.float32)
    x, y = asarray(a), asarray(b)
    out = ops.matmul(x, y)  # compiled, or read from the cache
    times = []
    for _ in range(5):
        started = time.perf_counter()
        ops.matmul(x, y)
        times.append(time.perf_counter() - started)
    if not np.allclose(out.numpy(), a @ b, rtol=1e-4, atol=1e-3):
        raise FloatingPointError("self-test: matmul differs from NumPy's")
    speed = 2 * 512**3 / min(times) / 1e9
    return f"passed: matmul 512x512x512 in {1e3 * min(times):.2f} ms, {speed:.0f} GFLOP/s"
