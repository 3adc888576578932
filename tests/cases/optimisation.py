"""The updates of one parameter by each optimiser."""

from __future__ import annotations

import numpy as np

from numbagrad.dispatch import apply, registry
from numbagrad.testing import Case

rng = np.random.default_rng(7)

LR = np.array(0.1, np.float32)
STEPS = np.array(3, np.int64)


def arrays(count: int, shape: tuple[int, ...] = (3, 7)) -> tuple[np.ndarray, ...]:
    return tuple(rng.normal(size=shape) for _ in range(count))


def sgd(weight_decay):
    return Case(
        f"sgd, weight_decay={weight_decay}",
        lambda p, g, lr: apply(registry["sgd_update"], p, g, lr, weight_decay=weight_decay),
        (*arrays(2), LR),
        lambda p, g, lr: p - lr * (g + weight_decay * p),
        grad=False,
        ops=("sgd_update",),
    )


def momentum(output, nesterov, shape=(3, 7)):
    params = {"weight_decay": 0.01, "momentum": 0.9, "nesterov": nesterov}

    def reference(p, g, velocity, lr):
        g = g + 0.01 * p
        v = 0.9 * velocity + g
        return (p - lr * (g + 0.9 * v if nesterov else v), v)[output]

    return Case(
        f"momentum, output {output}, nesterov={nesterov}, shape={shape}",
        lambda p, g, v, lr: apply(registry["momentum_update"], p, g, v, lr, **params)[output],
        (*arrays(3, shape), LR),
        reference,
        grad=False,
        ops=("momentum_update",),
    )


def adam(output, decoupled, beta1=0.9):
    params = {"beta1": beta1, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}
    params["decoupled"] = decoupled

    def reference(p, g, mean, square, lr, steps):
        if decoupled:
            p = p - lr * 0.1 * p
        else:
            g = g + 0.1 * p
        m = beta1 * mean + (1 - beta1) * g
        s = 0.99 * square + 0.01 * g * g
        m_hat, s_hat = m / (1 - beta1**steps), s / (1 - 0.99**steps)
        return (p - lr * m_hat / (np.sqrt(s_hat) + 1e-3), m, s)[output]

    p, g, mean, square = arrays(4)
    return Case(
        f"adam, output {output}, decoupled={decoupled}, beta1={beta1}",
        lambda *inputs: apply(registry["adam_update"], *inputs, **params)[output],
        (p, g, mean, square**2, LR, STEPS),
        reference,
        grad=False,
        ops=("adam_update",),
    )


CASES = [
    sgd(0.0),
    sgd(0.1),
    momentum(0, False),
    momentum(0, True),
    momentum(1, True),
    momentum(0, True, shape=()),
    momentum(0, True, shape=(0, 3)),
    adam(0, False),
    adam(0, True),
    adam(0, False, beta1=0.0),
    adam(1, False),
    adam(2, False),
    Case(
        "count",
        lambda steps: apply(registry["count"], steps),
        (STEPS,),
        lambda steps: steps + 1,
        grad=False,
        ops=("count",),
    ),
]
