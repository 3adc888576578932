"""What measures on a GPU, with a GPU of our own making."""

import contextlib
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import numbagrad as ng
from benchmarks import networks
from benchmarks.gpu import clocks
from benchmarks.measure import Contender


class Event:
    """Notes when it was recorded, and on which stream."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        self.stream, self.at = stream, time.perf_counter()

    def elapsed_time(self, end):
        assert self.stream == end.stream
        return (end.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch):
    fake = {
        "Event": Event,
        "ExternalStream": lambda address: address,
        "default_stream": lambda: 0,
        "is_available": lambda: True,
        "synchronize": lambda: None,
    }
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    waited = []
    backend = SimpleNamespace(synchronize=lambda: waited.append(1))
    monkeypatch.setattr(ng.device, "backend", lambda name: backend)
    return waited


def test_events(gpu):
    contender = Contender(None, None, stream=lambda: 7)
    seconds, result = clocks.events(contender, lambda k: time.sleep(0.02) or k, [4, 5])
    assert result == 5
    assert seconds >= 0.04
    assert len(gpu) == 2


def test_work_on_another_stream_is_noticed(gpu, monkeypatch):
    late = iter([0, 0.1])  # the second wait finds work that the events have not seen
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.sleep(next(late)))
    with pytest.raises(RuntimeError, match=r"events on stream 0x0 are .* ms apart"):
        clocks.events(Contender(None, None), lambda k: k, [0])


def test_host(gpu):
    seconds, result = clocks.host(Contender(None, None), lambda k: k + 1, [1, 2])
    assert result == 3
    assert 0 < seconds < 1


def test_a_captured_step_starts_where_the_eager_one_does(monkeypatch):
    """The steps that warm up are forgotten: weights, moments and statistics."""

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    # What can be captured must be on a GPU.
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, capturable, **rest: adam(*args, **rest))
    ng.random.seed(0)
    model = ng.layers.Sequential(
        ng.layers.Conv2d(1, 2, 3), ng.layers.BatchNorm2d(2), ng.layers.Flatten(),
        ng.layers.Linear(2 * 4 * 4, 10),
    )  # fmt: skip
    batches = networks.batches_of(0, 4, 6, 1)
    # Without a graph the loss of the "capture" is that of a first step.
    replay = networks.torch_step(model, batches, graph=True)
    step = networks.torch_step(model, batches)
    np.testing.assert_array_equal(replay(0).detach().numpy(), step(0).detach().numpy())
