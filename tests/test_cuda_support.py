"""Kernels of three kinds run on the simulator and compile for a GPU that is not there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda has no build for this platform")

from numbagrad import cuda_support as cs
from numbagrad.cuda_support import (
    BLOCK,
    SIMULATOR,
    TILE,
    compile_offline,
    cuda,
    erf,
    launch,
    log,
)
from numbagrad.errors import DeviceError

ROOT = Path(__file__).parents[1]
F32, F64 = cuda.types.float32, cuda.types.float64
on_simulator = pytest.mark.skipif(not SIMULATOR, reason="runs in the simulator's own process")
off_simulator = pytest.mark.skipif(SIMULATOR, reason="the simulator does not compile")
offline = pytest.mark.skipif(
    SIMULATOR or not cuda.cudadrv.nvvm.is_available(), reason="needs the CUDA toolkit"
)


def arrays(dtype, *ndims):
    return tuple(cuda.types.Array(dtype, ndim, "C") for ndim in ndims)


# --- the kernels -----------------------------------------------------------------------------


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


# --- launching -------------------------------------------------------------------------------


def test_recording_collects_types_and_launches_nothing():
    x, out = np.ones(5, np.float32), np.zeros(5, np.float32)
    with cs.record_launches() as launches:
        launch(softened_log, 1, BLOCK, 0, x, out)
        launch(softened_log, 9, BLOCK, 0, x[:2], out)
        launch(
            gather,
            (1, 2),
            (BLOCK, 1),
            0,
            *(x.astype(np.float64), x > 0, x[:, None].astype(np.int64)),
            *((4, 5), np.float32(2), True, np.array(1)),
        )
        launch(add_tenth, 0, BLOCK, 0, x, out)
        launch(tiled_matmul, (3, 0), (TILE, TILE), 0, x, x, out)
    types = cuda.types
    assert launches == {
        (softened_log, arrays(F32, 1, 1)),
        (
            gather,
            (
                *(*arrays(F64, 1), *arrays(types.boolean, 1), *arrays(types.int64, 2)),
                *(types.UniTuple(types.int64, 2), F32, types.boolean, *arrays(types.int64, 0)),
            ),
        ),
    }
    assert not out.any()


def test_recording_ends_with_its_block():
    with cs.record_launches() as outer:
        with cs.record_launches() as inner:
            launch(add_tenth, 1, 1, 0, np.ones(1), np.ones(1))
        launch(add_tenth, 2, 1, 0, np.ones(1, np.float32), np.ones(1, np.float32))
    assert inner == {(add_tenth, arrays(F64, 1, 1))}
    assert outer == {(add_tenth, arrays(F32, 1, 1))}


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, r"add_tenth: argument 1 .*x\.dtype\.type"), (None, "argument 1 .*NoneType")],
)
def test_arguments_that_no_kernel_takes(value, message):
    with cs.record_launches(), pytest.raises(TypeError, match=message):
        launch(add_tenth, 1, BLOCK, 0, np.ones(2), value)


@off_simulator
def test_small_grids_do_not_warn_and_are_held():
    configured = cs._configured(softened_log, 1, BLOCK, 0)
    assert cs._configured(softened_log, 1, BLOCK, 0) is configured


# --- compiling without a GPU -----------------------------------------------------------------


@offline
@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_offline_report_of_clean_kernels(cc):
    for kernel, signature, shared in (
        (softened_log, arrays(F32, 1, 1), 0),
        (sum_each_block, arrays(F32, 1, 1), BLOCK * 4),
        (tiled_matmul, arrays(F32, 2, 2, 2), 2 * TILE * TILE * 4),
    ):
        report = compile_offline(kernel, signature, cc)
        assert report.name == kernel.__name__
        assert report.arch == f"sm_{cc[0]}{cc[1]}"
        assert 0 < report.registers <= 64
        assert report.spill_stores == report.spill_loads == report.local_bytes == 0
        assert report.float64_instructions == 0
        assert report.shared_bytes == shared
        assert f".target {report.arch}" in report.ptx
        assert report.cubin.startswith(b"\x7fELF")


@offline
def test_offline_counts_float64():
    assert compile_offline(add_tenth, arrays(F32, 1, 1)).float64_instructions == 3  # to, add, from
    report = compile_offline(tiled_matmul, arrays(F64, 2, 2, 2))
    assert report.float64_instructions >= TILE
    assert report.shared_bytes == 2 * TILE * TILE * 8


@offline
def test_offline_takes_all_kinds_of_arguments():
    i64, boolean = cuda.types.int64, cuda.types.boolean
    signature = (*arrays(F32, 1), *arrays(boolean, 1), *arrays(i64, 2))
    signature += (cuda.types.UniTuple(i64, 2), F32, boolean, *arrays(F32, 1))
    assert compile_offline(gather, signature).float64_instructions == 0
    words = compile_offline(product_words, arrays(cuda.types.uint32, 1, 1, 1, 1))
    assert "mul.wide.u32" in words.ptx


@offline
def test_offline_errors_name_kernel_and_signature():
    with pytest.raises(DeviceError, match=r"kernel tiled_matmul .*sm_90.*array\(float32, 1d, C\)"):
        compile_offline(tiled_matmul, arrays(F32, 1, 1, 1))


@on_simulator
def test_simulator_does_not_compile():
    with pytest.raises(DeviceError, match="NUMBA_ENABLE_CUDASIM"):
        compile_offline(add_tenth, arrays(F32, 1, 1))


# --- running, on the simulator ---------------------------------------------------------------


def run(kernel, grid, block, out, *args):
    args = [cs.to_device(a) if isinstance(a, np.ndarray) else a for a in args]
    device_out = cs.to_device(out)
    launch(kernel, grid, block, cs.default_stream(), *args, device_out)
    return cs.to_host(device_out, cs.default_stream())


@on_simulator
def test_elementwise_keeps_float32_and_does_not_raise_at_the_edges():
    x = np.array([1, 2, 0, -1, np.inf, 3, 4, 5, 6], np.float32)
    out = run(softened_log, 2, BLOCK, np.empty_like(x), x)
    np.testing.assert_allclose(out[:2], [0.08427008, 0.79267937], rtol=1e-6)
    assert out[2] == -np.inf
    assert np.isnan(out[3])
    assert out[4] == np.inf


@on_simulator
def test_tiles_in_shared_memory():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 6), np.float32)
    b = rng.standard_normal((6, 3), np.float32)
    out = run(tiled_matmul, (1, 2), (TILE, TILE), np.empty((5, 3), np.float32), a, b)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


@on_simulator
def test_division_by_zero_and_zero_dimensional_arrays():
    x = np.array([1, -1], np.float32)
    out = run(add_scalar, 1, BLOCK, np.empty_like(x), x, np.array(0, np.float32))
    np.testing.assert_array_equal(out, [np.inf, -np.inf])


@on_simulator
def test_words_of_a_product():
    a = np.array([0xFFFFFFFF, 0xD2511F53, 7], np.uint32)
    high, low = cs.empty(3, np.uint32), cs.empty(3, np.uint32)
    launch(product_words, 1, BLOCK, 0, cs.to_device(a), cs.to_device(a), high, low)
    square = a.astype(np.uint64) ** 2
    np.testing.assert_array_equal(cs.to_host(high), square >> 32)
    np.testing.assert_array_equal(cs.to_host(low), square & 0xFFFFFFFF)


@on_simulator
def test_threads_may_leave_before_a_barrier():
    out = run(return_early, 1, BLOCK, np.zeros(3), np.zeros(3))
    np.testing.assert_array_equal(out, 3)


@on_simulator
def test_a_barrier_in_a_device_function():
    x = np.arange(20 * BLOCK, dtype=np.float32)
    out = run(sum_each_block, 20, BLOCK, np.empty_like(x), x)
    np.testing.assert_array_equal(out, x.reshape(20, BLOCK).sum(axis=1).repeat(BLOCK))


@on_simulator
def test_errors_name_the_thread():
    with pytest.raises(IndexError) as caught:
        launch(index_out_of_range, 1, 4, 0, cs.to_device(np.zeros(3)))
    assert caught.value.__notes__ == ["in thread (2, 0, 0) of block (0, 0, 0)"]


# --- memory ----------------------------------------------------------------------------------

SHAPES = [(), (1,), (6,), (2, 3), (0,), (3, 0), (0, 2, 4), (2, 1, 3)]


@on_simulator
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_memory_round_trip(shape, dtype):
    host = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    device = cs.to_device(host, cs.default_stream())
    copied = cs.copy(device)
    target = cs.empty(shape, dtype)
    cs.copy_into(target, copied)
    cs.synchronize()
    for array in (device, copied, target):
        back = cs.to_host(array)
        assert back.dtype == dtype
        assert back.shape == shape
        np.testing.assert_array_equal(back, host)


@on_simulator
def test_axes_of_stride_zero_are_copied_too():
    column = np.arange(3.0)[:, None]
    np.testing.assert_array_equal(cs.to_host(cs.to_device(column)), column)


@on_simulator
def test_constants_are_copied_once():
    first, second = np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)
    assert cs.constant(first) is cs.constant(first.copy())
    np.testing.assert_array_equal(cs.to_host(cs.constant(second)), second)
    with cs.record_launches():
        assert cs.constant(first) is first


@on_simulator
def test_views_share_memory():
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    device = cs.to_device(host)
    rows = cs.slice_rows(device, 1, 3)
    flat = cs.reshape(rows, (6,))
    launch(add_tenth, 1, BLOCK, 0, flat, flat)
    host[1:3] += np.float32(0.1)
    np.testing.assert_array_equal(cs.to_host(device), host)
    assert cs.slice_rows(device, 4, 4).shape == (0, 3)
    assert cs.reshape(cs.empty((1, 1), np.int64), ()).shape == ()
    assert cs.reshape(cs.empty((0, 3), np.int64), (7, 0)).shape == (7, 0)


@on_simulator
def test_memory_errors():
    x = cs.empty((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"\(4, 3\) to \(5,\)"):
        cs.reshape(x, (5,))
    with pytest.raises(IndexError, match="rows 2:5 of an array of 4 rows"):
        cs.slice_rows(x, 2, 5)
    with pytest.raises(ValueError, match="cannot copy"):
        cs.copy_into(x, cs.empty((4, 3), np.float64))


@off_simulator
def test_views_on_a_gpu():
    class Memory:  # takes the place of a GPU's
        def view(self, start, stop):
            return (start, stop)

    memory = Memory()
    x = cs.DeviceNDArray((4, 3), (12, 4), np.float32, stream=7, gpu_data=memory)
    for shape, strides in [((12,), (4,)), ((2, 1, 6), (24, 24, 4)), ((3, 4), (16, 4))]:
        view = cs.reshape(x, shape)
        assert (view.shape, view.strides, view.stream) == (shape, strides, 7)
        assert view.gpu_data is memory
        assert view._numba_type_ == arrays(F32, len(shape))[0]
    rows = cs.slice_rows(x, 1, 3)
    assert rows.shape == (2, 3)
    assert rows.gpu_data == (12, 36)
    one = cs.DeviceNDArray((1, 1), (4, 4), np.float32, gpu_data=memory)
    assert cs.reshape(cs.reshape(one, ()), (1,)).strides == (4,)


# --- what is here ----------------------------------------------------------------------------


def test_describe():
    facts = cs.describe()
    assert facts["simulator"] is SIMULATOR
    assert facts["unavailable"] == cs.why_unavailable()
    if not SIMULATOR:
        assert (facts["device"] is None) == (facts["unavailable"] is not None)


@off_simulator
def test_missing_numba_cuda_is_explained():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else find(name, *rest)
import numbagrad.cuda_support
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.splitlines()[-1] == (
        "numbagrad.errors.DeviceError: "
        'CUDA needs the package numba-cuda: pip install "numbagrad[cuda]"'
    )


@off_simulator
def test_on_the_simulator():
    """Run this file again, in a process of its own, with the simulator on."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
