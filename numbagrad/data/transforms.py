"""Random changes to batches of images on their way to training, each a kernel that can be read.

What happens to an image depends on the loader's seed, the epoch and the image's number in the data
set, on nothing else: an epoch is the same whatever the batch size, with a background thread or
without, and in a run that was stopped and goes on.

They run on the CPU, in the loader's thread, while the step before is computed. What changes images
where they are, on a GPU too and inside a compiled step, is in ``augment.py``.

Each kernel gets images (n, h, w, c), or their rows, and as many random numbers for each image, in
[0, 1), as its transform asks for; what it writes are new images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import ShapeError, whole_number
from ..jit import njit

WORD = 0xFFFFFFFF


class Key(NamedTuple):
    """What the randomness of a batch hangs on.

    Attributes
    ----------
    seed, epoch
        Of the loader.
    indices
        The images' numbers in the data set, int64 of shape (n,).
    """

    seed: int
    epoch: int
    indices: np.ndarray


@njit
def _uniform(seed, epoch, position, indices, out):
    """out[i, k] = uniform in [0, 1), from 24 random bits of word k of block indices[i].

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is
    the seed; the counter is the image's number, the epoch and the transform's position.
    """
    for i in range(len(indices)):
        block = np.uint64(indices[i])
        c0, c1 = block & np.uint64(WORD), block >> np.uint64(32)
        c2, c3 = np.uint64(epoch) & np.uint64(WORD), np.uint64(position)
        k0, k1 = np.uint64(seed) & np.uint64(WORD), np.uint64(seed) >> np.uint64(32)
        for _ in range(10):
            p, q = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
            c0, c1 = (q >> np.uint64(32)) ^ c1 ^ k0, q & np.uint64(WORD)
            c2, c3 = (p >> np.uint64(32)) ^ c3 ^ k1, p & np.uint64(WORD)
            k0 = (k0 + np.uint64(0x9E3779B9)) & np.uint64(WORD)
            k1 = (k1 + np.uint64(0xBB67AE85)) & np.uint64(WORD)
        words = c0, c1, c2, c3
        for k in range(out.shape[1]):
            out[i, k] = np.float32(words[k] >> np.uint64(8)) * np.float32(2.0**-24)


@njit
def _flip(draws, out):
    """out[n, h, w, c] becomes out[n, h, width - 1 - w, c] if draws[n, 0] < 1/2."""
    count, height, width, channels = out.shape
    for n in range(count):
        if draws[n, 0] < 0.5:
            for h in range(height):
                for w in range(width // 2):
                    for c in range(channels):
                        left, right = out[n, h, w, c], out[n, h, width - 1 - w, c]
                        out[n, h, w, c], out[n, h, width - 1 - w, c] = right, left


@njit
def _crop(rows, draws, padding, channels, out):
    """out[n, h, e] = rows[n, top + h, left channels + e], and 0 in the padding around images.

    A row holds its pixels' channels, one pixel after the other. top and left take each whole number
    from -padding to height + padding - size with one chance.
    """
    count, height, width = rows.shape
    size = out.shape[1]
    least = -padding
    downwards = height + 2 * padding - size + 1
    sideways = width // channels + 2 * padding - size + 1
    for n in range(count):
        top = least + min(int(draws[n, 0] * downwards), downwards - 1)
        left = (least + min(int(draws[n, 1] * sideways), sideways - 1)) * channels
        first, last = max(0, -left), min(size * channels, width - left)
        for h in range(size):
            if 0 <= top + h < height:
                out[n, h, :first] = 0
                for e in range(first, last):
                    out[n, h, e] = rows[n, top + h, left + e]
                out[n, h, max(first, last) :] = 0
            else:
                out[n, h] = 0


@njit
def _cut_out(draws, size, out):
    """out = 0 in a square around a random pixel of each image; what sticks out is cut off."""
    count, height, width, _ = out.shape
    for n in range(count):
        top = min(int(draws[n, 0] * height), height - 1) - size // 2
        left = min(int(draws[n, 1] * width), width - 1) - size // 2
        out[n, max(top, 0) : top + size, max(left, 0) : left + size] = 0


@njit
def _jitter(images, draws, brightness, contrast, saturation, grey, out):
    """out = clip(x), with x = images b for a random factor b, then

    x = mean + k (x - mean), mean the mean grey of the image, then x = g + s (x - g), g the grey of
    the pixel. A factor is uniform in [1 - strength, 1 + strength].
    """
    count, height, width, channels = images.shape
    one = np.float32(1)
    for n in range(count):
        b = one + brightness * (2 * draws[n, 0] - one)
        k = one + contrast * (2 * draws[n, 1] - one)
        s = one + saturation * (2 * draws[n, 2] - one)
        mean = np.float32(0)
        for h in range(height):
            row = np.float32(0)
            for w in range(width):
                for c in range(channels):
                    row += grey[c] * images[n, h, w, c]
            mean += row
        mean *= b / np.float32(height * width)
        for h in range(height):
            for w in range(width):
                g = np.float32(0)
                for c in range(channels):
                    g += grey[c] * images[n, h, w, c]
                g = mean + k * (g * b - mean)
                for c in range(channels):
                    x = mean + k * (images[n, h, w, c] * b - mean)
                    out[n, h, w, c] = min(max(g + s * (x - g), np.float32(0)), one)


@njit
def _normalise(rows, scale, shift, out):
    """out[r, e] = rows[r, e] scale[e] + shift[e]."""
    for r in range(rows.shape[0]):
        for e in range(rows.shape[1]):
            out[r, e] = np.float32(rows[r, e]) * scale[e] + shift[e]


class Transform:
    """A change to a batch of images: called with them, and with a `Key`, by the loader.

    Attributes
    ----------
    numbers
        Random numbers that it takes for each image, 4 at most.
    """

    numbers = 0

    def __call__(self, images: np.ndarray, key: Key) -> np.ndarray:
        """Return new images, (n, h, w, c)."""
        return self.at(images, key, 0)

    def at(self, images: np.ndarray, key: Key, position: int) -> np.ndarray:
        """Do it as the transform at a position of several: each has random numbers of its own."""
        name = type(self).__name__
        if images.ndim != 4:
            raise ShapeError(f"{name}: images must be (n, h, w, c), got shape {images.shape}")
        draws = np.empty((len(images), self.numbers), np.float32)
        _uniform(key.seed, key.epoch, position, key.indices, draws)
        return self._change(np.ascontiguousarray(images), draws)

    def _change(self, images: np.ndarray, draws: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class RandomFlip(Transform):
    """Mirror each image left to right, or leave it: a coin decides.

    Examples
    --------
    >>> images = np.arange(6, dtype=np.float32).reshape(2, 1, 3, 1)
    >>> RandomFlip()(images, Key(0, 0, np.arange(2))).ravel()
    array([2., 1., 0., 3., 4., 5.], dtype=float32)
    """

    numbers = 1

    def _change(self, images, draws):
        out = images.copy()
        _flip(draws, out)
        return out


class RandomCrop(Transform):
    """Cut a square out of each image, at a place of its own.

    Parameters
    ----------
    size
        Height and width of the square, in pixels.
    padding
        Pixels of zeros around the image first: with 4, and a square as large as the image, each
        one moves by up to 4 pixels.

    Raises
    ------
    ShapeError
        When it is called, if images are smaller than the square.
    """

    numbers = 2

    def __init__(self, size: int, padding: int = 0):
        self.size = whole_number("RandomCrop", "size", size)
        self.padding = whole_number("RandomCrop", "padding", padding, 0)

    def _change(self, images, draws):
        count, height, width, channels = images.shape
        if self.size > min(height, width) + 2 * self.padding:
            raise ShapeError(
                f"RandomCrop: images of {height}x{width} with padding {self.padding} have no "
                f"square of {self.size} pixels"
            )
        rows = images.reshape(count, height, width * channels)
        out = np.empty((count, self.size, self.size * channels), images.dtype)
        _crop(rows, draws, self.padding, channels, out)
        return out.reshape(count, self.size, self.size, channels)


class Cutout(Transform):
    """Set a square around a random pixel to zero (DeVries and Taylor, 2017, arXiv:1708.04552).

    Parameters
    ----------
    size
        Height and width of the square, in pixels; what sticks out of the image is cut off.
    """

    numbers = 2

    def __init__(self, size: int):
        self.size = whole_number("Cutout", "size", size)

    def _change(self, images, draws):
        out = images.copy()
        _cut_out(draws, self.size, out)
        return out


class ColorJitter(Transform):
    """Change brightness, contrast and saturation, in this order, each by a random factor.

    Parameters
    ----------
    brightness, contrast, saturation
        How far a factor may be from 1, 0 to 1.

    Notes
    -----
    Images are floats in 0..1, with one channel or three (red, green, blue). Grey is
    0.299 r + 0.587 g + 0.114 b (ITU-R BT.601).
    """

    numbers = 3

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0):
        strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, strength in strengths.items():
            if not 0 <= strength <= 1:
                raise ValueError(f"ColorJitter: {name} must be 0 to 1, got {strength}")
        self.strengths = tuple(map(np.float32, strengths.values()))

    def _change(self, images, draws):
        if images.dtype != np.float32 or images.shape[3] not in (1, 3):
            raise ShapeError(
                "ColorJitter: images must be float32 with 1 or 3 channels, got "
                f"{images.dtype} of shape {images.shape}"
            )
        grey = [1.0] if images.shape[3] == 1 else [0.299, 0.587, 0.114]
        out = np.empty_like(images)
        _jitter(images, draws, *self.strengths, np.array(grey, np.float32), out)
        return out


class Normalize(Transform):
    """Take a mean off each channel and divide by a deviation: ``(x / white - mean) / std``.

    Parameters
    ----------
    mean, std
        A number for all channels, or one for each.
    white
        What the largest value of the images stands for: 255 for those that are held as uint8, say
        in a file mapped into memory, which become floats a batch at a time.
    """

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], white: float = 1.0
    ):
        self.mean, self.std = np.atleast_1d(mean).astype(float), np.atleast_1d(std).astype(float)
        if not (np.isfinite(self.mean).all() and (self.std > 0).all() and white > 0):
            raise ValueError(
                f"Normalize: mean must be finite, std and white above 0, got {mean}, {std}, {white}"
            )
        self.white = white

    def _change(self, images, draws):
        width, channels = images.shape[2:]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise ShapeError(
                f"Normalize: {len(self.mean)} means and {len(self.std)} deviations do not fit "
                f"images of {channels} channels"
            )
        scale, shift = 1 / (self.std * self.white), -self.mean / self.std
        of_row = [np.tile(np.resize(x, channels), width).astype(np.float32) for x in (scale, shift)]
        out = np.empty(images.shape, np.float32)
        table = -1, width * channels
        _normalise(images.reshape(table), *of_row, out.reshape(table))
        return out


class Compose(Transform):
    """Several changes, one after the other.

    Parameters
    ----------
    transforms
        `Transform`s, or functions of a batch of images.

    Examples
    --------
    >>> augment = Compose([RandomCrop(28, padding=2), RandomFlip(), Normalize(0.5, 0.5)])
    >>> augment(np.zeros((3, 28, 28, 1), np.float32), Key(0, 0, np.arange(3))).shape
    (3, 28, 28, 1)
    """

    def __init__(self, transforms: Sequence[Transform | Callable[[np.ndarray], np.ndarray]]):
        self.transforms = list(transforms)
        for each in self.transforms:
            if isinstance(each, Compose) or not callable(each):
                raise TypeError(f"Compose: {each!r} is no transform, and no function of images")

    def __call__(self, images: np.ndarray, key: Key) -> np.ndarray:
        """Return new images."""
        for position, each in enumerate(self.transforms):
            images = each.at(images, key, position) if isinstance(each, Transform) else each(images)
        return images


__all__ = [
    "ColorJitter",
    "Compose",
    "Cutout",
    "Key",
    "Normalize",
    "RandomCrop",
    "RandomFlip",
    "Transform",
]
