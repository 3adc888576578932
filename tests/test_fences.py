"""No CPU kernel reads or writes past the ends of its arrays."""

import signal
import subprocess
import sys

import fences
import numpy as np


def run(*arguments):
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    return process.returncode, process.stdout + process.stderr


def test_fences_hold():
    for at_end, place in ((True, "5"), (False, "-1")):
        script = (
            "import ctypes, numpy as np\n"
            f"x = __import__('fences').fenced(np.ones(5), {at_end})\n"
            f"ctypes.c_double.from_address(x.ctypes.data + 8 * {place}).value"
        )
        code, _ = run("-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}")
        assert code in (-signal.SIGSEGV, -signal.SIGBUS)
        np.testing.assert_array_equal(fences.fenced(np.arange(5.0), at_end), np.arange(5.0))


def test_kernels_stay_inside():
    code, text = run(fences.__file__)
    assert code == 0, "\n".join(text.splitlines()[-20:])
