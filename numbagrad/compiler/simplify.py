"""Clean a trace up: fold what is constant, compute nothing twice, nothing that nobody reads.

First, normalisation by running statistics goes into the weights of the convolution before it, and
ops that are made of simpler ones are written out as these, so that they can be fused. What changes
no value goes, too: ``x * 1``, ``-(-x)``. The rules hold for every ``x``, infinite and
undefined ones and the sign of zero included; so ``x + 0`` stays, which makes 0 of -0. Then work is
moved to where there is less of it: relu behind max pooling, sums before what spreads them out, and
a bias and relu into the product that they follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from .. import dispatch
from ..array import Array, Spec, State, Symbol
from ..dispatch import apply
from ..ops.convolution import conv2d
from ..ops.elementwise import sqrt
from ..ops.linalg import linear
from .trace import Equation, GradientOf, Operand, Trace, Variable, map_leaves
from .trace import trace as trace_of

FOLDED_BYTES = 2**16  # a folded constant takes no more
# Their third operand is a bias, and they can store max(out, 0).
PRODUCTS = {"matmul", "conv2d", "planar", "depthwise", "winograd"}
NEUTRAL = {"multiply": 1.0, "divide": 1.0, "subtract": 0.0, "pow": 1.0}  # as second operands


def simplify(trace: Trace) -> tuple[list[Equation], list[Array]]:
    """Return a trace's equations, cleaned up, and the arrays whose values went into them.

    Equations that write states all stay.
    """
    folded: list[Array] = []
    equations = _needed(trace, _distinct(trace, _written_out(trace), folded))
    equations = _relu_after_pooling(trace, _with_biases(trace, equations))
    equations = _with_relus(trace, equations)
    return _needed(trace, _summed_before_unpooling(equations)), folded


def _written_out(trace: Trace) -> list[Equation]:
    """Write out the ops that say how; on a GPU, where sums are not fused, kernels do less."""
    specs = dict(enumerate(trace.inputs))
    for equation in trace.equations:
        specs |= zip(equation.outputs, equation.specs, strict=True)
    numbers = count(max(specs, default=-1) + 1)
    products = _products_to_scale(trace, specs)
    result: list[Equation] = []
    for equation in trace.equations:
        if equation.specs[0].device != "cpu":
            result.append(equation)
        elif equation.outputs[0] in products:
            scaled = _scaled(products[equation.outputs[0]], equation)
            result += _inlined(scaled, equation, specs, numbers)
        elif equation.op.expand is not None:
            expand = partial(equation.op.expand, **equation.params)
            result += _inlined((expand, equation.inputs), equation, specs, numbers)
        else:
            result.append(equation)
    return result


def _spec_of(operand: Operand, specs: dict[int, Spec]) -> Spec:
    if isinstance(operand, Variable):
        return specs[operand.number]
    return operand.leaf.spec if isinstance(operand, GradientOf) else operand.spec


def _inlined(
    applied: tuple[Callable, tuple[Operand, ...]],
    equation: Equation,
    specs: dict[int, Spec],
    numbers: Iterator[int],
) -> Iterator[Equation]:
    """Yield the equations of a function of some operands, whose result is that of an equation.

    The values between them take new numbers.
    """
    function, inputs = applied
    inner = trace_of(function, *(Array(Symbol(0, ""), _spec_of(x, specs)) for x in inputs))
    known: dict[int, Operand] = dict(enumerate(inputs))
    for part in inner.equations:
        for number in part.outputs:
            is_result = number == inner.result.number
            known[number] = Variable(equation.outputs[0] if is_result else next(numbers))
        yield replace(
            part,
            inputs=tuple(known[x.number] if isinstance(x, Variable) else x for x in part.inputs),
            outputs=tuple(known[number].number for number in part.outputs),
            part_of=equation.op.name,
        )


def _products_to_scale(trace: Trace, specs: dict[int, Spec]) -> dict[int, Equation]:
    """Return by the results of normalisations the products whose weights they may scale.

    That is in evaluation, where nobody changes the weights and reads the product itself.
    """
    kept, readers = _returned(trace), _readers(trace.equations)
    changing = {id(target) for equation in trace.equations for target in equation.targets or ()}
    made = {equation.outputs[0]: equation for equation in trace.equations}

    def is_settled(operand: Operand) -> bool:
        return isinstance(operand, Array) and id(operand) not in changing

    found = {}
    for equation in trace.equations:
        if equation.op.name != "batch_norm" or equation.params["training"]:
            continue
        x, *statistics = equation.inputs
        product = made.get(_number(x))
        if product is None or product.op.name not in PRODUCTS:
            continue
        is_alone = len(readers[x.number]) == 1 and x.number not in kept
        has_columns = product.op.name != "matmul" or _is_linear(product, specs)
        if is_alone and has_columns and all(map(is_settled, (*product.inputs[1:3], *statistics))):
            found[equation.outputs[0]] = product
    return found


def _is_linear(product: Equation, specs: dict[int, Spec]) -> bool:
    """Return whether a product is one with a matrix, neither operand transposed."""
    is_turned = product.params["transpose_a"] or product.params["transpose_b"]
    return not is_turned and _spec_of(product.inputs[1], specs).ndim == 2


def _scaled(product: Equation, norm: Equation) -> tuple[Callable, tuple[Operand, ...]]:
    """Return a product and its normalisation as a function, and the operands of it.

    ``((x * w + b) - mean) * scale + shift`` is ``x * (w * scale) + ((b - mean) * scale + shift)``.
    """
    window = {name: value for name, value in product.params.items() if name != "relu"}

    def function(x, weight, bias, gamma, beta, mean, var):
        scale = gamma / sqrt(var + norm.params["eps"])
        shift = beta - mean * scale
        bias = bias * scale + shift if bias.size else shift
        if product.op.name == "matmul":
            return linear(x, weight * scale, bias)
        return conv2d(x, weight * scale, bias, **window)

    return function, (*product.inputs[:3], *norm.inputs[1:])


def _distinct(trace: Trace, equations: list[Equation], folded: list[Array]) -> list[Equation]:
    """Fold constants, and let equal equations share one result.

    Values stay under the number of the first equation that computes them; `trace.result` and
    `trace.gradients` are renamed with the equations.
    """
    same: dict[int, Operand] = {}  # a value's number -> what stands for it
    versions: dict[int, int] = {}  # how often a state has been written
    known: dict[Any, tuple[int, ...]] = {}
    made: dict[int, tuple[Equation, Spec]] = {}  # a value's number: where it comes from
    kept: list[Equation] = []

    def standing(operand: Operand) -> Operand:
        if isinstance(operand, Variable):
            return same.get(operand.number, operand)
        return operand

    for equation in equations:
        inputs = tuple(map(standing, equation.inputs))
        equation = replace(equation, inputs=inputs)
        if equation.targets is not None:
            for target in equation.targets:
                versions[id(target)] = versions.get(id(target), 0) + 1
            kept.append(equation)
            continue
        if _is_constant(equation):
            folded += inputs
            for number, array in zip(equation.outputs, _evaluated(equation), strict=True):
                same[number] = array
            continue
        number = _repeated(equation, made, folded)
        if number is not None and made[number][1] == equation.specs[0]:
            same[equation.outputs[0]] = Variable(number)
            continue
        key = _key(equation, versions)
        if key in known:
            for number, first in zip(equation.outputs, known[key], strict=True):
                same[number] = Variable(first)
            continue
        known[key] = equation.outputs
        for number, spec in zip(equation.outputs, equation.specs, strict=True):
            made[number] = equation, spec
        kept.append(equation)
    trace.result = map_leaves(trace.result, standing)
    trace.gradients = [(leaf, v and standing(v)) for leaf, v in trace.gradients]
    return kept


def _is_constant(equation: Equation) -> bool:
    """Return whether an equation's result can be known now: it is made of numbers."""
    nbytes = sum(spec.size * spec.dtype.itemsize for spec in equation.specs)
    return nbytes <= FOLDED_BYTES and all(
        isinstance(x, Array) and not isinstance(x, State) and x.size <= 1 for x in equation.inputs
    )


