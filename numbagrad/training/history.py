"""What a training measured, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import nearest


@dataclass
class Epoch:
    """What one epoch came to; what was not measured is NaN."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    metrics: dict[str, float] = field(default_factory=dict)  # those of `fit(metrics=...)` by name

    def value(self, name: str) -> float:
        """Return a number by its name, such as ``"test_loss"``, or that of a metric.

        Raises
        ------
        ValueError
            If there is none of that name; those that there are, are listed.
        """
        numbers = self.row()
        if name not in numbers:
            raise ValueError(f"no number is called {name!r}; {nearest(name, numbers)}")
        return numbers[name]

    def row(self) -> dict[str, float]:
        """Return all numbers by name, those of the metrics last."""
        row = asdict(self)
        return row | row.pop("metrics")

    def __str__(self) -> str:
        parts = [f"loss {self.train_loss:.4f}", f"accuracy {percent(self.train_accuracy)}"]
        if not math.isnan(self.test_loss):
            parts.append(f"test loss {self.test_loss:.4f}")
            parts.append(f"test accuracy {percent(self.test_accuracy)}")
        parts += [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        parts.append(f"{self.images_per_second:,.0f} images/s")
        return "  ".join(parts)


@dataclass
class History:
    """What `fit` measured.

    Attributes
    ----------
    epochs : list of Epoch
        One for each epoch, with ``train_loss``, ``train_accuracy``, ``test_loss``,
        ``test_accuracy``, ``seconds`` (of training) and ``images_per_second``. Accuracies are
        shares, 0 to 1; those of training were measured while the weights moved.
    stopped : str
        Why the training ended before its last epoch; empty if it did not.
    """

    epochs: list[Epoch] = field(default_factory=list)
    stopped: str = ""

    @property
    def test_accuracy(self) -> float:
        """The accuracy on the test set after the last epoch; NaN where there is none."""
        return self.epochs[-1].test_accuracy if self.epochs else math.nan

    def __repr__(self) -> str:
        seconds = sum(epoch.seconds for epoch in self.epochs)
        last = f", the last: {self.epochs[-1]}" if self.epochs else ""
        return f"History({len(self.epochs)} epochs in {seconds:.1f} s{last})"

    def csv(self) -> str:
        """Return the numbers as a table of comma-separated values, one line for each epoch."""
        text = io.StringIO()
        columns = [name for name in Epoch.__dataclass_fields__ if name != "metrics"]
        if self.epochs:
            columns = list(self.epochs[0].row())
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(epoch.row() for epoch in self.epochs)
        return text.getvalue()

    def series(self, what: str, scale: float = 1) -> dict[str, list[tuple[float, float]]]:
        """Return a number, ``"loss"`` or ``"accuracy"``, over the epochs, of both parts."""
        return {
            part: [(e.epoch, scale * e.value(f"{part}_{what}")) for e in self.epochs]
            for part in ("train", "test")
        }

    def plot(self) -> Any:
        """Draw loss and accuracy over the epochs; return the matplotlib figure."""
        from matplotlib import pyplot

        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        number = [epoch.epoch for epoch in self.epochs]
        for panel, what, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
            for part, style in (("train", "-"), ("test", "--")):
                values = [scale * getattr(epoch, f"{part}_{what}") for epoch in self.epochs]
                panel.plot(number, values, style, label=part)
            panel.set(xlabel="epoch", title=what)
            panel.grid(alpha=0.3)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False)
        panels[0].set(yscale="log")
        panels[1].yaxis.set_major_formatter("{x:g} %")
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        return figure


def percent(share: float) -> str:
    """Return a share as a percentage, such as ``98.6 %``."""
    return f"{100 * share:.1f} %"
