"""How exact float32 matrix products and convolutions are, here and in PyTorch, for a while.

``"highest"`` is true float32, the default; ``"high"`` lets a GPU round their inputs to tf32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numbagrad as ng

OURS_IN_TF32 = hasattr(ng, "matmul_precision")  # not built yet: then it takes no part


@contextmanager
def ours(level: str) -> Iterator[None]:
    """Set numbagrad's."""
    if level == "highest":  # is what it starts with
        yield
        return
    with ng.matmul_precision(level):
        yield


@contextmanager
def theirs(level: str) -> Iterator[None]:
    """Set PyTorch's."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = level == "high"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
