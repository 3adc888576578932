"""Vectors and asynchronous copies become the instructions that they stand for."""

import re

import pytest
from cuda_kernels import F32, F64, arrays, reverse_vectors, shift_by_copies

from numbagrad.cuda_support import compile_offline, types


def memory_instructions(ptx):
    return re.findall(r"^\s*((?:ld|st|cp)\.(?:async|shared|global)[\w.]*)", ptx, re.M)


@pytest.mark.parametrize(("dtype", "vector"), [(F32, "v4.f32"), (F64, "v2.f64")])
def test_vectors(dtype, vector):
    found = memory_instructions(compile_offline(reverse_vectors, arrays(dtype, 1, 1)).ptx)
    each = 1 if dtype == F32 else 2
    kinds = ("ld.global", "st.shared", "ld.shared", "st.global")
    assert found == [f"{kind}.{vector}" for kind in kinds for _ in range(each)]


@pytest.mark.parametrize(("dtype", "wide"), [(F32, 1), (F64, 2)])
def test_copies(dtype, wide):
    signature = (*arrays(dtype, 1), types.int64, *arrays(dtype, 1))
    ptx = compile_offline(shift_by_copies, signature).ptx
    copies = [name for name in memory_instructions(ptx) if name.startswith("cp")]
    assert copies == [
        *["cp.async.cg.shared.global"] * wide,
        "cp.async.commit_group",
        *["cp.async.ca.shared.global"] * 4,
        "cp.async.commit_group",
        "cp.async.wait_group",
        "cp.async.wait_group",
    ]
    assert "fma.rn" in ptx
