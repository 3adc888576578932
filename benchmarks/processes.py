"""What needs a process of its own: peak memory, start-up, a whole training, data loading.

``python -m benchmarks.processes QUESTION ARGUMENTS`` answers one question about one library and
prints a number, or several, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .results import COMPILED, OURS, OWN
from .worker import environment

TIMEOUT = 600  # seconds, for one answer
MEMORY_STEPS = (("mlp", 128), ("lenet", 128), ("convnet6", 64), ("resnet8", 64))
NO_HUGE_PAGES = 41  # Linux's PR_SET_THP_DISABLE
MEMORY_WAYS = (OURS, COMPILED, "PyTorch", "PyTorch channels_last")
MEMORY_TIMES = 3
STARTS = 3
TRAINING_THREADS = 2  # at most: the target is for two cores
LOADERS = ((OURS, 0), (OURS, 1), ("PyTorch", 0), ("PyTorch", 2))
LOADS = 3


def measure(threads: int, log: Callable[[str], None]) -> dict:
    """Return what each part below measured, all of it in fresh processes."""
    return {
        "memory": _memory(threads, log),
        "startup": _startup(threads, log),
        "training": _training(min(threads, TRAINING_THREADS), log),
        "loading": _loading(threads, log),
    }


def _ask(question: str, *arguments: Any, threads: int) -> Any:
    """Put a question to a fresh process."""
    words = "-m", "benchmarks.processes", question, *map(str, arguments)
    return json.loads(_python(*words, threads=threads).splitlines()[-1])


def _python(*arguments: str, threads: int, **settings: str) -> str:
    """Run Python and return what it printed; raises what it said if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment(threads), **settings},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _batches(size: int, channels: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, channels)).astype(np.float32)
    return [(images, rng.integers(0, 10, batch))]


# ------------------------------------------------------------------- memory


def _memory(threads: int, log: Callable) -> list[dict]:
    """Return the bytes that training takes at its peak: model, Adam's moments, batch, step.

    With them goes how many of these bytes are no activations: ``held``.
    """
    rows = []
    for name, batch in MEMORY_STEPS:
        log(f"peak memory of a step: {name}, batch {batch}")
        peaks = {}
        for way in MEMORY_WAYS:
            if way in OWN:
                _ask("memory", way, name, batch, threads=threads)  # compiles
            peaks[way], held = _ask("memory", way, name, batch, threads=threads)
        rows.append({"name": f"{name}, batch {batch}", "peaks": peaks, "held": held})
    return rows


def _answer_memory(way: str, name: str, batch: str) -> tuple[int, int]:
    """Train for some steps, so that all code is loaded; forget all of it, and train again.

    The median of these times counts: from before the model is copied, as PyTorch makes Adam's
    moments in the first step and numbagrad with the optimiser. Our kernels are in the cache by
    then. The peak is Linux's own count of resident memory (VmHWM, reset before); elsewhere, the
    growth of ``ru_maxrss``. Huge pages, which our pool asks for, would round up to 2 MiB
    what small networks take; they are off. The second answer is what every library must hold:
    parameters, their gradients and two moments of them, and the batch.
    """
    from . import networks

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_HUGE_PAGES, 1, 0, 0, 0)

    size, channels = next(row[1:3] for row in networks.STEPS if row[0] == name)
    batches = _batches(size, channels, int(batch))
    build = partial(networks.ng.models.get, name, in_channels=channels, image_size=size)
    model = build()
    parameters = sum(parameter.size for parameter in model.parameters())
    if way in OWN:
        # It copies the model, which is dropped: one that stayed would keep our pool from shrinking.
        del model
        step_of = partial(networks.our_step, compiled=way == COMPILED)

        def make() -> Callable:
            return step_of(build(), batches)
    else:
        last = "channels_last" in way
        make = partial(networks.torch_step, model, batches, channels_last=last)
    _train(make)
    grown = []
    for _ in range(MEMORY_TIMES):
        before = _reset_peak()
        _train(make)
        grown.append(_peak() - before)
    held = 4 * parameters * np.dtype(np.float32).itemsize + sum(x.nbytes for x in batches[0])
    return statistics.median(grown), held


def _train(make: Callable) -> None:
    step = make()
    for _ in range(3):
        step(0)


