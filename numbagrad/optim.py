"""Optimisers: how parameters move along their gradients.

Everything that changes from step to step (moments, step count, learning rate) is a `Buffer` made
at construction, and each parameter is updated by one kernel that reads and writes all of it. So a
traced step holds no number that would be frozen in it: ``opt.lr = 0.01`` between two steps works.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .array import Array, require_same_device
from .dispatch import apply_into
from .layers import Buffer, Parameter, load_states
from .ops.optimisation import ADAM_UPDATE, COUNT, MOMENTUM_UPDATE, SGD_UPDATE, assign

LARGEST = float(np.finfo(np.float32).max)


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


def _at_least_zero(optimizer: Optimizer, name: str, value: float) -> float:
    if not isinstance(value, numbers.Real) or not 0 <= value <= LARGEST:
        raise ValueError(
            f"{type(optimizer).__name__}: {name} must be at least 0 and finite in float32, got "
            f"{value!r}"
        )
    return float(value)


__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "cosine"]
