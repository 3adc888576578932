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


def reference_gradients(x, weight, grad_out, *, stride, padding, dilation, groups):
    """Return the gradients of x and weight with NumPy, from one output pixel after another."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    grad_x, grad_weight = np.zeros_like(x), np.zeros_like(weight)
    r, s, depth, channels = weight.shape
    each = channels // groups
    for h, w, g in itertools.product(*map(range, grad_out.shape[1:3]), range(groups)):
        window = np.s_[
            :,
            h * sh : h * sh + dh * (r - 1) + 1 : dh,
            w * sw : w * sw + dw * (s - 1) + 1 : dw,
            g * depth : (g + 1) * depth,
        ]
        mine = np.s_[..., g * each : (g + 1) * each]
        grad = grad_out[:, h, w][mine]
        grad_x[window] += np.tensordot(grad, weight[mine], (1, 3))
        grad_weight[mine] += np.tensordot(x[window], grad, (0, 0))
    return grad_x[:, ph : ph + height, pw : pw + width], grad_weight


def conv(name, x, weight, bias=False, ops=("conv2d",), **window):
    arrays = [rng.normal(size=x), rng.normal(size=weight)]
    if bias:
        arrays.append(rng.normal(size=weight[3]))
    return Case(
        f"conv2d {name}",
        lambda *arrays: ng.conv2d(*arrays, **window),
        tuple(arrays),
        lambda *arrays: reference(*arrays, **window),
        ops=ops,
    )


def depthwise(name, x, kernel, **window):
    weight, groups = (*kernel, 1, x[3]), x[3]
    return conv(
        f"depthwise, {name}", x, weight, bias=True, ops=("depthwise",), groups=groups, **window
    )


def winograd(x, out_channels, padding):
    name = f"winograd, {x} to {out_channels}, padding {padding}"
    weight = (3, 3, x[3], out_channels)
    return conv(name, x, weight, bias=True, ops=("winograd",), padding=padding)


CASES = [
    conv("plain", (2, 4, 5, 2), (3, 2, 2, 3), bias=True),
    conv("same size", (1, 3, 4, 1), (3, 3, 1, 2), padding=1),
    conv("wider than a tile", (1, 1, 10, 1), (1, 1, 1, 35)),
    conv("strided", (2, 6, 5, 2), (3, 2, 2, 2), bias=True, stride=(2, 3), padding=(1, 0)),
    conv("dilated", (1, 5, 6, 2), (2, 3, 2, 1), dilation=(3, 2), padding=(1, 2)),
    conv("groups", (2, 3, 4, 4), (2, 2, 2, 6), groups=2, padding=1, stride=2),
    depthwise("same size", (1, 4, 3, 3), (3, 3), padding=1),
    conv("two filters for each channel, groups", (1, 3, 4, 2), (2, 2, 1, 4), groups=2),
    conv("padded beyond the window", (1, 2, 1, 1), (1, 2, 1, 1), bias=True, padding=2),
    conv("no images", (0, 3, 3, 2), (2, 2, 2, 3), bias=True, padding=1),
    depthwise("no images", (0, 3, 3, 2), (2, 2), padding=1),
    conv("empty images", (2, 0, 3, 2), (3, 3, 2, 2), bias=True, padding=2),
    conv("no channels", (1, 3, 3, 0), (2, 2, 0, 2), bias=True),
    conv("no output channels", (1, 3, 3, 2), (2, 2, 2, 0), bias=True, padding=1),
]

# Cases for the CPU alone: too large for the simulator, or ways that only the CPU has.
CPU_CASES = [
    conv(
        "all different", (2, 6, 7, 3), (3, 2, 3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2)
    ),
    conv(
        "all, in groups",
        (2, 6, 7, 4),
        (2, 3, 2, 6),
        stride=(1, 2),
        padding=(1, 3),
        dilation=(2, 1),
        groups=2,
    ),
    conv("stride past the window", (2, 7, 8, 2), (1, 2, 2, 3), bias=True, stride=(2, 3)),
    conv("stride past the window, padded", (2, 5, 4, 3), (1, 1, 3, 4), stride=3, padding=2),
    conv(
        "stride and dilation that share a factor",
        (1, 9, 8, 2),
        (3, 2, 2, 3),
        stride=2,
        dilation=(2, 4),
    ),
    conv("padding past the window", (2, 3, 2, 2), (2, 2, 2, 3), stride=2, padding=3),
    conv("strips in a group", (1, 3, 3, 4), (2, 2, 2, 70), bias=True, padding=1, groups=2),
    conv(
        "strips of the input's channels, in groups",
        (1, 3, 3, 70),
        (2, 2, 35, 4),
        padding=1,
        groups=2,
    ),
    # The gradient of more input channels than a few: with phases, and without.
    conv("strided, 6 channels", (2, 6, 5, 6), (3, 2, 6, 7), stride=(2, 3), padding=(1, 0)),
    conv("stride past the window, 6 channels", (2, 5, 4, 6), (1, 1, 6, 4), stride=3, padding=2),
    conv("dilated, 6 channels", (1, 9, 8, 6), (3, 2, 6, 3), stride=2, dilation=(2, 4)),
    conv("small images, strided, 6 channels", (70, 3, 3, 6), (2, 2, 6, 3), stride=2, padding=1),
    conv("a few channels to many", (1, 6, 7, 3), (3, 3, 3, 37), padding=1),
    # Small images are done several at a time, with some left at the end.
    conv("small images", (5, 4, 4, 2), (3, 3, 2, 3), bias=True, padding=1),
    conv("small images, not padded", (7, 6, 7, 3), (2, 3, 3, 4)),
    conv("small images, strided", (70, 3, 3, 2), (2, 2, 2, 3), stride=2, padding=1),
    conv("one pixel", (70, 1, 1, 3), (1, 1, 3, 4), bias=True),
    conv("one pixel, padded", (70, 1, 1, 2), (3, 3, 2, 3), padding=1),
    conv("a long line", (2, 1, 140, 1), (1, 3, 1, 2), bias=True, padding=(0, 1)),
    conv("1 x 1", (2, 9, 8, 17), (1, 1, 17, 33), bias=True),
    conv("5 x 5", (2, 9, 8, 3), (5, 5, 3, 4), bias=True, padding=2),
    conv("7 x 7", (1, 11, 10, 3), (7, 7, 3, 4), stride=2, padding=3),
    conv("3 x 3 of a few channels", (2, 9, 8, 8), (3, 3, 8, 20), padding=1),
    # Past a vector, past two, past a tile.
    depthwise("24 channels", (2, 6, 5, 24), (3, 3), padding=1),
    depthwise("40 channels, strided", (2, 7, 8, 40), (3, 3), stride=2, padding=1),
    depthwise("24 channels, dilated", (2, 7, 8, 24), (3, 2), dilation=(2, 3), padding=(2, 1)),
    depthwise("small images", (9, 3, 4, 17), (2, 2), stride=(1, 3)),
    depthwise("5 x 5", (1, 9, 9, 3), (5, 5), padding=2),
    # Extents that are no multiples of 4, channels that are no whole vectors.
    winograd((3, 9, 10, 16), 24, padding=1),
    winograd((2, 13, 14, 24), 33, padding=0),
    winograd((1, 12, 13, 33), 16, padding=2),
    winograd((2, 12, 11, 16), 16, padding=(0, 2)),
]
