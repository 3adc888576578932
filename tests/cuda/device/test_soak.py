"""Training for minutes takes no more memory than training for seconds.

$NUMBAGRAD_SOAK_SECONDS says how long, eagerly and compiled each; without it the test is over in a
moment, and with 60 it takes two minutes.
"""

import gc
import os
import time

import pytest
from cuda_device import SIMULATED, Training, adam, convnet, eager, synchronize

import numbagrad as ng

SECONDS = float(os.environ.get("NUMBAGRAD_SOAK_SECONDS", 1))
MIB = 1 << 20
HOST_ROOM = 48 * MIB  # what Python's and the driver's own bookkeeping may add
DEVICE_ROOM = 16 * MIB


def host_bytes():
    """Return the resident memory of this process, or None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def device_bytes():
    """Return the bytes in use on the GPU, those of other processes included."""
    if SIMULATED:
        return 0  # the simulator's arrays are in the host's memory
    from cuda.bindings import driver

    error, free, total = driver.cuMemGetInfo()
    assert error == driver.CUresult.CUDA_SUCCESS
    return total - free


def held():
    """Return what is in use once all work is done and all garbage is gone."""
    synchronize()
    gc.collect()
    return host_bytes(), device_bytes(), len(gc.get_objects())


@pytest.mark.parametrize("wrap", [eager, ng.compile], ids=["eager", "compiled"])
def test_memory_does_not_grow(wrap):
    network = convnet if SIMULATED else ng.models.lenet
    sizes, shape, classes = ((3, 2), (2, 2, 1), 3) if SIMULATED else ((128, 100), (28, 28, 1), 10)
    training = Training(network, adam, wrap)
    batches = list(training.batches(sizes, shape, classes))

    def train(seconds):
        """Train on batches of two sizes in turn; look at the loss now and then. Count the steps."""
        steps, end = 0, time.monotonic() + seconds
        while time.monotonic() < end or steps < 4:
            loss = training.step(*batches[steps % len(batches)])
            steps += 1
            if steps % 50 == 0:
                loss.item()
        return steps

    train(max(0.2, SECONDS / 10))  # compiles, fills pools and caches
    host, device, objects = held()
    steps = train(SECONDS)
    host_after, device_after, objects_after = held()
    print(f"{steps} steps in {SECONDS:g} s: {device / MIB:.1f} MiB on the device before, "
          f"{device_after / MIB:.1f} MiB after")  # fmt: skip
    assert device_after - device <= DEVICE_ROOM
    assert objects_after - objects < 1000
    if host is not None:
        assert host_after - host <= HOST_ROOM
