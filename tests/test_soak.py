"""Training for an hour takes no more memory than training for seconds, without a collector.

$NUMBAGRAD_SOAK_SECONDS says how long, in all; by default a few seconds.
"""

import gc
import os
import time

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import Array
from numbagrad.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
)

WAYS = ("eager", "checkpoint", "compiled")
SECONDS = float(os.environ.get("NUMBAGRAD_SOAK_SECONDS", 3)) / len(WAYS)
MIB = 1 << 20
ROOM = 16 * MIB  # what the allocator and Python's own bookkeeping may add


def resident():
    """Return the bytes of memory of this process, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def training_step(way):
    """Return a function that trains for one step, on batches of two sizes in turn."""
    body = Sequential(Conv2d(1, 8, 3), BatchNorm2d(8), ReLU(), MaxPool2d(2), Dropout(0.2))
    model = Sequential(body, Flatten(), Linear(72, 10))
    optimizer = ng.optim.Adam(model.parameters(), 0.001)
    head = Sequential(*list(model)[1:])
    f = (lambda x: head(ng.checkpoint(body)(x))) if way == "checkpoint" else model

    def step(x, labels):
        optimizer.zero_grad()
        loss = ng.softmax_cross_entropy(f(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    run = ng.compile(step) if way == "compiled" else step
    rng = np.random.default_rng(0)

    def train(count):
        n = (64, 50)[count % 2]
        x = ng.asarray(rng.normal(size=(n, 8, 8, 1)).astype(np.float32))
        return run(x, ng.asarray(rng.integers(0, 10, n)))

    return train


@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow(way):
    train = training_step(way)
    for count in range(20):  # compiles, fills pools and caches
        train(count)
    gc.collect()
    gc.disable()
    try:
        memory, arrays = resident(), count_arrays()
        steps, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end or steps < 20:
            loss = train(steps)
            steps += 1
            if steps % 100 == 0:
                assert np.isfinite(loss.item())
        del loss
        grown = resident() - memory
        print(f"{way}: {steps} steps in {SECONDS:.0f} s, {grown / MIB:.1f} MiB more")
        assert count_arrays() == arrays
        assert grown <= ROOM
    finally:
        gc.enable()


def count_arrays():
    return sum(issubclass(type(one), Array) for one in gc.get_objects())
