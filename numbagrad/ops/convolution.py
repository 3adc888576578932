"""Convolution of images, and its two gradients, each of which differentiates into the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..array import FLOATS, Array, Spec, size_of
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import ShapeError
from ..jit import function_of
from ..kernels_cpu import BLOCK_PIXELS, FULL_ROWS, PLANES, SUMS, _line, _seen
from ..simd import TILE_COLUMNS, TILE_ROWS, VECTOR_BYTES
from .elementwise import as_ints, require_arrays, require_float
from .linalg import nothing, pieces_of, strip_width
from .pieces import room_for_pieces
from .reduction import sum

Pair = tuple[int, int]


def pair(op: str, name: str, value: int | Pair, least: int) -> Pair:
    """Return ``(height, width)``; one int stands for both.

    Raises
    ------
    TypeError
        Unless both are ints.
    ValueError
        If there are not two, or one is below ``least``.
    """
    if type(value) is int and value >= least:
        return value, value  # the usual case, and the quick one
    both = as_ints(op, name, value)
    if isinstance(value, (int, np.integer)):
        both *= 2
    if len(both) != 2 or min(both) < least:
        raise ValueError(
            f"{op}: {name} must be an int >= {least} or a pair of them (height, width), got "
            f"{value!r}"
        )
    return both


def sliding_extents(
    op: str, image: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    """Return how many places a window has along each axis of an image."""
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    padded = tuple(extent + 2 * p for extent, p in zip(image, padding, strict=True))
    if spans[0] > padded[0] or spans[1] > padded[1]:
        raise ShapeError(
            f"{op}: a window of {spans[0]} x {spans[1]} does not fit an image of {padded[0]} x "
            f"{padded[1]}, padding included; enlarge the image or the padding"
        )
    height, width = (
        (extent - span) // s + 1 for extent, span, s in zip(padded, spans, stride, strict=True)
    )
    return height, width


# ---------------------------------------------------------------- the three ops


def _conv2d_infer(x, weight, bias, bank, *, stride, padding, dilation, groups, relu):
    require_float("conv2d", x, weight, bias, bank)
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(
            f"conv2d: x must be (n, h, w, c) and weight (r, s, c / groups, k), got {x.shape} and "
            f"{weight.shape}"
        )
    *kernel, depth, out_channels = weight.shape
    if 0 in kernel:
        raise ShapeError(f"conv2d: a weight of shape {weight.shape} has an empty window")
    if depth * groups != x.shape[3] or out_channels % groups:
        raise ShapeError(
            f"conv2d: x {x.shape} has {x.shape[3]} channels, and with groups={groups} a weight of "
            f"shape {weight.shape} takes {depth * groups} and gives {out_channels}; weight must be "
            "(r, s, c / groups, k), with c and k multiples of groups"
        )
    extents = sliding_extents("conv2d", x.shape[1:3], kernel, stride, padding, dilation)
    return (x.shape[0], *extents, out_channels), x.dtype


def _backward_input_infer(grad_out, weight, bank, *, extents, stride, padding, dilation, groups):
    return (grad_out.shape[0], *extents, weight.shape[2] * groups), grad_out.dtype


def _backward_weight_infer(x, grad_out, *, kernel_size, stride, padding, dilation, groups):
    return (*kernel_size, x.shape[3] // groups, grad_out.shape[3]), x.dtype


def _conv2d_vjp(grad_out, x, weight, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_x = grad_weight = grad_bias = None
    if needs[0]:
        grad_x = _backward_input(grad_out, weight, specs[0].shape[1:3], **window)
    if needs[1]:
        grad_weight = _backward_weight(x, grad_out, specs[1].shape[:2], **window)
    if needs[2]:
        grad_bias = sum(grad_out, axis=(0, 1, 2))
    return grad_x, grad_weight, grad_bias, None


# Each op is linear in either operand: differentiating one swaps an operand for the new gradient.
# Below, `grad` is the gradient of grad_x or of grad_weight.


def _backward_input_vjp(grad, grad_out, weight, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_grad_out = grad_weight = None
    if needs[0]:
        grad_grad_out = _forward(grad, weight, None, **window)
    if needs[1]:
        grad_weight = _backward_weight(grad, grad_out, specs[1].shape[:2], **window)
    return grad_grad_out, grad_weight, None


def _backward_weight_vjp(grad, x, grad_out, needs, specs, stride, padding, dilation, groups):
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    grad_x = grad_grad_out = None
    if needs[0]:
        grad_x = _backward_input(grad_out, grad, specs[0].shape[1:3], **window)
    if needs[1]:
        grad_grad_out = _forward(x, grad, None, **window)
    return grad_x, grad_grad_out


# On the CPU some shapes have kernels of their own; which one runs depends on shapes alone. They
# read the weight from a bank (see linalg.py), which a layer's shards share.


def _forward(x, weight, bias, **window) -> Array:
    """Choose a kernel, lay the weight out as it reads it, and convolve."""
    none = nothing(x.dtype, x.device)
    bias = none if bias is None else bias
    # A compiled step may set `relu`: the op's result is max(out, 0) then.
    params = {**window, "relu": False}
    images = x.ndim == weight.ndim == 4 and weight.dtype in FLOATS
    if weight.device != "cpu" or not images:
        return apply(_CONV2D, x, weight, bias, none, **params)  # what does not fit, the op says
    way = _way(x.shape, weight.shape, allowed=_winograd, **window)
    if way == "depthwise":
        return apply(_DEPTHWISE, x, weight, bias, none, **params)
    if _in_planes(weight.shape[3], weight.dtype.itemsize, way):
        return apply(_PLANAR, x, weight, bias, none, **params)
    strips = apply(_BANK, weight, groups=window["groups"])
    if way == "winograd":
        planes = apply(_WINOGRAD_BANK, strips, depth=weight.shape[2], columns=weight.shape[3])
        return apply(_WINOGRAD, x, weight, bias, planes, **params)
    return apply(_CONV2D, x, weight, bias, strips, **params)


def _backward_input(grad_out, weight, extents, **window) -> Array:
    none = nothing(weight.dtype, weight.device)
    if weight.device != "cpu":
        return apply(_BACKWARD_INPUT, grad_out, weight, none, extents=extents, **window)
    channels = weight.shape[2] * window["groups"]
    way = _way((grad_out.shape[0], *extents, channels), weight.shape, allowed=_winograd, **window)
    if way == "depthwise":
        return apply(_DEPTHWISE_BACKWARD_INPUT, grad_out, weight, none, extents=extents, **window)
    if _in_planes(channels, weight.dtype.itemsize, way) and _sees_all(weight.shape, **window):
        return apply(_PLANAR_BACKWARD_INPUT, grad_out, weight, none, extents=extents, **window)
    turning = {name: window[name] for name in ("stride", "dilation", "groups")}
    strips = apply(_BANK_TURNED, weight, **turning)
    if way == "winograd":
        planes = apply(_WINOGRAD_BANK, strips, depth=weight.shape[3], columns=weight.shape[2])
        return apply(_WINOGRAD_BACKWARD_INPUT, grad_out, weight, planes, extents=extents, **window)
    return apply(_BACKWARD_INPUT, grad_out, weight, strips, extents=extents, **window)


def _backward_weight(x, grad_out, kernel_size, **window) -> Array:
    op = _BACKWARD_WEIGHT
    if x.device == "cpu":
        weight = (*kernel_size, x.shape[3] // window["groups"], grad_out.shape[3])
        way = _way(x.shape, weight, allowed=_winograd, **window)
        if way == "depthwise":
            op = _DEPTHWISE_BACKWARD_WEIGHT
        elif way == "winograd":
            op = _WINOGRAD_BACKWARD_WEIGHT
        elif _in_planes(weight[3], x.dtype.itemsize, way):
            op = _PLANAR_BACKWARD_WEIGHT
    return apply(op, x, grad_out, kernel_size=kernel_size, **window)


def _in_planes(columns: int, itemsize: int, way: str) -> bool:
    """Return whether so few channels come out that vectors of pixels are quicker than of channels.

    A tile of pixels holds TILE_ROWS channels, a vector of channels as many as it has lanes. Taking
    images apart costs time too: it pays with twice as many lanes.
    """
    lanes = strip_width(1, itemsize)
    return way == "tiles" and columns <= TILE_ROWS and lanes >= 2 * TILE_ROWS


def _sees_all(weight, *, stride, padding, dilation, groups) -> bool:
    """Return whether each pixel of the gradient of the output is seen by one of the input's."""
    reach = [(k - 1) * d for k, d in zip(weight, dilation, strict=False)]
    return padding[0] <= reach[0] and padding[1] <= reach[1]


