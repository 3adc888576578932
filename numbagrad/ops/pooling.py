"""Pooling of images over windows: the largest element, or the mean."""

from __future__ import annotations

from ..array import Array
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import ShapeError
from .convolution import Pair, pair, sliding_extents
from .elementwise import require_arrays, require_float


def _pooled(op: str, x, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    """Check a pooling and return the shape of its result."""
    require_float(op, x)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ShapeError(f"{op}: x must be (n, h, w, c) with h, w >= 1, got {x.shape}")
    if any(2 * p > k for p, k in zip(padding, kernel_size, strict=True)):
        raise ValueError(
            f"{op}: padding {padding} must be at most half of kernel_size {kernel_size}, or a "
            "window would see nothing but padding"
        )
    extents = sliding_extents(op, x.shape[1:3], kernel_size, stride, padding)
    return x.shape[0], *extents, x.shape[3]


def _views(call: Call) -> Views:
    return Views(
        tuple(spec.shape for spec in call.inputs),
        tuple(spec.shape for spec in call.outputs),
        (call.kernel_size, call.stride, call.padding),
    )


def _split_images(call: Call) -> list[Split]:
    images = call.inputs[0].shape[0]
    return [Split(images, (1,) * len(call.inputs), (1,) * len(call.outputs))]


def _unpooled(grad_out, *, extents: Pair):
    """Return the shape and dtype of the gradient of a pooling's input."""
    return (grad_out.shape[0], *extents, grad_out.shape[3]), grad_out.dtype


# ------------------------------------------------------------------ maximum


def _max_infer(x, *, kernel_size, stride, padding):
    shape = _pooled("max_pool2d", x, kernel_size, stride, padding)
    return (shape, x.dtype), (shape, x.dtype)


def _max_vjp(grad_out, index, specs, kernel_size, stride, padding):
    return apply(
        _MAX_BACKWARD,
        grad_out,
        index,
        extents=specs[0].shape[1:3],
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
    )


def _max_backward_vjp(grad_out, index, extents, kernel_size, stride, padding):
    picked = apply(
        _MAX_PICK, grad_out, index, kernel_size=kernel_size, stride=stride, padding=padding
    )
    return picked, None


def _max_pick_vjp(grad_out, index, specs, kernel_size, stride, padding):
    return _max_vjp(grad_out, index, specs, kernel_size, stride, padding), None


_MAX = register(
    Op(
        "max_pool2d",
        _max_infer,
        "max_pool2d_forward",
        _max_vjp,
        outputs=("out", "index"),
        arrange=_views,
        split=_split_images,
    )
)
_MAX_BACKWARD = register(
    Op(
        "max_pool2d_backward",
        lambda grad_out, index, *, extents, **window: _unpooled(grad_out, extents=extents),
        "max_pool2d_backward",
        _max_backward_vjp,
        outputs=("grad_x",),
        arrange=_views,
        split=_split_images,
    )
)
_MAX_PICK = register(
    Op(
        "max_pool2d_pick",
        lambda x, index, **window: (index.shape, x.dtype),
        "max_pool2d_pick",
        _max_pick_vjp,
        arrange=_views,
        split=_split_images,
    )
)


def max_pool2d(
    x: Array, kernel_size: int | Pair, *, stride: int | Pair | None = None, padding: int | Pair = 0
) -> Array:
    """Return the largest element of each window, channel by channel.

    The gradient goes to the first of equal elements. A window with a NaN gives NaN.

    Parameters
    ----------
    x
        (n, h, w, c) images, float32 or float64.
    kernel_size
        Extents of the window, an int or (height, width), as the next two.
    stride
        Steps from one window to the next; ``kernel_size`` by default.
    padding
        Rows and columns added on each side, at most half of ``kernel_size``; they never win.

    Returns
    -------
    Array
        (n, out_h, out_w, c), where ``out_h = (h + 2 * padding - kernel_size) // stride + 1``.

    Raises
    ------
    ShapeError
        If x is not (n, h, w, c), or the window is larger than the padded image.
    ValueError
        If kernel_size or stride is below 1, or padding negative or too large.

    Notes
    -----
    Riesenhuber and Poggio, "Hierarchical models of object recognition in cortex" (Nature
    Neuroscience, 1999).

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> x = asarray([float(i) for i in range(16)]).reshape(1, 4, 4, 1)
    >>> max_pool2d(x, 2).reshape(2, 2)
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    require_arrays("max_pool2d", x=x)
    return apply(_MAX, x, **_window("max_pool2d", kernel_size, stride, padding))[0]


# --------------------------------------------------------------------- mean


def _avg_infer(x, *, kernel_size, stride, padding):
    return _pooled("avg_pool2d", x, kernel_size, stride, padding), x.dtype


def _avg_vjp(grad_out, specs, kernel_size, stride, padding):
    return apply(
        _AVG_BACKWARD,
        grad_out,
        extents=specs[0].shape[1:3],
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
    )


def _avg_backward_vjp(grad_out, kernel_size, stride, padding):
    return apply(_AVG, grad_out, kernel_size=kernel_size, stride=stride, padding=padding)


_AVG = register(
    Op(
        "avg_pool2d",
        _avg_infer,
        "avg_pool2d_forward",
        _avg_vjp,
        arrange=_views,
        split=_split_images,
    )
)
_AVG_BACKWARD = register(
    Op(
        "avg_pool2d_backward",
        lambda grad_out, *, extents, **window: _unpooled(grad_out, extents=extents),
        "avg_pool2d_backward",
        _avg_backward_vjp,
        outputs=("grad_x",),
        arrange=_views,
        split=_split_images,
    )
)


def avg_pool2d(
    x: Array, kernel_size: int | Pair, *, stride: int | Pair | None = None, padding: int | Pair = 0
) -> Array:
    """Return the mean of each window, channel by channel; padding counts as zeros.

    Parameters
    ----------
    x
        (n, h, w, c) images, float32 or float64.
    kernel_size
        Extents of the window, an int or (height, width), as the next two.
    stride
        Steps from one window to the next; ``kernel_size`` by default.
    padding
        Rows and columns of zeros on each side, at most half of ``kernel_size``.

    Returns
    -------
    Array
        (n, out_h, out_w, c), where ``out_h = (h + 2 * padding - kernel_size) // stride + 1``.

    Raises
    ------
    ShapeError
        If x is not (n, h, w, c), or the window is larger than the padded image.
    ValueError
        If kernel_size or stride is below 1, or padding negative or too large.

    Notes
    -----
    LeCun et al., "Handwritten digit recognition with a back-propagation network" (NIPS, 1989).

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> x = asarray([float(i) for i in range(16)]).reshape(1, 4, 4, 1)
    >>> avg_pool2d(x, 2).reshape(2, 2)
    Array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    require_arrays("avg_pool2d", x=x)
    return apply(_AVG, x, **_window("avg_pool2d", kernel_size, stride, padding))


def _window(op: str, kernel_size, stride, padding) -> dict[str, Pair]:
    """Return the parameters of a pooling as pairs."""
    kernel_size = pair(op, "kernel_size", kernel_size, 1)
    return {
        "kernel_size": kernel_size,
        "stride": kernel_size if stride is None else pair(op, "stride", stride, 1),
        "padding": pair(op, "padding", padding, 0),
    }


__all__ = ["avg_pool2d", "max_pool2d"]
