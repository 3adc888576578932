"""Callbacks that look after each epoch at how a network is: its gradients, its dead units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..array import Array, asarray
from ..autodiff import enable_grad
from ..errors import whole_number
from ..layers import ReLU, observing
from .callbacks import Callback
from .evaluation import device_of
from .history import Epoch

if TYPE_CHECKING:
    from .run import Run


class Monitor(Callback):
    """What the monitors share: some training images, on which they look at the model.

    The model is in evaluation mode meanwhile, so that running statistics and random numbers stay as
    they are, and training goes on to the same bits as without. As in evaluation, the images are
    those of the data set, whatever `fit` is told to make of them with ``transform``.

    Attributes
    ----------
    history : list of dict
        What was measured after each epoch since training began or went on.
    """

    def __init__(self, images: int = 256):
        self.images = whole_number(type(self).__name__, "images", images)
        self.history: list[dict[str, float]] = []

    def begin(self, run: Run) -> None:
        """Forget an earlier training."""
        self.history = []

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Measure, and note the sum of it in the epoch."""
        loader, device = run.loader, device_of(run.model)
        images = asarray(loader.images[: self.images], device=device)
        labels = asarray(loader.labels[: self.images], device=device)
        modes = [(module, module.training) for module in run.model.modules()]
        run.model.eval()
        try:
            name, value, parts = self.measure(run, images, labels)
        finally:
            for module, mode in modes:
                module.training = mode
        self.history.append(parts)
        epoch.metrics[name] = value

    def measure(
        self, run: Run, images: Array, labels: Array
    ) -> tuple[str, float, dict[str, float]]:
        """Return a name and a number for all of the model, and the numbers of its parts."""
        raise NotImplementedError(f"{type(self).__name__} does not define measure()")


class GradientNorms(Monitor):
    """The Euclidean norm of each parameter's gradient, on the same images after each epoch.

    Norms that shrink from layer to layer towards the input say that the gradient vanishes; norms
    that grow from epoch to epoch, that it explodes. The norm of all gradients together is the
    epoch's metric ``gradient_norm``.

    Parameters
    ----------
    images
        How many of the first training images to look at.

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> norms = ng.train.GradientNorms()
    >>> history = ng.train.fit(
    ...     ng.models.mlp(image_size=8), train.take(256), test, epochs=2, progress=False,
    ...     callbacks=[norms])
    >>> list(norms.history[-1])
    ['1.weight', '1.bias', '3.weight', '3.bias']
    >>> "gradient_norm" in history.epochs[-1].metrics
    True
    """

    def measure(
        self, run: Run, images: Array, labels: Array
    ) -> tuple[str, float, dict[str, float]]:
        """Return the norms."""
        with enable_grad():
            run.mean_loss(images, labels).backward()
        norms = {}
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                norms[name] = float(np.linalg.norm(parameter.grad.numpy().ravel()))
        run.model.zero_grad()
        return "gradient_norm", math.hypot(*norms.values()), norms

    def plot(self) -> Any:
        """Draw the norms over the epochs, a line for each parameter; return the figure."""
        from matplotlib import pyplot

        figure, panel = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        names = list(self.history[0]) if self.history else []
        for position, name in enumerate(names):  # from the input (dark) to the output (light)
            colour = pyplot.get_cmap("viridis")(position / len(names))
            values = [norms[name] for norms in self.history]
            panel.plot(range(1, len(values) + 1), values, color=colour, label=name)
        panel.set(xlabel="epoch", ylabel="norm of the gradient", yscale="log")
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.legend(frameon=False, fontsize=8, ncols=1 + len(names) // 12, loc="center left",
                     bbox_to_anchor=(1, 0.5))  # fmt: skip
        panel.spines[["top", "right"]].set_visible(False)
        return figure


class DeadUnits(Monitor):
    """The share of each ReLU layer's units that are 0 on all of the same images.

    A unit is a feature, or a channel of an image with all its places. One that is 0 everywhere has
    no gradient: it learns nothing any more. The share over all layers is the epoch's metric
    ``dead_units``.

    Parameters
    ----------
    images
        How many of the first training images to look at.

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> dead = ng.train.DeadUnits()
    >>> history = ng.train.fit(
    ...     ng.models.mlp(image_size=8), train.take(256), test, epochs=1, progress=False,
    ...     callbacks=[dead])
    >>> list(dead.history[-1])
    ['2']
    """

    def measure(
        self, run: Run, images: Array, labels: Array
    ) -> tuple[str, float, dict[str, float]]:
        """Return the shares, by the layer's path; from a layer's second call on with its number."""
        names = {id(module): name for name, module in run.model.named_modules()}
        dead: dict[str, np.ndarray] = {}

        def observe(module: Any, out: Any) -> None:
            if isinstance(module, ReLU):
                name = names[id(module)]
                calls = sum(one.split(" ")[0] == name for one in dead)
                values = out.numpy()
                key = f"{name} ({calls + 1})" if calls else name
                dead[key] = (values <= 0).all(axis=tuple(range(values.ndim - 1)))

        with run.model.evaluating(), observing(observe):
            run.model(images)
        shares = {name: float(flags.mean()) for name, flags in dead.items()}
        units = sum(flags.size for flags in dead.values())
        total = sum(int(flags.sum()) for flags in dead.values()) / units if units else math.nan
        return "dead_units", total, shares


__all__ = ["DeadUnits", "GradientNorms", "Monitor"]
