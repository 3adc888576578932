"""The same jvp, Jacobians and Hessians as torch.func, the same checkpoints as torch.utils."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import numbagrad as ng

# torch.func.jacfwd's own rules for some ops are scripts, which PyTorch has declared old.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is dep:DeprecationWarning")

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(ours, theirs, dtype):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=TOLERANCE[dtype],
                               atol=TOLERANCE[dtype] * scale)  # fmt: skip


def images_to_torch(x):
    return x.permute(0, 3, 1, 2)


def convolution(x, w):
    return ng.conv2d(x, w, stride=2, padding=1)


def convolution_torch(x, w):
    out = F.conv2d(images_to_torch(x), w.permute(3, 2, 0, 1), stride=2, padding=1)
    return out.permute(0, 2, 3, 1)


def pooling_torch(x):
    return F.max_pool2d(images_to_torch(x), 2).permute(0, 2, 3, 1)


def batch_norm(x, w, b):
    running = (ng.layers.Buffer(np.ones(x.shape[-1], x.dtype)) for _ in range(2))
    return ng.batch_norm(x, w, b, *running, training=True)


LABELS = np.array([1, 0, 2, 1])

#: ours, theirs, shapes of the arguments
FUNCTIONS = {
    "product": (lambda x, y: ng.tanh(x @ y), lambda x, y: torch.tanh(x @ y), [(2, 3), (3, 4)]),
    "broadcast": (lambda x, y: x * y / (y * y + 1.0), lambda x, y: x * y / (y * y + 1.0),
                  [(2, 1), (3,)]),
    "softmax": (lambda x: ng.softmax(x, axis=-1), lambda x: torch.softmax(x, -1), [(3, 4)]),
    "gelu": (ng.gelu, F.gelu, [(5,)]),
    "reductions": (lambda x: x.max(axis=0) * x.mean(axis=0), lambda x: x.amax(0) * x.mean(0),
                   [(4, 3)]),
    "convolution": (convolution, convolution_torch, [(1, 5, 4, 2), (3, 3, 2, 2)]),
    "pooling": (lambda x: ng.max_pool2d(x, 2), pooling_torch, [(1, 4, 4, 2)]),
    "batch norm": (lambda x, w, b: batch_norm(x, w, b),
                   lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
                   [(6, 3), (3,), (3,)]),
    "cross-entropy": (lambda x: ng.softmax_cross_entropy(x, ng.asarray(LABELS)),
                      lambda x: F.cross_entropy(x, torch.from_numpy(LABELS)), [(4, 3)]),
    "shaping": (lambda x: ng.concat([x[1:], x.T[:1]]).reshape(-1) ** 3,
                lambda x: torch.cat([x[1:], x.T[:1]]).reshape(-1) ** 3, [(3, 3)]),
    "scalar to vector": (lambda x: ng.stack([x, x * x, ng.exp(x)]),
                         lambda x: torch.stack([x, x * x, torch.exp(x)]), [()]),
}  # fmt: skip


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


@pytest.fixture(params=TOLERANCE)
def dtype(request):
    return request.param


def both(shapes, dtype, seed=0):
    hosts = [normal(*shape, seed=seed + k).astype(dtype) for k, shape in enumerate(shapes)]
    return (
        tuple(map(ng.asarray, map(np.array, hosts))),
        tuple(torch.from_numpy(np.array(x)) for x in hosts),
    )


def test_jvp(function, dtype):
    ours, theirs, shapes = function
    arrays, tensors = both(shapes, dtype)
    directions, their_directions = both(shapes, dtype, seed=10)
    out, tangent = ng.jvp(ours, arrays, directions)
    # Backwards twice, as not every op of theirs has a forward rule for all its cases.
    expected, wanted = torch.autograd.functional.jvp(theirs, tensors, their_directions)
    close(out, expected, dtype)
    close(tangent, wanted, dtype)


def test_jvp_of_torch_func():
    f, g = FUNCTIONS["product"][:2]
    arrays, tensors = both([(2, 3), (3, 4)], "float64")
    directions, their_directions = both([(2, 3), (3, 4)], "float64", seed=10)
    for result, wanted in zip(
        ng.jvp(f, arrays, directions), torch.func.jvp(g, tensors, their_directions), strict=True
    ):
        close(result, wanted, "float64")


def test_jacobian(function, dtype):
    ours, theirs, shapes = function
    arrays, tensors = both(shapes, dtype)
    argnums = tuple(range(len(shapes)))
    results = ng.jacobian(ours, argnums)(*arrays)
    for result, wanted in zip(results, torch.func.jacrev(theirs, argnums)(*tensors), strict=True):
        close(result, wanted, dtype)
    close(ng.jacobian(ours)(*arrays), torch.func.jacfwd(theirs)(*tensors), dtype)


def test_hessian(function, dtype):
    ours, theirs, shapes = function
    arrays, tensors = both(shapes, dtype)
    argnums = tuple(range(len(shapes)))
    f = lambda *args: (ours(*args) ** 2).sum()  # noqa: E731
    g = lambda *args: (theirs(*args) ** 2).sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(g, tensors)
    for row, their_row in zip(ng.hessian(f, argnums)(*arrays), expected, strict=True):
        for block, wanted in zip(row, their_row, strict=True):
            close(block, wanted, dtype)


def test_hessian_of_torch_func():
    arrays, tensors = both([(3, 4)], "float64")
    ours = ng.hessian(lambda x: (ng.softmax(x, axis=-1) ** 2).sum())(*arrays)
    close(
        ours, torch.func.hessian(lambda x: (torch.softmax(x, -1) ** 2).sum())(*tensors), "float64"
    )


def test_checkpoint(dtype):
    (x, w), (tx, tw) = both([(2, 3), (3, 3)], dtype)
    x.requires_grad = w.requires_grad = True
    tx.requires_grad_(), tw.requires_grad_()
    (ng.checkpoint(lambda x: ng.tanh(ng.tanh(x @ w) @ w))(x) ** 2).sum().backward()
    block = lambda x: torch.tanh(torch.tanh(x @ tw) @ tw)  # noqa: E731
    (checkpoint(block, tx, use_reentrant=False) ** 2).sum().backward()
    close(x.grad, tx.grad, dtype)
    close(w.grad, tw.grad, dtype)