def _evaluated(equation: Equation) -> tuple[Array, ...]:
    before, dispatch.state.recording = dispatch.state.recording, False
    try:
        out = apply(equation.op, *equation.inputs, **equation.params)
    finally:
        dispatch.state.recording = before
    return out if isinstance(out, tuple) else (out,)


def _repeated(
    equation: Equation, made: dict[int, tuple[Equation, Spec]], folded: list[Array]
) -> int | None:
    """Return the value that an equation repeats, if there is one, by its number.

    Only what another equation computes: an argument's result is another array than the argument.
    """
    name, inputs = equation.op.name, equation.inputs
    operand: Operand | None = None
    if name in NEUTRAL:
        x, y = inputs
        if name == "multiply" and _is_number(x, NEUTRAL[name]):
            x, y = y, x
        if _is_number(y, NEUTRAL[name]):
            operand = x
            folded.append(y)
    elif name in ("maximum", "minimum", "where") and _number(inputs[-1]) == _number(inputs[-2]):
        operand = inputs[-1]
    elif name == "negative" and _number(inputs[0]) in made:
        before, _ = made[_number(inputs[0])]
        operand = before.inputs[0] if before.op is equation.op else None
    elif name == "rows" and _number(inputs[0]) in made:
        start, stop = equation.params["start"], equation.params["stop"]
        operand = _joined(made[_number(inputs[0])][0], made, start, stop)
    number = _number(operand)
    return number if number in made else None


