"""Checks for ops, numbagrad's own and yours: values, gradients, shards, devices.

`check_grads` compares gradients with finite differences. `check_op` holds a function of arrays
against a NumPy reference and against everything else that an op here promises. `Case` is one
example written down, for test files that several devices share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config

from .array import FLOATS, Array, asarray
from .autodiff import vjp
from .compiler import compile, trace
from .dispatch import NO_ERROR, Op, Plan, Split, interpreter, plan_for, run_eagerly, shard_bounds

#: Relative and absolute tolerance against a float64 reference. The absolute one counts in units
#: of the largest value expected, or 1: sums that cancel are as exact as their largest addend.
TOLERANCES = {"float32": (1e-4, 1e-5), "float64": (1e-9, 1e-11)}


@dataclass(frozen=True)
class Case:
    """One example of a function on arrays, that every device and dtype is tried on.

    Attributes
    ----------
    name
        What a test report calls it.
    function
        Takes arrays made of `inputs`, returns one array.
    inputs
        NumPy arrays; float64 ones are cast to each dtype that is tried, others stay.
    reference
        The same in NumPy, computed in float64.
    grad
        Check gradients too.
    ops
        Ops that the case is there for: on the CPU it fails if it does not reach them. Another
        device may take another way.
    """

    name: str
    function: Callable[..., Array]
    inputs: tuple[np.ndarray, ...]
    reference: Callable[..., np.ndarray] | None = None
    grad: bool = True
    ops: tuple[str, ...] = ()


# ---------------------------------------------------------------- gradients


def check_grads(
    f: Callable[..., Array],
    *inputs: Any,
    order: int = 2,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    eps: float = 1e-5,
    seed: int = 0,
) -> None:
    """Compare gradients with finite differences, in float64 on the CPU.

    A whole Jacobian would take one evaluation for each element. A random projection takes two: for
    a random direction v and a random gradient u of the output, ``<u, J v>`` by central differences
    must equal ``<J^T u, v>``, where ``J^T u`` is what backward computes.

    Parameters
    ----------
    f
        A function from arrays to one float array.
    inputs
        Where to check; floats are taken as float64, and each of them is differentiated.
    order
        1 checks gradients, 2 also gradients of gradients, and so on.
    rtol, atol
        How far the two numbers may lie apart.
    eps
        Step of the finite difference.
    seed
        Which random directions.

    Raises
    ------
    AssertionError
        Naming the input and both numbers.

    Examples
    --------
    >>> check_grads(lambda x: x * x * x, [1.0, 2.0])
    """
    arrays = [asarray(_widened(x)) for x in inputs]
    names = [f"input {position}" for position in range(len(arrays))]
    rng = np.random.default_rng(seed)
    for level in range(1, order + 1):
        grad_out = _check_directions(f, arrays, names, level, rng, rtol, atol, eps)
        f, arrays = _gradient_function(f, arrays, grad_out, rng)
        names.append("the output's gradient")


def _check_directions(f, arrays, names, level, rng, rtol, atol, eps) -> Array:
    """Check the gradient of f for each float input; return the grad_out that was used."""
    floats = _float_positions(arrays)
    out, pullback = vjp(_of_floats(f, arrays), *(arrays[k] for k in floats))
    if out.dtype != np.float64:
        raise AssertionError(f"check_grads: the result of float64 inputs has dtype {out.dtype}")
    grad_out = _random_like(out, rng)
    for k, gradient in zip(floats, pullback(grad_out), strict=True):
        direction = rng.normal(size=arrays[k].shape)
        ahead, behind = (
            f(*(_moved(x, step * direction) if n == k else x for n, x in enumerate(arrays))).numpy()
            for step in (eps, -eps)
        )
        measured = np.vdot(grad_out.numpy(), (ahead - behind) / (2 * eps))
        computed = np.vdot(gradient.numpy(), direction)
        if not np.isclose(computed, measured, rtol=rtol, atol=atol):
            raise AssertionError(
                f"check_grads: the gradient of order {level} for {names[k]}, of shape "
                f"{arrays[k].shape}, is {computed:.10g} along a random direction; finite "
                f"differences give {measured:.10g}"
            )
    return grad_out


def _gradient_function(
    f: Callable[..., Array], arrays: list[Array], grad_out: Array, rng: np.random.Generator
) -> tuple[Callable[..., Array], list[Array]]:
    """Return a scalar function made of f's gradients, and its inputs: f's and grad_out.

    It is ``sum_i <gradient i, v_i>`` with random v_i, so its own gradient holds all the second
    derivatives of f.
    """
    floats = _float_positions(arrays)
    directions = [_random_like(arrays[k], rng) for k in floats]

    def slope(*inputs: Array) -> Array:
        *inputs, grad_out = inputs
        _, pullback = vjp(_of_floats(f, inputs), *(inputs[k] for k in floats))
        pairs = zip(pullback(grad_out), directions, strict=True)
        first, *rest = [(gradient * direction).sum() for gradient, direction in pairs]
        return sum(rest, start=first)

    return slope, [*arrays, grad_out]


def _float_positions(arrays: list[Array]) -> list[int]:
    return [k for k, x in enumerate(arrays) if x.dtype in FLOATS]


def _of_floats(f: Callable[..., Array], arrays: list[Array]) -> Callable[..., Array]:
    """Return f as a function of its float inputs, the others held as they are."""
    floats = _float_positions(arrays)

    def function(*chosen: Array) -> Array:
        given = dict(zip(floats, chosen, strict=True))
        return f(*(given.get(k, x) for k, x in enumerate(arrays)))

    return function


def _random_like(x: Array, rng: np.random.Generator) -> Array:
    return asarray(rng.normal(size=x.shape).astype(x.dtype), device=x.device)


def _moved(x: Array, step: np.ndarray) -> Array:
    return asarray(x.numpy() + step)


# ----------------------------------------------------------------- one op


def check_op(
    f: Callable[..., Array],
    *inputs: Any,
    reference: Callable[..., np.ndarray] | None = None,
    grad: bool = True,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    device: str = "cpu",
    rtol: float | None = None,
    atol: float | None = None,
    compiled: bool = bool(config.DISABLE_JIT),
) -> set[str]:
    """Hold a function of arrays against its reference and all that an op promises.

    For each dtype:

    * the value is that of the reference, and float32 stays float32;
    * a second run gives the same bits, gradients included; inputs are left as they were;
    * so does a trace of the function, replayed (on the CPU); compiled, it gives the same to
      tolerance (only with the JIT off, where that takes no time, unless ``compiled`` asks for it);
    * gradients and their gradients agree with finite differences (float64), with float64's
      (float32), or with the CPU's (on CUDA), and each is the same when asked for alone;
    * on the CPU, every kernel that ran is run again, whole and in shards along each axis that its
      op declares, on outputs and workspace full of garbage: same bits, and to tolerance for sums.

    Parameters
    ----------
    f
        A function from arrays to one array.
    inputs
        NumPy arrays or lists; float64 ones are cast to each dtype, others stay.
    reference
        The same function of NumPy arrays, in float64.
    grad
        Check the gradients of float inputs.
    dtypes
        Which float dtypes to try.
    device
        ``"cpu"`` or ``"cuda"``.
    rtol, atol
        Tolerances in place of those in `TOLERANCES`; `atol` counts in units of the largest value.
    compiled
        Compile the function too.

    Returns
    -------
    set of str
        The names of the ops that ran.

    Raises
    ------
    AssertionError
        Saying what differs from what.

    Examples
    --------
    >>> import numpy as np
    >>> sorted(check_op(lambda x: x + x, [1.0, 2.0], reference=lambda x: 2 * x))[:2]
    ['add', 'multiply']
    """
    reached: set[str] = set()
    if not any(np.asarray(x).dtype == np.float64 for x in inputs):
        dtypes = dtypes[:1]  # nothing to cast: one dtype is all there is
    with np.errstate(all="ignore"):
        for dtype in dtypes:
            hosts = cast_inputs(inputs, dtype)
            arrays = [asarray(x, device=device) for x in hosts]
            closeness = _closeness(dtype, rtol, atol)
            with interpreter(_witness(reached, closeness)):
                results = _on_host(value_and_gradients(f, arrays, grad))
            _check_value(hosts, results["the value"], reference, dtype, closeness)
            _check_repeatable(f, arrays, hosts, grad, results)
            if device == "cpu":
                _check_staged(f, arrays, grad, results)
                if compiled:
                    _check_compiled(f, arrays, grad, results, closeness)
            if grad and device != "cpu":
                _check_peer("the CPU's", f, hosts, results, closeness)
            elif grad:
                _check_alone(f, arrays, results, closeness)
                if dtype == "float32":
                    _check_peer("float64's", f, [_widened(x) for x in hosts], results, closeness)
                else:
                    check_grads(f, *hosts)
    return reached


def check_case(case: Case, device: str = "cpu") -> None:
    """Run `check_op` on a `Case`, and see that it reaches the ops that it names on the CPU."""
    reached = check_op(
        case.function, *case.inputs, reference=case.reference, grad=case.grad, device=device
    )
    missed = set(case.ops) - reached
    if missed and device == "cpu":
        raise AssertionError(f"{case.name} does not reach {', '.join(sorted(missed))}")


def cast_inputs(inputs: Iterable[Any], dtype: str) -> list[np.ndarray]:
    """Return inputs as NumPy arrays, the float64 ones cast to `dtype`."""
    hosts = [np.asarray(x) for x in inputs]
    return [x.astype(dtype) if x.dtype == np.float64 else x for x in hosts]


def value_and_gradients(
    f: Callable[..., Array], arrays: Sequence[Array], grad: bool = True
) -> dict[str, Array]:
    """Return the value and, on request, gradients of order 1 and 2 along fixed directions."""
    if not grad or not _float_positions(arrays):
        return {"the value": f(*arrays)}
    rng = np.random.default_rng(0)
    results = {}
    for order in (1, 2):
        floats = _float_positions(arrays)
        value, pullback = vjp(_of_floats(f, arrays), *(arrays[k] for k in floats))
        if value.dtype not in FLOATS:
            raise AssertionError(f"{value.dtype} results have no gradients: pass grad=False")
        results.setdefault("the value", value)
        grad_out = _random_like(value, rng)
        for k, gradient in zip(floats, pullback(grad_out), strict=True):
            results[f"the gradient of order {order} for input {k}"] = gradient
        f, arrays = _gradient_function(f, arrays, grad_out, rng)
    return results


def _on_host(results: dict[str, Array]) -> dict[str, np.ndarray]:
    return {name: result.numpy() for name, result in results.items()}


def _check_value(hosts, value, reference, dtype, closeness) -> None:
    if value.dtype.kind == "f" and any(x.dtype == dtype for x in hosts) and value.dtype != dtype:
        raise AssertionError(f"{dtype} inputs give a result of dtype {value.dtype}")
    if reference is not None:
        wanted = reference(*(_widened(x) for x in hosts))
        _require_close("the value", value, wanted, "the reference", closeness)


def _check_repeatable(f, arrays, hosts, grad, results) -> None:
    for name, again in _on_host(value_and_gradients(f, arrays, grad)).items():
        _require_same_bits(name, again, results[name], "the first run's")
    for k, (x, host) in enumerate(zip(arrays, hosts, strict=True)):
        _require_same_bits(f"input {k}", x.numpy(), host, "what it was before")


def _check_staged(f, arrays, grad, results) -> None:
    traced = trace(lambda *inputs: value_and_gradients(f, inputs, grad), *arrays)
    for name, replayed in _on_host(traced(*arrays)).items():
        _require_same_bits(f"{name}, traced and replayed,", replayed, results[name], "eager's")


def _check_compiled(f, arrays, grad, results, closeness) -> None:
    compiled = compile(lambda *inputs: value_and_gradients(f, inputs, grad))
    for name, result in _on_host(compiled(*arrays)).items():
        _require_close(f"{name}, compiled,", result, results[name], "eager", closeness)


def _check_peer(peer: str, f, hosts, results, closeness) -> None:
    """Compare gradients with those of another dtype or device."""
    expected = _on_host(value_and_gradients(f, [asarray(x) for x in hosts], True))
    for name, result in results.items():
        _require_close(name, result, expected[name], peer, closeness)


def _check_alone(f, arrays, results, closeness) -> None:
    """Ask for one gradient at a time: an op's vjp may skip the others."""
    for k in _float_positions(arrays):
        out, pullback = vjp(lambda x, k=k: f(*arrays[:k], x, *arrays[k + 1 :]), arrays[k])
        (gradient,) = pullback(_random_like(out, np.random.default_rng(0)))
        name = f"the gradient of order 1 for input {k}"
        _require_close(f"{name} alone", gradient.numpy(), results[name], "all's", closeness)


