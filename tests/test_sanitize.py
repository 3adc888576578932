"""How `tests/cuda/sanitize.py` finds compute-sanitizer and reads what it says, without one."""

import importlib.util
import os
import shutil
from pathlib import Path

SCRIPT = Path(__file__).parent / "cuda" / "sanitize.py"
spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
sanitize = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sanitize)


def pretend(folder, *lines):
    """Put a compute-sanitizer that prints these lines into a folder."""
    tool = folder / "compute-sanitizer"
    tool.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    tool.chmod(0o755)
    return folder


def test_none_is_found(monkeypatch, tmp_path, capsys):
    for name in ("PATH", "CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(sanitize, "PLACES", ())
    monkeypatch.setitem(sanitize.sys.modules, "cuda.pathfinder", None)
    assert sanitize.main(5, 2, ["memcheck"]) == 2
    assert "put it on the PATH" in capsys.readouterr().out


def test_clean(monkeypatch, tmp_path, capsys):
    say = 'echo "ran 3 of 3 cases"', 'echo "========= ERROR SUMMARY: 0 errors"'
    monkeypatch.setenv("PATH", str(pretend(tmp_path, *say)), prepend=os.pathsep)
    assert shutil.which("compute-sanitizer").startswith(str(tmp_path))
    assert sanitize.main(5, 2, list(sanitize.TOOLS)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "memcheck 1/2: exit status 0, ran 3 of 3 cases, ERROR SUMMARY: 0 error" in lines
    assert sum("racecheck" in line for line in lines) == 2
    assert lines[-1] == "clean"


def test_what_it_finds_is_printed(monkeypatch, tmp_path, capsys):
    say = 'echo "Invalid __global__ write of size 4"', 'case "$2" in racecheck) exit 9;; esac'
    say += ('echo "ran 3 of 3 cases"',)
    monkeypatch.setenv("PATH", str(pretend(tmp_path, *say)), prepend=os.pathsep)
    assert sanitize.main(5, 2, list(sanitize.TOOLS)) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "failed: racecheck 1/2, racecheck 2/2"
    assert "Invalid __global__ write" in out


def test_what_it_watches(monkeypatch, tmp_path, capsys):
    run = 'until [ "$1" = "$PYTHON" ]; do shift; done', 'exec "$@"'
    monkeypatch.setenv("PYTHON", sanitize.sys.executable)
    monkeypatch.setenv("PATH", str(pretend(tmp_path, *run)), prepend=os.pathsep)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert sanitize.main(0, 1, ["memcheck"]) == 0
    assert "ran 0 of " in capsys.readouterr().out
