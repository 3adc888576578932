"""``python -m benchmarks.cifar10_speedrun``: a ResNet-9 on CIFAR-10 to 94 %, quickly.

The network and its training are in the manner of D. Page's "How to train your ResNet" (2018), an
entry of the DAWNBench competition: nine layers, Nesterov momentum, a learning rate that goes up and
down once, flips, crops and label smoothing. Images stay on the device: a step gets the numbers of
its images, and all that is done to them is in the compiled step. A test image counts by the sum of
its logits and those of its mirror image.

Seconds are those of training: they begin when data and code are on the device (after one step that
is undone) and leave evaluation out. With ``--peer``, PyTorch trains the same network from the same
weights on the same images in the same order, augmented alike, with the same schedule.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import numbagrad as ng
from numbagrad.errors import DataError
from numbagrad.models import ResidualBlock

from . import precision
from .results import write_json

L = ng.layers
SCALE = 0.125  # of the logits: large steps would make them too sure of themselves
MOMENTUM = 0.9
RISE = 0.2  # the share of training in which the learning rate rises
EVALUATED = 1000  # images at once


@dataclass(frozen=True)
class Settings:
    """How to train; what a run is known by."""

    epochs: int = 15
    batch: int = 512
    width: int = 64
    lr: float = 0.4
    weight_decay: float = 5e-4
    label_smoothing: float = 0.2
    padding: int = 4
    seed: int = 0
    precision: str = "highest"
    target: float = 94.0


TINY = Settings(epochs=2, batch=4, width=2, padding=1)  # for a rehearsal


@dataclass(frozen=True)
class Data:
    """Images less their mean, over their deviation; those to train on with a reflected border."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def size(self) -> int:
        """The extent of an image."""
        return self.test_images.shape[1]


def prepare(train: Any, test: Any, padding: int) -> Data:
    """Return data sets as arrays to train on."""
    axes = (0, 1, 2)
    mean = train.images.mean(axes, np.float64).astype(np.float32)
    deviation = train.images.std(axes, np.float64).astype(np.float32)
    border = (0, 0), (padding, padding), (padding, padding), (0, 0)
    return Data(
        f"{train.name.partition('/')[0]}, {len(train):,} images",
        np.pad((train.images - mean) / deviation, border, mode="reflect"),
        train.labels,
        (test.images - mean) / deviation,
        test.labels,
    )


