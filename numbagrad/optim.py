"""Optimisers: how parameters move along their gradients.

Everything that changes from step to step (moments, step count, learning rate) is a `Buffer` made
at construction, and each parameter is updated by one kernel that reads and writes all of it. So a
traced step holds no number that would be frozen in it: ``opt.lr = 0.01`` between two steps works.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import ops
from .array import Array, require_same_device
from .autodiff import no_grad
from .dispatch import apply_into
from .layers import Buffer, Parameter, load_states
from .ops.optimisation import ADAM_UPDATE, COUNT, MOMENTUM_UPDATE, SGD_UPDATE, assign

LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)

Schedule = Callable[[float], float]


class Optimizer:
    """What the optimisers share: parameters, learning rate, moments, saving and loading.

    A subclass names its moments and implements ``update``.
    """

    moments: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Parameter], lr: float):
        name = type(self).__name__
        self.params = list([params] if isinstance(params, Array) else params)
        for position, param in enumerate(self.params):
            if not isinstance(param, Parameter):
                raise TypeError(
                    f"{name}: params[{position}] is a {type(param).__name__}; only Parameters can "
                    "be optimised, such as model.parameters() yields"
                )
        if not self.params:
            raise ValueError(f"{name}: there are no parameters to optimise")
        if len({id(param) for param in self.params}) < len(self.params):
            raise ValueError(f"{name}: a parameter is given twice")
        device = require_same_device(name, tuple(self.params))
        self._lr = Buffer(np.float32(0), device=device)
        self.lr = lr
        # state[k] holds the moments of params[k], in the order of `moments`.
        self.state = [
            tuple(Buffer(np.zeros(p.shape, p.dtype), device=device) for _ in self.moments)
            for p in self.params
        ]

    @property
    def lr(self) -> float:
        """The learning rate; set it between steps as you like."""
        return float(str(self._lr.numpy()))  # 0.1 rather than 0.10000000149011612

    @lr.setter
    def lr(self, value: float) -> None:
        if not isinstance(value, Array):
            value = _at_least_zero(self, "lr", value)
        assign(self._lr, value)

    def step(self) -> None:
        """Update each parameter that has a gradient."""
        for param, moments in zip(self.params, self.state, strict=True):
            if param.grad is not None:
                self.update(param, moments)

    def update(self, param: Parameter, moments: tuple[Buffer, ...]) -> None:
        """Update one parameter and its moments."""
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for param in self.params:
            param.grad = None

    def _states(self) -> dict[str, Buffer]:
        states = {"lr": self._lr}
        for k, moments in enumerate(self.state):
            states |= {f"{name}.{k}": x for name, x in zip(self.moments, moments, strict=True)}
        return states

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of the learning rate, the moments and the step count by name."""
        return {name: state.numpy() for name, state in self._states().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises
        ------
        DataError
            Naming everything that does not fit; then nothing has been changed.
        """
        load_states(self._states(), state, strict=True)

    def __repr__(self) -> str:
        numbers = sum(param.size for param in self.params)
        return f"{type(self).__name__}({numbers:,} parameters, lr={self.lr})"


class SGD(Optimizer):
    """Gradient descent, with momentum if asked for.

    With ``g`` the gradient plus ``weight_decay`` times the parameter, ``v = momentum v + g`` and
    the parameter moves by ``-lr v``; Nesterov's moves by ``-lr (g + momentum v)`` (Sutskever et
    al., "On the importance of initialization and momentum in deep learning", 2013).

    Parameters
    ----------
    params
        Parameters, such as ``model.parameters()``.
    lr
        The learning rate.
    momentum
        How much of the last step goes into the next.
    nesterov
        Look ahead; needs momentum.
    weight_decay
        Pulls parameters towards zero.

    Raises
    ------
    ValueError
        No parameters, one given twice, a negative number, or ``nesterov`` without momentum.
    TypeError
        Something that is not a Parameter.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float,
        momentum: float = 0,
        nesterov: bool = False,
        weight_decay: float = 0,
    ):
        self.momentum = _at_least_zero(self, "momentum", momentum)
        self.nesterov = bool(nesterov)
        self.weight_decay = _at_least_zero(self, "weight_decay", weight_decay)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov=True needs momentum > 0")
        self.moments = ("velocity",) if momentum else ()
        super().__init__(params, lr)

    def update(self, param: Parameter, moments: tuple[Buffer, ...]) -> None:
        """Update one parameter and its velocity."""
        if not moments:
            apply_into(
                (param,), SGD_UPDATE, param, param.grad, self._lr, weight_decay=self.weight_decay
            )
            return
        apply_into(
            (param, *moments),
            MOMENTUM_UPDATE,
            param,
            param.grad,
            *moments,
            self._lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


class Adam(Optimizer):
    """Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).

    Each number of a parameter moves by about ``lr``, whatever the size of its gradient: the mean
    of recent gradients is divided by the root of the mean of their squares.

    Parameters
    ----------
    params
        Parameters, such as ``model.parameters()``.
    lr
        The learning rate.
    betas
        How much of the old mean, and of the old mean square, each step keeps.
    eps
        Added to the root.
    weight_decay
        Times the parameter, it is added to the gradient.

    Raises
    ------
    ValueError
        No parameters, one given twice, a negative number, or a beta outside 0 <= beta < 1.
    TypeError
        Something that is not a Parameter.
    """

    moments = ("mean", "square")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
    ):
        pair = betas if isinstance(betas, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(b, numbers.Real) and 0 <= b < 1 for b in pair):
            raise ValueError(
                f"{type(self).__name__}: betas must be two numbers from 0 up to, but not "
                f"including, 1; got {betas!r}"
            )
        self.betas = float(betas[0]), float(betas[1])
        self.eps = _at_least_zero(self, "eps", eps)
        self.weight_decay = _at_least_zero(self, "weight_decay", weight_decay)
        super().__init__(params, lr)
        self._steps = Buffer(np.int64(0), device=self.params[0].device)

    def step(self) -> None:
        """Count the step, then update each parameter that has a gradient."""
        apply_into((self._steps,), COUNT, self._steps)
        super().step()

    def update(self, param: Parameter, moments: tuple[Buffer, ...]) -> None:
        """Update one parameter and its moments."""
        apply_into(
            (param, *moments),
            ADAM_UPDATE,
            param,
            param.grad,
            *moments,
            self._lr,
            self._steps,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled=self.decoupled,
        )

    def _states(self) -> dict[str, Buffer]:
        return super()._states() | {"steps": self._steps}


