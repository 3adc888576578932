"""Runs cases in a process of its own, whose libraries all have the same number of threads.

``python -m benchmarks.worker OUT TASK`` is given a `Task` as JSON. To the file ``OUT`` it
appends a line of JSON for the machine's roof at either end, at the start of each case and for its
outcome. A worker that is started again on the same file goes on where the last one died, behind
the case that killed it.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numbagrad.roofline import Roof

from .measure import QUICK, Case, Effort, race
from .results import Mode, Result, roof_from_json

# Idle OpenMP threads were seen to spin for 2 to 3 ms after their work (PyTorch and Numba bring an
# OpenMP runtime each), OpenBLAS's for 100 ms. On several threads each turn begins with a rest that
# outlasts the former; `environment` shortens the latter. All else is as the libraries come.
PAUSE = 5e-3
OPENBLAS_SPIN = 22  # 2 ** 22 cycles: 2 ms
HUNG = 900  # seconds without a case ending; then its process is ended
TRIES = 5  # processes that may die before the rest of the cases is given up
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """What a worker is told to do."""

    threads: int
    families: list[str]
    seed: int
    quick: bool
    compiled: bool


def environment(threads: int) -> dict[str, str]:
    """Return the settings that give every library this many threads."""
    count = str(threads)
    names = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"
    settings = dict.fromkeys(names, count)
    settings["OPENBLAS_THREAD_TIMEOUT"] = str(OPENBLAS_SPIN)
    settings["JAX_PLATFORMS"] = "cpu"
    settings["NPROC"] = count  # XLA's pool
    if threads == 1:
        settings["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return settings


# ------------------------------------------------------- in the parent process


def run(task: Task, log: Callable[[str], None]) -> Mode:
    """Run the cases in worker processes: a new one goes on where one died.

    Raises
    ------
    RuntimeError
        If the worker could not even start; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        for _ in range(TRIES):
            if _work(task, out, log) == 0:
                break
        progress = read(out)
    if not progress.roofs:
        raise RuntimeError("the worker could not start; see above")
    results = [Result.from_json(result) for result in progress.results]
    return Mode(task.threads, progress.roof, results, progress.fatal)


def _work(task: Task, out: Path, log: Callable[[str], None]) -> int:
    """Run one worker process; return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.worker", str(out), json.dumps(vars(task))],
        env={**os.environ, **environment(task.threads)},
        cwd=ROOT,
    )
    seen, last = len(read(out).started), time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - last < HUNG:
            time.sleep(1)
            started = read(out).started
            for key in started[seen:]:
                log(f"{task.threads} thread{'s' * (task.threads > 1)}, {key}")
                seen, last = len(started), time.monotonic()
    finally:
        process.kill()  # if it hung, or this process is interrupted
    return process.wait()


# ------------------------------------------------------- in the worker process


def main(out: Path, task: Task) -> None:
    """Run the cases of the task that are not in the file yet."""
    import torch

    from numbagrad import roofline

    from .cases import FAMILIES

    torch.set_num_threads(task.threads)
    done = read(out)
    with out.open("a") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write(roof=vars(roofline.measure(task.threads)))
        for family in task.families:
            for case in FAMILIES[family]():
                if case.key in done.started or (task.quick and not case.quick):
                    continue
                write(started=case.key)
                write(key=case.key, result=_run(case, task))
                gc.collect()
        write(roof=vars(roofline.measure(task.threads)))


def _run(case: Case, task: Task) -> dict:
    """Return a case's outcome as a dict that `results.Result` can be made of."""
    from . import kernels
    from .results import OURS

    result = {"family": case.family, "name": case.name, "part": case.part, "per": case.per}
    try:
        contenders, reference = case.prepare(task.seed, task.compiled)
        outcome = race(
            contenders,
            reference,
            case.tolerance,
            QUICK if task.quick else Effort(),
            PAUSE if task.threads > 1 else 0.0,
        )
        result["race"] = outcome.to_json()
        if OURS in outcome.timings:
            observed = kernels.observe(contenders[OURS].make())
            result["kernels"] = [kernel.to_json() for kernel in observed]
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {str(error)[:200]}"
        result.setdefault("race", {"timings": {}, "failures": {OURS: failure}})
    return result


@dataclass
class Progress:
    """What a worker's file says."""

    roofs: list[Roof]
    results: list[dict]
    started: list[str]
    outcomes: set[str]

    @property
    def roof(self) -> Roof:
        """The best of what was measured: at the start, when a worker went on, and at the end."""
        return Roof(
            max(roof.peak for roof in self.roofs),
            {
                size: max(roof.bandwidth[size] for roof in self.roofs)
                for size in self.roofs[0].bandwidth
            },
        )

    @property
    def fatal(self) -> list[str]:
        """The cases without an outcome: each took its worker down."""
        return [key for key in self.started if key not in self.outcomes]


def read(out: Path) -> Progress:
    """Read a worker's file. Its last line may be cut off."""
    progress = Progress([], [], [], set())
    for text in out.read_text().splitlines() if out.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "roof" in line:
            progress.roofs.append(roof_from_json(line["roof"]))
        elif "started" in line:
            progress.started.append(line["started"])
        else:
            progress.results.append(line["result"])
            progress.outcomes.add(line["key"])
    return progress


if __name__ == "__main__":
    main(Path(sys.argv[1]), Task(**json.loads(sys.argv[2])))
