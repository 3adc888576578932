"""Contenders take turns, so that a noisy machine disturbs all of them alike.

A contender is a function of ``k``: it does its work on the k-th set of inputs and returns when it
has finished. All are first warmed up (that is when they compile) and their results checked. Then
come rounds: in each, every contender has one turn, in a new random order. A turn is long enough
for the clock, so a fast contender repeats within it. Kept is the median over the turns.
"""

from __future__ import annotations

import random
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Run = Callable[[int], Any]

INPUT_SETS = 3  # each contender rotates among as many sets of inputs
LONG = 0.05  # seconds; a call of this length does not notice how it began


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    seconds: float = 0.3  # for each contender of a case
    turn: float = 2e-3  # a turn lasts at least this long
    least: int = 5  # turns
    most: int = 41


QUICK = Effort(seconds=0.05, turn=5e-4, least=3, most=9)


@dataclass
class Timing:
    """What one contender's turns gave.

    Attributes
    ----------
    median
        Seconds for one call.
    spread
        The distance between the quartiles, divided by the median.
    turns
        How many there were.
    cores
        Processor time divided by wall time: how many cores it kept busy.
    """

    median: float
    spread: float
    turns: int
    cores: float

    @classmethod
    def of(cls, seconds: Sequence[float], cores: float = 1.0) -> Timing:
        """Sum up the turns.

        Examples
        --------
        >>> Timing.of([4.0, 1.0, 2.0, 3.0, 100.0]).median
        3.0
        """
        median = statistics.median(seconds)
        low, high = np.percentile(seconds, [25, 75])
        return cls(median, float(high - low) / median, len(seconds), cores)


@dataclass
class Race:
    """What a case came to: timings, and what failed and why."""

    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict:
        """Return plain dicts."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Race:
        """Return what `to_json` was called on."""
        timings = {name: Timing(**timing) for name, timing in data["timings"].items()}
        return cls(timings, dict(data["failures"]))


class WrongResult(AssertionError):
    """A contender's result differs from the reference."""


def require_close(result: Sequence, reference: Sequence, tolerance: float) -> None:
    """Compare arrays; the tolerance is relative to the reference's largest element.

    Raises
    ------
    WrongResult
        Naming the first output that differs, and by how much.

    Examples
    --------
    >>> require_close([np.float32([1, 2])], [np.float64([1, 2.1])], 0.01)
    Traceback (most recent call last):
    benchmarks.measure.WrongResult: output 0 is off by 4.8e-02 of its largest element
    """
    if len(result) != len(reference):
        raise WrongResult(f"{len(result)} outputs; {len(reference)} were expected")
    for k, (ours, theirs) in enumerate(zip(result, reference, strict=True)):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        if ours.shape != theirs.shape:
            raise WrongResult(f"output {k} has shape {ours.shape}; {theirs.shape} was expected")
        scale = float(max(theirs.max(initial=0), -theirs.min(initial=0))) or 1.0
        error = np.abs(np.subtract(ours, theirs, dtype=np.float64)).max(initial=0.0) / scale
        if not error <= tolerance:  # NaN too
            raise WrongResult(f"output {k} is off by {error:.1e} of its largest element")


@dataclass(frozen=True)
class Contender:
    """One library's way to do the work of a case.

    Attributes
    ----------
    make
        Prepares everything outside the timing and returns the function of ``k``.
    arrays
        Turns what the run returned into NumPy arrays in the reference's layout.
    tolerance
        In place of the case's.
    stream
        Says on which stream of a GPU the work is done, as an address.
    """

    make: Callable[[], Run]
    arrays: Callable[[Any], Sequence[np.ndarray]]
    tolerance: float | None = None
    stream: Callable[[], int] = int


# clock(contender, run, ks) calls the run with each k; it returns seconds, and the last result.
Clock = Callable[[Contender, Run, Sequence[int]], tuple[float, Any]]


def wall(contender: Contender, run: Run, ks: Sequence[int]) -> tuple[float, Any]:
    """Take the time until the last call has returned: a `Clock`."""
    started = time.perf_counter()
    for k in ks:
        result = run(k)
    return time.perf_counter() - started, result


