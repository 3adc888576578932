"""The kernels that work in tiles, as machine code: each kind of tile and operands keeps its budget.

The budget is what lets two blocks of 256 threads share a multiprocessor.
"""

import re

import pytest
from cuda_kernels import F32, F64, arrays
from cuda_recorder import MAX_REGISTERS, require_clean

from numbagrad.cuda_support import compile_offline, types
from numbagrad.kernels_cuda import (
    ACROSS,
    ALONG,
    LARGE,
    MIDDLE,
    NARROW,
    SMALL,
    WIDE,
    _conv2d_backward_input,
    _conv2d_backward_weight,
    _conv2d_forward,
    _matmul_forward,
)

SHARED_BYTES = {
    LARGE: 17 * 1024,
    MIDDLE: 16 * 1024,
    SMALL: 9 * 1024,
    NARROW: 11 * 1024,
}  # in float32


@pytest.mark.parametrize(
    ("tile", "dtype", "kinds"),
    [
        (LARGE, F32, (ALONG, WIDE)),
        (LARGE, F32, (WIDE, ALONG)),
        (SMALL, F32, (ACROSS, ACROSS)),
        (SMALL, F64, (ALONG, WIDE)),
        (NARROW, F64, (WIDE, ACROSS)),
    ],
)
def test_products(tile, dtype, kinds):
    scalars = types.boolean, *[types.int64] * 8, types.boolean
    signature = (*arrays(dtype, 1, 1, 1), *scalars, *arrays(dtype, 1))
    report = compile_offline(_matmul_forward(tile, *kinds), signature)
    require_clean(report, signature)
    assert report.registers <= MAX_REGISTERS
    assert report.local_bytes == 0
    assert report.shared_bytes <= SHARED_BYTES[tile] * dtype.bitwidth // 32
    vector = "v4.f32" if dtype == F32 else "v2.f64"
    assert f"st.global.{vector}" in report.ptx
    assert ("cp.async.cg" in report.ptx) == (WIDE in kinds)
    # Shared memory is read 16 bytes at a time, and between products no number is divided.
    inner = report.ptx[report.ptx.index("fma.rn") : report.ptx.rindex("fma.rn")]
    assert set(re.findall(r"ld\.[\w.]+", inner)) == {f"ld.shared.{vector}"}
    assert not re.search(r"\b(div|rem)\.", inner)


PAIR = types.UniTuple(types.int64, 2)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (_conv2d_forward(MIDDLE, WIDE), F32),
        (_conv2d_backward_input(MIDDLE, True), F32),
        (_conv2d_backward_weight(MIDDLE, WIDE), F32),
    ],
    ids=["forward", "backward_input", "backward_weight"],
)
def test_convolutions(kernel, dtype):
    inputs, scalars = arrays(dtype, 1, 1, 1), [types.int64] * 5
    if "weight" in kernel.__name__:
        inputs = inputs[:2]
    else:
        inputs, scalars[3] = (*inputs, types.boolean), PAIR
    signature = (*inputs, *[PAIR] * 6, *scalars, types.boolean, *arrays(dtype, 1))
    report = compile_offline(kernel, signature)
    require_clean(report, signature)
    assert report.local_bytes == 0
    assert report.shared_bytes <= SHARED_BYTES[MIDDLE]
    assert "ld.shared.v4.f32" in report.ptx
    assert "st.global.v4.f32" in report.ptx
