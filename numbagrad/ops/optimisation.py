"""Ops that change states in place: `assign`, and each optimiser's update of one parameter.

An optimiser hands an update op to `apply_into`, with the parameter and its moments as inputs and
as targets: one kernel reads and writes all of them in one pass. The learning rate and the step
count are inputs too, read from memory when the kernel runs, so a replayed step sees their new
values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..array import Array, Spec, State, asarray, require_same_device
from ..dispatch import Call, Op, Split, Views, apply_into, register
from ..errors import DTypeError, ShapeError
from .elementwise import COPY, flat, require_float


def assign(target: State, value: Any) -> None:
    """Write a value into a state, in place.

    Parameters
    ----------
    target
        A Parameter or Buffer.
    value
        An array of the target's shape, dtype and device, or what ``asarray`` can make one of.

    Raises
    ------
    TypeError
        If the target is no Parameter or Buffer.
    ShapeError, DTypeError, DeviceError
        If the shape, dtype or device differs.

    Examples
    --------
    >>> from numbagrad.layers import Buffer
    >>> rate = Buffer(0.1)
    >>> assign(rate, 0.5)
    >>> rate.item()
    0.5
    """
    if not isinstance(target, State):
        raise TypeError(
            f"assign: only Parameters and Buffers are changed in place, got {type(target).__name__}"
        )
    if not isinstance(value, Array):
        value = asarray(value, dtype=target.dtype, device=target.device)
    require_same_device("assign", (target, value))
    if value.shape != target.shape:
        raise ShapeError(
            f"assign: a state of shape {target.shape} cannot take values of shape {value.shape}"
        )
    if value.dtype != target.dtype:
        raise DTypeError(
            f"assign: a state of dtype {target.dtype} cannot take {value.dtype}; use x.astype()"
        )
    apply_into((target,), COPY, value)


# ------------------------------------------------------------------- updates
#
# Inputs: the parameter, its gradient, its moments, then what is 0-d. Outputs: the new parameter
# and the new moments.


def _check(op: str, param: Spec, others: tuple[Spec, ...], lr: Spec) -> None:
    require_float(op, param, *others)
    for spec in others:
        if spec.shape != param.shape:
            raise ShapeError(
                f"{op}: a parameter of shape {param.shape} needs a gradient and moments of that "
                f"shape, got {spec.shape}"
            )
    if lr.shape != () or lr.dtype != np.float32:
        raise DTypeError(f"{op}: lr must be a 0-d float32, got {lr.dtype} of shape {lr.shape}")


def _views(call: Call, *scalars: float | bool) -> Views:
    """See every array as a row of elements; numbers take the parameter's dtype."""
    number = call.inputs[0].dtype.type
    return flat(call, *(x if isinstance(x, bool) else number(x) for x in scalars))


def _split(call: Call) -> list[Split]:
    """Cut the parameter, its gradient and its moments into runs; what is 0-d stays whole."""
    outputs = len(call.outputs)
    whole = len(call.inputs) - outputs - 1
    return [Split(call.outputs[0].size, (1,) * (outputs + 1) + (0,) * whole, (1,) * outputs)]


def _sgd_infer(param, grad, lr, *, weight_decay):
    _check("sgd_update", param, (grad,), lr)
    return param.shape, param.dtype


SGD_UPDATE = register(
    Op(
        "sgd_update",
        _sgd_infer,
        "sgd_update",
        arrange=lambda call: _views(call, call.weight_decay),
        split=_split,
    )
)


def _momentum_infer(param, grad, velocity, lr, *, weight_decay, momentum, nesterov):
    _check("momentum_update", param, (grad, velocity), lr)
    return (param.shape, param.dtype), (param.shape, param.dtype)


MOMENTUM_UPDATE = register(
    Op(
        "momentum_update",
        _momentum_infer,
        "momentum_update",
        outputs=("out", "new_velocity"),
        arrange=lambda call: _views(call, call.weight_decay, call.momentum, call.nesterov),
        split=_split,
    )
)


def _adam_infer(
    param, grad, mean, square, lr, steps, *, beta1, beta2, eps, weight_decay, decoupled
):
    _check("adam_update", param, (grad, mean, square), lr)
    return ((param.shape, param.dtype),) * 3


def _adam_views(call: Call) -> Views:
    # Logarithms, so that the kernel can correct the bias by -expm1(t log(beta)): 1 - beta^t would
    # lose its digits where beta^t is close to 1.
    logs = [math.log(beta) if beta else -math.inf for beta in (call.beta1, call.beta2)]
    l2, decay = (0, call.weight_decay) if call.decoupled else (call.weight_decay, 0)
    return _views(call, 1 - call.beta1, 1 - call.beta2, *logs, call.eps, l2, decay)


ADAM_UPDATE = register(
    Op(
        "adam_update",
        _adam_infer,
        "adam_update",
        outputs=("out", "new_mean", "new_square"),
        arrange=_adam_views,
        split=_split,
    )
)


def _count_infer(steps):
    if steps.dtype != np.int64:
        raise DTypeError(f"count: needs int64, got {steps.dtype}")
    return steps.shape, steps.dtype


#: One more step. Never split: it is one number.
COUNT = register(Op("count", _count_infer, "count_forward", arrange=flat))


__all__ = ["assign"]