# ------------------------------------------------------------------ shards


def _witness(reached: set[str], closeness: tuple[float, float]) -> Callable:
    """Return an interpreter that runs ops, notes their names and tries their shards."""

    def run(op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets):
        reached.add(op.name)
        plan = plan_for(op, inputs, params)
        if plan.kernel is None or plan.call.device != "cpu":
            return run_eagerly(op, inputs, params, targets)
        before = [x._data.copy() for x in inputs]  # targets may be inputs too
        outputs = run_eagerly(op, inputs, params, targets)
        if targets is None:
            for k, (x, copy) in enumerate(zip(inputs, before, strict=True)):
                _require_same_bits(f"{op.name}: input {k}", x._data, copy, "what it was before")
        expected = [x._data for x in outputs]
        if op.check is not None and targets is None:
            expected.append(np.array([NO_ERROR]))  # or it would have raised
        summed = plan.shards.split.outputs if plan.shards else ()
        summed = [rows == "sum" for rows in summed] or [False] * len(expected)
        uncut = Split(1, (0,) * len(inputs), (0,) * len(plan.call.outputs))
        for split in (uncut, *(op.split(plan.call) if op.split else ())):
            for bounds in _ways_to_cut(split.size):
                _check_shards(op, plan, split, bounds, before, expected, summed, closeness)
        return outputs

    return run


