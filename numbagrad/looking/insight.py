"""Inside a trained network: its filters, what its layers answer, which pixels matter."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..array import Array, asarray
from ..autodiff import enable_grad, grad
from ..errors import DataError, ShapeError
from ..layers import Conv2d, Module, as_numpy, observing, one_array


def filters(model: Module) -> dict[str, np.ndarray]:
    """Return the filters of each convolution as pictures.

    Parameters
    ----------
    model
        With ``Conv2d`` layers somewhere inside.

    Returns
    -------
    dict
        By the layer's path: float32 of shape (out_channels, height, width, in_channels / groups).

    Examples
    --------
    >>> import numbagrad as ng
    >>> pictures = filters(ng.models.lenet())
    >>> {name: picture.shape for name, picture in pictures.items()}
    {'0': (6, 5, 5, 1), '3': (16, 5, 5, 6)}
    """
    return {
        name: module.weight.numpy().transpose(3, 0, 1, 2)
        for name, module in model.named_modules()
        if isinstance(module, Conv2d)
    }


def feature_maps(model: Module, images: Any) -> dict[str, np.ndarray]:
    """Return what each layer makes of some images, in evaluation mode.

    Parameters
    ----------
    model
        It keeps its mode.
    images
        A batch of what the model takes, such as (n, h, w, c).

    Returns
    -------
    dict
        By the path of each layer that has no layers inside, in the order in which they ran; of a
        layer that ran twice, the last.

    Examples
    --------
    >>> import numbagrad as ng
    >>> maps = feature_maps(ng.models.lenet(image_size=8), np.zeros((2, 8, 8, 1), np.float32))
    >>> maps["0"].shape, maps["4"].shape
    ((2, 8, 8, 6), (2, 4, 4, 16))
    """
    names = {id(module): name for name, module in model.named_modules()}
    maps: dict[str, np.ndarray] = {}

    def observe(module: Module, out: Any) -> None:
        if isinstance(out, Array) and not any(module.named_children()):
            maps[names[id(module)]] = out.numpy()

    with model.evaluating(), observing(observe):
        model(_on_the_device_of(model, images))
    return maps


def saliency(model: Module, images: Any, classes: Any = None) -> np.ndarray:
    """Return how much each pixel moves the output of a class: the size of the input gradient.

    That is ``max_c |d outputs[n, class_n] / d images[n, h, w, c]|``, in evaluation mode: Simonyan,
    Vedaldi and Zisserman, "Deep Inside Convolutional Networks" (2014).

    Parameters
    ----------
    model
        A classifier; it keeps its mode, and its parameters their gradients.
    images
        A batch of floats, (n, h, w, c).
    classes
        One for each image; by default the one that the model chooses.

    Returns
    -------
    ndarray of shape (n, h, w)

    Raises
    ------
    ShapeError
        If the images are not (n, h, w, c), or the output not (n, classes).
    DataError
        If the classes are not one for each image, of those that the model knows.

    Examples
    --------
    >>> import numbagrad as ng
    >>> saliency(ng.models.mlp(image_size=8), np.ones((3, 8, 8, 1), np.float32)).shape
    (3, 8, 8)
    """
    x = _on_the_device_of(model, images)
    if x.ndim != 4:
        raise ShapeError(f"saliency: images must be (n, h, w, c), got {x.shape}")
    with model.evaluating():
        outputs = one_array(model, model(x))
    if outputs.ndim != 2:
        raise ShapeError(f"saliency: the output must be (n, classes), got {outputs.shape}")
    count, known = outputs.shape
    chosen = outputs.numpy().argmax(1) if classes is None else as_numpy(classes)
    fits = chosen.shape == (count,) and chosen.dtype.kind in "iu"
    if not fits or ((chosen < 0) | (chosen >= known)).any():
        raise DataError(
            f"saliency: classes must be {count} whole numbers, one for each image, from 0 to "
            f"{known - 1}; got {chosen.tolist()!r}"
        )
    mask = asarray(np.eye(known, dtype=outputs.dtype)[chosen], device=x.device)
    with model.evaluating(), enable_grad():
        slopes = grad(lambda pixels: ops.sum(model(pixels) * mask))(x)
    return np.abs(slopes.numpy()).max(3)


def _on_the_device_of(model: Module, images: Any) -> Array:
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    return asarray(as_numpy(images), device=device)


__all__ = ["feature_maps", "filters", "saliency"]
