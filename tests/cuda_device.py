"""What the tests in `tests/cuda/device` share: they run on a GPU, and on the simulated one.

The simulator computes as NumPy does, one operation at a time. A GPU contracts a product and a sum
to one rounding wherever the compiler sees both, so a fused kernel and the kernels that it stands
for may differ by rounding there.
"""

import os

import numpy as np

import numbagrad as ng

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

L = ng.layers


def on_gpu(values, dtype=np.float32):
    return ng.asarray(np.array(values, dtype), device="cuda")


def synchronize():
    """Wait for the device; raise what its kernels found wrong."""
    ng.device.backend("cuda").synchronize()


def require_same(result, expected, name=""):
    """Compare to the bit on the simulator, and to rounding on a GPU."""
    if SIMULATED:
        np.testing.assert_array_equal(result, expected, err_msg=name)
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5, err_msg=name)


# ------------------------------------------------------------------- networks


def perceptron():
    return L.Sequential(L.Linear(4, 5), L.GELU(), L.ReLU(), L.Linear(5, 3))


def convnet():
    return L.Sequential(
        L.Conv2d(1, 2, 3, padding=1, bias=False),  # BatchNorm would undo a bias
        L.BatchNorm2d(2),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Flatten(),
        L.Dropout(0.3),
        L.Linear(2, 3),
    )


def momentum(params):
    return ng.optim.SGD(params, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adam(params):
    return ng.optim.Adam(params, lr=0.01)


class Training:
    """A network, its optimiser and a step, which is compiled if asked for."""

    def __init__(self, network, optimizer, wrap=ng.compile, device="cuda"):
        ng.random.seed(3)
        self.device = device
        self.model = network().to(device)
        ng.random.seed(3)  # the weights were drawn on the CPU: dropout starts alike on both
        self.opt = opt = optimizer(self.model.parameters())
        model = self.model

        @wrap
        def step(x, labels):
            opt.zero_grad()
            loss = ng.softmax_cross_entropy(model(x), labels)
            loss.backward()
            opt.step()
            return loss

        self.step = step

    def batches(self, sizes, shape, classes=3):
        """Yield random images and labels, the same each time."""
        rng = np.random.default_rng(0)
        for size in sizes:
            images = rng.normal(size=(size, *shape)).astype(np.float32)
            labels = rng.integers(0, classes, size)
            yield ng.asarray(images, device=self.device), ng.asarray(labels, device=self.device)

    def run(self, sizes, shape, classes=3):
        """Return the losses, and all state and gradients, after a step for each batch size."""
        losses = []
        for number, batch in enumerate(self.batches(sizes, shape, classes)):
            if number == 1:
                self.opt.lr = self.opt.lr / 2
            losses.append(self.step(*batch).item())
        grads = {f"grad {k}": p.grad.numpy() for k, p in enumerate(self.model.parameters())}
        return losses, self.model.state_dict() | self.opt.state_dict() | grads


def eager(step):
    """Leave a step as it is: what `Training` takes in place of `ng.compile`."""
    return step
