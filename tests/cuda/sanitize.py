"""Let compute-sanitizer watch the kernels: memcheck for stray accesses, racecheck for hazards.

    python tests/cuda/sanitize.py [--seconds 100] [--parts 4] [--tool memcheck]

Each tool watches several processes side by side, each with a part of the cases. Ends with 1 if the
tool finds anything, and with 2 if there is no compute-sanitizer.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

RUN = Path(__file__).with_name("run_kernels.py")
ROOT = RUN.parents[2]
TOOLS = "memcheck", "racecheck"
PLACES = (
    "/usr/local/cuda/bin/compute-sanitizer",
    "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
)
GRACE = 30  # seconds that the last case and the tool's start may take beyond --seconds
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")


def find() -> str | None:
    """Return where compute-sanitizer is: on the PATH, else in a CUDA toolkit."""
    found = shutil.which("compute-sanitizer")
    if found is None:
        try:
            from cuda.pathfinder import find_nvidia_binary_utility

            found = find_nvidia_binary_utility("compute-sanitizer")
        except (ImportError, RuntimeError, ValueError):  # absent, or too old to know the tool
            found = None
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [f"{root}/bin/compute-sanitizer" for root in roots if root] + list(PLACES)
    return found or next((place for place in places if os.access(place, os.X_OK)), None)


def watch(sanitizer: str, tool: str, part: str, seconds: float) -> tuple[int | None, str]:
    """Run a part of the cases under a tool; return its exit status and all that was printed."""
    command = [
        sanitizer, "--tool", tool, "--error-exitcode", "9",
        # Libraries ask the driver for functions that it does not have: that is no error of ours.
        *(("--report-api-errors", "no") if tool == "memcheck" else ()),
        sys.executable, str(RUN), "--part", part, "--seconds", str(seconds),
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace") + "\ntook too long"
    return done.returncode, done.stdout + done.stderr


def main(seconds: float, parts: int, tools: list[str]) -> int:
    """Watch all parts under all tools; return the exit status."""
    sanitizer = find()
    if sanitizer is None:
        print(
            "compute-sanitizer is neither on the PATH nor in a CUDA toolkit ($CUDA_HOME, "
            "/usr/local/cuda): install the toolkit's cuda-sanitizer, or put it on the PATH"
        )
        return 2
    print(sanitizer, flush=True)
    failed: list[str] = []

    def one(tool: str, part: str) -> None:
        status, text = watch(sanitizer, tool, part, seconds)
        ran = re.search(r"ran \d+ of \d+ cases", text)
        summary = ERRORS.search(text)
        print(f"{tool} {part}: exit status {status}, {ran and ran[0]}, "
              f"{summary[0] if summary else 'no summary'}", flush=True)  # fmt: skip
        if status != 0 or not ran:
            failed.append(f"{tool} {part}")
            print(text[-6000:], flush=True)

    jobs = [
        threading.Thread(target=one, args=(tool, f"{part}/{parts}"))
        for tool in tools
        for part in range(1, parts + 1)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    print("failed: " + ", ".join(sorted(failed)) if failed else "clean")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--parts", type=int, default=max(1, (os.cpu_count() or 1) // 4))
    parser.add_argument("--tool", action="append", choices=(*TOOLS, "synccheck", "initcheck"))
    arguments = parser.parse_args()
    sys.exit(main(arguments.seconds, arguments.parts, arguments.tool or list(TOOLS)))
