"""The same numbers as PyTorch: values and gradients of the neural-network ops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import numbagrad as ng

TOLERANCE = {"float32": 2e-5, "float64": 1e-11}


def nchw(x):
    """NHWC to NCHW."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def oihw(weight):
    """HWIO to OIHW."""
    return torch.from_numpy(np.ascontiguousarray(weight.transpose(3, 2, 0, 1)))


def compare(ours, theirs, inputs, leaves, to_theirs, to_ours, dtype):
    """Hold our value and gradients against PyTorch's, with the same gradient fed back."""
    arrays = [ng.asarray(x.astype(dtype), requires_grad=True) for x in inputs]
    tensors = [
        turn(x.astype(dtype)).requires_grad_() for turn, x in zip(to_theirs, inputs, strict=True)
    ]
    out, expected = ours(*arrays), theirs(*tensors)
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        out.numpy(), to_ours(expected.detach().numpy()), rtol=tolerance, atol=tolerance
    )
    grad = np.random.default_rng(7).normal(size=out.shape).astype(dtype)
    out.backward(ng.asarray(grad))
    turned = torch.from_numpy(np.array(leaves(grad), order="C"))
    expected.backward(turned)
    for array, tensor, turn in zip(arrays, tensors, to_theirs, strict=True):
        wanted = tensor.grad.numpy()
        back = {nchw: (0, 2, 3, 1), oihw: (2, 3, 1, 0)}.get(turn)
        wanted = wanted.transpose(back) if back else wanted
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(
            array.grad.numpy(), wanted, rtol=tolerance, atol=tolerance * scale
        )


def to_nchw(x):
    return x.transpose(0, 3, 1, 2)


def to_nhwc(x):
    return x.transpose(0, 2, 3, 1)


def same(x):
    return x


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("c", "k", "size", "filter_size", "options"),
    [
        (1, 6, (8, 8), (5, 5), {"padding": 2}),
        (6, 16, (14, 14), (5, 5), {}),
        (3, 33, (9, 7), (3, 3), {"stride": 2, "padding": 1}),
        (4, 8, (9, 9), (3, 2), {"stride": (1, 2), "padding": (2, 1)}),
        (4, 6, (10, 11), (3, 3), {"dilation": 2}),
        (4, 6, (10, 11), (3, 3), {"dilation": (1, 3), "padding": (0, 3), "stride": 2}),
        (4, 8, (6, 6), (3, 3), {"groups": 2, "padding": 1}),
        (5, 5, (6, 6), (3, 3), {"groups": 5, "padding": 1, "stride": 2}),
        (17, 40, (5, 5), (1, 1), {}),
    ],
)
def test_conv2d(c, k, size, filter_size, options, dtype):
    x = normal(3, *size, c)
    weight = normal(*filter_size, c // options.get("groups", 1), k)
    bias = normal(k)
    compare(
        lambda x, w, b: ng.conv2d(x, w, b, **options),
        lambda x, w, b: F.conv2d(x, w, b, **options),
        (x, weight, bias),
        to_nchw,
        (nchw, oihw, torch.from_numpy),
        to_nhwc,
        dtype,
    )


@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"stride": 3}])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling(kind, options):
    ours = ng.max_pool2d if kind == "max" else ng.avg_pool2d
    theirs = F.max_pool2d if kind == "max" else F.avg_pool2d
    compare(
        lambda x: ours(x, 2, **options),
        lambda x: theirs(x, 2, **options),
        (normal(2, 7, 6, 5),),
        to_nchw,
        (nchw,),
        to_nhwc,
        "float32",
    )


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training):
    mean, var = normal(5), np.abs(normal(5, seed=1)) + 0.5
    layer = ng.layers.BatchNorm2d(5, momentum=0.2)
    layer.load_state_dict(
        {**layer.state_dict(), "running_mean": np.float32(mean), "running_var": np.float32(var)}
    )
    running = [torch.from_numpy(np.float32(value)) for value in (mean, var)]
    compare(
        lambda x, w, b: ng.batch_norm(
            x,
            w,
            b,
            layer.running_mean,
            layer.running_var,
            training=training,
            momentum=0.2,
            eps=1e-5,
        ),
        lambda x, w, b: F.batch_norm(x, *running, w, b, training, 0.2, 1e-5),
        (normal(4, 3, 3, 5) * 2 + 1, normal(5, seed=2), normal(5, seed=3)),
        to_nchw,
        (nchw, torch.from_numpy, torch.from_numpy),
        to_nhwc,
        "float32",
    )
    for ours, theirs in zip((layer.running_mean, layer.running_var), running, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_softmax_cross_entropy(reduction, label_smoothing):
    labels = np.random.default_rng(0).integers(0, 7, 5)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    compare(
        lambda x: ng.softmax_cross_entropy(x, ng.asarray(labels), **options),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels), **options),
        (normal(5, 7) * 3,),
        same,
        (torch.from_numpy,),
        same,
        "float32",
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ng.gelu, F.gelu),
        (ng.sigmoid, torch.sigmoid),
        (ng.tanh, torch.tanh),
        (lambda x: ng.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
        (lambda x: ng.softmax(x, axis=1), lambda x: F.softmax(x, 1)),
        (lambda x: ng.log_softmax(x, axis=0), lambda x: F.log_softmax(x, 0)),
        (lambda x: x.max(axis=1), lambda x: x.amax(1)),
    ],
    ids=["gelu", "sigmoid", "tanh", "leaky_relu", "softmax", "log_softmax", "max"],
)
def test_activations(ours, theirs):
    compare(ours, theirs, (normal(5, 9) * 3,), same, (torch.from_numpy,), same, "float32")


def test_embedding():
    indices = np.array([[1, 4, 1], [0, 1, 3]])
    compare(
        lambda w: ng.embedding(w, ng.asarray(indices)),
        lambda w: F.embedding(torch.from_numpy(indices), w),
        (normal(6, 4),),
        same,
        (torch.from_numpy,),
        same,
        "float64",
    )
