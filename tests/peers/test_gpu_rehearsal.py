"""`make gpu` without a GPU: what it measures runs on the simulator, PyTorch's on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_rehearsal(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse"]
    command += ["--only", "bench", "--only", "speedrun"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "simulator.json").read_text())
    families = {result["family"] for result in found["results"]}
    assert families == {"gemm", "conv", "steps", "bandwidth", "launch"}
    for result in found["results"]:
        assert not result["race"]["failures"]
        assert "PyTorch" in result["race"]["timings"]
    speedrun = found["speedrun"]
    assert len(speedrun["epochs"]) == len(speedrun["peer"]["epochs"]) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bench"]["passed"]
    assert summary["speedrun"]["passed"]
