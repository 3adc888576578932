"""Elementwise ops: every op, every way to broadcast, special values, integers and booleans."""

import operator

import numpy as np

import numbagrad as ng
from numbagrad.formulas import reference as formulas
from numbagrad.testing import Case

rng = np.random.default_rng(1)

SPECIAL = np.array([-np.inf, -2.5, -1.0, -0.0, 0.0, 1.0, 2.5, np.inf, np.nan])
ONE, OTHER = (side.ravel() for side in np.meshgrid(SPECIAL, SPECIAL))
INTEGERS = np.array([-7, -1, 0, 2, 7])


def normal(*shape):
    return rng.normal(size=shape)


def positive(*shape):
    return rng.uniform(0.5, 2.0, size=shape)


# Shapes of two operands: what broadcasts is never, all, the leading, the trailing, the middle, ...
SHAPES = [
    ((3, 5), (3, 5)),
    ((), (2, 3)),
    ((1,), (5,)),
    ((5,), (3, 1, 5)),
    ((3, 1), (3, 5)),
    ((2, 1, 3), (2, 2, 3)),
    ((2, 1, 3, 1), (1, 2, 1, 3)),
    ((1, 17), (2, 1)),
    ((), ()),
    ((0, 3), (1, 3)),
]

BROADCAST = [
    Case(f"multiply {a} {b}", operator.mul, (normal(*a), normal(*b)), np.multiply)
    for a, b in SHAPES
]

BINARY = [
    Case("add", ng.add, (normal(3, 5), normal(5)), np.add, ops=("add",)),
    Case("subtract", ng.subtract, (normal(5), normal(3, 5)), np.subtract, ops=("subtract",)),
    Case("divide", ng.divide, (normal(3, 5), positive(3, 1)), np.divide, ops=("divide",)),
    Case("maximum", ng.maximum, (normal(3, 5), normal(5)), np.maximum, ops=("maximum",)),
    Case("minimum", ng.minimum, (normal(3, 5), normal(3, 1)), np.minimum, ops=("minimum",)),
    Case("pow", ng.pow, (positive(3, 5), normal(5)), np.power, ops=("pow",)),
    Case("pow, square", lambda x: x**2, (normal(5),), np.square),
    Case("pow, cube", lambda x: x**3, (np.array([-1.5, -0.5, 0.7, 2.0]),), lambda x: x**3),
    Case("pow of zero", lambda x: x**3, (np.zeros(2),), lambda x: x**3, grad=False),
    Case("number minus array", lambda x: 2.5 - x, (normal(5),), lambda x: 2.5 - x),
    Case("number over array", lambda x: 2 / x, (positive(5),), lambda x: 2 / x),
    *[
        Case(f"{name}, special values", getattr(ng, name), (ONE, OTHER), function, grad=False)
        for name, function in [
            ("add", np.add),
            ("divide", np.divide),
            ("maximum", np.maximum),
            ("minimum", np.minimum),
            ("pow", np.power),
        ]
    ],
    *[
        Case(f"{name}, integers", getattr(ng, name), (INTEGERS[:, None], INTEGERS), function)
        for name, function in [
            ("add", np.add),
            ("subtract", np.subtract),
            ("multiply", np.multiply),
            ("maximum", np.maximum),
            ("minimum", np.minimum),
        ]
    ],
    Case("divide, integers", ng.divide, (INTEGERS, np.array([3])), np.divide),
    Case("pow, integers squared", lambda x: x**2, (INTEGERS,), np.square),
    Case("integer beside float", operator.mul, (INTEGERS, normal(5)), np.multiply),
]

COMPARISONS = [
    *[
        Case(name, getattr(ng, name), (ONE, OTHER), getattr(np, name), grad=False, ops=(name,))
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    ],
    Case("less, integers", ng.less, (INTEGERS[:, None], INTEGERS), np.less),
    Case("equal, booleans", ng.equal, (INTEGERS > 0, INTEGERS[:, None] < 2), np.equal),
]

BOOLEANS = np.array([False, True])

LOGIC = [
    *[
        Case(name, getattr(ng, name), (BOOLEANS[:, None], BOOLEANS), getattr(np, name), ops=(name,))
        for name in ("logical_and", "logical_or", "logical_xor")
    ],
    Case("logical_not", ng.logical_not, (BOOLEANS,), np.logical_not, ops=("logical_not",)),
    Case(
        "logical operators",
        lambda x, y: ~(x & y) ^ (x | y),
        (rng.random((3, 5)) < 0.5, rng.random(5) < 0.5),
        lambda x, y: ~(x & y) ^ (x | y),
    ),
]