def _reset_peak() -> int:
    """Start counting the peak anew, where that is possible; return the bytes resident now.

    Free memory that an allocator holds back would hide what the steps ask for: it goes first. Our
    pool gives back what was not used for a while.
    """
    from numbagrad import device

    gc.collect()
    beyond = device.pool.mapped + 1  # so these are taken from a chunk of their own
    for _ in range(2 * device.SWEEP_EVERY):
        device.pool.empty((), np.dtype(np.uint8), beyond)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()
    return _status("VmRSS")


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    import resource

    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) * 1024


# ----------------------------------------------------------------- start-up


def _startup(threads: int, log: Callable) -> dict[str, float]:
    """Return seconds from the start of Python to the end of the first step, LeNet's if not said."""
    ask = partial(_first_step, threads=threads)
    seconds = {}
    with ExitStack() as stack:
        caches = {way: stack.enter_context(tempfile.TemporaryDirectory()) for way in OWN}
        for way, cache in caches.items():
            log(f"start-up from an empty cache: {way}")
            seconds[f"{way}, empty cache"] = ask(way, NUMBAGRAD_CACHE_DIR=cache)
        log("start-up from a full cache, and PyTorch's")
        found: dict[str, list[float]] = {}
        for _ in range(STARTS):
            for way, cache in caches.items():
                warm = ask(way, NUMBAGRAD_CACHE_DIR=cache)
                found.setdefault(f"{way}, full cache", []).append(warm)
            found.setdefault("PyTorch", []).append(ask("PyTorch"))
    with tempfile.TemporaryDirectory() as cache:
        log(f"start-up from an empty cache: {COMPILED}, ResNet-8")
        cold = ask(COMPILED, network="resnet8", NUMBAGRAD_CACHE_DIR=cache)
        seconds[f"{COMPILED}, ResNet-8, empty cache"] = cold
    return seconds | {name: statistics.median(each) for name, each in found.items()}


# What a user would write. The clock is the system's, the same for both processes.
_OUR_FIRST_STEP = """
import numbagrad as ng
import numpy as np

model = ng.models.get("{network}", in_channels={channels}, image_size={size})
optimizer = ng.optim.Adam(model.parameters())

{decorator}
def step(images, labels):
    loss = ng.softmax_cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss

images = ng.asarray(np.ones((32, {size}, {size}, {channels}), np.float32))
loss = step(images, ng.asarray(np.zeros(32, np.int64)))
"""
_TORCH_FIRST_STEP = """
import torch
from torch import nn
model = nn.Sequential(
    nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
images = torch.ones(32, 1, 28, 28)
loss = nn.functional.cross_entropy(model(images), torch.zeros(32, dtype=torch.int64))
loss.backward()
optimizer.step()
"""
_LAST_LINES = """
import time
print(loss.item() and time.time())
"""
_IMAGES = {"lenet": (28, 1), "resnet8": (32, 3)}  # extent and channels


def _first_step(way: str, threads: int, network: str = "lenet", **settings: str) -> float:
    code = _TORCH_FIRST_STEP
    if way in OWN:
        size, channels = _IMAGES[network]
        decorator = "@ng.compile" if way == COMPILED else ""
        code = _OUR_FIRST_STEP.format(
            network=network, size=size, channels=channels, decorator=decorator
        )
    started = time.time()
    done = _python("-c", code + _LAST_LINES, threads=threads, **settings)
    return float(done.splitlines()[-1]) - started


# ----------------------------------------------------------- a whole training

# LeNet on MNIST as a user would train it. The learning rate rises over the first fifth and then
# falls to 0: so three epochs suffice for 99 % of the test images, with each of several seeds.
_TRAINING = """
import numbagrad as ng

def rise_and_fall(done):
    return done / 0.2 if done < 0.2 else (1 - done) / 0.8

train, test = ng.data.mnist()
ng.random.seed(0)
model = ng.models.lenet()
ng.train.fit(
    model, train.take({images}), epochs={epochs}, batch_size=64, lr=0.003,
    schedule=rise_and_fall, seed=0, compile=True, progress=False,
)
print(ng.train.evaluate(model, test)[1])
"""
WHOLE = {"images": 60_000, "epochs": 3}
BRIEF = {"images": 4_000, "epochs": 1}  # and a last batch of 32, as of the whole