def _ways_to_cut(size: int) -> Iterator[list[int]]:
    """Yield bounds of one shard, two, three, and of uneven ones."""
    for shards in range(1, min(3, size) + 1):
        yield shard_bounds(size, shards).tolist()
    if size > 2:
        yield [0, 1, size]


def _check_shards(op, plan: Plan, split, bounds, inputs, wholes, summed, closeness) -> None:
    """Run a call's kernel on shards; `summed` says which of `wholes` were themselves summed."""
    views = plan.views
    ins = [x.reshape(shape) for x, shape in zip(inputs, views.inputs, strict=True)]
    specs = zip(split.outputs, views.outputs, plan.call.outputs, strict=True)
    # An output that is cut is one array, a partial one has an array for each shard.
    shards = len(bounds) - 1
    outs = [
        _garbage((shards, *shape) if isinstance(rows, str) else shape, spec.dtype)
        for rows, shape, spec in specs
    ]
    for shard in reversed(range(shards)):  # so that one that writes past its end is seen
        lo, hi = bounds[shard : shard + 2]
        scalars = split.scalars(views.scalars, lo, hi) if split.scalars else views.scalars
        plan.kernel(
            *[x[lo * rows : hi * rows] if rows else x for x, rows in zip(ins, split.inputs)],
            *scalars,
            *[
                out[shard] if isinstance(rows, str) else out[lo * rows : hi * rows] if rows else out
                for out, rows in zip(outs, split.outputs)
            ],
            *[_garbage(shape, dtype) for shape, dtype in plan.workspace],
        )
    for k, (out, rows, whole) in enumerate(zip(outs, split.outputs, wholes)):
        name = f"{op.name}: output {k} in shards {bounds} of {split.size}"
        if rows == "sum" or summed[k]:
            out = out.sum(0) if rows == "sum" else out
            _require_close(name, out.reshape(whole.shape), whole, "the whole", closeness)
        else:
            out = getattr(np, rows)(out, axis=0) if isinstance(rows, str) else out
            _require_same_bits(name, out.reshape(whole.shape), whole, "the whole")


