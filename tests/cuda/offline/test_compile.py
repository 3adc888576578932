"""Every kernel, as the cases launch it, compiled to machine code for two GPUs, and looked at."""

from collections import defaultdict

import pytest
from cases import CASES
from cuda_recorder import launches_of, require_clean

from numbagrad import kernels_cuda
from numbagrad.cuda_support import compile_offline

SIGNATURES = defaultdict(list)
for kernel, signature in sorted(launches_of(case for _, case in CASES), key=str):
    SIGNATURES[kernel.__name__].append((kernel, signature))


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_kernel(name, cc):
    for kernel, signature in SIGNATURES[name]:
        require_clean(compile_offline(kernel, signature, cc), signature)


def test_no_kernel_escapes():
    kernels = {
        name
        for name, value in vars(kernels_cuda).items()
        if isinstance(value, type(kernels_cuda._add_forward))
        and value.__module__ == kernels_cuda.__name__
        and not value.targetoptions["device"]
    }
    assert sorted(kernels - set(SIGNATURES)) == []
