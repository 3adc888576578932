"""These tests run on a GPU; in a process with NUMBA_ENABLE_CUDASIM=1, on the simulated one."""

import os

import pytest


def pytest_configure(config):
    from numbagrad.errors import DeviceError

    try:
        from numbagrad import device

        device.backend("cuda")
    except (DeviceError, ImportError) as error:
        raise pytest.UsageError(
            f"tests/cuda/device needs a GPU (make test-gpu) or the simulator (make test-cuda): "
            f"{error}"
        ) from None


def pytest_collection_modifyitems(config, items):
    """Leave out what looks into the simulator, on a GPU."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return
    inside = [item for item in items if item.get_closest_marker("simulator")]
    config.hook.pytest_deselected(items=inside)
    items[:] = [item for item in items if item not in inside]
