"""Settings for all tests."""

import sys

from hypothesis import settings

# The same examples in every run, and no clock: a first call compiles.
settings.register_profile("numbagrad", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("numbagrad")

if sys.platform == "darwin":  # numba-cuda has no build for macOS
    collect_ignore = ["cuda_kernels.py", "test_cuda_support.py", "test_mirror.py"]