@lru_cache(maxsize=1024)
def _way(x: tuple, weight: tuple, *, stride, padding, dilation, groups, allowed: bool) -> str:
    """Return how the CPU convolves arrays of these shapes: the fastest way.

    ``"depthwise"`` where every channel has one filter of its own; ``"winograd"`` for 3 x 3 filters,
    if ``allowed``, where its savings are larger than its work on inputs and outputs; ``"groups"``
    where there are some; ``"tiles"`` for all the rest.
    """
    if groups > 1:
        return "depthwise" if weight[2] == 1 and weight[3] == groups else "groups"
    plain = stride == dilation == (1, 1) and max(padding) <= 2
    if not allowed or weight[:2] != (3, 3) or not plain or min(weight) < 3:
        return "tiles"
    *_, depth, columns = weight
    height, width = (extent + 2 * p - 2 for extent, p in zip(x[1:3], padding, strict=True))
    tiles = _tiles_of((height, width))
    # Per tile 36 products instead of 9 a pixel. Beside them, what inputs, outputs and their 36
    # planes cost: as much as eight products with each input and output channel.
    work = PLANES * tiles * (1 + 8 / depth + 8 / columns)
    pays = 1.2 * work < 9 * height * width and tiles * x[0] >= 16 and min(depth, columns) >= 16
    return "winograd" if pays else "tiles"


