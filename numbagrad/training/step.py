"""One training step, as `fit` runs it: eager or compiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from .. import compiler
from ..array import Array
from ..autodiff import no_grad
from ..errors import nearest
from ..layers import Module, observing
from ..optim import SGD, Adam, Optimizer, clip_by_norm, clip_by_value

Loss = Callable[[Array, Array], Array]
Health = dict[str, Array]  # by what it is the health of: 0, or NaN if a value was not finite
Step = Callable[[Array, Array], tuple[Array, Array, Health]]


def train_step(
    model: Module,
    loss: Loss,
    optimizer: Optimizer,
    images: Array,
    labels: Array,
    adjust: Callable[[], None] | None = None,
) -> tuple[Array, Array]:
    """Do one step of training; return the loss and the model's outputs.

    ``adjust`` is called when the gradients are there: it may change them.
    """
    optimizer.zero_grad()
    outputs = model(images)
    value = loss(outputs, labels)
    value.backward()
    if adjust is not None:
        adjust()
    optimizer.step()
    return value, outputs


def make_step(
    model: Module,
    loss: Loss,
    optimizer: Optimizer,
    *,
    compiled: bool,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    nan_guard: bool = False,
) -> Step:
    """Return a function of images and labels that does one step of training.

    It returns the loss, the outputs, and with ``nan_guard`` the health of each layer's output and
    each gradient. What it closes over never changes, so that it is compiled once.
    """
    layers = {id(module): name for name, module in model.named_modules()}
    parameters = dict(model.named_parameters()) if nan_guard else {}

    def step(images: Array, labels: Array) -> tuple[Array, Array, Health]:
        health: Health = {}
        seen: list[Array] = []

        def watch(module: Module, out: object) -> None:
            # A container returns what its last layer did: that was looked at.
            if isinstance(out, Array) and out.dtype.kind == "f" and not any(out is x for x in seen):
                seen.append(out)
                name = f"layer {layers.get(id(module), '')!r} ({type(module).__name__})"
                note(name, out)

        def note(name: str, x: Array) -> None:
            with no_grad():
                flag = (x * 0.0).sum()  # 0 times what is not finite is NaN
                health[name] = health[name] + flag if name in health else flag

        def adjust() -> None:
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    note(f"the gradient of {name!r}", parameter.grad)
            if clip_value is not None:
                clip_by_value(optimizer.params, clip_value)
            if clip_norm is not None:
                clip_by_norm(optimizer.params, clip_norm)

        with observing(watch) if nan_guard else nullcontext():
            value, outputs = train_step(model, loss, optimizer, images, labels, adjust)
        optimizer.zero_grad()  # nobody looks at them: their memory is used again
        return value, outputs, health

    return compiler.compile(step, dynamic=["batch"]) if compiled else step


def make_optimizer(
    function: str, optimizer: str | Optimizer, model: Module, lr: float | None
) -> Optimizer:
    """Return an optimiser by its name, or check one that was made for the model."""
    if isinstance(optimizer, Optimizer):
        if lr is not None:
            raise ValueError(f"{function}: the optimizer has its own lr; leave out lr=")
        own = {id(parameter) for parameter in model.parameters()}
        if own.isdisjoint(map(id, optimizer.params)):
            raise ValueError(
                f"{function}: the optimizer holds no parameter of this model; make it with "
                "model.parameters()"
            )
        return optimizer
    if optimizer == "adam":
        return Adam(model.parameters(), lr=1e-3 if lr is None else lr)
    if optimizer == "sgd":
        return SGD(model.parameters(), lr=0.05 if lr is None else lr, momentum=0.9)
    raise ValueError(
        f"{function}: no optimizer is called {optimizer!r}; {nearest(optimizer, ['adam', 'sgd'])}"
    )


__all__ = ["train_step"]