MASK = rng.random((3, 5)) < 0.5

CHOOSING = [
    Case("where", ng.where, (MASK, normal(3, 5), normal(3, 5)), np.where, ops=("where",)),
    Case("where, rows", ng.where, (MASK[:, :1], normal(3, 5), normal(5)), np.where),
    Case("where, columns", ng.where, (MASK[0], normal(3, 1), normal(3, 5)), np.where),
    Case("where, one condition", ng.where, (np.array(True), normal(5), normal(5)), np.where),
    Case(
        "where, number",
        lambda c, x: ng.where(c, x, 0.0),
        (MASK, normal(3, 5)),
        lambda c, x: np.where(c, x, 0),
    ),
    Case("where, integers", ng.where, (INTEGERS > 0, INTEGERS, -INTEGERS), np.where),
    Case(
        "broadcast_to",
        lambda x: ng.broadcast_to(x, (2, 3, 5)),
        (normal(3, 1),),
        lambda x: np.broadcast_to(x, (2, 3, 5)),
        ops=("broadcast_to",),
    ),
    Case("copy", ng.copy, (normal(3, 5),), np.copy, ops=("copy",)),
    Case("copy, nothing", ng.copy, (normal(0),), np.copy),
    Case(
        "astype, integers to float",
        lambda n: ng.astype(n, "float32"),
        (INTEGERS,),
        lambda n: n,
        ops=("cast",),
    ),
    Case("astype, booleans to integers", lambda x: ng.astype(x, "int64"), (MASK,), np.int64),
    Case(
        "astype, float to integers",
        lambda x: ng.astype(x, "int32"),
        (np.array([-2.7, -0.5, 0.5, 2.7]),),
        np.int32,
        grad=False,
    ),
    Case(
        "astype, there and back",
        lambda x: ng.astype(ng.astype(x, "float64") * 3.0, x.dtype),
        (normal(5),),
        lambda x: x * 3,
    ),
]

UNARY = [
    Case("negative", ng.negative, (normal(3, 5),), np.negative, ops=("negative",)),
    Case("negative, integers", ng.negative, (INTEGERS,), np.negative),
    Case("abs", ng.abs, (normal(3, 5),), np.abs, ops=("abs",)),
    Case("abs, integers", ng.abs, (INTEGERS,), np.abs),
    Case("exp", ng.exp, (normal(3, 6),), np.exp, ops=("exp",)),
    Case("exp, one number", ng.exp, (normal(),), np.exp),
    Case("exp, nothing", ng.exp, (normal(0, 3),), np.exp),
    Case("log", ng.log, (positive(17),), np.log, ops=("log",)),
    Case("sqrt", ng.sqrt, (positive(3, 5),), np.sqrt, ops=("sqrt",)),
    Case("tanh", ng.tanh, (normal(3, 5),), np.tanh, ops=("tanh", "tanh_backward")),
    Case("erf", ng.erf, (normal(3, 5),), formulas.error_function, ops=("erf",)),
    Case(
        "sigmoid",
        ng.sigmoid,
        (normal(3, 5),),
        formulas.sigmoid,
        ops=("sigmoid", "sigmoid_backward"),
    ),
    Case("relu", ng.relu, (normal(3, 5),), formulas.relu, ops=("relu", "relu_backward")),
    Case(
        "leaky_relu",
        lambda x: ng.leaky_relu(x, 0.1),
        (normal(3, 5),),
        lambda x: formulas.leaky_relu(x, 0.1),
        ops=("leaky_relu", "leaky_relu_backward"),
    ),
    Case("gelu", ng.gelu, (normal(3, 5),), formulas.gelu, ops=("gelu", "gelu_backward")),
    *[
        Case(f"{name}, special values", getattr(ng, name), (SPECIAL,), function, grad=False)
        for name, function in [
            ("exp", np.exp),
            ("log", np.log),
            ("sqrt", np.sqrt),
            ("tanh", np.tanh),
            ("erf", formulas.error_function),
            ("sigmoid", formulas.sigmoid),
            ("relu", formulas.relu),
        ]
    ],
]

CASES = BROADCAST + BINARY + COMPARISONS + LOGIC + CHOOSING + UNARY
