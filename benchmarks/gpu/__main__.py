"""``python -m benchmarks.gpu``: run what needs a GPU, the most important first."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console

from . import bench, report
from .results import GpuReport, file_name

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
DEVICE_TESTS = "tests/cuda/device"
SOAK = f"{DEVICE_TESTS}/test_soak.py"
MARGIN = 15  # seconds that a part may take to end, beyond those it was told
TEN_MINUTES = 570.0  # seconds, less what it takes to begin and to end
LAST_WORDS = 8  # seconds for what is out of time to say how far it came
TRIES = 4  # processes of the benchmarks that may die

CHECK = """
import sys
from numbagrad import device, errors
try:
    device.backend("cuda")
except (errors.DeviceError, ImportError) as error:
    sys.exit(f"no GPU: {error}")
"""

console = Console()


@dataclass(frozen=True)
class Part:
    """One thing to run.

    Attributes
    ----------
    least, most
        Seconds it is given: see `limit`.
    run
        Takes the run and the seconds; returns whether all is well.
    """

    name: str
    about: str
    least: float
    most: float
    run: Callable[[Run, float], bool]


@dataclass
class Run:
    """One call of the command: where results go, and what its parts share."""

    out: Path
    rehearse: bool
    workers: int
    soak_seconds: float
    peer: bool

    def command(self, *words: str, seconds: float, **settings: str) -> int | None:
        """Run Python, its output to the terminal and to ``log.txt``; None if it took too long."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}
        environment["NUMBA_ENABLE_CUDASIM"] = "1" if self.rehearse else "0"
        process = subprocess.Popen(
            [sys.executable, *words],
            env=environment, cwd=ROOT, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all that it starts can be ended
        )  # fmt: skip
        reader = threading.Thread(target=self._copy, args=(process.stdout,))
        reader.start()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.note(f"out of time after {seconds:.0f} s")
            process.send_signal(signal.SIGINT)  # pytest then says what has failed so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()

    def _copy(self, lines: IO[str]) -> None:
        with lines, (self.out / "log.txt").open("a") as log:
            for line in lines:
                sys.stdout.write(line)
                log.write(line)
                log.flush()

    def note(self, text: str) -> None:
        """Print a line, and add it to ``log.txt``."""
        console.print(text, highlight=False, markup=False)
        with (self.out / "log.txt").open("a") as log:
            log.write(text + "\n")


# --------------------------------------------------------------------- parts


def _pytest(run: Run, seconds: float, *words: str, **settings: str) -> bool:
    if importlib.util.find_spec("pytest") is None:
        run.note("pytest is not installed: these tests were not run")
        return False
    # A warning of another version of a library is no reason to lose a run on a GPU.
    common = "-q", "-p", "no:cacheprovider", "-W", "default", "--durations=5"
    return run.command("-m", "pytest", *common, *words, seconds=seconds, **settings) == 0


def smoke(run: Run, seconds: float) -> bool:
    """Run a few tests: does it work at all?"""
    return _pytest(run, seconds, "-x", "-m", "smoke", DEVICE_TESTS)


def tests(run: Run, seconds: float) -> bool:
    """Run the tests: values, gradients, agreement with the CPU, determinism, errors."""
    words = [DEVICE_TESTS, "--ignore", SOAK]
    if run.rehearse:
        words += ["-k", "networks or deferred"]
    if run.workers > 1 and importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(run.workers)]
    return _pytest(run, seconds, *words)


def soak(run: Run, seconds: float) -> bool:
    """Train on and on: memory must not grow."""
    # Two ways to train, each with a warm-up of a tenth, and time to compile.
    each = min(run.soak_seconds, max(1.0, (seconds - 30) / 2.2))
    run.note(f"training for {each:.0f} s eagerly and {each:.0f} s compiled")
    return _pytest(run, seconds, "-s", SOAK, NUMBAGRAD_SOAK_SECONDS=f"{each:.1f}")


