"""Softmax and the losses built on it, and the mean squared error."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array, asarray, size_of
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import DTypeError, ShapeError
from .elementwise import broadcast_to, exp, require_arrays, require_float
from .reduction import mean, sum
from .shaping import one_axis, reshape

# ------------------------------------------------------------------- softmax


def _extents(call: Call) -> tuple[int, int, int]:
    """Return (outer, reduce, inner)."""
    shape, axis = call.inputs[0].shape, call.axis
    return size_of(shape[:axis]), shape[axis], size_of(shape[axis + 1 :])


def _softmax_views(call: Call) -> Views:
    size = call.outputs[0].size
    _, reduce, inner = _extents(call)
    return Views(((size,),) * len(call.inputs), ((size,),), (reduce, inner))


def _softmax_split(call: Call) -> list[Split]:
    outer, reduce, inner = _extents(call)
    rows = reduce * inner
    return [Split(outer, (rows,) * len(call.inputs), (rows,))]


def _softmax_cost(call: Call) -> tuple[float, float]:
    out = call.outputs[0]
    return 100.0 * out.size, 4.0 * out.size * out.dtype.itemsize


def _softmax_op(name: str, backward: Op) -> Op:
    def infer(x, *, axis):
        require_float(name, x)
        return x.shape, x.dtype

    return register(
        Op(
            name,
            infer,
            f"{name}_forward",
            lambda grad_out, out, axis: apply(backward, out, grad_out, axis=axis),
            arrange=_softmax_views,
            split=_softmax_split,
            cost=_softmax_cost,
        )
    )


def _softmax_backward_op(name: str, vjp: Any) -> Op:
    return register(
        Op(
            name,
            lambda y, grad_y, *, axis: (y.shape, y.dtype),
            name,
            vjp,
            arrange=_softmax_views,
            split=_softmax_split,
        )
    )


# Of y = softmax(x), the gradient is y (grad_y - sum grad_y y): linear in grad_y, and symmetric.


def _softmax_backward_vjp(grad_out, y, grad_y, axis, needs):
    by_y = None
    if needs[0]:
        slope = grad_y - sum(grad_y * y, axis, keepdims=True)
        by_y = grad_out * slope - grad_y * sum(grad_out * y, axis, keepdims=True)
    return by_y, apply(_SOFTMAX_BACKWARD, y, grad_out, axis=axis) if needs[1] else None


def _log_softmax_backward_vjp(grad_out, y, grad_y, axis, needs):
    probs = exp(y)
    by_y = -grad_out * probs * sum(grad_y, axis, keepdims=True) if needs[0] else None
    return by_y, grad_out - sum(grad_out * probs, axis, keepdims=True) if needs[1] else None


_SOFTMAX_BACKWARD = _softmax_backward_op("softmax_backward", _softmax_backward_vjp)
_LOG_SOFTMAX_BACKWARD = _softmax_backward_op("log_softmax_backward", _log_softmax_backward_vjp)
_SOFTMAX = _softmax_op("softmax", _SOFTMAX_BACKWARD)
_LOG_SOFTMAX = _softmax_op("log_softmax", _LOG_SOFTMAX_BACKWARD)


def softmax(x: Array, axis: int = -1) -> Array:
    """Return ``exp(x) / sum(exp(x))`` along an axis: positive numbers that add up to 1.

    Parameters
    ----------
    x
        Floats of any shape; large ones do not overflow.
    axis
        The axis to add up over.

    Raises
    ------
    ShapeError
        If there is no such axis.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> softmax(asarray([1000.0, 1000.0]))
    Array([0.5, 0.5], dtype=float32)
    """
    require_arrays("softmax", x=x)
    return apply(_SOFTMAX, x, axis=one_axis("softmax", axis, x.ndim))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """Return the logarithm of `softmax`, computed so that small probabilities keep their digits.

    Parameters
    ----------
    x
        Floats of any shape; large ones do not overflow.
    axis
        The axis to add up over.

    Raises
    ------
    ShapeError
        If there is no such axis.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> log_softmax(asarray([0.0, 1000.0]))
    Array([-1000.,     0.], dtype=float32)
    """
    require_arrays("log_softmax", x=x)
    return apply(_LOG_SOFTMAX, x, axis=one_axis("log_softmax", axis, x.ndim))


# ------------------------------------------------------------- cross-entropy


def _cross_entropy_infer(logits, labels):
    name = "softmax_cross_entropy"
    require_float(name, logits)
    if labels.dtype.kind not in "iu":
        raise DTypeError(f"{name}: labels must be integers, got {labels.dtype}")
    if not logits.ndim or labels.shape != logits.shape[:-1]:
        raise ShapeError(
            f"{name}: logits {logits.shape} need labels of shape {logits.shape[:-1]}, one for "
            f"each row of logits; got {labels.shape}"
        )
    if logits.shape[-1] == 0:
        raise ShapeError(f"{name}: logits {logits.shape} have no classes to choose from")
    return (labels.shape, logits.dtype), (logits.shape, logits.dtype)


def _rows(call: Call) -> tuple[int, int]:
    """Return (rows, classes)."""
    logits, labels = call.inputs[:2]
    return labels.size, logits.shape[-1]


def _cross_entropy_views(call: Call) -> Views:
    rows, classes = _rows(call)
    return Views(((rows, classes), (rows,)), ((rows,), (rows, classes)), (0,))


def _cross_entropy_split(call: Call) -> list[Split]:
    return [Split(_rows(call)[0], (1, 1), (1, 1, "min"), lambda scalars, lo, hi: (lo,))]


def _cross_entropy_vjp(grad_out, logits, labels, probs):
    return apply(_CROSS_ENTROPY_BACKWARD, grad_out, logits, labels, probs), None


def _check_label(position, inputs, call):
    label = inputs[1].numpy().reshape(-1)[position]
    place = tuple(int(i) for i in np.unravel_index(position, call.inputs[1].shape))
    raise IndexError(
        f"softmax_cross_entropy: labels{list(place)} is {label}; with logits of shape "
        f"{call.inputs[0].shape} labels go from 0 to {call.inputs[0].shape[-1] - 1}"
    )


_CROSS_ENTROPY = register(
    Op(
        "softmax_cross_entropy",
        _cross_entropy_infer,
        "softmax_cross_entropy_forward",
        _cross_entropy_vjp,
        outputs=("out", "probs"),
        arrange=_cross_entropy_views,
        split=_cross_entropy_split,
        cost=lambda call: (100.0 * call.inputs[0].size, 0),
        check=_check_label,
    )
)


def _backward_views(call: Call) -> Views:
    rows, classes = call.inputs[0].size, call.outputs[0].shape[-1]
    return Views(((rows,), (rows, classes), (rows,), (rows, classes)), ((rows, classes),))


def _backward_vjp(grad_out, grad_loss, logits, labels, probs, needs):
    by_loss = by_logits = None
    if needs[0]:
        one = asarray(1.0, dtype=logits.dtype, device=logits.device)
        ones = broadcast_to(one, labels.shape)
        slope = apply(_CROSS_ENTROPY_BACKWARD, ones, logits, labels, probs)
        by_loss = sum(grad_out * slope, -1)
    if needs[1]:
        # The slope is softmax(logits) less what the labels say. `probs` holds that softmax for
        # the kernel, but not how it came from the logits; so it is computed again.
        scale = reshape(grad_loss, (*labels.shape, 1))
        slope = apply(_SOFTMAX_BACKWARD, softmax(logits), grad_out, axis=logits.ndim - 1)
        by_logits = scale * slope
    return by_loss, by_logits, None, None


#: grad_loss times the slope of the loss by the logits; `probs` is their softmax.
_CROSS_ENTROPY_BACKWARD = register(
    Op(
        "softmax_cross_entropy_backward",
        lambda grad_loss, logits, labels, probs: (logits.shape, logits.dtype),
        "softmax_cross_entropy_backward",
        _backward_vjp,
        arrange=_backward_views,
        split=lambda call: [Split(call.inputs[0].size, (1, 1, 1, 1), (1,))],
    )
)


def _reduced(name: str, losses: Array, reduction: str) -> Array:
    """Return losses as they are, or their sum or mean."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return sum(losses)
    if reduction != "mean":
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if losses.size == 0:
        raise ShapeError(f"{name}: the mean of no losses; the batch has shape {losses.shape}")
    return mean(losses)