def made_up(count: int, size: int) -> tuple:
    """Return data sets of noise, for a rehearsal."""
    rng = np.random.default_rng(0)
    names = tuple("0123456789")
    return tuple(
        ng.data.Dataset(
            rng.random((n, size, size, 3), np.float32), rng.integers(0, 10, n), names, "noise"
        )
        for n in (count, max(1, count // 3))
    )


def network(width: int, size: int) -> L.Sequential:
    """Return the network: nine layers with weights, for images of this extent."""

    def block(inputs: int, outputs: int) -> list[L.Module]:
        # BatchNorm subtracts the mean, so that a bias before it would have no effect.
        return [L.Conv2d(inputs, outputs, 3, padding=1, bias=False), L.BatchNorm2d(outputs),
                L.ReLU()]  # fmt: skip

    one, two, four, eight = (width * k for k in (1, 2, 4, 8))
    return L.Sequential(
        *block(3, one),
        *block(one, two), L.MaxPool2d(2), ResidualBlock(two, two),
        *block(two, four), L.MaxPool2d(2),
        *block(four, eight), L.MaxPool2d(2), ResidualBlock(eight, eight),
        L.MaxPool2d(size // 8), L.Flatten(), L.Linear(eight, 10),
    )  # fmt: skip


def learning_rate(done: float, peak: float) -> float:
    """Return the learning rate when this share of training is done: up to the peak, then to 0.

    Examples
    --------
    >>> [round(learning_rate(done, 0.4), 3) for done in (0.1, 0.2, 0.6, 1.0)]
    [0.2, 0.4, 0.2, 0.0]
    """
    return peak * min(done / RISE, (1 - done) / (1 - RISE))


# ----------------------------------------------------------------------- ours


class Ours:
    """The network in numbagrad."""

    name = "numbagrad"

    def __init__(self, model: L.Sequential, data: Data, settings: Settings, device: str):
        self.model, self.data, self.device = model.to(device), data, device
        self.opt = opt = ng.optim.SGD(
            model.parameters(), settings.lr, MOMENTUM, nesterov=True,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        images, labels = self._put(data.train_images), self._put(data.train_labels)
        self.test_images = self._put(data.test_images)

        @ng.compile
        def step(indices: ng.Array) -> ng.Array:
            batch = ng.data.random_crop(ng.take(images, indices), data.size)
            logits = model(ng.data.random_flip(batch)) * SCALE
            loss = ng.softmax_cross_entropy(
                logits, ng.take(labels, indices), label_smoothing=settings.label_smoothing
            )
            loss.backward()
            opt.step()
            opt.zero_grad()
            return loss

        @ng.compile
        def predict(images: ng.Array) -> ng.Array:
            return model(images) + model(ng.flip(images, 2))

        self._step, self._predict = step, predict
        self.precision: Callable[[], AbstractContextManager] = lambda: precision.ours(
            settings.precision
        )

    def _put(self, array: np.ndarray) -> ng.Array:
        return ng.asarray(array, device=self.device)

    def step(self, indices: np.ndarray, lr: float) -> Any:
        """Train on these images; return the loss."""
        self.opt.lr = lr
        return self._step(self._put(indices))

    def logits(self, start: int, stop: int) -> np.ndarray:
        """Return the logits of some test images."""
        with self.model.evaluating():
            return self._predict(self.test_images[start:stop]).numpy()

    def snapshot(self) -> Callable[[], None]:
        """Return a function that puts everything back as it is now."""
        states = [(each, each.state_dict()) for each in (self.model, self.opt)]

        def restore() -> None:
            for each, state in states:
                each.load_state_dict(state)

        return restore


# -------------------------------------------------------------------- PyTorch


class Theirs:
    """The same network in PyTorch."""

    name = "PyTorch"

    def __init__(self, model: L.Sequential, data: Data, settings: Settings, device: str):
        import torch

        from .twins import torch_twin

        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        self.torch, self.data, self.settings, self.device = torch, data, settings, device
        twin = torch_twin(model, (1, data.size, data.size, 3))
        self.model = twin.to(device, memory_format=torch.channels_last)
        self.opt = torch.optim.SGD(
            self.model.parameters(), settings.lr, MOMENTUM, nesterov=True,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        images, self.labels = self._put(data.train_images), self._put(data.train_labels)
        self.extent = images.shape[1]
        self.pixels = images.reshape(-1, 3)
        self.test_images = self._put(data.test_images).permute(0, 3, 1, 2)
        self.precision = lambda: precision.theirs(settings.precision)

    def _put(self, array: np.ndarray) -> Any:
        return self.torch.tensor(array, device=self.device)

    def _augmented(self, indices: Any) -> Any:
        """Return flipped crops, by one gather of pixels: the result is in channels_last."""
        torch, size = self.torch, self.data.size

        def drawn(places: int) -> Any:
            shape = (len(indices), 1, 1)
            return torch.randint(places, shape, device=self.device)

        places = torch.arange(size, device=self.device)
        row = drawn(self.extent - size + 1) + places[:, None]
        across = torch.where(drawn(2) == 0, places, size - 1 - places)
        column = drawn(self.extent - size + 1) + across
        at = (indices[:, None, None] * self.extent + row) * self.extent + column
        return self.pixels[at].permute(0, 3, 1, 2)

    def step(self, indices: np.ndarray, lr: float) -> Any:
        """Train on these images; return the loss."""
        for group in self.opt.param_groups:
            group["lr"] = lr
        numbers = self._put(indices)
        self.model.train()
        loss = self.torch.nn.functional.cross_entropy(
            self.model(self._augmented(numbers)) * SCALE,
            self.labels[numbers],
            label_smoothing=self.settings.label_smoothing,
        )
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        return loss

    def logits(self, start: int, stop: int) -> np.ndarray:
        """Return the logits of some test images."""
        self.model.eval()
        with self.torch.inference_mode():
            images = self.test_images[start:stop]
            return (self.model(images) + self.model(images.flip(3))).cpu().numpy()

    def snapshot(self) -> Callable[[], None]:
        """Return a function that puts everything back as it is now."""
        from copy import deepcopy

        model, opt = deepcopy(self.model.state_dict()), deepcopy(self.opt.state_dict())

        def restore() -> None:
            self.model.load_state_dict(model)
            self.opt.load_state_dict(opt)

        return restore


# ------------------------------------------------------------------- training


@dataclass
class Outcome:
    """What training came to.

    Attributes
    ----------
    seconds, accuracy
        Of training altogether, and in per cent of the test images after it.
    seconds_to_target
        When the target was first reached at the end of an epoch; None if it was not.
    compile_seconds
        What it took before: the first step and the first evaluation.
    cut_off
        Whether the time given was over before the last epoch.
    """

    seconds: float = 0.0
    accuracy: float = 0.0
    seconds_to_target: float | None = None
    compile_seconds: float = 0.0
    cut_off: bool = False
    epochs: list[dict] = field(default_factory=list)


def train(
    trainee: Ours | Theirs, settings: Settings, until: float, note: Callable[[Outcome], None]
) -> Outcome:
    """Train for all epochs, or until the monotonic clock says so; `note` each epoch."""
    outcome = Outcome()
    count = len(trainee.data.train_labels)
    batch = min(settings.batch, count)
    steps = count // batch
    total = settings.epochs * steps
    with trainee.precision():
        started = time.perf_counter()
        restore = trainee.snapshot()
        float(trainee.step(np.arange(batch), 0.0).item())
        accuracy(trainee)
        restore()
        outcome.compile_seconds = time.perf_counter() - started
        for epoch in range(settings.epochs):
            order = np.random.default_rng((settings.seed, epoch)).permutation(count)
            started = time.perf_counter()
            for step in range(steps):
                done = (epoch * steps + step + 1) / total
                loss = trainee.step(
                    order[step * batch : (step + 1) * batch], learning_rate(done, settings.lr)
                )
            last = float(loss.item())  # waits for the device
            outcome.seconds += time.perf_counter() - started
            outcome.accuracy = accuracy(trainee)
            if outcome.accuracy >= settings.target and outcome.seconds_to_target is None:
                outcome.seconds_to_target = outcome.seconds
            outcome.epochs.append(
                {"loss": last, "accuracy": outcome.accuracy, "seconds": outcome.seconds}
            )
            outcome.cut_off = epoch + 1 < settings.epochs and time.monotonic() > until
            note(outcome)
            if outcome.cut_off or not math.isfinite(last):
                break
    return outcome


def accuracy(trainee: Ours | Theirs) -> float:
    """Return the share of test images that are classified rightly, in per cent."""
    labels = trainee.data.test_labels
    right = 0
    for start in range(0, len(labels), EVALUATED):
        stop = min(start + EVALUATED, len(labels))
        right += int((trainee.logits(start, stop).argmax(1) == labels[start:stop]).sum())
    return 100 * right / len(labels)


# -------------------------------------------------------------------- command


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    peer: Annotated[bool, typer.Option(help="Train PyTorch's twin, too.")] = False,
    out: Annotated[Path, typer.Option(help="The result, as JSON.")] = Path("runs/speedrun.json"),
    epochs: Annotated[int, typer.Option(min=1)] = Settings.epochs,
    batch: Annotated[int, typer.Option(min=2)] = Settings.batch,
    width: Annotated[int, typer.Option(min=1, help="Channels of the first layer.")] = 64,
    lr: Annotated[float, typer.Option(help="The largest learning rate.")] = Settings.lr,
    level: Annotated[
        str | None,
        typer.Option(
            "--precision", help='"high" lets tensor cores round to tf32, "highest" does not.'
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    images: Annotated[
        int | None, typer.Option(min=2, help="Train on so many, for a quick look.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="For everything: no epoch begins after that.")
    ] = 1e9,
    rehearse: Annotated[
        bool, typer.Option(help="On a few tiny images of noise: to see whether it works.")
    ] = False,
) -> None:
    """Train a ResNet-9 on CIFAR-10 to 94 %: see the top of this file."""
    until = time.monotonic() + seconds
    device = ng.device.resolve(device)
    if level is None:
        has_tf32 = device == "cuda" and precision.OURS_IN_TF32 and not rehearse
        level = "high" if has_tf32 else "highest"
    if rehearse:
        settings = TINY
        data = prepare(*made_up(9, 8), settings.padding)
    else:
        settings = Settings(epochs, batch, width, lr, seed=seed, precision=level)
        try:
            train_set, test_set = ng.data.cifar10()
        except DataError as error:
            print(error)
            raise typer.Exit(1) from None
        if images is not None:
            train_set, test_set = train_set.take(images), test_set.take(min(images, len(test_set)))
        data = prepare(train_set, test_set, settings.padding)
    if len(data.train_labels) < settings.batch:
        raise typer.BadParameter(f"--batch {settings.batch}: there are fewer images")
    print(f"{data.name}; {settings}")
    ng.random.seed(settings.seed)
    model = network(settings.width, data.size)
    found: dict = {
        "date": str(datetime.date.today()), "device": device, "data": data.name,
        "settings": asdict(settings),
    }  # fmt: skip

    def noting(name: str, into: Callable[[dict], None]) -> Callable[[Outcome], None]:
        def note(outcome: Outcome) -> None:
            into(asdict(outcome))
            write_json(found, out)
            epoch = outcome.epochs[-1]
            print(
                f"{name}  epoch {len(outcome.epochs)}/{settings.epochs}  loss {epoch['loss']:.3f}"
                f"  accuracy {epoch['accuracy']:.2f} %  {epoch['seconds']:.2f} s",
                flush=True,
            )

        return note

    # The twin first, while the model has its first weights.
    theirs = None
    if peer:
        import torch

        on_gpu = device == "cuda" and torch.cuda.is_available()
        theirs = Theirs(model, data, settings, "cuda" if on_gpu else "cpu")
    train(Ours(model, data, settings, device), settings, until, noting(Ours.name, found.update))
    if theirs is not None and time.monotonic() < until:
        note = noting(Theirs.name, lambda outcome: found.update(peer=outcome))
        train(theirs, settings, until, note)
    reached = found["seconds_to_target"]
    print(
        f"{settings.target:g} % after {reached:.2f} s"
        if reached is not None
        else f"{settings.target:g} % was not reached: {found['accuracy']:.2f} %"
    )


if __name__ == "__main__":
    typer.run(main)
