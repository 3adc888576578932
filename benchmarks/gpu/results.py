"""What a run on a GPU found, and what follows from it: the figures that have a target."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .. import machine as host
from ..results import COMPILED, OURS, Result, geometric_mean, write_json

TF32 = f"{OURS} tf32"
OWN = OURS, COMPILED, TF32
TORCH, CHANNELS_LAST, TORCH_TF32 = "PyTorch", "PyTorch channels_last", "PyTorch tf32"
GRAPH, GRAPH_CHANNELS_LAST = "PyTorch CUDA graph", "PyTorch CUDA graph channels_last"
CUPY = "CuPy"
BY_INPUT, BY_WEIGHT = "gradient of the input", "gradient of the weight"
COPY = "copy"
SIMULATOR = "simulator"  # in place of the device, in a rehearsal

#: How many arrays of the large size each kernel that only moves memory must read and write.
ARRAYS = {
    COPY: 2.0,
    "relu": 2.0,
    "add": 3.0,
    "chain tanh(x y + x) exp(-y y)": 3.0,
    "sum": 1.0,
    "sum of rows": 1.0,
    "sum of columns": 1.0,
    "softmax": 2.0,
    "batch norm": 3.0,  # reads all of it for the statistics, then again
    "max pooling 2x2": 1.25,
}


def bytes_of(result: Result) -> float:
    """Return the bytes that a kernel of the family "bandwidth" must move, at least."""
    floats = int(result.part.removesuffix(" floats").replace(",", ""))
    return ARRAYS[result.name] * floats * 4


@dataclass
class GpuReport:
    """Everything that a run found on one GPU.

    Attributes
    ----------
    machine
        The GPU, its driver, and versions: see `machine`. Empty if nothing was measured.
    fatal
        Cases that took their process down.
    speedrun
        What ``benchmarks/cifar10_speedrun.py`` wrote.
    """

    machine: dict = field(default_factory=dict)
    date: str = ""
    seed: int = 0
    results: list[Result] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    speedrun: dict = field(default_factory=dict)

    def of(self, family: str) -> list[Result]:
        """Return a family's results."""
        return [result for result in self.results if result.family == family]

    @property
    def copy_bandwidth(self) -> float | None:
        """Bytes a second, read and written, of the fastest copy that any library made."""
        for result in self.of("bandwidth"):
            if result.name == COPY and result.race.timings:
                return bytes_of(result) / min(t.median for t in result.race.timings.values())
        return None

    @property
    def failures(self) -> list[str]:
        """What failed, in words."""
        return [f"{key}: took its process down" for key in self.fatal] + [
            f"{result.family}: {result.label}: {name}: {reason}"
            for result in self.results
            for name, reason in result.race.failures.items()
        ]

    @property
    def is_wrong(self) -> bool:
        """Whether a result was wrong, or one of ours is missing."""
        return bool(self.fatal) or any(
            name in OWN or reason.startswith("WrongResult")
            for result in self.results
            for name, reason in result.race.failures.items()
        )

    def save(self, path: Path) -> None:
        """Write JSON; a run that is interrupted leaves the old file."""
        write_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> GpuReport:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        return cls(**{**data, "results": [Result.from_json(each) for each in data["results"]]})


# ------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """A figure that has a target, or None where it was not measured.

    Attributes
    ----------
    unit
        ``"x"`` (times as fast as the peer), ``"s"`` or ``"us"``, which should be small.
    """

    name: str
    value: float | None
    target: float
    stretch: float | None
    unit: str = "x"

    @property
    def passed(self) -> bool | None:
        """Whether the target was reached; None if it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.target if self.unit == "x" else self.value <= self.target


def figures(report: GpuReport) -> list[Figure]:
    """Return the figures that have a target on an H100; a rehearsal has reached none."""
    if report.machine.get("device") == SIMULATOR:
        report = GpuReport()
    by_name = {(result.family, result.name): result for result in report.results}
    gemm = by_name.get(("gemm", "4096 x 4096 x 4096"))
    lenet = by_name.get(("steps", "lenet, batch 128"))
    convnet = by_name.get(("steps", "convnet6, batch 512"))
    eager, graphs = (TORCH, CHANNELS_LAST), (GRAPH, GRAPH_CHANNELS_LAST)
    calls = by_name.get(("launch", "64 floats, an op without gradient"))
    call = calls.ours if calls else None
    return [
        Figure(
            "matrix product of 4096 x 4096, true float32, against cuBLAS",
            ratio(gemm, OURS, (TORCH, CUPY)), 0.8, 0.95,
        ),
        Figure(
            "matrix product of 4096 x 4096, tf32, against cuBLAS in tf32",
            ratio(gemm, TF32, (TORCH_TF32,)), 0.4, 0.8,
        ),
        Figure(
            "convolutions 3x3 at 64 to 256 channels and their gradients, true float32, against "
            "cuDNN, geometric mean",
            geometric_mean(ratio(each, OURS, eager) for each in report.of("conv")), 0.7, 1.0,
        ),
        Figure(
            "kernels that only move memory, fraction of the measured copy bandwidth, geometric "
            "mean",
            geometric_mean(fraction for _, fraction in fractions(report)), 0.8, 0.92,
        ),
        Figure(
            "LeNet-5 training step, batch 128, against PyTorch", ratio(lenet, COMPILED, eager),
            3, 6,
        ),
        Figure(
            "LeNet-5 training step, batch 128, against PyTorch with CUDA graphs",
            ratio(lenet, COMPILED, graphs), 0.8, 1.2,
        ),
        Figure(
            "six-convolution BatchNorm network, batch 512, true float32, against PyTorch",
            ratio(convnet, COMPILED, eager), 0.8, 1.1,
        ),
        Figure("CIFAR-10 speed run to 94 %", report.speedrun.get("seconds_to_target"), 60, 20, "s"),
        Figure("host time of a small eager op", call and call * 1e6, 15, None, "us"),
    ]  # fmt: skip


def ratio(result: Result | None, own: str, peers: Sequence[str]) -> float | None:
    """Return the time of the fastest of these peers divided by ours; None if one is missing."""
    if result is None or result.time_of(own) is None:
        return None
    theirs = [time for time in map(result.time_of, peers) if time is not None]
    return min(theirs) / result.time_of(own) if theirs else None


def fractions(report: GpuReport) -> Iterable[tuple[str, float | None]]:
    """Yield each kernel that only moves memory, and its bandwidth over that of a copy."""
    copying = report.copy_bandwidth
    for result in report.of("bandwidth"):
        ours = result.ours or result.compiled
        if result.name != COPY:
            yield result.name, bytes_of(result) / ours / copying if ours and copying else None


# ------------------------------------------------------------------- machine


PACKAGES = (
    "numba", "numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "numpy", "torch",
    "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip


def machine() -> dict:
    """Return what a reader of the results should know about this machine and its GPU."""
    import torch

    import numbagrad

    found = {
        "device": SIMULATOR,
        "cpu": host.cpu(),
        "python": platform.python_version(),
        "versions": {"numbagrad": numbagrad.__version__, **host.versions(PACKAGES)},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": torch.cuda.get_device_name(0),
            "driver": _driver(),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def file_name(found: dict) -> str:
    """Return a short name that suits a file.

    Examples
    --------
    >>> file_name({"device": "NVIDIA H100 80GB HBM3"})
    'nvidia-h100-80gb-hbm3.json'
    """
    words = "".join(c if c.isalnum() else " " for c in found["device"].lower())
    return "-".join(words.split()) + ".json"
