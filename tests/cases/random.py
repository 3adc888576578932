"""Draws from a fresh generator, the same on every device; and dropout."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(5)

MULTIPLIERS, KEY_STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(seed: int, call: int, block: int) -> list[int]:
    """Return four 32-bit words, in Python's integers."""
    counter = [block % 2**32, block >> 32, call % 2**32, call >> 32]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        p, q = MULTIPLIERS[0] * counter[0], MULTIPLIERS[1] * counter[2]
        counter = [
            (q >> 32) ^ counter[1] ^ key[0],
            q % 2**32,
            (p >> 32) ^ counter[3] ^ key[1],
            p % 2**32,
        ]
        key = [(k + step) % 2**32 for k, step in zip(key, KEY_STEPS, strict=True)]
    return counter


def words(seed: int, call: int, count: int) -> np.ndarray:
    blocks = [philox(seed, call, block) for block in range(-(-count // 4))]
    return np.array(blocks, np.uint64).reshape(-1)[:count]


def uniform(seed: int, call: int, size: int, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return (words(seed, call, size) >> np.uint64(8)) * 2.0**-24
    high, low = words(seed, call, 2 * size).reshape(-1, 2).T
    return (high * 2**21 + (low >> np.uint64(11))) * 2.0**-53


def normal(seed: int, call: int, size: int, dtype: str) -> np.ndarray:
    u, v = uniform(seed, call, size + size % 2, dtype).reshape(-1, 2).T
    radius, angle = np.sqrt(-2 * np.log(1 - u)), 2 * np.pi * v
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:size]


SEED = 2**40 + 7


def draw(name: str, shape: tuple[int, ...], dtype: str) -> Case:
    """The second draw of a generator: so the seed and the count are both seen."""

    def function(like):
        generator = ng.random.Generator(SEED)
        kind = getattr(ng.random, name)
        options = {"dtype": dtype, "device": like.device, "generator": generator}
        kind(1, **options)
        return kind(shape, **options)

    def reference(like):
        numbers = {"uniform": uniform, "normal": normal}[name]
        return numbers(SEED, 1, int(np.prod(shape)), dtype).reshape(shape)

    return Case(
        f"{name} {shape} {dtype}",
        function,
        (np.zeros(1, np.int64),),
        reference,
        grad=False,
        ops=(f"random_{name}", "count"),
    )


def dropout(x: ng.Array, p: float) -> ng.Array:
    return ng.dropout(x, p, generator=ng.random.Generator(SEED))


def dropout_reference(x: np.ndarray, p: float) -> np.ndarray:
    keep = words(SEED, 0, x.size).reshape(x.shape) >= round(p * 2**32)
    return np.where(keep, x / (1 - p), 0)


CASES = [
    *[
        draw(name, shape, dtype)
        for name in ("uniform", "normal")
        for shape, dtype in [((3, 3), "float32"), ((2, 5), "float64"), ((0,), "float32")]
    ],
    Case(
        "uniform between bounds",
        lambda like: ng.random.uniform(
            5, -2.0, 3.0, device=like.device, generator=ng.random.Generator(SEED)
        ),
        (np.zeros(1, np.int64),),
        lambda like: uniform(SEED, 0, 5, "float32") * 5 - 2,
        grad=False,
    ),
    *[
        Case(
            f"dropout {shape}, p={p}",
            lambda x, p=p: dropout(x, p),
            (rng.normal(size=shape),),
            lambda x, p=p: dropout_reference(x, p),
            ops=("dropout",),
        )
        for shape, p in [((3, 7), 0.3), ((5,), 0.9), ((0, 2), 0.5)]
    ],
]
