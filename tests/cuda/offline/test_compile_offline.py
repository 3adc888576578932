"""What `compile_offline` reports of small kernels whose right answers are known."""

import pytest
from cuda_kernels import (
    F32,
    F64,
    add_tenth,
    arrays,
    gather,
    product_words,
    softened_log,
    sum_each_block,
    tiled_matmul,
)

from numbagrad.cuda_support import BLOCK, TILE, compile_offline, types
from numbagrad.errors import DeviceError


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_report_of_clean_kernels(cc):
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


def test_counts_float64():
    assert compile_offline(add_tenth, arrays(F32, 1, 1)).float64_instructions == 3  # to, add, from
    report = compile_offline(tiled_matmul, arrays(F64, 2, 2, 2))
    assert report.float64_instructions >= TILE
    assert report.shared_bytes == 2 * TILE * TILE * 8


def test_takes_all_kinds_of_arguments():
    i64, boolean = types.int64, types.boolean
    signature = (*arrays(F32, 1), *arrays(boolean, 1), *arrays(i64, 2))
    signature += (types.UniTuple(i64, 2), F32, boolean, *arrays(F32, 1))
    assert compile_offline(gather, signature).float64_instructions == 0
    words = compile_offline(product_words, arrays(types.uint32, 1, 1, 1, 1))
    assert "mul.wide.u32" in words.ptx


def test_errors_name_kernel_and_signature():
    where = r"kernel tiled_matmul .* sm_90 .*array\(float32, 1d, C\)"
    with pytest.raises(DeviceError, match=rf"(?s){where}.*cannot index .* with 2 indices"):
        compile_offline(tiled_matmul, arrays(F32, 1, 1, 1))
