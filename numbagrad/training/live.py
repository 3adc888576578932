"""Learning curves that are drawn while a network trains, in a notebook."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from .. import charts
from .callbacks import Callback
from .history import Epoch, History

if TYPE_CHECKING:
    from .run import Run

INTERVAL = 0.2  # seconds between two drawings at least
POINTS = 400  # in a curve; of more, each second one is left out


class LiveCurves(Callback):
    """Draw loss and accuracy in a notebook while `fit` runs, at most five times a second.

    The loss of training is the mean over the steps since the drawing before; of an epoch that was
    not drawn, the mean over all its steps, in its middle. The drawing is a few kilobytes of SVG
    whatever the length of the training, so the notebook stays quick. Outside a notebook nothing is
    drawn.

    Attributes
    ----------
    drawings : int
        How often it was drawn.

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> curves = ng.train.LiveCurves()
    >>> history = ng.train.fit(
    ...     ng.models.mlp(image_size=8), train.take(256), test, epochs=2, progress=False,
    ...     callbacks=[curves])
    >>> curves.html().count("<svg")
    2
    """

    def __init__(self):
        self.drawings = 0
        self._handle: Any = None
        self._drawn = 0.0
        self._losses: list[tuple[float, float]] = []
        self._summed = 0.0, 0  # loss and images of this epoch that are in the curve
        self._history = History()

    def begin(self, run: Run) -> None:
        """Make room for the drawing."""
        self._history = run.history
        self._losses = [(x - 0.5, y) for x, y in run.history.series("loss")["train"]]
        self._summed = 0.0, 0
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
            from IPython.display import display

            self._handle = display(self._bundle(), raw=True, display_id=True)

    def step(self, run: Run) -> None:
        """Draw if it is time."""
        if self._handle is not None and time.perf_counter() - self._drawn > INTERVAL:
            total, images = run.summed_loss()
            before, seen = self._summed
            if images > seen:
                self._add(run.steps / len(run.loader), (total - before) / (images - seen))
                self._summed = total, images
            self._draw()

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Draw if it is time."""
        if not self._summed[1]:
            self._add(epoch.epoch - 0.5, epoch.train_loss)
        self._summed = 0.0, 0
        if time.perf_counter() - self._drawn > INTERVAL:
            self._draw()

    def end(self, run: Run) -> None:
        """Draw the last state."""
        self._draw()
        self._handle = None

    def html(self) -> str:
        """Return the drawing, for any page."""
        history = self._history
        losses = {**history.series("loss"), "train": self._losses}
        panels = [
            charts.curves("loss", losses, is_log=True),
            charts.curves("accuracy", history.series("accuracy", 100), unit=" %"),
        ]
        inner = "".join(f'<div style="flex:1 1 300px">{panel}</div>' for panel in panels if panel)
        return (
            f'{charts.STYLE}<div class="numbagrad" style="display:flex;flex-wrap:wrap">'
            f"{inner}</div>"
        )

    def _add(self, epochs: float, loss: float) -> None:
        self._losses.append((epochs, loss))
        if len(self._losses) > POINTS:
            del self._losses[1::2]

    def _bundle(self) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self._history)}

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        if self._handle is not None:
            self._handle.update(self._bundle(), raw=True)
            self.drawings += 1


__all__ = ["LiveCurves"]
