"""How many blocks of threads a multiprocessor of a GPU holds at a time."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32  # threads
REGISTERS, REGISTERS_AT_A_TIME = 64 * 1024, 256  # a warp gets a multiple of these
SHARED_AT_A_TIME, SHARED_OF_SYSTEM = 128, 1024  # bytes that a block gets besides
MOST_BLOCKS = 32
MOST_WARPS = 64
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}


@dataclass(frozen=True)
class Occupancy:
    """What a multiprocessor holds of a kernel at a time.

    Attributes
    ----------
    blocks, warps
        How many.
    limit
        What there is no more of: ``"registers"``, ``"shared memory"``, ``"warps"`` or ``"blocks"``.
    """

    blocks: int
    warps: int
    limit: str

    @property
    def fraction(self) -> float:
        """The warps, of all that there could be."""
        return self.warps / MOST_WARPS


def occupancy(threads: int, registers: int, shared_bytes: int, arch: str = "sm_90") -> Occupancy:
    """Return how many blocks of a kernel share a multiprocessor.

    Parameters
    ----------
    threads
        In a block.
    registers
        Of a thread.
    shared_bytes
        Of a block.
    arch
        ``"sm_80"`` (A100) or ``"sm_90"`` (H100).

    Notes
    -----
    NVIDIA, "CUDA C++ Programming Guide", technical specifications per compute capability: 65,536
    registers, 64 warps and 32 blocks on a multiprocessor; of shared memory 164 KB and 228 KB, and a
    block takes 1 KB more than it asks for.

    Examples
    --------
    >>> occupancy(threads=256, registers=128, shared_bytes=17 * 1024)
    Occupancy(blocks=2, warps=16, limit='registers')
    """
    warps = -(-threads // WARP)
    each = -(-registers * WARP // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
    shared = -(-(shared_bytes + SHARED_OF_SYSTEM) // SHARED_AT_A_TIME) * SHARED_AT_A_TIME
    room = {
        "registers": REGISTERS // max(each, 1) // warps,
        "shared memory": SHARED_BYTES[arch] // shared,
        "warps": MOST_WARPS // warps,
        "blocks": MOST_BLOCKS,
    }
    limit = min(room, key=room.__getitem__)
    return Occupancy(room[limit], room[limit] * warps, limit)