def sanitizer(run: Run, seconds: float) -> bool:
    """Run the kernels of all cases under compute-sanitizer's memcheck and racecheck."""
    if run.rehearse:  # the tool watches a GPU
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        words = "tests/cuda/run_kernels.py", "--part", "1/8"
        return run.command(*words, seconds=seconds, PYTHONPATH=path) == 0
    most = max(1.0, seconds - 40)
    parts = max(1, run.workers // 2)
    words = "tests/cuda/sanitize.py", "--seconds", f"{most:.0f}", "--parts", str(parts)
    return run.command(*words, seconds=seconds) == 0


def measure(run: Run, seconds: float) -> bool:
    """Measure against PyTorch and CuPy."""
    out = run.out / "bench.jsonl"
    end = time.monotonic() + seconds
    date, seed = str(datetime.date.today()), secrets.randbelow(2**32)
    status = bench.BROKEN
    for _ in range(TRIES):
        left = end - time.monotonic()
        if left < MARGIN:
            break
        task = json.dumps(asdict(bench.Task(seed, date, left - MARGIN, run.rehearse)))
        status = run.command("-m", "benchmarks.gpu.bench", str(out), task, seconds=left)
        if status in (0, None) or not out.exists():
            break
    found = _collect(run)
    report.show(found, console)
    return status == 0 and bool(found.results) and not found.is_wrong


def speedrun(run: Run, seconds: float) -> bool:
    """Train on CIFAR-10 to 94 %."""
    words = ["-m", "benchmarks.cifar10_speedrun", "--out", str(run.out / "speedrun.json")]
    words += ["--device", "cuda", "--seconds", f"{seconds - MARGIN:.0f}"]
    if run.peer:
        words.append("--peer")
    if run.rehearse:
        words.append("--rehearse")
    well = run.command(*words, seconds=seconds) == 0
    _collect(run)
    return well


def _collect(run: Run) -> GpuReport:
    """Bring what was measured together in one file, named after the GPU."""
    found, _ = bench.read(run.out / "bench.jsonl")
    trained = run.out / "speedrun.json"
    if trained.exists():
        found.speedrun = json.loads(trained.read_text())
    if found.machine:
        found.save(run.out / file_name(found.machine))
    return found


PARTS = {
    part.name: part
    for part in (
        Part("smoke", "a few tests", 30, 90, smoke),
        Part("bench", "speed", 60, 210, measure),
        Part("speedrun", "CIFAR-10 to 94 %", 40, 130, speedrun),
        Part("tests", "all tests", 60, 240, tests),
        Part("soak", "memory", 40, 300, soak),
        Part("sanitizer", "stray accesses and races", 50, 200, sanitizer),
    )
}


def limit(part: Part, seconds: float, left: float, later: float) -> float:
    """Return a part's seconds: of those left, not those that the parts behind it need at least.

    A part's most is meant for ten minutes altogether; who gives more seconds, gives it more.
    """
    most = part.most * max(1.0, seconds / TEN_MINUTES)
    return min(most, max(part.least, left - later))


# ------------------------------------------------------------------- command


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A part: {', '.join(PARTS)}. May be repeated; all by default."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for logs and results; runs/gpu by default.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For everything: each part's limit follows from it.")
    ] = TEN_MINUTES,
    soak: Annotated[
        float | None, typer.Option(help="Seconds of training, eagerly and compiled each.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the tests.")] = min(
        8, os.cpu_count() or 1
    ),
    peer: Annotated[bool, typer.Option(help="Let PyTorch do the speed run, too.")] = True,
    rehearse: Annotated[
        bool, typer.Option(help="On the simulator, at tiny sizes: to see whether it works.")
    ] = False,
    publish: Annotated[
        bool, typer.Option(help="Write benchmarks/results and the README's table at the end.")
    ] = False,
    redraw: Annotated[
        Path | None,
        typer.Option(
            help="Run nothing: publish this file (bench.jsonl of a run that was cut off will do), "
            "or the newest in this folder."
        ),
    ] = None,
) -> None:
    """Run what needs a GPU. Each part writes its results as it ends; exits with 1 if one failed."""
    if redraw is not None:
        _publish(load(redraw))
        return
    unknown = set(only or ()) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: known are {', '.join(PARTS)}")
    folder = (out or ROOT / "runs" / "gpu").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for left in ("log.txt", "bench.jsonl", "speedrun.json", "summary.json"):
        (folder / left).unlink(missing_ok=True)
    if soak is None:
        soak = float(os.environ.get("NUMBAGRAD_SOAK_SECONDS", 2 if rehearse else 60))
    run = Run(folder, rehearse, workers, soak, peer)
    end = time.monotonic() + seconds
    if run.command("-c", CHECK, seconds=120) != 0:
        run.note("Nothing was run. On the simulator, at tiny sizes: --rehearse")
        raise typer.Exit(2)
    chosen = [part for part in PARTS.values() if not only or part.name in only]
    summary: dict[str, dict] = {}
    for number, part in enumerate(chosen):
        later = sum(each.least for each in chosen[number + 1 :])
        given = limit(part, seconds, end - time.monotonic(), later)
        run.note(f"=== {part.name}: {part.about}, at most {given:.0f} s")
        started = time.monotonic()
        well = part.run(run, given)
        summary[part.name] = {"passed": well, "seconds": round(time.monotonic() - started, 1)}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        run.note(f"=== {part.name}: {'passed' if well else 'FAILED'}, "
                 f"{summary[part.name]['seconds']} s")  # fmt: skip
    found = _collect(run)
    if publish and found.machine and not rehearse:
        _publish(found)
    run.note("  ".join(f"{name} {'passed' if each['passed'] else 'FAILED'}"
                       for name, each in summary.items()))  # fmt: skip
    if not all(each["passed"] for each in summary.values()):
        raise typer.Exit(1)


def load(path: Path) -> GpuReport:
    """Return the results in a file, or the newest in a folder."""
    if path.is_dir():
        return stored(path)
    return bench.read(path)[0] if path.suffix == ".jsonl" else GpuReport.load(path)


def stored(folder: Path = RESULTS) -> GpuReport:
    """Return the newest results of a GPU in a folder, or a report of nothing."""
    found = [
        GpuReport.load(path)
        for path in sorted(folder.glob("*.json"))
        if "device" in json.loads(path.read_text())["machine"]  # the others are of processors
    ]
    return max(found, key=lambda each: each.date, default=GpuReport())


def _publish(found: GpuReport) -> None:
    if found.machine:
        found.save(RESULTS / file_name(found.machine))
    README.write_text(report.publish(found, README.read_text()))
    console.print("Wrote README.md" + (" and benchmarks/results" if found.machine else ""))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended then, too
    typer.run(main)
