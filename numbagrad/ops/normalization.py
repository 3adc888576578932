"""Batch normalisation.

Statistics are taken over all axes but the last, the channels, in one pass over memory: for each
block of rows the mean and the squared distances from it, which are then put together. (The
textbook's ``E[x^2] - E[x]^2`` loses all digits of float32 when the mean is large beside the
deviation.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..array import Array, Spec, State, size_of
from ..autodiff import no_grad
from ..dispatch import Call, Op, Split, Views, apply, apply_into, register
from ..errors import ShapeError
from .elementwise import require_arrays, require_float, sqrt
from .pieces import pieces_of_sum, room_for_pieces
from .reduction import mean, sum
from .shaping import stack

# Every kernel sees x as (rows, channels) and what belongs to a channel as (channels,). The number
# of rows of the whole, `count`, is a parameter: a shard can't see it.


def _table(spec: Spec) -> tuple[int, ...]:
    """Return a shape as (rows, channels)."""
    return (size_of(spec.shape[:-1]), spec.shape[-1]) if spec.ndim > 1 else spec.shape


def _views(*names: str) -> Any:
    """Return the rule that sees arrays as tables and passes parameters in x's dtype."""

    def arrange(call: Call) -> Views:
        x = call.inputs[0]
        known = {**call.params, "count": size_of(x.shape[:-1])}
        return Views(
            tuple(_table(spec) for spec in call.inputs),
            tuple(_table(spec) for spec in call.outputs),
            tuple(x.dtype.type(known[name]) for name in names),
        )

    return arrange


def _split_rows(inputs: tuple[int, ...], outputs: tuple[int | str, ...]) -> Any:
    """Return the rule that cuts tables along rows: which are cut, and what partial outputs do."""

    def split(call: Call) -> list[Split]:
        return [Split(size_of(call.inputs[0].shape[:-1]), inputs, outputs)]

    return split


# -------------------------------------------------------------------- statistics

BLOCK = 128  # rows at most: with 128 channels, 64 KB, which stay in cache for a second pass
LEAST_BLOCK = 32  # rows for which a block is worth its place


@lru_cache
def _block(x: Spec) -> int:
    """Return how many rows a block has: if it can be, so many that each image falls into blocks.

    Then a batch of any size can be cut into images.
    """
    pixels = size_of(x.shape[1:-1])
    divisors = (rows for rows in range(BLOCK, LEAST_BLOCK - 1, -1) if pixels % rows == 0)
    return next(divisors, BLOCK)


