"""What needs a process of its own: peak memory, start-up, data loading.

``python -m benchmarks.processes QUESTION ARGUMENTS`` answers one question about one library and
prints a number, or several, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .worker import environment

TIMEOUT = 600  # seconds, for one answer
MEMORY_STEPS = (("mlp", 128), ("lenet", 128), ("convnet6", 64))
MEMORY_WAYS = ("numbagrad", "PyTorch", "PyTorch channels_last")
STARTS = 3
LOADERS = (("numbagrad", 0), ("numbagrad", 1), ("PyTorch", 0), ("PyTorch", 2))
LOADS = 3


def measure(threads: int, log: Callable[[str], None]) -> dict:
    """Return peak memory, start-up and loading, all measured in fresh processes."""
    answers = {"memory": _memory(threads, log), "startup": _startup(threads, log)}
    answers["loading"] = _loading(threads, log)
    return answers


def _ask(question: str, *arguments: Any, threads: int, **settings: str) -> Any:
    """Put a question to a fresh process; raises what it printed if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.processes", question, *map(str, arguments)],
        env={**os.environ, **environment(threads), **settings},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{question} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _batches(size: int, channels: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, size, size, channels)).astype(np.float32)
    return [(images, rng.integers(0, 10, batch))]


# ------------------------------------------------------------------- memory


def _memory(threads: int, log: Callable) -> list[dict]:
    """Return the bytes that training takes at its peak: model, Adam's moments, batch, step."""
    rows = []
    for name, batch in MEMORY_STEPS:
        log(f"peak memory of a step: {name}, batch {batch}")
        peaks = {}
        for way in MEMORY_WAYS:
            if way == "numbagrad":
                _ask("memory", way, name, batch, threads=threads)  # compiles
            peaks[way] = _ask("memory", way, name, batch, threads=threads)
        rows.append({"name": f"{name}, batch {batch}", "peaks": peaks})
    return rows


def _answer_memory(way: str, name: str, batch: str) -> int:
    """Do a small step, so that all code is loaded; then see how far real training goes beyond.

    PyTorch makes Adam's moments in the first step and numbagrad with the optimiser, so the count
    begins before either. Our kernels are in the cache by then. The peak is Linux's own count of
    resident memory (VmHWM, reset before); elsewhere, the growth of ``ru_maxrss``.
    """
    from . import networks

    size, channels = next(row[1:3] for row in networks.STEPS if row[0] == name)
    model = networks.ng.models.get(name, in_channels=channels, image_size=size)
    make = networks.our_step
    if way != "numbagrad":
        make = partial(networks.torch_step, channels_last="channels_last" in way)
    make(model, _batches(size, channels, 2))(0)
    batches = _batches(size, channels, int(batch))
    before = _reset_peak()
    step = make(model, batches)
    for _ in range(3):
        step(0)
    return _peak() - before


def _reset_peak() -> int:
    """Start counting the peak anew, where that is possible; return the bytes resident now.

    Free memory that the allocator holds back would hide what the steps ask for: it goes first.
    """
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
    """Return seconds from the start of Python to the end of the first LeNet step."""
    ask = partial(_first_step, threads=threads)
    with tempfile.TemporaryDirectory() as cache:
        log("start-up from an empty cache")
        seconds = {"numbagrad, empty cache": ask("numbagrad", NUMBAGRAD_CACHE_DIR=cache)}
        log("start-up from a full cache, and PyTorch's")
        warm, theirs = [], []
        for _ in range(STARTS):
            warm.append(ask("numbagrad", NUMBAGRAD_CACHE_DIR=cache))
            theirs.append(ask("PyTorch"))
    return seconds | {
        "numbagrad, full cache": statistics.median(warm),
        "PyTorch": statistics.median(theirs),
    }


# What a user would write. The clock is the system's, the same for both processes.
_FIRST_STEP = {
    "numbagrad": """
import numbagrad as ng
import numpy as np
model = ng.models.lenet()
optimizer = ng.optim.Adam(model.parameters())
images = ng.asarray(np.ones((32, 28, 28, 1), np.float32))
loss = ng.softmax_cross_entropy(model(images), ng.asarray(np.zeros(32, np.int64)))
""",
    "PyTorch": """
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
""",
}
_LAST_LINES = """
loss.backward()
optimizer.step()
import time
print(loss.item() and time.time())
"""


def _first_step(library: str, threads: int, **settings: str) -> float:
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_STEP[library] + _LAST_LINES],
        env={**os.environ, **environment(threads), **settings},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the first step of {library} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1]) - started


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
    make = _our_loader if library == "numbagrad" else _torch_loader
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

    rng = np.random.default_rng(1)

    def augment(batch: np.ndarray) -> np.ndarray:
        padded = np.pad(batch, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
        rows, columns = rng.integers(0, 2 * MARGIN + 1, (2, len(batch)))
        for image, row, column, mirror in zip(
            range(len(batch)), rows, columns, rng.random(len(batch)) < 0.5, strict=True
        ):
            cut = padded[image, row : row + SIDE, column : column + SIDE]
            batch[image] = cut[:, ::-1] if mirror else cut
        return batch

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
    if library == "numbagrad":
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
