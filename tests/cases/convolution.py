"""Convolutions against a loop over output pixels."""

from __future__ import annotations

import itertools

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(11)


def reference(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """Convolve with NumPy: one output pixel and one group after another."""
    (sh, sw), (ph, pw), (dh, dw) = (
        np.broadcast_to(value, 2).tolist() for value in (stride, padding, dilation)
    )
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    r, s, depth, channels = weight.shape
    span_h, span_w = dh * (r - 1) + 1, dw * (s - 1) + 1
    height, width = (x.shape[1] - span_h) // sh + 1, (x.shape[2] - span_w) // sw + 1
    each = channels // groups
    out = np.zeros((len(x), height, width, channels))
    for h, w, g in itertools.product(range(height), range(width), range(groups)):
        window = x[:, h * sh : h * sh + span_h : dh, w * sw : w * sw + span_w : dw]
        window = window[..., g * depth : (g + 1) * depth]
        filters = weight[..., g * each : (g + 1) * each]
        out[:, h, w, g * each : (g + 1) * each] = np.tensordot(window, filters, 3)
    return out if bias is None else out + bias


def conv(name, x, weight, bias=False, **window):
    arrays = [rng.normal(size=x), rng.normal(size=weight)]
    if bias:
        arrays.append(rng.normal(size=weight[3]))
    return Case(
        f"conv2d {name}",
        lambda *arrays: ng.conv2d(*arrays, **window),
        tuple(arrays),
        lambda *arrays: reference(*arrays, **window),
        ops=("conv2d",),
    )


CASES = [
    conv("plain", (2, 4, 5, 2), (3, 2, 2, 3), bias=True),
    conv("same size", (1, 3, 4, 1), (3, 3, 1, 2), padding=1),
    conv("wider than a tile", (1, 1, 10, 1), (1, 1, 1, 35)),
    conv("strided", (2, 6, 5, 2), (3, 2, 2, 2), bias=True, stride=(2, 3), padding=(1, 0)),
    conv("dilated", (1, 5, 6, 2), (2, 3, 2, 1), dilation=(3, 2), padding=(1, 2)),
    conv("groups", (2, 3, 4, 4), (2, 2, 2, 6), groups=2, padding=1, stride=2),
    conv("depthwise", (1, 4, 3, 3), (3, 3, 1, 3), groups=3, padding=1),
    conv("padded beyond the window", (1, 2, 1, 1), (1, 2, 1, 1), bias=True, padding=2),
    conv("no images", (0, 3, 3, 2), (2, 2, 2, 3), bias=True, padding=1),
    conv("no channels", (1, 3, 3, 0), (2, 2, 0, 2), bias=True),
]
