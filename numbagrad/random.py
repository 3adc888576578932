"""Random numbers: draws, and the distributions that weights start from.

Every function takes a `Generator`; without one, all share the generator that `seed` restarts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import device as devices
from .array import Array
from .ops.elementwise import as_ints
from .ops.sampling import NORMAL, UNIFORM, Generator, default_generator

Shape = int | tuple[int, ...]


def seed(n: int) -> None:
    """Restart the numbers that are drawn without a generator of one's own, on all devices.

    Parameters
    ----------
    n
        From 0 to 2**63 - 1. A fresh process starts with 0.

    Examples
    --------
    >>> seed(1)
    >>> first = uniform(2).tolist()
    >>> seed(1)
    >>> uniform(2).tolist() == first
    True
    """
    default_generator.seed(n)


def _draw(op, shape: Shape, dtype: Any, device: str | None, generator: Generator | None) -> Array:
    shape = as_ints(op.name, "shape", shape)
    generator = generator or default_generator
    return generator.draw(op, devices.resolve(device), shape=shape, dtype=np.dtype(dtype))


def uniform(
    shape: Shape,
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = "float32",
    device: str | None = None,
    generator: Generator | None = None,
) -> Array:
    """Draw from the uniform distribution on [low, high).

    Parameters
    ----------
    shape
        Of the result.
    low, high
        The bounds; rounding may reach ``high`` where it is not 1.
    dtype
        float32 (a multiple of 2**-24 before scaling) or float64 (of 2**-53).
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``; by default the CPU.
    generator
        Where the numbers come from.

    Examples
    --------
    >>> uniform(3, generator=Generator(0)).shape
    (3,)
    """
    out = _draw(UNIFORM, shape, dtype, device, generator)
    return out if (low, high) == (0, 1) else out * (high - low) + low


def normal(
    shape: Shape,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = "float32",
    device: str | None = None,
    generator: Generator | None = None,
) -> Array:
    """Draw from the normal distribution, by the transform of Box and Muller (1958).

    Parameters
    ----------
    shape
        Of the result.
    mean, std
        Its mean and standard deviation.
    dtype
        float32 or float64.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``; by default the CPU.
    generator
        Where the numbers come from.
    """
    out = _draw(NORMAL, shape, dtype, device, generator)
    return out if (mean, std) == (0, 1) else out * std + mean


# ------------------------------------------------------------- initial weights
#
# `fan_in` counts the inputs that an output of a layer sums over, `fan_out` the outputs that an
# input reaches; both are above 0. Options (dtype, device, generator) are those of `uniform` and
# `normal`.


def _above_zero(name: str, fan: int) -> int:
    if not fan > 0:
        raise ValueError(f"{name} must be above 0, got {fan!r}")
    return fan


def kaiming_uniform(shape: Shape, fan_in: int, *, gain: float = 2**0.5, **options: Any) -> Array:
    """Draw weights uniformly between ``-b`` and ``b``, ``b = gain sqrt(3 / fan_in)``.

    The default gain keeps the variance of activations through layers of ReLUs. He et al., "Delving
    Deep into Rectifiers" (ICCV, 2015).

    Examples
    --------
    >>> weight = kaiming_uniform((100, 3), fan_in=100)
    >>> bool(weight.abs().max() <= (6 / 100) ** 0.5)
    True
    """
    bound = gain * math.sqrt(3 / _above_zero("kaiming_uniform: fan_in", fan_in))
    return uniform(shape, -bound, bound, **options)


def kaiming_normal(shape: Shape, fan_in: int, *, gain: float = 2**0.5, **options: Any) -> Array:
    """Draw weights with mean 0 and standard deviation ``gain / sqrt(fan_in)``.

    The normal companion of `kaiming_uniform`, from the same paper.
    """
    std = gain / math.sqrt(_above_zero("kaiming_normal: fan_in", fan_in))
    return normal(shape, 0.0, std, **options)


def xavier_uniform(
    shape: Shape, fan_in: int, fan_out: int, *, gain: float = 1.0, **options: Any
) -> Array:
    """Draw weights uniformly between ``-b`` and ``b``, ``b = gain sqrt(6 / (fan_in + fan_out))``.

    It keeps the variance of activations and gradients through layers of tanh. Glorot and Bengio,
    "Understanding the difficulty of training deep feedforward neural networks" (AISTATS, 2010).
    """
    bound = gain * math.sqrt(6 / _above_zero("xavier_uniform: fan_in + fan_out", fan_in + fan_out))
    return uniform(shape, -bound, bound, **options)


def xavier_normal(
    shape: Shape, fan_in: int, fan_out: int, *, gain: float = 1.0, **options: Any
) -> Array:
    """Draw weights with mean 0 and standard deviation ``gain sqrt(2 / (fan_in + fan_out))``.

    The normal companion of `xavier_uniform`, from the same paper.
    """
    fans = _above_zero("xavier_normal: fan_in + fan_out", fan_in + fan_out)
    return normal(shape, 0.0, gain * math.sqrt(2 / fans), **options)


__all__ = [
    "Generator",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "seed",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
]