class AdamW(Adam):
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).

    `Adam`, but ``weight_decay`` shrinks the parameter itself, by ``lr weight_decay`` of it each
    step, and stays out of the moments. Parameters and errors are those of `Adam`.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)


# ---------------------------------------------------------------- gradients


def clip_by_norm(params: Iterable[Parameter], max_norm: float) -> Array:
    """Scale all gradients down together, so that their norm is ``max_norm`` at most.

    The norm is the root of the sum of all their squares. Call it between ``backward`` and
    ``step``; it may be compiled. Pascanu et al., "On the difficulty of training recurrent neural
    networks" (ICML, 2013).

    Parameters
    ----------
    params
        Parameters; those without a gradient are left alone.
    max_norm
        Above 0.

    Returns
    -------
    Array
        The norm that the gradients had, a scalar.

    Raises
    ------
    ValueError
        If ``max_norm`` is not above 0, or no parameter has a gradient.

    Examples
    --------
    >>> weight = Parameter([3.0, 4.0])
    >>> weight.grad = weight * 1.0
    >>> clip_by_norm([weight], 1.0).item(), weight.grad.numpy().round(3).tolist()
    (5.0, [0.6000000238418579, 0.800000011920929])
    """
    max_norm = _above_zero("clip_by_norm", "max_norm", max_norm)
    params = [param for param in params if param.grad is not None]
    if not params:
        raise ValueError("clip_by_norm: no parameter has a gradient; call backward() first")
    with no_grad():
        squares = [(param.grad * param.grad).sum() for param in params]
        norm = squares[0]
        for square in squares[1:]:
            norm = norm + square.astype(norm.dtype)
        norm = ops.sqrt(norm)
        scale = ops.minimum(max_norm / ops.maximum(norm, TINY), 1.0)
        for param in params:
            param.grad = param.grad * scale.astype(param.dtype)
    return norm


