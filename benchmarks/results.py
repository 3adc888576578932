"""What a run of the benchmarks found, and what follows from it: ratios, means, targets.

A ratio is the best peer's median divided by ours: above 1, numbagrad is faster.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from numbagrad.roofline import Roof

from .measure import Race
from .reasons import FRACTION, SHARE, why

OURS = "numbagrad"
COMPILED = "numbagrad compiled"
OWN = OURS, COMPILED
FORWARD, GRADIENTS = "forward", "forward + gradients"
GREEDY = 1.25  # times the number of threads
SMALL = "pooling", "norms", "softmax", "elementwise", "optimiser"


@dataclass
class Result:
    """The outcome of one case."""

    family: str
    name: str
    part: str
    per: int
    race: Race
    kernels: list[dict] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Name and part."""
        return f"{self.name}: {self.part}" if self.part else self.name

    @property
    def ours(self) -> float | None:
        """Our median in seconds, of one operation."""
        return self.time_of(OURS)

    @property
    def compiled(self) -> float | None:
        """Our median in seconds with `ng.compile`, where that was measured."""
        return self.time_of(COMPILED)

    def time_of(self, name: str) -> float | None:
        """Return a contender's median in seconds, of one operation."""
        timing = self.race.timings.get(name)
        return timing and timing.median / self.per

    @property
    def best_peer(self) -> tuple[str, float] | None:
        """The fastest peer and its median in seconds."""
        peers = {name: t for name, t in self.race.timings.items() if name not in OWN}
        if not peers:
            return None
        name = min(peers, key=lambda peer: peers[peer].median)
        return name, peers[name].median / self.per

    @property
    def ratio(self) -> float | None:
        """The best peer's median divided by ours."""
        if not self.ours or not self.best_peer:
            return None
        return self.best_peer[1] / self.ours

    @property
    def compiled_ratio(self) -> float | None:
        """The best peer's median divided by ours with `ng.compile`."""
        if not self.compiled or not self.best_peer:
            return None
        return self.best_peer[1] / self.compiled

    @property
    def spread(self) -> float | None:
        """How far apart the quartiles of the ratio may be, relative to it."""
        if self.ratio is None:
            return None
        timings = self.race.timings
        return timings[OURS].spread + timings[self.best_peer[0]].spread

    @classmethod
    def from_json(cls, data: dict) -> Result:
        """Return what ``asdict`` was called on."""
        return cls(**{**data, "race": Race.from_json(data["race"])})


@dataclass
class Mode:
    """All results with one number of threads."""

    threads: int
    roof: Roof
    results: list[Result]
    fatal: list[str] = field(default_factory=list)  # cases that took their process down

    def of(self, family: str, part: str | None = None) -> list[Result]:
        """Return a family's results."""
        return [
            result
            for result in self.results
            if result.family == family and part in (None, result.part)
        ]

    @property
    def kernels(self) -> list[dict]:
        """Each of our kernels once: see `kernels.Kernel`, and ``fraction``, how much of the roof.

        That is the time it would take at the machine's limit, divided by what it took.
        """
        found = {(k["op"], k["shapes"]): k for result in self.results for k in result.kernels}
        return [
            k | {"fraction": self.roof.seconds(k["flops"], k["moved"]) / k["seconds"]}
            for k in found.values()
        ]

    @property
    def slow_kernels(self) -> list[dict]:
        """Kernels that take much of a step and are far below the roof: see `reasons`.

        With ``step`` and ``share``, where it takes most: of the time in kernels, in eager mode; and
        ``why``, None if there is no written reason. Largest shares first.
        """
        known = {(kernel["op"], kernel["shapes"]): kernel for kernel in self.kernels}
        calls = [
            r.ours for r in self.of("dispatch") if r.name == "64 floats, an op without gradient"
        ]
        found: dict[tuple, dict] = {}
        for result in self.of("steps"):
            total = sum(kernel["seconds"] * kernel["calls"] for kernel in result.kernels)
            for kernel in result.kernels:
                share = kernel["seconds"] * kernel["calls"] / total
                key = kernel["op"], kernel["shapes"]
                if share <= SHARE or known[key]["fraction"] >= FRACTION:
                    continue
                if key not in found or share > found[key]["share"]:
                    reason = why(known[key], calls[0] if calls else None)
                    where = {"step": result.name, "share": share, "why": reason}
                    found[key] = known[key] | where
        return sorted(found.values(), key=lambda kernel: -kernel["share"])

    @property
    def failures(self) -> list[str]:
        """What failed, in words."""
        lines = [f"{key}: took its process down" for key in self.fatal]
        for result in self.results:
            for name, reason in result.race.failures.items():
                lines.append(f"{result.family}: {result.label}: {name}: {reason}")
        return lines

    @property
    def greedy(self) -> list[str]:
        """Who kept more cores busy than it was given threads."""
        return [
            f"{result.family}: {result.label}: {name} kept {timing.cores:.1f} cores busy"
            for result in self.results
            for name, timing in result.race.timings.items()
            if timing.cores > GREEDY * self.threads
        ]

    @property
    def is_wrong(self) -> bool:
        """Whether some result was wrong, or one of ours is missing."""
        races = [result.race for result in self.results]
        wrong = any(
            reason.startswith("WrongResult") for race in races for reason in race.failures.values()
        )
        missing = any(
            race.failures.keys() & set(OWN) or not race.timings.keys() & set(OWN) for race in races
        )
        return wrong or missing or bool(self.fatal)

    @classmethod
    def from_json(cls, data: dict) -> Mode:
        """Return what ``asdict`` was called on."""
        results = [Result.from_json(each) for each in data["results"]]
        return cls(**{**data, "roof": roof_from_json(data["roof"]), "results": results})