_winograd: bool = True


def set_winograd(on: bool) -> None:
    """Allow or forbid Winograd's algorithm for 3 x 3 convolutions on the CPU; allowed at first.

    It does with a quarter of the multiplications, and is used where that is faster. Its rounding
    errors are larger than those of the plain sum: in float32, on numbers of variance 1, from 4e-6
    of the largest output with 16 channels to 1e-5 with 128, where the plain sum has about 1e-6.
    Gradients are as exact. An infinite or undefined pixel spreads to all of the 4 x 4 outputs that
    are computed together.

    Raises
    ------
    TypeError
        If ``on`` is no bool.

    Examples
    --------
    >>> set_winograd(False)
    >>> get_winograd()
    False
    >>> set_winograd(True)
    """
    global _winograd
    if not isinstance(on, (bool, np.bool_)):
        raise TypeError(f"set_winograd: needs True or False, got {on!r}")
    _winograd = bool(on)


def get_winograd() -> bool:
    """Return whether Winograd's algorithm may be used: see `set_winograd`."""
    return _winograd


# ------------------------------------------------------------- how they run

TILE_PIXELS = 64  # at least so many pixels are done at a time: several images, if these are small


def _views(call: Call) -> Views:
    scalars = call.stride, call.padding, call.dilation, call.groups, *_activation(call)
    return Views(tuple(x.shape for x in call.inputs), (call.outputs[0].shape,), scalars)


def _activation(call: Call) -> tuple[bool, ...]:
    """Return whether relu follows, for the forward kernels."""
    return (call.relu,) if "relu" in call.params else ()


def _images(call: Call) -> Spec:
    """Return the array of output pixels: what grad_out is the gradient of, or grad_x."""
    return call.inputs[1] if "kernel_size" in call.params else call.outputs[0]


def _by_image(call: Call) -> list[Split]:
    """Cut into images; the other operands come whole, gradients of a weight are partial."""
    images = call.inputs[0].shape[0]
    if "kernel_size" in call.params:
        return [Split(images, (1, 1), ("sum",))]
    return [Split(images, (1, *(0 for _ in call.inputs[1:])), (1,))]