def clip_by_value(params: Iterable[Parameter], bound: float) -> None:
    """Limit each number of each gradient to ``-bound`` to ``bound``.

    Call it between ``backward`` and ``step``; it may be compiled.

    Parameters
    ----------
    params
        Parameters; those without a gradient are left alone.
    bound
        Above 0.

    Raises
    ------
    ValueError
        If ``bound`` is not above 0.

    Examples
    --------
    >>> weight = Parameter([3.0, -0.5])
    >>> weight.grad = weight * 1.0
    >>> clip_by_value([weight], 1.0)
    >>> weight.grad.tolist()
    [1.0, -0.5]
    """
    bound = _above_zero("clip_by_value", "bound", bound)
    with no_grad():
        for param in params:
            if param.grad is not None:
                param.grad = ops.minimum(ops.maximum(param.grad, -bound), bound)


# ---------------------------------------------------------------- schedules
#
# A schedule, for ``numbagrad.train.fit``, is what to multiply the learning rate by, as a function
# of how much of the training is done, 0 to 1.


def cosine(progress: float) -> float:
    """Return half a cosine: 1 at the start (``progress`` 0), 0 at the end (1).

    A schedule, for ``numbagrad.train.fit``: large steps first, then ever smaller ones to settle.
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), without
    the restarts.

    Examples
    --------
    >>> cosine(0.0), round(cosine(0.5), 2), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def step_decay(at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` at each point of ``at``.

    Examples
    --------
    >>> schedule = step_decay(at=(0.5, 0.75), factor=0.1)
    >>> [round(schedule(progress), 3) for progress in (0.0, 0.49, 0.5, 0.9)]
    [1.0, 1.0, 0.1, 0.01]
    """
    points = [_share("step_decay", "at", point) for point in at]
    factor = _above_zero("step_decay", "factor", factor)

    def schedule(progress: float) -> float:
        return factor ** sum(progress >= point for point in points)

    return schedule


def warmup(share: float = 0.05, then: Schedule = cosine) -> Schedule:
    """Return a schedule that rises from 0 in a line, and follows another after that.

    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017).

    Parameters
    ----------
    share
        How much of the training the rise takes, 0 to 1.
    then
        The schedule of the rest: it sees 0 to 1 as well.

    Examples
    --------
    >>> schedule = warmup(0.2)
    >>> [round(schedule(progress), 3) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    share = _share("warmup", "share", share)
    if not callable(then):
        raise ValueError(f"warmup: then must be a schedule, such as cosine, got {then!r}")

    def schedule(progress: float) -> float:
        if progress < share:
            return progress / share
        return then((progress - share) / (1 - share) if share < 1 else 1.0)

    return schedule


def one_cycle(peak: float = 0.3, start: float = 0.04, end: float = 1e-4) -> Schedule:
    """Return a schedule that rises to 1 and falls below its start, both in half a cosine.

    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates" (2018). The learning rate to give is the largest; `numbagrad.train.find_lr` finds it.

    Parameters
    ----------
    peak
        Where in the training the learning rate is largest, 0 to 1.
    start, end
        What it starts and ends with, as shares of the largest.

    Examples
    --------
    >>> schedule = one_cycle(peak=0.25)
    >>> [round(schedule(progress), 3) for progress in (0.0, 0.25, 0.625, 1.0)]
    [0.04, 1.0, 0.5, 0.0]
    """
    peak = _share("one_cycle", "peak", peak)
    start, end = _share("one_cycle", "start", start), _share("one_cycle", "end", end)

    def schedule(progress: float) -> float:
        if progress < peak:
            return start + (1 - start) * (1 - cosine(progress / peak))
        return end + (1 - end) * cosine((progress - peak) / (1 - peak) if peak < 1 else 1.0)

    return schedule


# ------------------------------------------------------------------- checks


def _share(where: str, name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"{where}: {name} must be from 0 to 1, got {value!r}")
    return float(value)


def _above_zero(where: str, name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 < value <= LARGEST:
        raise ValueError(f"{where}: {name} must be above 0 and finite in float32, got {value!r}")
    return float(value)


def _at_least_zero(optimizer: Optimizer, name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= value <= LARGEST:
        raise ValueError(
            f"{type(optimizer).__name__}: {name} must be at least 0 and finite in float32, got "
            f"{value!r}"
        )
    return float(value)


__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "clip_by_norm",
    "clip_by_value",
    "cosine",
    "one_cycle",
    "step_decay",
    "warmup",
]
