"""How a training is shown while it runs."""

from __future__ import annotations

import sys


class Silent:
    """Shows nothing; the other displays show more of what they are told."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A look at a running epoch, a few times a second."""

    def line(self, text: str) -> None:
        """Something that is worth a line has happened: the end of an epoch, or a stop."""

    def close(self) -> None:
        """All is done."""


class Lines(Silent):
    """Lines, and nothing that changes: for files and pipes."""

    def line(self, text: str) -> None:
        print(text, flush=True)


class Notebook(Lines):
    """One more line that changes while an epoch runs."""

    def __init__(self, epochs: int, steps: int):
        from IPython.display import display

        self._epochs, self._steps = epochs, steps
        self._handle = display(self._text(""), raw=True, display_id=True)

    @staticmethod
    def _text(text: str) -> dict[str, str]:
        return {"text/plain": text}

    def step(self, epoch: int, step: int, loss: float) -> None:
        text = f"epoch {epoch}/{self._epochs}: step {step}/{self._steps}, loss {loss:.4f}"
        self._handle.update(self._text(text), raw=True)

    def close(self) -> None:
        self._handle.update(self._text(""), raw=True)


class Bar(Lines):
    """A bar below the lines: for terminals."""

    def __init__(self, epochs: int, steps: int):
        from rich import progress

        self._steps = steps
        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.description}"),
            progress.TimeRemainingColumn(),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=epochs * steps)
        self._bar.start()

    def step(self, epoch: int, step: int, loss: float) -> None:
        done = (epoch - 1) * self._steps + step
        self._bar.update(self._task, completed=done, description=f"loss {loss:.4f}", refresh=True)

    def line(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def display_for(wanted: bool, epochs: int, steps: int) -> Silent:
    """Return what suits where the output goes."""
    if not wanted:
        return Silent()
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return Notebook(epochs, steps)
    if sys.stdout.isatty():
        return Bar(epochs, steps)
    return Lines()
