"""Random changes to batches of images, on the device where they are.

They are compositions of ops: in a compiled step they are drawn anew at each replay. Those that a
`DataLoader` applies on the CPU, ahead of the step, are in ``transforms.py``.
"""

from __future__ import annotations

import numpy as np

from .. import random
from ..array import Array, asarray
from ..errors import ShapeError, whole_number
from ..ops import astype, minimum, reshape, take, where


def random_flip(images: Array, *, generator: random.Generator | None = None) -> Array:
    """Mirror each image left to right, or leave it: a coin decides for each.

    Parameters
    ----------
    images
        (n, h, w, c), on any device.
    generator
        Where the coins come from: see `numbagrad.random`.

    Raises
    ------
    ShapeError
        If the images do not have four axes.

    Examples
    --------
    >>> row = asarray(np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1))
    >>> random_flip(row, generator=random.Generator(1)).shape
    (1, 1, 3, 1)
    """
    n, h, w, _ = _extents("random_flip", images)
    device = images.device
    coin = random.uniform((n, 1, 1), device=device, generator=generator)
    column = _range(w, (1, 1, w), device)
    column = where(coin < 0.5, column, (w - 1) - column)
    return _pixels(images, _range(h, (1, h, 1), device), column)


def random_crop(images: Array, size: int, *, generator: random.Generator | None = None) -> Array:
    """Cut a square out of each image, at a place of its own.

    Pad the images before, and this shifts them: with 4 pixels on each side, by up to 4.

    Parameters
    ----------
    images
        (n, h, w, c), on any device.
    size
        Extent of the squares.
    generator
        Where the places come from: see `numbagrad.random`.

    Raises
    ------
    ShapeError
        If the images do not have four axes, or are smaller than the square.

    Examples
    --------
    >>> random_crop(asarray(np.zeros((2, 40, 40, 3), np.float32)), 32).shape
    (2, 32, 32, 3)
    """
    n, h, w, _ = _extents("random_crop", images)
    size = whole_number("random_crop", "size", size, 1)
    if size > min(h, w):
        raise ShapeError(f"random_crop: images {images.shape} have no square of {size} pixels")
    device = images.device

    def start(places: int) -> Array:
        drawn = random.uniform((n, 1, 1), device=device, generator=generator)
        # Rounding may reach the number of places.
        return minimum(astype(drawn * places, np.int64), places - 1)

    row = start(h - size + 1) + _range(size, (1, size, 1), device)
    column = start(w - size + 1) + _range(size, (1, 1, size), device)
    return _pixels(images, row, column)


def _extents(name: str, images: Array) -> tuple[int, int, int, int]:
    if images.ndim != 4:
        raise ShapeError(f"{name}: images must be (n, h, w, c), got shape {images.shape}")
    return images.shape


def _range(extent: int, shape: tuple[int, ...], device: str) -> Array:
    return asarray(np.arange(extent).reshape(shape), device=device)


def _pixels(images: Array, row: Array, column: Array) -> Array:
    """Return pixels of each image: `row` and `column`, int64, broadcast to (n, rows, columns)."""
    n, h, w, c = images.shape
    index = (_range(n, (n, 1, 1), images.device) * h + row) * w + column
    return take(reshape(images, (n * h * w, c)), index)


__all__ = ["random_crop", "random_flip"]