def _joined(before: Equation, made: dict, start: int, stop: int) -> Operand | None:
    """Return which of two arrays that were joined takes just these rows, if one does."""
    if before.op.name != "concat" or before.params["axis"] != 0:
        return None
    first, second = before.inputs
    if _number(first) not in made:
        return None
    between, end = made[_number(first)][1].shape[0], before.specs[0].shape[0]
    return {(0, between): first, (between, end): second}.get((start, stop))


def _number(operand: Operand | None) -> int | None:
    return operand.number if isinstance(operand, Variable) else None


def _is_number(x: Operand, value: float) -> bool:
    """Return whether an operand is this number, and will be at every call."""
    if not isinstance(x, Array) or isinstance(x, State) or x.size != 1:
        return False
    number = float(x.numpy().item())
    return number == value and math.copysign(1.0, number) == 1.0


def _key(equation: Equation, versions: dict[int, int]) -> tuple:
    """Return what two equations with one result have in common."""
    inputs = tuple(
        x.number if isinstance(x, Variable) else (id(x), versions.get(id(x), 0))
        for x in equation.inputs
    )
    params = tuple((name, type(value), repr(value)) for name, value in equation.params.items())
    return equation.op, inputs, params


def _with_biases(trace: Trace, equations: list[Equation]) -> list[Equation]:
    """Let products and convolutions start from the bias that else would be added to them."""
    specs = dict(enumerate(trace.inputs))
    kept, readers = _returned(trace), _readers(equations)
    products: dict[int, Equation] = {}  # by their results: those that may move to where one is read
    result: dict[int, Equation] = {}  # by their first outputs
    for equation in equations:
        number, spec = equation.outputs[0], equation.specs[0]
        specs |= zip(equation.outputs, equation.specs, strict=True)
        if equation.targets is not None:
            products.clear()  # they may read the state that is written here
        elif equation.op.name in PRODUCTS and not _spec_of(equation.inputs[2], specs).size:
            if len(readers.get(number, ())) == 1 and number not in kept:
                products[number] = equation
        elif equation.op.name == "add":
            row = spec._replace(shape=spec.shape[-1:])
            for x, bias in (equation.inputs, equation.inputs[::-1]):
                product = products.get(_number(x))
                if product and product.specs[0] == spec and _spec_of(bias, specs) == row:
                    a, b, _, *others = product.inputs
                    equation = replace(product, inputs=(a, b, bias, *others), outputs=(number,))
                    del result[x.number]
                    break
        result[number] = equation
    return list(result.values())


def _with_relus(trace: Trace, equations: list[Equation]) -> list[Equation]:
    """Let products and convolutions store max(out, 0), where that alone is read."""
    kept, readers = _returned(trace), _readers(equations)
    gone: set[int] = set()
    result = []
    for equation in equations:
        number = equation.outputs[0]
        if number in gone:
            continue
        if equation.op.name in PRODUCTS and number not in kept:
            (reader, *others) = readers[number]
            if reader.op.name == "relu" and not others:
                params = {**equation.params, "relu": True}
                equation = replace(equation, params=params, outputs=reader.outputs)
                gone.update(reader.outputs)
        result.append(equation)
    return result


def _readers(equations: list[Equation]) -> dict[int, list[Equation]]:
    """Return by a value's number the equations that read it, each once."""
    readers: dict[int, list[Equation]] = {}
    for equation in equations:
        for number in {x.number for x in equation.inputs if isinstance(x, Variable)}:
            readers.setdefault(number, []).append(equation)
    return readers


