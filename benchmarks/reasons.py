"""Why a kernel that takes much of a step stands far below the roof: the written reasons.

The roof counts each array's bytes once and each multiply-add once (see `numbagrad.roofline`). What
a kernel must do beyond that, it pays for with time that the roof knows nothing of.
"""

from __future__ import annotations

SHARE, FRACTION = 0.03, 0.5  # of a step's time in kernels, and of the roof

PLANES = (
    "Images of few channels are first taken apart into planes, and the results are turned back "
    "into pixels; and as a tap may lie anywhere, most vectors of a plane are read across two lines"
    " of cache. None of it is a multiply-add."
)
TAPS = (
    "The sum for an output is short (filter area x channels in), so starting, storing and placing "
    "a tile weighs as much as its multiply-adds; and output channels that do not fill a tile's "
    "width leave lanes empty. Padding is a copy that the roof does not count."
)
WINOGRAD = (
    "The roof counts the multiply-adds of the plain sum. Winograd does fewer of them, but its "
    "transforms of inputs and outputs are additions on vectors, and its 36 planes are written to "
    "cache and read back. With few tiles or channels that outweighs the products."
)
BANK = (
    "It rearranges a small weight for the kernel after it, in pieces as wide as a tile; a turned "
    "or transformed piece moves through registers one tile at a time, not in long runs."
)
POOL = (
    "Each window compares its elements one after the other and carries value and place along: some"
    " four operations on each vector that is loaded. With few channels, most lanes of a vector are"
    " empty besides."
)
STREAM = (
    "The roof's copy goes over the same memory again and again. In a step each array was written "
    "by another kernel or is new memory, so less of it is where the roof supposes it."
)
ROWS = (
    "A row of ten classes fills a part of one vector, and each row needs its own maximum and sum "
    "across lanes, exponentials, a division and a logarithm: a chain of steps that wait for one "
    "another, and next to no bytes."
)

# By op. One sentence or two, on what the kernel does beyond the roof's count.
REASONS = {
    "adam_update": (
        "Each vector needs a square root and a division, which the processor's one divider works "
        "off in many cycles; while the arrays fit a cache, these take longer than the bytes."
    ),
    "planar": PLANES,
    "planar_backward_input": PLANES,
    "planar_backward_weight": (
        "Input and gradient are both taken apart into planes; the ends of rows need masks, and "
        "each sum over pixels is held in a whole vector, whose lanes are added up at the end."
    ),
    "conv2d": TAPS,
    "conv2d_backward_input": (
        "With a stride, each phase of the pixels is a convolution of its own with a part of the "
        "filter, on a gradient that is first copied between zeros: short sums, and tiles whose "
        "pixels lie apart."
    ),
    "conv2d_backward_weight": (
        "The output is small and the sum is over all pixels: blocks of pixels are copied into "
        "strips, and each block loads and stores the sums that it adds to. A filter with few rows "
        "(r, s, c) or columns (k) does not fill the tiles."
    ),
    "conv2d_bank": BANK,
    "conv2d_bank_turned": BANK,
    "winograd_bank": BANK,
    "winograd": WINOGRAD,
    "winograd_backward_input": WINOGRAD,
    "winograd_backward_weight": (
        "As of Winograd's convolution: transforms of input and gradient, 36 planes through the "
        "cache. And the sums of all planes are loaded and stored anew for each group of tiles."
    ),
    "matmul": (
        "Small or thin: tables, panels and half-filled tiles at the edges are fixed costs beside "
        "few multiply-adds. A product of few rows loads and stores its sums again for every four "
        "rows of the matrix; one of few steps stores each output after hardly any multiply-add."
    ),
    "max_pool2d": POOL,
    "max_pool2d_backward": (
        "Each output vector is compared with the place of each element of its window and masked, "
        "one store for each. With few channels, most lanes of a vector are empty besides."
    ),
    "softmax": ROWS,
    "softmax_cross_entropy": ROWS,
    "softmax_cross_entropy_backward": (
        "A row of ten classes fills a part of one vector, and its label is looked up and corrected"
        " by itself: the time goes with the rows, not with their bytes."
    ),
    "batch_norm_moments": (
        "Two passes over each block of rows, for a mean and then the squares about it, so as to "
        "lose no digits; the roof counts one."
    ),
    "add": STREAM,
    "relu": STREAM,
    "relu_backward": STREAM,
    "batch_norm": STREAM,
    "batch_norm_backward_input": STREAM,
    "batch_norm_backward_sums": STREAM,
    "mean_backward": "It spreads one number over a few: nothing but the call of an op.",
}


def why(kernel: dict, call: float | None) -> str | None:
    """Return why a kernel is below half of the roof; None if nobody has written it down.

    Parameters
    ----------
    kernel
        See `results.Mode.kernels`.
    call
        Seconds that calling an op at all takes, if that was measured in the same run.

    Examples
    --------
    >>> why({"op": "unheard_of", "seconds": 5e-6, "fraction": 0.3}, 3e-6)
    'It is short: 3.0 us of it are the call from Python.'
    >>> why({"op": "unheard_of", "seconds": 5e-3, "fraction": 0.3}, 3e-6) is None
    True
    """
    if call is not None:
        without = kernel["seconds"] - call
        if without <= 0 or kernel["fraction"] * kernel["seconds"] >= FRACTION * without:
            return f"It is short: {call * 1e6:.1f} us of it are the call from Python."
    return REASONS.get(kernel["op"])