def _garbage(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array of what no kernel may rely on: NaN, or the largest integer."""
    worst = np.nan if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind in "iu" else True
    return np.full(shape, worst, dtype)


# -------------------------------------------------------------- comparisons


def _widened(x: Any) -> np.ndarray:
    host = np.asarray(x)
    return host.astype(np.float64) if host.dtype.kind == "f" else host


def _closeness(dtype: str, rtol: float | None, atol: float | None) -> tuple[float, float]:
    default = TOLERANCES[dtype]
    return default[0] if rtol is None else rtol, default[1] if atol is None else atol


def _require_close(name: str, result, expected, whose: str, closeness) -> None:
    """Compare values: floats to tolerance, others exactly."""
    expected = np.asarray(expected)
    if result.shape != expected.shape:
        raise AssertionError(f"{name} has shape {result.shape}, {whose} {expected.shape}")
    rtol, atol = closeness if result.dtype.kind == "f" else (0, 0)
    largest = np.max(np.abs(expected), where=np.isfinite(expected), initial=1)
    close = np.isclose(result, expected, rtol=rtol, atol=atol * largest, equal_nan=True)
    _require_all(name, close, result, expected, f"from {whose}")


def _require_same_bits(name: str, result, expected, whose: str) -> None:
    """Compare values to the last bit; any two NaN are the same."""
    same = (result == expected) & (np.signbit(result) == np.signbit(expected))
    same |= (result != result) & (expected != expected)
    _require_all(name, same, result, expected, f"to the bit from {whose}")


def _require_all(name: str, good, result, expected, whose: str) -> None:
    if not np.all(good):
        place = tuple(int(i) for i in np.argwhere(~good)[0])
        raise AssertionError(
            f"{name} differs {whose} in {np.sum(~good)} of {np.size(good)} elements, first "
            f"at {place}: {result[place]!r}, expected {expected[place]!r}"
        )