@dataclass(frozen=True)
class Case:
    """One line of the report.

    Attributes
    ----------
    family, name, part
        ``conv``, ``3x3 64->64, 16x16, batch 32``, ``forward``; together they are unique.
    prepare
        ``prepare(seed, compiled)`` draws inputs and returns the contenders by name and the
        reference that their results are held to.
    tolerance
        Relative to the largest element of each output, see `require_close`.
    per
        Report the time divided by this: how many operations a run does one after another.
    quick
        Part of the quick run.
    sets
        How many sets of inputs there are to rotate among.
    """

    family: str
    name: str
    part: str
    prepare: Callable[[int, bool], tuple[dict[str, Contender], Callable]]
    tolerance: float = 1e-4
    per: int = 1
    quick: bool = True
    sets: int = INPUT_SETS

    @property
    def key(self) -> str:
        """The whole name."""
        return f"{self.family}: {self.name}" + (f": {self.part}" if self.part else "")


def race(
    contenders: dict[str, Contender],
    reference: Callable[[int], Sequence[np.ndarray]],
    tolerance: float,
    effort: Effort,
    pause: float,
    seed: int = 0,
    sets: int = INPUT_SETS,
    clock: Clock = wall,
) -> Race:
    """Warm up, check, then measure in turns.

    A contender that raises is noted and left out, and the others go on.

    Parameters
    ----------
    contenders
        By name.
    reference
        The expected outputs for the k-th inputs; called in the order 0, 1, ...
    tolerance
        See `require_close`.
    effort
        How long to measure.
    pause
        Seconds of rest before each turn: idle threads of OpenMP and of OpenBLAS go on spinning for
        some milliseconds after their work, on the cores that the next contender needs.
    seed
        Fixes the order of the turns.
    sets
        How many sets of inputs there are.
    clock
        Takes the time.
    """
    outcome = Race()
    expected = [reference(k) for k in range(sets)]
    runs, estimates = {}, {}
    for name, contender in contenders.items():
        try:
            run = contender.make()
            calls = []
            for k in range(sets):
                taken, result = clock(contender, run, [k])
                calls.append(taken)
                require_close(
                    contender.arrays(result), expected[k], contender.tolerance or tolerance
                )
            # Once more: the first call may have compiled, and it may have been the only one.
            estimates[name] = min(*calls, clock(contender, run, [0])[0])
            runs[name] = run
        except Exception as error:
            outcome.failures[name] = _reason(error)

    repeats = {name: max(1, round(effort.turn / t)) for name, t in estimates.items()}
    turns = {
        name: min(effort.most, max(effort.least, round(effort.seconds / (repeats[name] * t))))
        for name, t in estimates.items()
    }
    turns_of: dict[str, list[float]] = {name: [] for name in runs}
    busy = dict.fromkeys(runs, 0.0)
    shuffled = random.Random(seed)
    for number in range(max(turns.values(), default=0)):
        # One that needs fewer turns has them spread over the whole race.
        order = [name for name in runs if _is_due(number, turns[name], max(turns.values()))]
        shuffled.shuffle(order)
        for name in order:
            time.sleep(pause)
            if estimates[name] < LONG:
                runs[name](number % sets)  # wakes its threads, fills its caches
            before = time.process_time()
            ks = [(number + 1 + turn) % sets for turn in range(repeats[name])]
            seconds, _ = clock(contenders[name], runs[name], ks)
            busy[name] += (time.process_time() - before) / seconds
            turns_of[name].append(seconds / len(ks))
    for name, seconds in turns_of.items():
        outcome.timings[name] = Timing.of(seconds, busy[name] / len(seconds))
    return outcome


def _is_due(number: int, turns: int, rounds: int) -> bool:
    """Spread ``turns`` evenly over ``rounds``."""
    return number * turns // rounds != (number - 1) * turns // rounds


def _reason(error: Exception) -> str:
    """Return the error in one line, with the place it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().splitlines()
    text = text[0][:200] if text else ""
    return f"{type(error).__name__}: {text} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
