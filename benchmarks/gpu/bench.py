"""Measures the cases on a GPU: ``python -m benchmarks.gpu.bench OUT TASK``.

To the file ``OUT`` it appends a line of JSON for the machine, at the start of each case and for its
outcome, as `benchmarks.worker` does: a run that is cut off leaves what it found, and one that is
started again goes on behind the case that took it down.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..measure import Case, Effort, Race, race, wall
from ..results import OURS, Result
from .results import OWN, GpuReport

EFFORT = Effort(seconds=0.25, turn=5e-3, least=7, most=31)
QUICK = Effort(seconds=0.02, turn=1e-4, least=2, most=3)
BROKEN = 3  # exit status: the GPU's context cannot be used any more


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes
    ----------
    seconds
        No case begins after that.
    rehearse
        Tiny sizes, the wall's clock: to see on the simulator whether it works.
    """

    seed: int
    date: str
    seconds: float
    rehearse: bool = False


def main(out: Path, task: Task) -> int:
    """Run the cases that are not in the file yet; return the exit status."""
    from . import cases
    from .results import machine

    until = time.monotonic() + task.seconds
    cases.prepare_peers()
    started = read(out)[1]
    with out.open("a") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write(machine=machine(), date=task.date, seed=task.seed)
        for case in cases.all_cases(cases.TINY if task.rehearse else cases.FULL):
            if case.key in started:
                continue
            if time.monotonic() > until:
                print("out of time; left out:", case.key, flush=True)
                continue
            write(started=case.key)
            began = time.monotonic()
            result = _run(case, task)
            write(key=case.key, result=asdict(result))
            print(f"{case.key}: {time.monotonic() - began:.1f} s", flush=True)
            for name, reason in result.race.failures.items():
                print(f"  {name}: {reason}", flush=True)
            gc.collect()
            if result.race.failures.keys() & set(OWN) and not cases.gpu_works():
                print("the GPU's context is broken: going on in a new process", flush=True)
                return BROKEN
    return 0


def _run(case: Case, task: Task) -> Result:
    from . import cases, clocks

    if not cases.on_gpu():
        clock = wall
    else:
        clock = clocks.host if case.family == "launch" else clocks.events
    try:
        contenders, reference = case.prepare(task.seed, False)
        outcome = race(
            contenders,
            reference,
            case.tolerance,
            QUICK if task.rehearse else EFFORT,
            pause=0.0,
            seed=task.seed,
            sets=case.sets,
            clock=clock,
        )
    except Exception as error:
        traceback.print_exc()
        outcome = Race({}, {OURS: f"{type(error).__name__}: {str(error)[:200]}"})
    return Result(case.family, case.name, case.part, case.per, outcome)


def read(out: Path) -> tuple[GpuReport, set[str]]:
    """Return what a file holds, and the cases that were started. Its last line may be cut off."""
    report, started, ended = GpuReport(), [], set()
    for text in out.read_text().splitlines() if out.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "machine" in line:
            report.machine, report.date, report.seed = line["machine"], line["date"], line["seed"]
        elif "started" in line:
            started.append(line["started"])
        else:
            report.results.append(Result.from_json(line["result"]))
            ended.add(line["key"])
    report.fatal = [key for key in started if key not in ended]
    return report, set(started)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Task(**json.loads(sys.argv[2]))))
