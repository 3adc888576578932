"""Random numbers, and dropout.

A random op reads two numbers from memory: the seed of a `Generator` and how many draws were made
before. After each draw the count goes up by one, in place: so a traced step draws fresh numbers
each time it is replayed. Which number an element gets depends on seed, draw and position alone,
never on the threads, the device or the shape of anything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import device as devices
from ..array import FLOATS, Array, State
from ..dispatch import Call, Op, Split, Views, apply, apply_into, register
from ..errors import DTypeError
from .elementwise import require_float, where
from .optimisation import COUNT

# ---------------------------------------------------------------- generators


class Generator:
    """A stream of random numbers: the same seed gives the same numbers on every device.

    Parameters
    ----------
    seed
        From 0 to 2**63 - 1.

    Raises
    ------
    ValueError
        If the seed is out of range.

    Notes
    -----
    Philox4x32-10, from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11). Each
    device counts its own draws.
    """

    def __init__(self, seed: int = 0):
        self._states: dict[str, tuple[State, State]] = {}
        self.seed(seed)

    def seed(self, n: int) -> None:
        """Start the stream of seed ``n`` from its beginning, on all devices."""
        if not isinstance(n, (int, np.integer)) or not 0 <= n < 2**63:
            raise ValueError(f"seed must be an int from 0 to 2**63 - 1, got {n!r}")
        self._seed = int(n)
        for device, states in self._states.items():
            for state, value in zip(states, (self._seed, 0), strict=True):
                assign(state, from_host(np.array([value]), device))

    def state(self, device: str) -> tuple[State, State]:
        """Return the seed and the number of draws so far, int64 (1,) each, on a device."""
        if device not in self._states:
            self._states[device] = _state(self._seed, device), _state(0, device)
        return self._states[device]

    def draw(self, op: Op, *inputs: Array, device: str, **params: Any) -> Any:
        """Run a random op on ``inputs`` and this generator's state, and count the draw."""
        seed, call = self.state(device)
        outputs = apply(op, *inputs, seed, call, **params)
        apply_into((call,), COUNT, call)
        return outputs
