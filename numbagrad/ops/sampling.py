"""Random numbers, and dropout.

A random op reads two numbers from memory: the seed of a `Generator`, and how many draws were made
before. After the draw the count goes up by one, in place: so a traced step draws fresh numbers
each time it is replayed. The number that an element gets depends on seed, draw and position
alone: not on the device, and not on the threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import device as devices
from ..array import FLOATS, Array, Spec, State
from ..dispatch import Call, Op, Split, Views, apply, apply_into, register
from ..errors import DTypeError, ShapeError
from .elementwise import require_arrays, require_float, where
from .optimisation import COUNT, assign
from .shaping import reshape

# ---------------------------------------------------------------- generators


class Generator:
    """A stream of random numbers; one seed gives the same stream on every device.

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
    The numbers are those of Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3" (SC11). Each device counts its own draws.
    """

    def __init__(self, seed: int = 0):
        self._states: dict[str, tuple[State, State]] = {}
        self.seed(seed)

    def seed(self, n: int) -> None:
        """Start the stream number ``n`` from its beginning, on all devices."""
        if not isinstance(n, (int, np.integer)) or not 0 <= n < 2**63:
            raise ValueError(f"a seed must be an integer from 0 to 2**63 - 1, got {n!r}")
        self._seed = int(n)
        for seed, call in self._states.values():
            assign(seed, np.array([n]))
            assign(call, np.array([0]))

    def state(self, device: str) -> tuple[State, State]:
        """Return the seed and the number of draws so far on a device, each int64 of shape (1,)."""
        if device not in self._states:
            from_host = devices.backend(device).from_host
            self._states[device] = tuple(
                State(from_host(np.array([value])), Spec((1,), np.dtype(np.int64), device))
                for value in (self._seed, 0)
            )
        return self._states[device]

    def state_dict(self) -> dict[str, int]:
        """Return the seed, and the number of draws so far on each device used."""
        draws = {device: int(call.numpy()[0]) for device, (_, call) in self._states.items()}
        return {"seed": self._seed} | draws

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state that `state_dict` returned."""
        self.seed(state["seed"])
        for device in state.keys() - {"seed"}:
            assign(self.state(device)[1], np.array([state[device]]))

    def draw(self, op: Op, device: str, *inputs: Array, **params: Any) -> Any:
        """Run a random op on ``inputs`` and this generator's state; then count the draw."""
        seed, call = self.state(device)
        outputs = apply(op, *inputs, seed, call, **params)
        apply_into((call,), COUNT, call)
        return outputs


#: Draws where no generator is given; ``ng.random.seed(n)`` restarts it.
default_generator = Generator()


# --------------------------------------------------------------------- draws

WORDS = 4  # that Philox gives at a time; a shard begins with the first of them


def _draw_infer(name):
    def infer(seed, call, *, shape, dtype):
        if dtype not in FLOATS:
            raise DTypeError(f"{name}: draws float32 or float64, got dtype {dtype}")
        if any(extent < 0 for extent in shape):
            raise ShapeError(f"{name}: shape {shape} has a negative extent")
        return shape, dtype

    return infer


def _draw_views(call: Call) -> Views:
    return Views(((1,), (1,)), ((call.outputs[0].size,),), (0,))


def _draw_split(call: Call) -> list[Split]:
    blocks = -(-call.outputs[0].size // WORDS)
    return [Split(blocks, (0, 0), (WORDS,), lambda scalars, lo, hi: (lo * WORDS,))]


def _draw_cost(call: Call) -> tuple[float, float]:
    out = call.outputs[0]
    return 100.0 * out.size, out.size * out.dtype.itemsize


def _draw_op(name: str) -> Op:
    return register(
        Op(
            name,
            _draw_infer(name),
            name,
            arrange=_draw_views,
            split=_draw_split,
            cost=_draw_cost,
        )
    )


UNIFORM, NORMAL = _draw_op("random_uniform"), _draw_op("random_normal")


# ------------------------------------------------------------------- dropout


def _dropout_infer(x, seed, call, *, p):
    require_float("dropout", x)
    return (x.shape, x.dtype), (x.shape, np.dtype(bool))


def _dropout_views(call: Call) -> Views:
    x = call.inputs[0]
    threshold = min(round(call.p * 2**32), 2**32 - 1)
    scalars = threshold, x.dtype.type(1 / (1 - call.p)), 0
    return Views(((x.size,), (1,), (1,)), ((x.size,), (x.size,)), scalars)


def _dropout_split(call: Call) -> list[Split]:
    blocks, rows = -(-call.inputs[0].size // WORDS), (WORDS, WORDS)
    shard = lambda scalars, lo, hi: (*scalars[:-1], lo * WORDS)  # noqa: E731
    return [Split(blocks, (WORDS, 0, 0), rows, shard)]


def _dropout_vjp(grad_out, mask, p):
    return where(mask, grad_out * (1 / (1 - p)), 0.0), None, None


_DROPOUT = register(
    Op(
        "dropout",
        _dropout_infer,
        "dropout_forward",
        _dropout_vjp,
        outputs=("out", "mask"),
        arrange=_dropout_views,
        split=_dropout_split,
        cost=_draw_cost,
    )
)


def dropout(
    x: Array, p: float = 0.5, *, training: bool = True, generator: Generator | None = None
) -> Array:
    """Return ``x`` with each element zeroed with probability ``p``, the others scaled up.

    The others are multiplied by ``1 / (1 - p)``, so that the expected value stays. Srivastava et
    al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (JMLR, 2014).

    Parameters
    ----------
    x
        Floats of any shape.
    p
        The probability, from 0 to less than 1.
    training
        False returns the values of ``x`` as they are.
    generator
        Where random numbers come from; by default the one that ``ng.random.seed`` restarts.

    Raises
    ------
    ValueError
        If ``p`` is out of range.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> dropout(asarray([1.0, 2.0, 3.0, 4.0]), 0.5, generator=Generator(3))
    Array([2., 0., 6., 8.], dtype=float32)
    >>> dropout(asarray([1.0, 2.0]), 0.5, training=False)
    Array([1., 2.], dtype=float32)
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be at least 0 and less than 1, got {p!r}")
    require_arrays("dropout", x=x)
    require_float("dropout", x.spec)
    if not training or p == 0:
        return reshape(x, x.shape)  # another object, which may be assigned to
    out, _ = (generator or default_generator).draw(_DROPOUT, x.device, x, p=float(p))
    return out


__all__ = ["dropout"]