def _chunk(images: Spec) -> int:
    """Return how many of the images a kernel takes at a time."""
    count, height, width, _ = images.shape
    return max(1, min(count, TILE_PIXELS // max(height * width, 1)))


def _tables(call: Call, *shapes: tuple[int, ...]):
    """Room for tables of places in arrays."""
    on_cpu = call.device == "cpu"
    return [(shape if on_cpu else (0,) * len(shape), np.int64) for shape in shapes]


def _pixel_tables(call: Call, kernel: Pair):
    """Room for where pixels start and are kept, and the same of a filter's taps."""
    images = _images(call)
    pixels = (2, _chunk(images), size_of(images.shape[1:3]))
    return _tables(call, pixels, (2, size_of(kernel)))


def _padded(call: Call):
    """Room for a chunk of images with zeros around them, if they get any."""
    _, h, w, c = call.inputs[0].shape
    if call.padding == (0, 0) or call.device != "cpu":
        return (0, 0, 0, 0), call.inputs[0].dtype
    shape = (_chunk(_images(call)), h + 2 * call.padding[0], w + 2 * call.padding[1], c)
    return shape, call.inputs[0].dtype


def _forward_workspace(call: Call):
    return [_padded(call), *_pixel_tables(call, call.inputs[1].shape[:2])]


def _backward_input_workspace(call: Call):
    """Room for grad_out with zeros around it, unless it fits as it is, and for the tables."""
    grad_out, weight = call.inputs[:2]
    shape, fits = [_chunk(call.outputs[0])], call.device != "cpu"
    sides = zip(call.extents, weight.shape, call.stride, call.padding, call.dilation, strict=False)
    shifts = []
    for extent, kernel, stride, padding, dilation in sides:
        shape.append(function_of(_seen)(extent, kernel, stride, padding, dilation))
        shifts.append((kernel - 1) * dilation // stride - padding // stride)
    fits |= tuple(shape[1:]) == grad_out.shape[1:3] and shifts == [0, 0]
    shape = (0, 0, 0, 0) if fits else (*shape, grad_out.shape[3])
    return [(shape, grad_out.dtype), *_pixel_tables(call, weight.shape[:2])]


def _backward_weight_workspace(call: Call):
    """Room for padded images, the tables, and a strip of grad_out."""
    x, grad_out = call.inputs
    _, height, width, _ = grad_out.shape
    lines = (_chunk(grad_out), height)
    strip = max(BLOCK_PIXELS, width) * strip_width(1, x.dtype.itemsize) * TILE_COLUMNS
    return [
        _padded(call),
        *_tables(call, (2, size_of(call.outputs[0].shape[:3])), lines),
        ((strip if call.device == "cpu" else 0,), x.dtype),
    ]


def _depthwise_backward_weight_workspace(call: Call):
    return [_padded(call), *_pixel_tables(call, call.kernel_size)]


PLANAR_PIXELS = 1024  # of a plane, or one image: so most tiles are whole


def _plane_extents(call: Call) -> tuple[int, int, int, int, int]:
    """Return how many images a plane holds, rows and pixels of a row of each, how many zeros come
    after the last, and phases of the pixels.
    """
    x, phases = call.inputs[0].shape, size_of(call.stride)
    sides = zip(call.stride, call.padding, call.dilation, strict=True)
    lines, totals = [], []
    for axis, (stride, padding, dilation) in enumerate(sides, 1):
        extent, places = x[axis], _images(call).shape[axis]
        if "extents" in call.params:
            kernel = call.inputs[1].shape[axis - 1]
            total = function_of(_seen)(places, kernel, stride, padding, dilation)
            reach = (kernel - 1) * dilation
            before, places, phases = reach // stride - padding // stride, -(-places // stride), 1
        else:
            total, before = -(-(extent + 2 * padding) // stride), padding
        totals.append(total)
        lines.append(total if phases > 1 else function_of(_line)(extent, before, total, places))
    rows, pitch = lines
    images = max(1, min(x[0], PLANAR_PIXELS // max(rows * pitch, 1)))
    return images, rows, pitch, (totals[0] - rows) * pitch + totals[1] - pitch, phases


def _planes(call: Call, channels: int):
    """Room for planes; each has as much as a tile at its end, so that the last tile is whole."""
    images, rows, pitch, beyond, _ = _plane_extents(call)
    dtype = call.inputs[0].dtype
    return (channels, images * rows * pitch + beyond + _tile_pixels(dtype)), dtype


def _tile_pixels(dtype: np.dtype) -> int:
    return strip_width(1, dtype.itemsize) * TILE_COLUMNS


def _planar_workspace(call: Call):
    """Room for planes, for the places of their pixels, for a filter's taps and some ones."""
    x, weight = call.inputs[:2]
    planes = _planes(call, x.shape[3] * _plane_extents(call)[-1])
    summed = 3 if "extents" in call.params else 2  # over k, or over c
    terms = size_of(weight.shape[:2]) * max(weight.shape[summed], 1)
    places, ones = (planes[0][1],), (_tile_pixels(x.dtype),)
    return [planes, (places, np.int64), ((2, terms), np.int64), (ones, x.dtype)]


def _planar_backward_weight_workspace(call: Call):
    """Room for planes of both operands, for a vector of sums for each weight, and for tables."""
    x, grad_weight = call.inputs[0], call.outputs[0]
    rows, columns = size_of(grad_weight.shape[:3]), -(-grad_weight.shape[3] // SUMS) * SUMS
    return [
        _planes(call, x.shape[3] * _plane_extents(call)[-1]),
        _planes(call, columns),
        ((rows * columns * strip_width(1, x.dtype.itemsize),), x.dtype),
        ((3, rows), np.int64),
    ]


# A bank is an op of its own, so that shards, and a compiled step's chunks, share one.


def _strips_width(columns: int, itemsize: int) -> int:
    """Return how many columns these take in strips: see `_pitch` in kernels_cpu.py."""
    vectors = strip_width(columns, itemsize) * itemsize // VECTOR_BYTES
    rest = vectors % TILE_COLUMNS
    if 2 * rest > TILE_COLUMNS:
        rest = TILE_COLUMNS  # a narrower strip would not hold them
    return (vectors // TILE_COLUMNS * TILE_COLUMNS + rest) * VECTOR_BYTES // itemsize


def _bank_infer(weight, *, groups):
    r, s, depth, k = weight.shape
    width = _strips_width(k // groups, weight.dtype.itemsize)
    return (r * s * depth * groups * width,), weight.dtype


def _bank_views(call: Call) -> Views:
    """See the weight as a matrix with columns k."""
    *rows, columns = call.inputs[0].shape
    return Views(((size_of(tuple(rows)), columns),), (call.outputs[0].shape,), (call.groups,))


_BANK = register(
    Op(
        "conv2d_bank",
        _bank_infer,
        "conv2d_bank",
        arrange=_bank_views,
        split=None,  # a small part of the work of the convolution that reads it
    )
)


def _turned_infer(weight, *, stride, dilation, groups):
    r, s, depth, k = weight.shape
    return (r * s * k * _strips_width(depth, weight.dtype.itemsize),), weight.dtype


_BANK_TURNED = register(
    Op(
        "conv2d_bank_turned",
        _turned_infer,
        "conv2d_bank_turned",
        split=None,  # a small part of the work of the convolution that reads it
    )
)


# Winograd's kernels take some tiles of 4 x 4 outputs at a time.

WINOGRAD_BYTES = 2**19  # of the planes of these tiles: they stay in a core's own cache


def _tiles_of(extents: Pair) -> int:
    """Return how many tiles an image has."""
    return -(-extents[0] // 4) * -(-extents[1] // 4)


def _winograd_views(call: Call) -> Views:
    scalars = call.padding, *_activation(call)
    return Views(tuple(x.shape for x in call.inputs), (call.outputs[0].shape,), scalars)


def _winograd_room(call: Call) -> tuple[int, tuple[int, int]]:
    """Return how many tiles there is room for, and the channels of both sides in whole vectors."""
    images = _images(call)
    itemsize, channels = images.dtype.itemsize, call.inputs[0].shape[3]
    widths = strip_width(channels, itemsize), _strips_width(images.shape[3], itemsize)
    room = max(WINOGRAD_BYTES // (PLANES * itemsize * (widths[0] + widths[1])), 4 * TILE_ROWS)
    if "kernel_size" in call.params:
        # All planes of the gradient are read and written for each group of tiles: these are many
        # enough for the tiles' own planes to be as large.
        room = max(room, widths[0] * widths[1] // (widths[0] + widths[1]))
    total = images.shape[0] * _tiles_of(images.shape[1:3])
    tiles = max(1, min(room, total))
    return -(-tiles // FULL_ROWS) * FULL_ROWS, widths


def _winograd_split(call: Call) -> list[Split]:
    """Cut into groups of images that fill the room."""
    grain = -(-_winograd_room(call)[0] // max(_tiles_of(_images(call).shape[1:3]), 1))
    return [replace(split, grain=grain) for split in _by_image(call)]


def _winograd_workspace(call: Call):
    """Room for 36 vectors, for the planes of some tiles on both sides, and for tables."""
    dtype, (tiles, widths) = call.outputs[0].dtype, _winograd_room(call)
    vector = strip_width(1, dtype.itemsize)
    # A vector more than needed: planes that lie a power of two apart would share cache lines.
    sizes, tables = [tiles * width + vector for width in widths], []
    if "kernel_size" in call.params:
        sizes.append(widths[0] * widths[1] + vector)  # the planes of the gradient
        tables.append(((3, widths[0]), np.int64))
    planes = [((PLANES, size), dtype) for size in sizes]
    return [((PLANES * vector,), dtype), *planes, *tables]


def _winograd_bank_infer(strips, *, depth, columns):
    return (PLANES * (strips.size // 9 + strip_width(1, strips.dtype.itemsize)),), strips.dtype


def _winograd_bank_workspace(call: Call):
    dtype = call.inputs[0].dtype
    return [((PLANES * strip_width(1, dtype.itemsize),), dtype)]


_WINOGRAD_BANK = register(
    Op(
        "winograd_bank",
        _winograd_bank_infer,
        "winograd_bank",
        split=None,  # a small part of the work of the convolution that reads it
        workspace=_winograd_bank_workspace,
    )
)


THREADS_DEPTHWISE = 32768  # that keep a GPU busy, when each sums up one weight's gradient


def _pixels_workspace_cuda(call: Call):
    """Room for sums over pieces of the taps."""
    images, weight, out = call.inputs[0], call.inputs[1], call.outputs[0]
    width, each = out.shape[3] // call.groups, images.shape[3] // call.groups
    pixels = size_of(out.shape[:3])
    is_depthwise = weight.shape[2] == 1 and call.groups > 1
    taps = size_of(weight.shape[:2]) * each
    pieces = 1 if is_depthwise else pieces_of(pixels, width, taps, call.groups)
    return room_for_pieces(out.size, pieces, out.dtype)


def _taps_workspace_cuda(call: Call):
    """Room for sums over pieces of the pixels."""
    grad_out, out = call.inputs[1], call.outputs[0]
    taps, width = size_of(out.shape[:3]), out.shape[3] // call.groups
    if out.shape[2] == 1 and call.groups > 1:
        pieces = min(grad_out.shape[0], THREADS_DEPTHWISE // max(out.size, 1))
    else:
        pieces = pieces_of(taps, width, size_of(grad_out.shape[:3]), call.groups)
    return room_for_pieces(out.size, pieces, out.dtype)


# Each of the three ops, and the CPU's other ways to the same result.


_PARTS = {
    # The shape rule, the gradient, the output; and where among the first two inputs and the output
    # are the convolution's x, weight and out, or their gradients.
    "forward": (_conv2d_infer, _conv2d_vjp, "out", (0, 1, 2)),
    "backward_input": (_backward_input_infer, _backward_input_vjp, "grad_x", (2, 1, 0)),
    "backward_weight": (_backward_weight_infer, _backward_weight_vjp, "grad_weight", (0, 2, 1)),
}


def _op(way: str, part: str, workspace: Callable | dict[str, Callable]) -> Op:
    """Declare a part of a convolution, done in some way."""
    infer, vjp, output, roles = _PARTS[part]

    def cost(call: Call) -> tuple[float, float]:
        arrays = *call.inputs[:2], call.outputs[0]
        x, weight, out = (arrays[role] for role in roles)
        macs = out.size * weight.size // max(weight.shape[3], 1)
        return 2.0 * macs, (x.size + weight.size + out.size) * x.dtype.itemsize

    kernel = f"{way}_{part}"
    return register(
        Op(
            way if part == "forward" else kernel,
            infer,
            kernel,
            vjp,
            outputs=(output,),
            arrange=_winograd_views if way == "winograd" else _views,
            split=_winograd_split if way == "winograd" else _by_image,
            workspace=workspace,
            cost=cost,
        )
    )


def _on(cpu: Callable, cuda: Callable) -> dict[str, Callable]:
    """Declare what a kernel wants on each device."""
    return {"cpu": cpu, "cuda": cuda}


_CONV2D = _op("conv2d", "forward", _on(_forward_workspace, _pixels_workspace_cuda))
_BACKWARD_INPUT = _op(
    "conv2d", "backward_input", _on(_backward_input_workspace, _pixels_workspace_cuda)
)
_BACKWARD_WEIGHT = _op(
    "conv2d", "backward_weight", _on(_backward_weight_workspace, _taps_workspace_cuda)
)

_PLANAR = _op("planar", "forward", _planar_workspace)
_PLANAR_BACKWARD_INPUT = _op("planar", "backward_input", _planar_workspace)
_PLANAR_BACKWARD_WEIGHT = _op("planar", "backward_weight", _planar_backward_weight_workspace)

_DEPTHWISE = _op("depthwise", "forward", _forward_workspace)
_DEPTHWISE_BACKWARD_INPUT = _op("depthwise", "backward_input", _backward_input_workspace)
_DEPTHWISE_BACKWARD_WEIGHT = _op(
    "depthwise", "backward_weight", _depthwise_backward_weight_workspace
)

_WINOGRAD = _op("winograd", "forward", _winograd_workspace)
_WINOGRAD_BACKWARD_INPUT = _op("winograd", "backward_input", _winograd_workspace)
_WINOGRAD_BACKWARD_WEIGHT = _op("winograd", "backward_weight", _winograd_workspace)


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Array:
    """Return the convolution of images with a bank of filters (a cross-correlation, as usual).

    ``out[n, h, w, k] = bias[k] + sum over r, s, c of weight[r, s, c, k] *
    x[n, h * stride + r * dilation - padding, w * stride + s * dilation - padding, c]``

    Parameters
    ----------
    x
        (n, h, w, c) images, float32 or float64.
    weight
        (r, s, c // groups, k) filters, of the same dtype.
    bias
        (k,), or None.
    stride
        Steps from one window to the next, an int or (height, width), as the next two.
    padding
        Rows and columns of zeros on each side.
    dilation
        Steps from one pixel of a window to the next.
    groups
        Into how many groups channels fall; output channels see those of their own group only.

    Returns
    -------
    Array
        (n, out_h, out_w, k), where
        ``out_h = (h + 2 * padding - dilation * (r - 1) - 1) // stride + 1``.

    Raises
    ------
    ShapeError
        If extents do not fit together, or the window is larger than the padded image.
    DTypeError
        If dtypes differ or are not floats.
    ValueError
        If stride, dilation or groups is below 1, or padding below 0.
    TypeError
        If one of them is not made of ints, or something else than an Array is given.

    Notes
    -----
    LeCun et al., "Gradient-based learning applied to document recognition" (Proc. IEEE, 1998);
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016).

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> x = asarray(np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1))
    >>> conv2d(x, asarray(np.ones((2, 2, 1, 1), np.float32)))[0, :, :, 0]
    Array([[ 8., 12.],
           [20., 24.]], dtype=float32)
    """
    require_arrays("conv2d", x=x, weight=weight)
    if bias is not None:
        require_arrays("conv2d", bias=bias)
        if bias.shape != weight.shape[-1:]:
            raise ShapeError(
                f"conv2d: bias {bias.shape} must have shape {weight.shape[-1:]}, one for each "
                "output channel"
            )
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"conv2d: groups must be an int >= 1, got {groups!r}")
    return _forward(
        x,
        weight,
        bias,
        stride=pair("conv2d", "stride", stride, 1),
        padding=pair("conv2d", "padding", padding, 0),
        dilation=pair("conv2d", "dilation", dilation, 1),
        groups=int(groups),
    )


__all__ = ["conv2d", "get_winograd", "set_winograd"]
