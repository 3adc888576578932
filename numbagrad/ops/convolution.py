"""Convolution of images, and its two gradients, each of which differentiates into the others."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..array import Array, Spec, asarray
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import ShapeError
from .elementwise import as_ints, require_arrays, require_float
from .reduction import sum

Pair = tuple[int, int]


def pair(op: str, name: str, value: int | Pair, least: int) -> Pair:
    """Return ``(height, width)``; one int stands for both.

    Raises
    ------
    TypeError
        Unless both are ints.
    ValueError
        If there are not two, or one is below ``least``.
    """
    both = as_ints(op, name, value)
    if isinstance(value, (int, np.integer)):
        both *= 2
    if len(both) != 2 or min(both) < least:
        raise ValueError(
            f"{op}: {name} must be an int >= {least} or a pair of them (height, width), got "
            f"{value!r}"
        )
    return both


def sliding_extents(
    op: str, image: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    """Return how many places a window has along each axis of an image."""
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padded = tuple(extent + 2 * p for extent, p in zip(image, padding, strict=True))
    if spans[0] > padded[0] or spans[1] > padded[1]:
        raise ShapeError(
            f"{op}: a window of {spans[0]} x {spans[1]} does not fit an image of {padded[0]} x "
            f"{padded[1]}, padding included; enlarge the image or the padding"
        )
    height, width = (
        (extent - span) // s + 1 for extent, span, s in zip(padded, spans, stride, strict=True)
    )
    return height, width


# ---------------------------------------------------------------- the three ops


def _conv2d_infer(x, weight, bias, *, stride, padding, dilation, groups):
    require_float("conv2d", x, weight, bias)
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(
            f"conv2d: x must be (n, h, w, c) and weight (r, s, c / groups, k), got {x.shape} and "
            f"{weight.shape}"
        )
    *kernel, depth, out_channels = weight.shape
    if 0 in kernel:
        raise ShapeError(f"conv2d: a weight of shape {weight.shape} has an empty window")
    if depth * groups != x.shape[3] or out_channels % groups:
        raise ShapeError(
            f"conv2d: x {x.shape} has {x.shape[3]} channels, and with groups={groups} a weight of "
            f"shape {weight.shape} takes {depth * groups} and gives {out_channels}; weight must be "
            "(r, s, c / groups, k), with c and k multiples of groups"
        )
    extents = sliding_extents("conv2d", x.shape[1:3], kernel, stride, padding, dilation)
    return (x.shape[0], *extents, out_channels), x.dtype


def _backward_input_infer(grad_out, weight, *, extents, stride, padding, dilation, groups):
    return (grad_out.shape[0], *extents, weight.shape[2] * groups), grad_out.dtype


def _backward_weight_infer(x, grad_out, *, kernel_size, stride, padding, dilation, groups):
    return (*kernel_size, x.shape[3] // groups, grad_out.shape[3]), x.dtype


def _conv2d_vjp(grad_out, x, weight, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = apply(_BACKWARD_INPUT, grad_out, weight, extents=specs[0].shape[1:3], **window)
    if needs[1]:
        grad_weight = apply(_BACKWARD_WEIGHT, x, grad_out, kernel_size=specs[1].shape[:2], **window)
    if needs[2]:
        grad_bias = sum(grad_out, axis=(0, 1, 2))
    return grad_x, grad_weight, grad_bias


# Each op is linear in either operand: differentiating one swaps an operand for the new gradient.
# Below, `grad` is the gradient of grad_x or of grad_weight.


def _backward_input_vjp(grad, grad_out, weight, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_grad_out = grad_weight = None
    if needs[0]:
        grad_grad_out = apply(_CONV2D, grad, weight, _no_bias(grad.dtype, grad.device), **window)
    if needs[1]:
        grad_weight = apply(
            _BACKWARD_WEIGHT, grad, grad_out, kernel_size=specs[1].shape[:2], **window
        )
    return grad_grad_out, grad_weight


def _backward_weight_vjp(grad, x, grad_out, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_x = grad_grad_out = None
    if needs[0]:
        grad_x = apply(_BACKWARD_INPUT, grad_out, grad, extents=specs[0].shape[1:3], **window)
    if needs[1]:
        grad_grad_out = apply(_CONV2D, x, grad, _no_bias(grad.dtype, grad.device), **window)
    return grad_x, grad_grad_out


# ------------------------------------------------------------- how they run


def _views(call: Call) -> Views:
    return Views(
        tuple(spec.shape for spec in call.inputs),
        (call.outputs[0].shape,),
        (call.stride, call.padding, call.dilation, call.groups),
    )


def _cost(x: Spec, weight: Spec, out: Spec) -> tuple[float, float]:
    macs = out.size * weight.size // max(weight.shape[3], 1)
    return 2.0 * macs, (x.size + weight.size + out.size) * x.dtype.itemsize


def _padded(x: Spec, padding: Pair):
    """Room for one image with zeros around it, if it gets any."""
    _, h, w, c = x.shape
    needed = padding != (0, 0) and x.device == "cpu"
    shape = (1, h + 2 * padding[0], w + 2 * padding[1], c) if needed else (0, 0, 0, 0)
    return shape, x.dtype


def _backward_input_workspace(call: Call):
    """Room for the filter upside down, and for one image of grad_out with its pixels apart."""
    weight = call.inputs[1]
    if call.device != "cpu":
        return [((0, 0, 0, 0), weight.dtype)] * 2
    r, s, depth, k = weight.shape
    rows, columns = (
        extent + dilation * (kernel - 1)
        for extent, dilation, kernel in zip(call.extents, call.dilation, (r, s), strict=True)
    )
    turned = (r, s, k // call.groups, depth * call.groups)
    return [(turned, weight.dtype), ((1, rows, columns, k), weight.dtype)]


_CONV2D = register(
    Op(
        "conv2d",
        _conv2d_infer,
        "conv2d_forward",
        _conv2d_vjp,
        arrange=_views,
        split=lambda call: [Split(call.inputs[0].shape[0], (1, 0, 0), (1,))],
        workspace=lambda call: [_padded(call.inputs[0], call.padding)],
        cost=lambda call: _cost(call.inputs[0], call.inputs[1], call.outputs[0]),
    )
)
_BACKWARD_INPUT = register(
    Op(
        "conv2d_backward_input",
        _backward_input_infer,
        "conv2d_backward_input",
        _backward_input_vjp,
        outputs=("grad_x",),
        arrange=_views,
        split=lambda call: [Split(call.inputs[0].shape[0], (1, 0), (1,))],
        workspace=_backward_input_workspace,
        cost=lambda call: _cost(call.outputs[0], call.inputs[1], call.inputs[0]),
    )
)
_BACKWARD_WEIGHT = register(
    Op(
        "conv2d_backward_weight",
        _backward_weight_infer,
        "conv2d_backward_weight",
        _backward_weight_vjp,
        outputs=("grad_weight",),
        arrange=_views,
        split=lambda call: [Split(call.inputs[0].shape[0], (1, 1), ("sum",))],
        workspace=lambda call: [_padded(call.inputs[0], call.padding)],
        cost=lambda call: _cost(call.inputs[0], call.outputs[0], call.inputs[1]),
    )
)


@lru_cache
def _no_bias(dtype: np.dtype, device: str) -> Array:
    return asarray(np.zeros(0, dtype), device=device)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Array:
    """Return the convolution of images with a bank of filters (a cross-correlation, as usual).

    ``out[n, h, w, k] = bias[k] + sum over r, s, c of weight[r, s, c, k] *
    x[n, h * stride + r * dilation - padding, w * stride + s * dilation - padding, c]``

    Parameters
    ----------
    x
        (n, h, w, c) images, float32 or float64.
    weight
        (r, s, c // groups, k) filters, of the same dtype.
    bias
        (k,), or None.
    stride
        Steps from one window to the next, an int or (height, width), as the next two.
    padding
        Rows and columns of zeros on each side.
    dilation
        Steps from one pixel of a window to the next.
    groups
        Into how many groups channels fall; output channels see those of their own group only.

    Returns
    -------
    Array
        (n, out_h, out_w, k), where
        ``out_h = (h + 2 * padding - dilation * (r - 1) - 1) // stride + 1``.

    Raises
    ------
    ShapeError
        If extents do not fit together, or the window is larger than the padded image.
    DTypeError
        If dtypes differ or are not floats.
    ValueError
        If stride, dilation or groups is below 1, or padding below 0.
    TypeError
        If one of them is not made of ints, or something else than an Array is given.

    Notes
    -----
    LeCun et al., "Gradient-based learning applied to document recognition" (Proc. IEEE, 1998);
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016).

    Examples
    --------
    >>> x = asarray(np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1))
    >>> conv2d(x, asarray(np.ones((2, 2, 1, 1), np.float32)))[0, :, :, 0]
    Array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    require_arrays("conv2d", x=x, weight=weight)
    if bias is None:
        bias = _no_bias(x.dtype, x.device)
    else:
        require_arrays("conv2d", bias=bias)
        if bias.shape != weight.shape[-1:]:
            raise ShapeError(
                f"conv2d: bias {bias.shape} must have shape {weight.shape[-1:]}, one for each "
                "output channel"
            )
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"conv2d: groups must be an int >= 1, got {groups!r}")
    return apply(
        _CONV2D,
        x,
        weight,
        bias,
        stride=pair("conv2d", "stride", stride, 1),
        padding=pair("conv2d", "padding", padding, 0),
        dilation=pair("conv2d", "dilation", dilation, 1),
        groups=int(groups),
    )


__all__ = ["conv2d"]
