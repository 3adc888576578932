"""These tests run against a driver without a GPU, `driver.c`: the host's side, and no kernels."""

import ctypes
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("driver.c")
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))


class Driver:
    """What `driver.c` counts, and what it can be told."""

    def __init__(self, path):
        # Whoever opens a library of its name from now on gets this one.
        self._library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self._library.driver_live.restype = ctypes.c_size_t
        self._library.driver_limit.argtypes = [ctypes.c_size_t]

    def __getattr__(self, name):
        """Return a count: launches, replayed, waits, attached, live."""
        return self._library[f"driver_{name}"]()

    def limit(self, nbytes):
        """Let there be so much memory, in bytes."""
        self._library.driver_limit(nbytes)

    def serve(self, version):
        """Be a driver for a version of CUDA: 13000 for 13.0, 12080 for 12.8."""
        self._library.driver_serve(version)

    def on_launch(self, function=None):
        """Call ``function(name, arguments)`` at each launch; arguments are addresses."""
        self._callback = CALLBACK(function) if function else CALLBACK()
        self._library.driver_on_launch(self._callback)


def pytest_configure(config):
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        raise pytest.UsageError("tests/cuda/host needs a process without NUMBA_ENABLE_CUDASIM")
    folder = tempfile.TemporaryDirectory(prefix="numbagrad-driver-")
    config.add_cleanup(folder.cleanup)
    path = Path(folder.name) / "libcuda.so.1"
    options = ["-shared", "-fPIC", "-O1", f"-Wl,-soname,{path.name}", "-o", path]
    try:
        subprocess.run(["cc", *options, SOURCE, "-ldl"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise pytest.UsageError(f"tests/cuda/host needs a C compiler: {error}") from None
    config.stash[DRIVER] = Driver(path)


DRIVER = pytest.StashKey[Driver]()


@pytest.fixture
def driver(pytestconfig):
    driver = pytestconfig.stash[DRIVER]
    yield driver
    driver.on_launch()
    driver.limit(2**63)
    driver.serve(13000)


@pytest.fixture
def memory(driver):
    from numbagrad import device

    return device.backend("cuda").memory
