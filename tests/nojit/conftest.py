"""The kernels without the JIT run in a process of their own: Numba chooses at its first import."""

import os

import pytest


def pytest_configure(config):
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        raise pytest.UsageError("tests/nojit needs NUMBA_DISABLE_JIT=1; see make test")