@dataclass
class Report:
    """Everything a run found on one machine."""

    machine: dict
    date: str
    seed: int
    modes: list[Mode]
    processes: dict = field(default_factory=dict)  # see `processes.measure`

    def save(self, path: Path) -> None:
        """Write JSON; a run that is interrupted leaves the old file."""
        write_json(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        modes = [Mode.from_json(mode) for mode in data["modes"]]
        return cls(**{**data, "modes": modes})


def write_json(data: dict, path: Path) -> None:
    """Write a file, its floats rounded; a run that is interrupted leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(rounded(data), indent=1) + "\n")
    os.replace(partial, path)


def roof_from_json(data: dict) -> Roof:
    """Return what ``asdict`` was called on; JSON has made strings of the amounts of memory."""
    return Roof(data["peak"], {int(size): speed for size, speed in data["bandwidth"].items()})


def rounded(value: object) -> object:
    """Round all floats to four digits: the others are noise, and make files long.

    Examples
    --------
    >>> rounded({"a": [0.123456, 7]})
    {'a': [0.1235, 7]}
    """
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """Return the geometric mean; None if there is nothing, or something is missing.

    Examples
    --------
    >>> geometric_mean([0.5, 2.0, 8.0])
    2.0
    """
    ratios = list(ratios)
    if not ratios or not all(ratios):
        return None
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


# ------------------------------------------------------------------- targets


@dataclass(frozen=True)
class Target:
    """A figure that numbagrad means to reach."""

    name: str
    value: float | None
    bound: float
    at_most: bool = False

    @property
    def passed(self) -> bool | None:
        """None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:.3g}"


STEP_TARGETS = (("lenet, batch 128", 1.4), ("convnet6, batch 64", 1.4), ("mlp, batch 128", 0.8))
COMPILED_TARGETS = (
    ("lenet, batch 128", 2.5),
    ("lenet, batch 1", 5),
    ("mlp, batch 128", 1.3),
    ("mlp, batch 1", 3),
    ("convnet6, batch 64", 2),
    ("resnet8, batch 64", 2),
)
INFERENCE_TARGET = 2
CALL_TARGETS = (  # microseconds, on 64 floats
    ("an op without gradient", 5),
    ("an op on the tape", 10),
    ("backward for each op", 10),
)


