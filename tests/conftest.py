"""Settings for all tests."""

import gc
import os
import sys

import pytest
from hypothesis import settings

from numbagrad.jit import cache_dir

# The same examples in every run, and no clock: a first call compiles.
settings.register_profile("numbagrad", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("numbagrad")

os.environ["NUMBAGRAD_OFFLINE"] = "1"  # tests ask no server but their own

if sys.platform == "darwin":  # numba-cuda has no build for macOS
    collect_ignore = ["cuda_kernels.py", "test_cuda_support.py", "test_mirror.py"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("NUMBAGRAD_CACHE_DIR", str(tmp_path))
    cache_dir.cache_clear()
    yield tmp_path
    cache_dir.cache_clear()


@pytest.fixture
def _no_collector():
    """Only counting references frees memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