def _moments_infer(x):
    blocks = -(-size_of(x.shape[:-1]) // _block(x))
    return ((blocks, x.shape[-1]), x.dtype), ((blocks, x.shape[-1]), x.dtype)


def _moments_views(call: Call) -> Views:
    blocks = call.outputs[0].shape
    return Views((_table(call.inputs[0]),), (blocks, blocks), (_block(call.inputs[0]),))


_MOMENTS = register(
    Op(
        "batch_norm_moments",
        _moments_infer,
        "batch_norm_moments",
        outputs=("mean", "square"),
        arrange=_moments_views,
        split=lambda call: [Split(call.outputs[0].shape[0], (_block(call.inputs[0]),), (1, 1))],
    )
)

#: Never split: it reads a hundredth of what `_MOMENTS` does.
_STATISTICS = register(
    Op(
        "batch_norm_statistics",
        lambda block_mean, block_square, *, rows, count: (
            (block_mean.shape[1:], block_mean.dtype),
            (block_mean.shape[1:], block_mean.dtype),
        ),
        "batch_norm_statistics",
        outputs=("mean", "var"),
        arrange=lambda call: Views(
            tuple(spec.shape for spec in call.inputs),
            tuple(spec.shape for spec in call.outputs),
            (call.rows, call.count),
        ),
    )
)


# ---------------------------------------------------------- the op and its gradient


def _infer(x, weight, bias, mean, var, *, eps, training):
    return x.shape, x.dtype


def _vjp(grad_out, x, weight, mean, var, eps, training, needs):
    # In training, mean and var are those of x: the gradient for x goes through them too.
    rows = tuple(range(x.ndim - 1))
    if not training:
        rstd = 1.0 / sqrt(var + eps)
        grad_weight = sum(grad_out * (x - mean) * rstd, rows) if needs[1] else None
        return grad_out * (weight * rstd), grad_weight, sum(grad_out, rows), None, None
    sums = apply(_BACKWARD_SUMS, x, grad_out, mean, var, eps=eps)
    grad_x = None
    if needs[0]:
        grad_x = apply(_BACKWARD_INPUT, x, weight, grad_out, mean, var, sums, eps=eps)
    return grad_x, sums[1], sums[0], None, None


def _expand(x, weight, bias, mean, var, *, eps, training):
    return (x - mean) * (weight / sqrt(var + eps)) + bias


_BATCH_NORM = register(
    Op(
        "batch_norm",
        _infer,
        "batch_norm_forward",
        _vjp,
        arrange=_views("eps"),
        split=_split_rows((1, 0, 0, 0, 0), (1,)),
        expand=_expand,
    )
)


# The gradient ops are functions of x, weight and grad_out. Their other inputs, mean, var and
# sums, are functions of these, computed before and handed to the kernel; so a gradient of
# the gradient starts from x again. With m the mean over rows, s = 1 / sqrt(var + eps) and
# h = (x - mean) s, the slope of h is a symmetric linear map:
#
#     P(v) = s (v - m(v) - h m(h v)),   sums = sum_r g, sum_r h g,   grad_x = weight P(g)


def _normalised(x: Array, eps: float) -> tuple[Array, Array]:
    """Return h and s, to be differentiated again."""
    rows = tuple(range(x.ndim - 1))
    away = x - mean(x, rows)
    rstd = 1.0 / sqrt(mean(away * away, rows) + eps)
    return away * rstd, rstd


def _slope(v: Array, h: Array, rstd: Array) -> Array:
    """Return P(v)."""
    rows = tuple(range(v.ndim - 1))
    return rstd * (v - mean(v, rows) - h * mean(h * v, rows))


def _backward_sums_vjp(grad_out, x, grad_y, eps):
    by_bias, by_weight = grad_out[0], grad_out[1]
    h, rstd = _normalised(x, eps)
    return by_weight * _slope(grad_y, h, rstd), by_bias + by_weight * h, None, None


def _backward_sums_expand(x, grad_y, mean, var, *, eps):
    rows = tuple(range(x.ndim - 1))
    by_weight = sum(grad_y * (x - mean), rows) / sqrt(var + eps)
    return stack([sum(grad_y, rows), by_weight])


def _backward_sums_workspace_cuda(call):
    out = call.outputs[0]
    rows, channels = call.inputs[0].size // max(out.shape[1], 1), out.shape[1]
    return room_for_pieces(out.size, pieces_of_sum(1, rows, channels), out.dtype)


_BACKWARD_SUMS = register(
    Op(
        "batch_norm_backward_sums",
        lambda x, grad_y, mean, var, *, eps: ((2, *mean.shape), x.dtype),
        "batch_norm_backward_sums",
        _backward_sums_vjp,
        outputs=("sums",),
        arrange=_views("eps"),
        split=_split_rows((1, 1, 0, 0), ("sum",)),
        workspace={"cuda": _backward_sums_workspace_cuda},
        expand=_backward_sums_expand,
    )
)


def _backward_input_vjp(grad_out, x, weight, grad_y, eps):
    # With u = grad_out and g = grad_y, differentiate sum_r weight u P(g). Since ds = -s^2 m(h dx)
    # and dh = P(dx):
    #     grad_x = -weight s (h m(u P(g)) + P(u m(h g) + g m(h u)))
    rows = tuple(range(x.ndim - 1))
    h, rstd = _normalised(x, eps)
    slope = _slope(grad_y, h, rstd)
    both = grad_out * mean(h * grad_y, rows) + grad_y * mean(h * grad_out, rows)
    grad_x = -weight * rstd * (h * mean(grad_out * slope, rows) + _slope(both, h, rstd))
    grad_weight = sum(grad_out * slope, rows)
    return grad_x, grad_weight, weight * _slope(grad_out, h, rstd), None, None, None


def _backward_input_expand(x, weight, grad_y, mean, var, sums, *, eps):
    deviation, count = sqrt(var + eps), size_of(x.shape[:-1])
    slope = sums[1] / (deviation * count)
    return (grad_y - sums[0] / count - (x - mean) * slope) * (weight / deviation)


_BACKWARD_INPUT = register(
    Op(
        "batch_norm_backward_input",
        lambda x, weight, grad_y, mean, var, sums, *, eps: (x.shape, x.dtype),
        "batch_norm_backward_input",
        _backward_input_vjp,
        arrange=_views("count", "eps"),
        split=_split_rows((1, 0, 1, 0, 0, 0), (1,)),
        expand=_backward_input_expand,
    )
)


# -------------------------------------------------------- running statistics


def _update_infer(running_mean, running_var, mean, var, *, momentum, unbias):
    return (running_mean.shape, running_mean.dtype), (running_var.shape, running_var.dtype)


#: Never split: it is as short as there are channels.
_UPDATE = register(
    Op(
        "batch_norm_update",
        _update_infer,
        "batch_norm_update",
        outputs=("out_mean", "out_var"),
        arrange=_views("momentum", "unbias"),
    )
)


def batch_norm(
    x: Array,
    weight: Array,
    bias: Array,
    running_mean: State,
    running_var: State,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias``, channel by channel.

    In training, mean and variance are those of ``x``, and the running ones move towards them:
    ``running += momentum * (batch - running)``, with the variance of the batch taken as an
    estimate, over ``n - 1``. Otherwise the running ones are used, and stay. Ioffe and Szegedy,
    "Batch Normalization: Accelerating Deep Network Training" (ICML, 2015).

    Parameters
    ----------
    x
        (..., channels), floats.
    weight, bias
        (channels,).
    running_mean, running_var
        (channels,); in training, Buffers, since they are changed in place.
    training
        Which statistics to use.
    momentum
        The share of the batch in the running statistics.
    eps
        Keeps the division safe.

    Raises
    ------
    ShapeError
        If shapes do not fit, or there is one value per channel only to train on.
    DTypeError
        If the arrays are not floats of one dtype.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> zero, one = asarray([0.0]), asarray([1.0])
    >>> batch_norm(asarray([[1.0], [3.0]]), one, zero, zero, one, training=False, eps=0.0)
    Array([[1.],
           [3.]], dtype=float32)
    """
    require_arrays(
        "batch_norm",
        x=x,
        weight=weight,
        bias=bias,
        running_mean=running_mean,
        running_var=running_var,
    )
    _check(x, training, weight, bias, running_mean, running_var)
    if not training:
        arrays = x, weight, bias, running_mean, running_var
        return apply(_BATCH_NORM, *arrays, eps=eps, training=False)
    count = size_of(x.shape[:-1])
    with no_grad():  # the gradient of `_BATCH_NORM` covers the statistics
        rows = _block(x.spec)
        batch_mean, batch_var = apply(_STATISTICS, *apply(_MOMENTS, x), rows=rows, count=count)
    apply_into(
        (running_mean, running_var),
        _UPDATE,
        running_mean,
        running_var,
        batch_mean,
        batch_var,
        momentum=momentum,
        unbias=count / (count - 1),
    )
    return apply(_BATCH_NORM, x, weight, bias, batch_mean, batch_var, eps=eps, training=True)


def _check(x: Array, training: bool, *per_channel: Array) -> None:
    require_float("batch_norm", x.spec, *(array.spec for array in per_channel))
    names = "weight", "bias", "running_mean", "running_var"
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: x must be (..., channels), got shape {x.shape}")
    for name, array in zip(names, per_channel, strict=True):
        if array.shape != x.shape[-1:]:
            raise ShapeError(
                f"batch_norm: {name} has shape {array.shape}; x of shape {x.shape} has "
                f"{x.shape[-1]} channels, so it must be {x.shape[-1:]}"
            )
    if training and size_of(x.shape[:-1]) < 2:
        raise ShapeError(
            f"batch_norm: expected more than 1 value per channel when training, got shape "
            f"{x.shape}; use a larger batch, or eval()"
        )


__all__ = ["batch_norm"]
