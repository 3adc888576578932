"""What a device's memory is used for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LISTED = 5  # kinds of arrays that a summary names


@dataclass(frozen=True)
class MemorySummary:
    """What a device's memory is used for, in bytes; as text, a few lines.

    Attributes
    ----------
    device
        ``"cpu"`` or ``"cuda"``.
    used
        By numbagrad's arrays; on the CPU, by those of at least 64 KiB.
    reserved
        Taken from the system: for arrays, or kept for those to come.
    free, total
        Of the device, whoever uses it.
    most_used
        By arrays at any time so far; None where nobody counts.
    held
        (bytes, how many, dtype and shape) of the arrays that take most; empty where nobody knows.
    """

    device: str
    used: int
    reserved: int
    free: int
    total: int
    most_used: int | None = None
    held: tuple[tuple[int, int, str], ...] = ()

    def __str__(self) -> str:
        most = f" (at most so far {in_bytes(self.most_used)})" if self.most_used else ""
        lines = [
            f"{self.device}: arrays take {in_bytes(self.used)}{most}, {in_bytes(self.reserved)} "
            f"are reserved, {in_bytes(self.free)} of {in_bytes(self.total)} are free"
        ]
        lines += [f"  {in_bytes(nbytes):>9}  {count} x {what}" for nbytes, count, what in self.held]
        return "\n".join(lines)

    __repr__ = __str__


def held_by(arrays: Iterable[Any]) -> tuple[tuple[int, int, str], ...]:
    """Return (bytes, how many, dtype and shape) of the kinds of arrays that take most memory.

    Of those that share memory the largest counts.
    """
    owners: dict[int, Any] = {}
    for array in arrays:
        known = owners.get(id(array.memory))
        if array.memory is not None and (known is None or known.nbytes < array.nbytes):
            owners[id(array.memory)] = array
    kinds: dict[str, list[int]] = {}
    for array in owners.values():
        name = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        kinds.setdefault(name, []).append(array.nbytes)
    lines = [(sum(sizes), len(sizes), name) for name, sizes in kinds.items()]
    return tuple(sorted(lines, reverse=True)[:LISTED])


def in_bytes(count: int) -> str:
    """Write a number of bytes.

    Examples
    --------
    >>> in_bytes(512), in_bytes(3 * 2**20)
    ('512 bytes', '3.0 MiB')
    """
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


__all__ = ["MemorySummary", "held_by", "in_bytes"]
