"""Event files: TensorBoard's own reader reads what we write."""

import math
import struct

import pytest

from numbagrad.training.events import EventWriter, crc32c, framed


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_what_tensorboard_reads(tmp_path):
    writer = EventWriter(tmp_path / "new" / "run")
    writer.scalars(1, {"loss/train": 0.5, "loss/test": -1e-3})
    writer.scalars(2**40, {"loss/train": math.inf, "größe": 3})
    writer.close()
    assert read(tmp_path / "new" / "run") == {
        "loss/train": [(1, 0.5), (2**40, math.inf)],
        "loss/test": [(1, struct.unpack("f", struct.pack("f", -1e-3))[0])],
        "größe": [(2**40, 3.0)],
    }


def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path):
    first = EventWriter(tmp_path)
    for step in (10, 20, 30):
        first.scalars(step, {"loss": step})
    first.close()
    second = EventWriter(tmp_path, 20)
    second.scalars(20, {"loss": 21})
    second.close()
    assert read(tmp_path)["loss"] == [(10, 10.0), (20, 21.0)]


@pytest.mark.parametrize(
    ("content", "crc"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c(content, crc):
    assert crc32c(content) == crc


def test_frames():
    record = framed(b"abc")
    assert record[:8] == struct.pack("<Q", 3)
    assert record[12:15] == b"abc"
