"""Pooling against a loop over windows."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(12)


def reference(x, reduce, outside, kernel_size, stride=None, padding=0):
    """Reduce each window of an image that is surrounded by `outside`."""
    (kh, kw), (ph, pw) = np.broadcast_to(kernel_size, 2), np.broadcast_to(padding, 2)
    sh, sw = np.broadcast_to(kernel_size if stride is None else stride, 2)
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=outside)
    height, width = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    out = np.zeros((len(x), height, width, x.shape[3]))
    for h in range(height):
        for w in range(width):
            window = x[:, h * sh : h * sh + kh, w * sw : w * sw + kw]
            out[:, h, w] = reduce(window, axis=(1, 2))
    return out


def distinct(shape):
    """Return an image whose elements lie far enough apart for finite differences of a maximum."""
    return 0.1 * rng.permutation(np.arange(np.prod(shape, dtype=int))).reshape(shape)


def pools(name, x, *args, **window):
    return [
        Case(
            f"max_pool2d {name}",
            lambda x: ng.max_pool2d(x, *args, **window),
            (x,),
            lambda x: reference(x, np.max, -np.inf, *args, **window),
            ops=("max_pool2d",),
        ),
        Case(
            f"avg_pool2d {name}",
            lambda x: ng.avg_pool2d(x, *args, **window),
            (x,),
            lambda x: reference(x, np.mean, 0, *args, **window),
            ops=("avg_pool2d",),
        ),
    ]


CASES = [
    *pools("2 x 2", distinct((2, 4, 5, 3)), 2),
    *pools("overlapping", distinct((1, 5, 6, 2)), 3, stride=2, padding=1),
    *pools("apart", distinct((2, 5, 7, 1)), (1, 2), stride=(2, 3), padding=(0, 1)),
    *pools("side by side, padded", distinct((1, 6, 3, 2)), 3, padding=1),
    *pools("of more channels than lanes", distinct((1, 2, 3, 37)), 2, stride=1),
    *pools("no images", distinct((0, 4, 4, 2)), 2),
]
