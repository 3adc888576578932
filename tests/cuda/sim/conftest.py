"""The simulator's tier runs in a process of its own: numba-cuda chooses at its first import."""

import os

import pytest


def pytest_configure(config):
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        raise pytest.UsageError("tests/cuda/sim needs NUMBA_ENABLE_CUDASIM=1; see make test-cuda")