def _training(threads: int, log: Callable) -> dict | None:
    """Return test accuracy (in %) and seconds of the whole process, started from a full cache.

    None without MNIST's files in ``$NUMBAGRAD_DATA``.
    """
    from numbagrad.data import mnist
    from numbagrad.errors import DataError

    try:
        mnist()
    except DataError as error:
        log(f"LeNet on MNIST is not measured: {error}")
        return None
    log("LeNet on MNIST: a short training, which compiles")
    _python("-c", _TRAINING.format(**BRIEF), threads=threads)
    log("LeNet on MNIST: the whole training")
    started = time.perf_counter()
    accuracy = _python("-c", _TRAINING.format(**WHOLE), threads=threads)
    seconds = time.perf_counter() - started
    return {"accuracy": 100 * float(accuracy), "seconds": seconds, "threads": threads}


# ------------------------------------------------------------------ loading

IMAGES, SIDE, BATCH, MARGIN = 6_400, 32, 128, 4


def _loading(threads: int, log: Callable) -> list[dict]:
    """Return images a second with augmentation, and the share of a training loop spent waiting."""
    answers: dict[tuple, list] = {loader: [] for loader in LOADERS}
    for number in range(LOADS):
        log(f"data loading, {number + 1} of {LOADS}")
        for (library, workers), found in answers.items():
            found.append(_ask("loading", library, workers, threads=threads))
    return [
        {
            "library": library,
            "workers": workers,
            "images_per_second": statistics.median(speed for speed, _ in found),
            "waiting": statistics.median(share for _, share in found),
        }
        for (library, workers), found in answers.items()
    ]


def _answer_loading(library: str, workers: str) -> tuple[float, float]:
    """Walk the second epoch (the first starts workers) alone, then with LeNet's training steps."""
    import numbagrad as ng

    rng = np.random.default_rng(0)
    images = rng.random((IMAGES, SIDE, SIDE, 3)).astype(np.float32)
    labels = rng.integers(0, 10, IMAGES)
    make = _our_loader if library == OURS else _torch_loader
    loader = make(images, labels, int(workers))
    for _ in loader:
        pass
    started = time.perf_counter()
    count = sum(len(batch[1]) for batch in loader)
    speed = count / (time.perf_counter() - started)

    model = ng.models.lenet(in_channels=3, image_size=SIDE)
    step = _trainer(library, model)
    step(*next(iter(loader)))
    waited, batches = 0.0, iter(loader)
    started = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step(*batch)
    return speed, waited / (time.perf_counter() - started)


def _our_loader(images: np.ndarray, labels: np.ndarray, workers: int) -> Iterator:
    """Shift each image by up to four pixels and mirror half of them, a batch at a time."""
    import numbagrad as ng
    from numbagrad.data.transforms import Compose, RandomCrop, RandomFlip

    augment = Compose([RandomCrop(SIDE, padding=MARGIN), RandomFlip()])
    return ng.data.DataLoader(
        (images, labels), BATCH, shuffle=True, transform=augment, workers=workers
    )


def _torch_loader(images: np.ndarray, labels: np.ndarray, workers: int) -> Iterator:
    """Do the same image by image, in ``__getitem__``, as PyTorch's loader asks for them."""
    import torch
    from torch.utils import data

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    classes = torch.from_numpy(labels)

    class Augmented(data.Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, k: int) -> tuple:
            padded = torch.nn.functional.pad(pixels[k], (MARGIN,) * 4)
            row, column, mirror = torch.randint(0, 2 * MARGIN + 1, (3,)).tolist()
            image = padded[:, row : row + SIDE, column : column + SIDE]
            return image.flip(2) if mirror % 2 else image, classes[k]

    return data.DataLoader(
        Augmented(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def _trainer(library: str, model: Any) -> Callable:
    """Return a training step on a batch from the loader."""
    if library == OURS:
        import numbagrad as ng

        optimizer = ng.optim.Adam(model.parameters())

        def step(images: Any, labels: Any) -> None:
            ng.train.train_step(model, ng.softmax_cross_entropy, optimizer, images, labels)

        return step

    import torch

    from .twins import torch_twin

    twin = torch_twin(model, (BATCH, SIDE, SIDE, 3))
    theirs = torch.optim.Adam(twin.parameters(), fused=True)

    def step(images: Any, labels: Any) -> None:
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(twin(images), labels).backward()
        theirs.step()

    return step


if __name__ == "__main__":
    answer = {"memory": _answer_memory, "loading": _answer_loading}[sys.argv[1]]
    print(json.dumps(answer(*sys.argv[2:])))
