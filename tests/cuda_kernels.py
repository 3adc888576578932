"""Small kernels of several kinds, for the tests of `cuda_support` in each CUDA tier."""

import numpy as np

from numbagrad.cuda_support import (
    ALIGNMENT,
    BLOCK,
    TILE,
    commit_copies,
    copy4_async,
    copy_async,
    cuda,
    erf,
    fma,
    load4,
    log,
    store4,
    types,
    wait_for_copies,
)

F32, F64 = types.float32, types.float64
FOUR_EACH = 4 * BLOCK  # elements for a block of threads


def arrays(dtype, *ndims):
    """Return the Numba types of contiguous arrays."""
    return tuple(types.Array(dtype, ndim, "C") for ndim in ndims)


@cuda.jit
def softened_log(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = log(x[i]) + erf(x[i]) * x.dtype.type(0.1)


@cuda.jit
def multiply_add(a, b, c):
    return a * b + c


@cuda.jit
def tiled_matmul(a, b, out):
    tile_a = cuda.shared.array((TILE, TILE), a.dtype)
    tile_b = cuda.shared.array((TILE, TILE), a.dtype)
    j, i = cuda.grid(2)
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    zero = a.dtype.type(0)
    total = zero
    for start in range(0, a.shape[1], TILE):
        inside_a = i < a.shape[0] and start + column < a.shape[1]
        inside_b = start + row < b.shape[0] and j < b.shape[1]
        tile_a[row, column] = a[i, start + column] if inside_a else zero
        tile_b[row, column] = b[start + row, j] if inside_b else zero
        cuda.syncthreads()
        for k in range(TILE):
            total = multiply_add(tile_a[row, k], tile_b[k, column], total)
        cuda.syncthreads()
    if i < out.shape[0] and j < out.shape[1]:
        out[i, j] = total


@cuda.jit
def add_tenth(x, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = x[i] + 0.1


@cuda.jit
def gather(x, mask, index, strides, scale, flip, out):
    i = cuda.grid(1)
    if i < out.size:
        value = x[index[i // strides[0], i % strides[0]]] * x.dtype.type(scale)
        out[i] = -value if flip and mask[i] else value


@cuda.jit
def product_words(a, b, high, low):
    i = cuda.grid(1)
    if i < a.size:
        product = np.uint64(a[i]) * np.uint64(b[i])
        high[i] = np.uint32(product >> np.uint64(32))
        low[i] = np.uint32(product & np.uint64(0xFFFFFFFF))


@cuda.jit
def add_scalar(x, scalar, out):
    i = cuda.grid(1)
    if i < x.size:
        out[i] = x[i] / scalar[()]


@cuda.jit
def return_early(x, out):
    i = cuda.grid(1)
    if i >= x.size:
        return
    cuda.syncthreads()
    out[i] = cuda.syncthreads_count(1)


@cuda.jit
def block_sum(scratch, value):
    t = cuda.threadIdx.x
    scratch[t] = value
    cuda.syncthreads()
    total = value - value
    for other in range(scratch.size):
        total += scratch[other]
    cuda.syncthreads()
    return total


@cuda.jit
def sum_each_block(x, out):
    scratch = cuda.shared.array(BLOCK, x.dtype)
    out[cuda.grid(1)] = block_sum(scratch, x[cuda.grid(1)])


@cuda.jit
def index_out_of_range(x):
    x[cuda.grid(1) + 1] = 0


@cuda.jit
def reverse_vectors(x, out):
    tile = cuda.shared.array(FOUR_EACH, x.dtype, alignment=ALIGNMENT)
    t = cuda.threadIdx.x
    a, b, c, d = load4(x, 4 * t)
    store4(tile, 4 * (BLOCK - 1 - t), (d, c, b, a))
    cuda.syncthreads()
    store4(out, 4 * t, load4(tile, 4 * t))


@cuda.jit
def shift_by_copies(x, size, out):
    """out[i] = fma(x[i], 2, x[i + 1]), with x = 0 from `size` on."""
    wide = cuda.shared.array(FOUR_EACH, x.dtype, alignment=ALIGNMENT)
    narrow = cuda.shared.array(FOUR_EACH, x.dtype, alignment=ALIGNMENT)
    t = cuda.threadIdx.x
    copy4_async(wide, 4 * t, x, 4 * t, max(0, min(4, size - 4 * t)))
    commit_copies()
    for k in range(4):
        at = 4 * t + k + 1
        copy_async(narrow, 4 * t + k, x, at, 1 if at < size else 0)
    commit_copies()
    wait_for_copies(1)
    for k in range(4):
        out[4 * t + k] = wide[4 * t + k]
    wait_for_copies(0)
    cuda.syncthreads()
    for k in range(4):
        i = 4 * t + k
        out[i] = fma(out[i], x.dtype.type(2), narrow[i])


@cuda.jit
def copy_without_waiting(x, out):
    tile = cuda.shared.array(FOUR_EACH, x.dtype, alignment=ALIGNMENT)
    t = cuda.threadIdx.x
    copy4_async(tile, 4 * t, x, 4 * t, 4)
    commit_copies()
    wait_for_copies(1)
    out[4 * t] = tile[4 * t]