def softmax_cross_entropy(
    logits: Array, labels: Array, *, reduction: str = "mean", label_smoothing: float = 0.0
) -> Array:
    """Return ``-ln softmax(logits)[label]``: the negative log-likelihood of the labels.

    Parameters
    ----------
    logits
        (..., classes), floats.
    labels
        (...,), integers from 0 to classes - 1.
    reduction
        ``"mean"`` or ``"sum"`` over all examples, or ``"none"`` for a loss each, shape (...,).
    label_smoothing
        From 0 to 1: the share of the target that is spread over all classes, the label's too
        (Szegedy et al., "Rethinking the Inception Architecture", 2016).

    Raises
    ------
    ShapeError
        If the shapes do not fit, or the mean of no examples is asked for.
    DTypeError
        If logits are not floats, or labels not integers.
    ValueError
        If the reduction is unknown, or label_smoothing outside 0 to 1.
    IndexError
        If a label is out of range; on CUDA at the next read of any value.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> softmax_cross_entropy(asarray([[0.0, 0.0]]), asarray([1])).item()  # ln 2
    0.6931471824645996
    """
    require_arrays("softmax_cross_entropy", logits=logits, labels=labels)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"softmax_cross_entropy: label_smoothing must be from 0 to 1, got {label_smoothing!r}"
        )
    losses, _ = apply(_CROSS_ENTROPY, logits, labels)
    if label_smoothing:
        losses = losses * (1 - label_smoothing) - mean(log_softmax(logits), -1) * label_smoothing
    return _reduced("softmax_cross_entropy", losses, reduction)


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Return the squared difference ``(x - target)**2``, by default its mean.

    Parameters
    ----------
    x, target
        Floats of one shape: nothing is broadcast, for that is nearly always a mistake here.
    reduction
        ``"mean"`` or ``"sum"`` over all elements, or ``"none"`` for a loss each.

    Raises
    ------
    ShapeError
        If the shapes differ, or the mean of no elements is asked for.
    DTypeError
        If the arrays are not floats of one dtype.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> mse_loss(asarray([1.0, 2.0]), asarray([1.0, 4.0])).item()
    2.0
    """
    require_arrays("mse_loss", x=x, target=target)
    require_float("mse_loss", x.spec, target.spec)
    if x.shape != target.shape:
        raise ShapeError(
            f"mse_loss: x {x.shape} and target {target.shape} must have one shape; reshape or "
            "broadcast one of them first"
        )
    away = x - target
    return _reduced("mse_loss", away * away, reduction)


__all__ = ["log_softmax", "mse_loss", "softmax", "softmax_cross_entropy"]