def _relu_after_pooling(trace: Trace, equations: list[Equation]) -> list[Equation]:
    """Apply relu to what max pooling picks, rather than to all that it picks from.

    relu keeps elements in order, so the largest one's relu is the largest relu; the same in the
    gradient, which relu's slope then multiplies before it is spread out. Only the places within
    windows without a positive element may be others, so nothing else may read them.
    """
    kept, readers = _returned(trace), _readers(equations)
    made = [number for equation in equations for number in equation.outputs]
    numbers = count(max([len(trace.inputs), *made]) + 1)
    changed: dict[int, list[Equation]] = {}  # by an equation's first output: what takes its place
    for relu in equations:
        found = _pooling_of(relu, readers, kept) if relu.op.name == "relu" else None
        if found is None:
            continue
        pool, backwards = found
        out, index = pool.outputs
        picked = next(numbers)
        changed[out] = []
        changed[relu.outputs[0]] = [
            replace(pool, inputs=relu.inputs, outputs=(picked, index)),
            replace(relu, inputs=(Variable(picked),), outputs=(out,), specs=pool.specs[:1]),
        ]
        for backward, slope in backwards:
            grad_out, masked = backward.inputs[0], next(numbers)
            changed[slope.outputs[0]] = []
            changed[backward.outputs[0]] = [
                replace(slope, inputs=(Variable(out), grad_out), outputs=(masked,),
                        specs=pool.specs[:1]),
                replace(backward, inputs=(Variable(masked), Variable(index)),
                        outputs=slope.outputs),
            ]  # fmt: skip
    return [new for each in equations for new in changed.get(each.outputs[0], [each])]


def _pooling_of(
    relu: Equation, readers: dict[int, list[Equation]], kept: set[int]
) -> tuple[Equation, list[tuple[Equation, Equation]]] | None:
    """Return the max pooling that alone reads a relu, and the equations of both their gradients.

    Each gradient is that of the pooling and that of relu, one after the other.
    """
    (number,) = relu.outputs
    others = readers.get(number, ())
    pools = [equation for equation in others if equation.op.name == "max_pool2d"]
    if len(pools) != 1:
        return None
    _, index = pools[0].outputs
    backwards: list[tuple[Equation, Equation]] = []
    for backward in readers.get(index, ()):
        slopes = readers.get(backward.outputs[0], ())
        if backward.op.name != "max_pool2d_backward" or len(slopes) != 1:
            return None
        (slope,) = slopes
        if slope.op.name != "relu_backward" or _number(slope.inputs[0]) != number:
            return None
        backwards.append((backward, slope))
    hidden = {number, index, *(backward.outputs[0] for backward, _ in backwards)}
    is_alone = len(others) == 1 + len(backwards) and not hidden & kept
    return (pools[0], backwards) if is_alone else None


def _summed_before_unpooling(equations: list[Equation]) -> list[Equation]:
    """Sum the gradients that max pooling spreads over images before it does; each has one place."""
    unpooled: dict[int, Operand] = {}  # a gradient spread out: as it was
    result = []
    for equation in equations:
        if equation.op.name == "max_pool2d_backward":
            unpooled[equation.outputs[0]] = equation.inputs[0]
        elif equation.op.name == "sum":
            grad = unpooled.get(_number(equation.inputs[0]))
            whole_images = equation.params["first"] <= 1 and equation.params["stop"] >= 3
            if isinstance(grad, Variable) and whole_images:
                equation = replace(equation, inputs=(grad,))
        result.append(equation)
    return result


def _returned(trace: Trace) -> set[int]:
    """Return the values that the caller gets, by their numbers."""
    operands = [value for _, value in trace.gradients]
    map_leaves(trace.result, operands.append)
    return {operand.number for operand in operands if isinstance(operand, Variable)}


def _needed(trace: Trace, equations: list[Equation]) -> list[Equation]:
    """Drop what no result, gradient or state depends on."""
    wanted = _returned(trace)
    kept = []
    for equation in reversed(equations):
        if equation.targets is None and not wanted.intersection(equation.outputs):
            continue
        kept.append(equation)
        wanted |= {x.number for x in equation.inputs if isinstance(x, Variable)}
    return kept[::-1]


__all__ = ["simplify"]
