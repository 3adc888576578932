"""The demonstration: LeNet on the digits that come with numbagrad, and pictures of it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from .. import data, models, optim, random
from ..train import History, fit, predict
from . import runs


def run(seed: int, folder: Path) -> History:
    """Train, and write weights, numbers and pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    print("LeNet on 8x8 handwritten digits. Kernels are compiled at first use, then cached.")
    started = time.perf_counter()
    train_set, test_set = data.digits()
    random.seed(seed)
    network = models.lenet(image_size=8)
    rng = np.random.default_rng(seed)
    history = fit(
        network,
        train_set,
        test_set,
        epochs=25,
        batch_size=32,
        lr=4e-3,
        schedule=optim.cosine,
        seed=seed,
        transform=lambda images: augmented(images, rng),
    )
    notes = {"model": "lenet", "data": "digits", "seed": str(seed)}
    runs.save(folder, network, history, notes)
    draw(folder, test_set, predict(network, test_set.images, 32))
    print(f"drawn {folder / runs.CURVES} and {folder / 'predictions.png'}")
    print(f"all in {time.perf_counter() - started:.1f} s")
    return history


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slant each digit a little, as another hand would have, and add noise.

    Rows move sideways by up to 0.7 pixels, in proportion to their distance from the middle; then
    columns move up or down likewise. Between pixels the values are interpolated.
    """
    _, height, width, _ = images.shape
    slopes = rng.uniform(-0.2, 0.2, (2, len(images), 1, 1, 1)).astype(np.float32)
    for slope, size in zip(slopes, (height, width), strict=True):
        from_middle = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        shift = slope * from_middle[:, None, None]
        padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)))
        left, right = padded[:, :, :-2], padded[:, :, 2:]
        moved = np.maximum(shift, 0) * right + np.maximum(-shift, 0) * left
        images = ((1 - np.abs(shift)) * images + moved).swapaxes(1, 2)
    return images + 0.15 * rng.standard_normal(images.shape, dtype=np.float32)


def draw(folder: Path, dataset: data.Dataset, classes: np.ndarray) -> None:
    """Draw digits with what they were taken for, wrong ones first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wrong = classes != dataset.labels
    order = np.argsort(~wrong, kind="stable")[:40]
    figure, panels = pyplot.subplots(4, 10, figsize=(10, 5), layout="constrained")
    for panel, i in zip(panels.flat, order, strict=True):
        panel.imshow(dataset.images[i, :, :, 0], cmap="gray_r")
        panel.set(xticks=[], yticks=[])
        text, colour = dataset.classes[classes[i]], "black"
        if wrong[i]:
            text, colour = f"{text}, not {dataset.classes[dataset.labels[i]]}", "crimson"
        panel.set_title(text, color=colour, fontsize=11)
        panel.spines[:].set(color=colour, linewidth=2 if wrong[i] else 0.5)
    figure.suptitle(f"{wrong.sum()} of {len(classes)} test digits were taken for another")
    figure.savefig(folder / "predictions.png", dpi=150)
    pyplot.close("all")