def targets(mode: Mode) -> list[Target]:
    """Return the targets for speed, with what was reached."""
    convolutions = ratios(mode.of("conv", GRADIENTS))
    small = [ratio for family in SMALL for ratio in ratios(mode.of(family)) or [None]]
    worst = None if None in convolutions else min(convolutions, default=None)
    found = [
        Target("matrix products, mean", geometric_mean(ratios(mode.of("gemm"))), 1.0),
        Target("convolutions with gradients, mean", geometric_mean(convolutions), 1.5),
        Target("convolutions with gradients, worst shape", worst, 0.8),
        Target(", ".join(SMALL) + ", mean", geometric_mean(small), 1.5),
    ]
    steps = {result.name: result for result in mode.of("steps")}
    for name, bound in STEP_TARGETS:
        value = steps[name].ratio if name in steps else None
        found.append(Target(f"training step, {name}", value, bound))
    for name, bound in COMPILED_TARGETS:
        value = steps[name].compiled_ratio if name in steps else None
        found.append(Target(f"compiled step, {name}", value, bound))
    for result in mode.of("inference"):
        value = result.compiled_ratio
        found.append(Target(f"compiled inference, {result.name}", value, INFERENCE_TARGET))
    calls = {result.name: result.ours for result in mode.of("dispatch")}
    for what, bound in CALL_TARGETS:
        value = calls.get(f"64 floats, {what}")
        name = f"{what}, 64 floats, us"
        found.append(Target(name, value and value * 1e6, bound, at_most=True))
    return found


# Peak memory of an eager step, and activations of a compiled one, over PyTorch's.
MEMORY_TARGET = 1.0
ACTIVATION_TARGETS = {"mlp": 1 / 3, "lenet": 1 / 3, "convnet6": 0.6, "resnet8": 0.6}
START_TARGETS = {  # seconds
    "numbagrad, empty cache": 15,
    "numbagrad, full cache": 1.5,
    "numbagrad compiled, empty cache": 20,
    "numbagrad compiled, full cache": 1.5,
    "numbagrad compiled, ResNet-8, empty cache": 60,
}
ACCURACY_TARGET, TRAINING_TARGET = 99.0, 20  # % and seconds


def process_targets(processes: dict) -> list[Target]:
    """Return the targets for what was measured in processes of its own: see `processes`."""
    found = []
    for row in processes.get("memory", ()):
        ratio = over_peers(row["peaks"], OURS)
        found.append(Target(f"peak memory, {row['name']}", ratio, MEMORY_TARGET, at_most=True))
        ratio = over_peers(activations(row), COMPILED)
        bound = ACTIVATION_TARGETS[row["name"].split(",")[0]]
        name = f"activations of a compiled step, {row['name']}"
        found.append(Target(name, ratio, bound, at_most=True))
    for name, value in processes.get("startup", {}).items():
        if name in START_TARGETS:
            name, bound = f"first step, s: {name}", START_TARGETS[name]
            found.append(Target(name, value, bound, at_most=True))
    if "training" in processes:
        trained = processes["training"] or {"accuracy": None, "seconds": None}
        found.append(Target("LeNet on MNIST, accuracy in %", trained["accuracy"], ACCURACY_TARGET))
        name = "LeNet on MNIST, whole process, s"
        found.append(Target(name, trained["seconds"], TRAINING_TARGET, at_most=True))
    return found


def activations(row: dict) -> dict[str, float]:
    """Return the peaks of a step less what is no activation: parameters, gradients, moments, batch.

    Examples
    --------
    >>> activations({"peaks": {"PyTorch": 9, "numbagrad": 8}, "held": 5})
    {'PyTorch': 4, 'numbagrad': 3}
    """
    return {name: peak - row["held"] for name, peak in row["peaks"].items()}


def over_peers(amounts: dict[str, float], own: str) -> float | None:
    """Return one of our amounts over the smallest of the peers'; None if there is nothing in one.

    Examples
    --------
    >>> over_peers({"numbagrad": 3, "PyTorch": 6, "PyTorch channels_last": 4}, "numbagrad")
    0.75
    """
    theirs = min(amount for name, amount in amounts.items() if name not in OWN)
    return amounts[own] / theirs if own in amounts and theirs > 0 else None


def ratios(results: Iterable[Result]) -> list[float | None]:
    """Return the ratio of each."""
    return [result.ratio for result in results]
