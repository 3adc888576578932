"""TensorBoard's event files, written without TensorBoard.

A file is a row of records, each an ``Event`` in protobuf's encoding, framed as in TFRecord files:
length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, little-endian.
Sources: tensorflow/core/lib/io/record_writer.h and lib/hash/crc32c.h (framing and mask),
tensorboard/compat/proto/event.proto and summary.proto (numbers of the fields), protobuf.dev's
"Encoding"; Castagnoli et al., "Optimization of Cyclic Redundancy-Check Codes with 24 and 32 Parity
Bits" (1993).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types


class EventWriter:
    """Appends scalars to a new event file in a folder.

    Parameters
    ----------
    folder
        Made if missing. TensorBoard reads all event files in it as one run.
    step
        The first step that will be written. What files of this folder hold from there on, left by
        a run that was cut off, TensorBoard then forgets.
    """

    def __init__(self, folder: str | os.PathLike, step: int = 0):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Readers take the files in the order of their names: the time comes first.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "xb")  # noqa: SIM115 (closed by close())
        self._write(_field(3, BYTES, b"brain.Event:2"))
        start = _field(1, VARINT, 1)  # SessionLog.status = START
        self._write(_field(2, VARINT, step) + _field(7, BYTES, start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by their tags, such as ``loss/train``."""
        summary = b"".join(
            _field(1, BYTES, _field(1, BYTES, tag.encode()) + _field(2, FIXED32, value))
            for tag, value in values.items()
        )
        self._write(_field(2, VARINT, step) + _field(5, BYTES, summary))
        self._file.flush()

    def _write(self, fields: bytes) -> None:
        self._file.write(framed(_field(1, FIXED64, time.time()) + fields))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def framed(record: bytes) -> bytes:
    """Return a record as it stands in a TFRecord file.

    Examples
    --------
    >>> len(framed(b"abc"))
    19
    """
    length = struct.pack("<Q", len(record))
    return b"".join((length, _masked_crc(length), record, _masked_crc(record)))


def _masked_crc(content: bytes) -> bytes:
    crc = crc32c(content)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """Return the cyclic redundancy check with Castagnoli's polynomial.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))  # the check value of the standard
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]


def _field(number: int, wire: int, value: int | float | bytes) -> bytes:
    """Return one field of a protobuf message."""
    tag = _varint(number << 3 | wire)
    if wire == VARINT:
        return tag + _varint(value)
    if wire == BYTES:
        return tag + _varint(len(value)) + value
    return tag + struct.pack("<d" if wire == FIXED64 else "<f", value)


def _varint(value: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
