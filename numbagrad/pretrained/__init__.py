"""Weights that come with numbagrad, trained by the commands in ``configs/``.

They are kept as float16: the accuracies are those of the rounded weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

import numpy as np
import safetensors.numpy

from ..errors import DataError, nearest
from ..layers import Module


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes
    ----------
    name
        Of the file, in this folder.
    sha256
        Of its content.
    shape, classes
        Of an image, (h, w, c), and how many classes there are.
    accuracy
        On the test images.
    config
        The file in ``configs/`` that trains it.
    """

    name: str
    sha256: str
    shape: tuple[int, int, int]
    classes: int
    accuracy: float
    config: str


#: By model and data set.
WEIGHTS = {
    "lenet": {
        "mnist": Weights(
            "lenet-mnist.safetensors",
            "c84005f317567c4359e0f9d4a9178b7ff118bd07c05708d9fd7644867802a339",
            shape=(28, 28, 1),
            classes=10,
            accuracy=0.9938,
            config="lenet-mnist.toml",
        ),
    },
}


def load_into(
    model: Module, name: str, data: str, shape: tuple[int, int, int], classes: int
) -> None:
    """Give a model the weights that come with numbagrad.

    Parameters
    ----------
    model
        A model of this name, for images of this shape and so many classes.
    name
        The name of the model.
    data
        The data set that the weights were trained on.
    shape, classes
        What the model takes and gives.

    Raises
    ------
    ValueError
        If there are no such weights, or the model is for other images or classes.
    DataError
        If the file is damaged.
    """
    known = WEIGHTS.get(name, {})
    if data not in known:
        raise ValueError(f"{name}: no weights for pretrained={data!r}; {nearest(data, known)}")
    weights = known[data]
    if (shape, classes) != (weights.shape, weights.classes):
        raise ValueError(
            f"{name}: pretrained={data!r} is for images of shape {weights.shape} and "
            f"{weights.classes} classes, not for {shape} and {classes}"
        )
    content = resources.files(__package__).joinpath(weights.name).read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise DataError(
            f"{weights.name}: the file that came with numbagrad is damaged; reinstall it"
        )
    state = safetensors.numpy.load(content)
    model.load_state_dict({key: value.astype(np.float32) for key, value in state.items()})


def pack(state: dict[str, np.ndarray]) -> bytes:
    """Return weights as the content of such a file: float16."""
    return safetensors.numpy.save(
        {key: np.ascontiguousarray(value, np.float16) for key, value in state.items()}
    )


__all__ = ["WEIGHTS", "Weights", "load_into", "pack"]
