"""SIMD vectors and the register tile, for use inside ``@njit`` kernels.

A processor core adds 4, 8 or 16 floats with one instruction, if it is told to. This module tells
it so in plain sight: ``load`` takes a vector of neighbouring elements, operators work on all its
lanes at once, ``store`` puts it back::

    @njit
    def axpy(a, x, y, out):
        for i in range(0, x.size, simd.lanes(x)):
            n = x.size - i
            simd.store(out, i, a * simd.load(x, i, n) + simd.load(y, i, n), n)

Where a formula is a long chain of steps that wait for each other, `load_wide` takes several vectors
side by side, and the processor has something to do meanwhile.

``i`` counts elements from the start of the (contiguous) array, whatever its number of dimensions.
With ``n``, at most the first ``n`` lanes touch memory: tails are masked, never read out of bounds.
How many lanes there are follows the processor that Numba compiles for. Integers and booleans
have one lane, a plain scalar, so a kernel text serves them too.

A branch would take all lanes with it: compare, and choose with ``where``. `bits` opens the floats
up to integer arithmetic, which is how ``formulas.py`` makes ``exp`` and its like.

**The register tile.** Matrix products and convolutions are one loop: ``acc[i, j] += a[i] * b[j]``.
Done naively each multiply-add waits for two loads. A tile keeps ``rows`` x ``columns`` vectors of
``acc`` in registers: each step loads ``rows`` scalars of ``a`` and ``columns`` vectors of ``b`` and
does ``rows * columns`` multiply-adds. These must be independent, many enough to hide their latency
(4 cycles, two a cycle: at least 8), and fit the registers beside the few that hold ``a`` and ``b``.
AVX2 has 16 registers: 6 x 2 and 3 fit. AVX-512 has 32: 6 x 4 and 5 fit, and a seventh of the time
is saved over 8 x 2, which loads more for each multiply-add. Narrower tiles have up to 8 rows: a row
also wants one of the 16 general registers for its place in memory, since rows may lie anywhere.
Other processors get a cautious 4 x 2.

With ``NUMBA_DISABLE_JIT=1`` every function here is plain NumPy on rows: kernels can be stepped
through in a debugger.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from . import formulas, jit

__numba_extension__ = True  # how a call lowers is part of a kernel's cache key

_features = jit.cpu_features()
VECTOR_BYTES = 64 if "avx512f" in _features else 32 if "avx2" in _features else 16
# Of the widest tile, and of narrower ones, 1 or 2 vectors wide.
TILE_COLUMNS = 4 if VECTOR_BYTES == 64 else 2
TILE_ROWS = 4 if VECTOR_BYTES == 16 else 6
NARROW_ROWS = 8 if VECTOR_BYTES == 64 else TILE_ROWS
WIDE = 4  # registers that a wide vector takes


def _lane_count(dtype: types.Type) -> int:
    """Lanes of a vector of this element type: integers and booleans are scalars."""
    return VECTOR_BYTES * 8 // dtype.bitwidth if isinstance(dtype, types.Float) else 1


# ------------------------------------------------------------------ the types


class Vector(types.Type):
    """``count`` lanes of one float dtype, held in a register; a wide one in several."""

    def __init__(self, dtype: types.Float, registers: int = 1):
        self.dtype, self.count = dtype, _lane_count(dtype) * registers
        super().__init__(f"Vector({dtype} x {self.count})")


class Mask(types.Type):
    """One truth value a lane, the result of comparing vectors."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(f"Mask({count})")


class Bits(types.Type):
    """The bits of a vector, as one signed integer of the same width a lane."""

    def __init__(self, vector: Vector):
        self.vector, self.count = vector, vector.count
        super().__init__(f"Bits({vector.dtype} x {vector.count})")


class Tile(types.Type):
    """``rows`` x ``columns`` vectors that stay in registers."""

    def __init__(self, dtype: types.Float, rows: int, columns: int):
        self.vector, self.rows, self.columns = Vector(dtype), rows, columns
        super().__init__(f"Tile({dtype}, {rows} x {columns})")


def _llvm_vector(vector: Vector) -> ir.VectorType:
    scalar = ir.FloatType() if vector.dtype.bitwidth == 32 else ir.DoubleType()
    return ir.VectorType(scalar, vector.count)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _llvm_vector(kind))


@register_model(Bits)
class _BitsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        integer = ir.IntType(kind.vector.dtype.bitwidth)
        super().__init__(manager, kind, ir.VectorType(integer, kind.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), kind.count))


class Rows(types.Type):
    """Where each row of a tile begins in an array: ``count`` places, in registers too."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(f"Rows({count})")


@register_model(Rows)
class _RowsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.ArrayType(ir.IntType(64), kind.count))


@register_model(Tile)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        lanes = _llvm_vector(kind.vector)
        super().__init__(manager, kind, ir.ArrayType(lanes, kind.rows * kind.columns))


# ----------------------------------------------------------- what kernels call
#
# Each function is plain NumPy here, and is given its types and its LLVM code further down.


def lanes(x: np.ndarray) -> int:
    """Return how many lanes a vector of ``x``'s dtype has: a constant of the compiled kernel."""
    return VECTOR_BYTES // x.itemsize if x.dtype.kind == "f" else 1


def load(x: np.ndarray, i: int, n: int | None = None, rest: float = 0):
    """Return the elements ``x[i], x[i + 1], ...``; lanes from ``n`` on are ``rest``."""
    if lanes(x) == 1:
        return x.reshape(-1)[i]
    row = np.full(lanes(x), rest, x.dtype)
    n = len(row) if n is None else max(0, min(n, len(row)))
    row[:n] = x.reshape(-1)[i : i + n]
    return row


def load_wide(x: np.ndarray, i: int, n: int | None = None):
    """Return the elements ``x[i], x[i + 1], ...``, `WIDE` times as many as `load` does.

    All that works on vectors works on wide ones. Each operation is then so many instructions that
    do not wait for each other, which speeds up long formulas.
    """
    if lanes(x) == 1:
        return x.reshape(-1)[i]
    return np.concatenate([
        load(x, i + k, None if n is None else n - k)
        for k in range(0, WIDE * lanes(x), lanes(x))
    ])  # fmt: skip


def load_mask(x: np.ndarray, i: int, n: int, like: np.ndarray):
    """Return booleans ``x[i], x[i + 1], ...`` as a mask for vectors of ``like``'s dtype."""
    if lanes(like) == 1:
        return x.reshape(-1)[i]
    row = np.zeros(lanes(like), np.bool_)
    row[:n] = x.reshape(-1)[i : i + min(n, len(row))]
    return row


def store(x: np.ndarray, i: int, value, n: int | None = None) -> None:
    """Write ``n`` lanes of a vector to ``x[i], x[i + 1], ...``, of the same dtype.

    A mask goes into booleans, an integer vector into int64.
    """
    if np.ndim(value) == 0:
        x.reshape(-1)[i] = value
        return
    n = len(value) if n is None else max(0, min(n, len(value)))
    x.reshape(-1)[i : i + n] = value[:n]


def splat(value, x: np.ndarray):
    """Return a vector of ``x``'s dtype with ``value`` in every lane."""
    value = x.dtype.type(value)
    return value if lanes(x) == 1 else np.full(lanes(x), value)


def splat_wide(value, x: np.ndarray):
    """Return a wide vector of ``x``'s dtype with ``value`` in every lane."""
    value = x.dtype.type(value)
    return value if lanes(x) == 1 else np.full(WIDE * lanes(x), value)


def integers(x: np.ndarray, first: int, step: int):
    """Return ``first, first + step, ...`` as an integer vector of as many lanes as ``x``'s."""
    if lanes(x) == 1:
        return np.int64(first)
    return first + step * np.arange(lanes(x), dtype=f"i{x.itemsize}")


def fma(a, b, c):
    """Return ``a * b + c``, rounded once where the processor has the instruction."""
    return a * b + c


def where(condition, a, b):
    """Choose lane by lane: ``a`` where a mask holds, else ``b``, one of them a vector."""
    chosen = np.where(condition, a, b)
    return chosen if chosen.ndim else chosen[()]


def maximum(a, b):
    """Return the larger lane; NaN if either is NaN."""
    return np.maximum(a, b)


def minimum(a, b):
    """Return the smaller lane; NaN if either is NaN."""
    return np.minimum(a, b)


def sqrt(a):
    """Return the square root of each lane."""
    return np.sqrt(a)


def floor(a):
    """Return the largest whole number not above each lane."""
    return np.floor(a)


def round(a):
    """Return the whole number nearest to each lane; the even one of two."""
    return np.rint(a)


def copysign(a, b):
    """Return the size of ``a`` with the sign of ``b``, lane by lane."""
    return np.copysign(a, b)


def bits(a):
    """Return the bits of each lane as a signed integer of the same width.

    Integer vectors know ``+ - * & | ^ << >> >=`` (with numbers, or with each other), `where`,
    `to_float` and the reductions: enough to take a float apart, to make one, and to count.
    """
    return a.view(f"i{a.itemsize}")


def from_bits(k):
    """Return the floats whose bits are ``k``."""
    return k.view(f"f{k.itemsize}")


def to_float(k):
    """Return the integers of ``k`` as floats of the same width."""
    return k.astype(f"f{k.itemsize}")


def words(first: int, step: int):
    """Return ``first, first + step, ...`` as 64-bit integers, as many as a register holds."""
    return np.int64(first) + np.int64(step) * np.arange(VECTOR_BYTES // 8)


def zip_low(a, b):
    """Return ``a[0], b[0], a[1], b[1], ...``, the first half of two integer vectors zipped."""
    return np.stack((a, b), 1).reshape(-1)[: len(a)]


def zip_high(a, b):
    """Return the second half of two integer vectors zipped."""
    return np.stack((a, b), 1).reshape(-1)[len(a) :]


def halves(k):
    """Return the halves of 64-bit integers, the low one first, as twice as many 32-bit ones."""
    return k.view(np.int32)


def fraction(k, x: np.ndarray):
    """Return pairs of random words, 32 bits each in `words`, as numbers in [0, 1) of x's dtype.

    Each has as many random bits as that has digits: float32 takes the upper 24 of a word, float64
    all 32 of a pair's first word and the upper 21 of its second.
    """
    return (_fraction32 if x.itemsize == 4 else _fraction64)(k)


def _fraction32(k):
    return to_float((halves(k) >> 8) & 0xFFFFFF) * 2.0**-24


def _fraction64(k):
    return to_float(((k & 0xFFFFFFFF) << 21) | ((k >> 43) & 0x1FFFFF)) * 2.0**-53


def exp(a):
    """Return e to each lane; this and the next three are our own for vectors of float32.

    See ``formulas.py`` for their polynomials and errors. Scalars and float64 go to the C library.
    """
    return _apply(_float32.exp_float32, np.exp, a)


def log(a):
    """Return the natural logarithm of each lane."""
    return _apply(_float32.log_float32, np.log, a)


def tanh(a):
    """Return the hyperbolic tangent of each lane."""
    return _apply(_float32.tanh_float32, np.tanh, a)


def erf(a):
    """Return the error function of each lane."""
    return _apply(_float32.erf_float32, _erf, a)


def _erf(a):
    values = [math.erf(value) for value in np.ravel(a)]
    return np.asarray(values, np.asarray(a).dtype).reshape(np.shape(a))[()]


def _apply(polynomial: Callable, function: Callable, a):
    if np.ndim(a) == 0 or a.dtype != np.float32:
        return function(a)
    with np.errstate(all="ignore"):  # all branches are computed, for all lanes
        return polynomial(a)


def power(a, b):
    """Return ``a`` to the power ``b``, lane by lane."""
    return np.power(a, b)


def reduce_sum(a):
    """Return the sum of the lanes, added pairwise: always in the same order."""
    return _pairwise(np.add, a)


def reduce_max(a):
    """Return the largest lane; NaN if one is NaN."""
    return _pairwise(np.maximum, a)


def reduce_min(a):
    """Return the smallest lane; NaN if one is NaN."""
    return _pairwise(np.minimum, a)


def _pairwise(combine: Callable, a):
    a = np.atleast_1d(a)
    while len(a) > 1:
        half = len(a) // 2
        a = combine(a[:half], a[half:])
    return a[0]


def tile(x: np.ndarray, rows: int, columns: int):
    """Return a register tile of zeros of ``x``'s dtype; both counts are literals."""
    return np.zeros((rows, columns * (VECTOR_BYTES // x.itemsize)), x.dtype)


def tile_square(x: np.ndarray):
    """Return a tile of zeros with as many rows as a vector of ``x``'s dtype has lanes."""
    return np.zeros((lanes(x), lanes(x)), x.dtype)


def tile_rows(acc, table: np.ndarray, i: int, count: int):
    """Return the places ``table[i], table[i + 1], ...`` of the tile's rows, ``count`` of them.

    Rows past the last repeat it, so that what they read is not out of bounds.
    """
    return table[i + np.minimum(np.arange(acc.shape[0]), count - 1)]


def tile_steps(acc, start: int, step: int, count: int):
    """Return the places ``start, start + step, ...`` of the tile's rows, ``count`` of them."""
    return start + np.minimum(np.arange(acc.shape[0]), count - 1) * step


def tile_fma(acc, a, rows, ia, b, ib):
    """Return ``acc[i, j] + a[rows[i] + ia] * b[ib + j]``, with all of the tile's columns of b."""
    row = b.reshape(-1)[ib : ib + acc.shape[1]]
    return acc + a.reshape(-1)[rows + ia][:, None] * row


def tile_fma_rows(acc, a, rows, ia, b, ib, width=None):
    """Return ``acc[i, j] + a[rows[i] + ia + j] * b[ib + j]``: lane by lane.

    With ``width``, only so many columns are read and changed.
    """
    width = acc.shape[1] if width is None else min(width, acc.shape[1])
    out = acc.copy()
    for row, start in enumerate(rows + ia):
        values = a.reshape(-1)[start : start + width]
        out[row, :width] += values * b.reshape(-1)[ib : ib + width]
    return out


def tile_fma_terms(acc, a, rows, ia, b, ib, pitch, width):
    """Return each ``acc[i, j]`` plus ``width`` terms of a sum, one in each lane of its vector.

    Lane ``l`` of the vector in row i and column j has ``a[rows[i] + ia + l] * b[ib + j pitch + l]``
    added: with `tile_store_sums` in the end, rows are dotted with columns.
    """
    count = lanes(b)
    out = acc.copy()
    for row, start in enumerate(rows + ia):
        for column in range(acc.shape[1] // count):
            terms = load(a, start, width) * load(b, ib + column * pitch, width)
            out[row, column * count : (column + 1) * count] += terms
    return out


def tile_add(acc, x, i, width):
    """Return the tile with the row ``x[i], ..., x[i + width - 1]`` added to each of its rows."""
    values = np.zeros(acc.shape[1], x.dtype)
    width = min(width, len(values))
    values[:width] = x.reshape(-1)[i : i + width]
    return acc + values


def tile_maximum(acc, number):
    """Return the tile with each element the larger of itself and a number; NaN stays NaN."""
    return np.maximum(acc, acc.dtype.type(number))


def tile_load(acc, x, rows, i, count, width):
    """Return the tile filled from ``x[rows[r] + i + j]``: ``count`` rows, ``width`` columns of it.

    The others are zero.
    """
    acc = np.zeros_like(acc)
    width = min(width, acc.shape[1])
    for row in range(min(count, len(acc))):
        acc[row, :width] = x.reshape(-1)[rows[row] + i :][:width]
    return acc


def tile_store(acc, x, rows, i, count, width):
    """Write ``count`` rows and ``width`` columns of the tile to ``x[rows[r] + i + j]``."""
    width = min(width, acc.shape[1])
    for row in range(min(count, len(acc))):
        x.reshape(-1)[rows[row] + i : rows[row] + i + width] = acc[row, :width]


def tile_store_sums(acc, x, rows, i, count, width):
    """Write the sum of each vector's lanes, added pairwise, to ``x[rows[r] + i + j]``.

    ``count`` rows are written, and ``width`` columns, where each column is a vector.
    """
    for row in range(min(count, len(acc))):
        vectors = acc[row].reshape(-1, lanes(x))
        for column in range(min(width, len(vectors))):
            x.reshape(-1)[rows[row] + i + column] = reduce_sum(vectors[column])


def tile_transpose(acc):
    """Return a square tile (as many rows as lanes, one column) turned about its diagonal."""
    return acc.T.copy()


def tile_load_turned(acc, x, start, step, count, width):
    """Return the tile filled by columns, ``acc[r, j] = x[start + j step + r]``, r < ``width``.

    Rows from ``width`` on are zero; columns past ``count`` repeat the last. The tile is one vector
    wide.
    """
    acc = np.zeros_like(acc)
    width = min(width, len(acc))
    for column in range(acc.shape[1]):
        at = start + min(column, count - 1) * step
        acc[:width, column] = x.reshape(-1)[at : at + width]
    return acc


def tile_store_turned(acc, x, table, i, start, width):
    """Write the tile by columns, ``x[start + table[i + j] + r] = acc[r, j]``, r < ``width``.

    Columns are written from the last to the first: of two that share a place the first stays.
    """
    width = min(width, len(acc))
    for column in range(acc.shape[1] - 1, -1, -1):
        at = start + table[i + column]
        x.reshape(-1)[at : at + width] = acc[:width, column]


_float32 = formulas.bind(globals(), jit.njit, formulas.FLOAT32_FUNCTIONS)


# ------------------------------------------------------- how a call is lowered


class _Function(types.Function):
    """A function of this module: a call that fits none of its rules is refused in a sentence."""

    def get_call_type(self, context, args, kws):
        function = self.typing_key
        try:
            inspect.signature(function).bind(*args, **kws)
        except TypeError as error:
            raise TypingError(_refusal(function, args, kws, str(error))) from None
        try:
            return super().get_call_type(context, args, kws)
        except TypingError:
            reason = _why_refused(function, args, kws)
            raise TypingError(_refusal(function, args, kws, reason)) from None


register_model(_Function)(models.OpaqueModel)  # as any function's: it has no value


def _refusal(function: Callable, args: tuple, kws: dict, reason: str) -> str:
    """Say what was given to a function, why it does not fit, and what does."""
    given = [*map(str, args), *(f"{name}={kind}" for name, kind in kws.items())]
    pysig = inspect.signature(function)
    takes = [p.replace(annotation=p.empty) for p in pysig.parameters.values()]
    pysig = pysig.replace(parameters=takes, return_annotation=pysig.empty)
    name = function.__name__
    return f"simd.{name}({', '.join(given)}): {reason}.\n{name}{pysig}: {inspect.getdoc(function)}"


def _why_refused(function: Callable, args: tuple, kws: dict) -> str:
    gaps = _left_out(function, args, kws)
    if gaps:
        return f"{', '.join(map(repr, kws))} by name needs {', '.join(map(repr, gaps))}, too"
    given = [*args, *kws.values()]
    arrays = [kind for kind in given if isinstance(kind, types.Array)]
    if not _is_array(*arrays):
        return "arrays must be contiguous, which np.ascontiguousarray(x) is"
    floats = [kind for kind in given if isinstance(kind, Vector)]
    floats += [kind for kind in arrays if isinstance(kind.dtype, types.Float)]
    dtypes = {kind.dtype for kind in floats}
    return _no_mixture(dtypes) if len(dtypes) > 1 else "it does not take these types"


def _no_mixture(dtypes: set[types.Type]) -> str:
    names = " and ".join(sorted(map(str, dtypes)))
    return f"{names} do not mix: bring the arrays to one dtype before"


def _left_out(function: Callable, args: tuple, kws: dict) -> list[str]:
    """Return the parameters that a call leaves out before the last that it gives by name."""
    names = list(inspect.signature(function).parameters)
    return [name for name in names[len(args) : len(args) + len(kws)] if name not in kws]


def _typed(function: Callable) -> Callable:
    """Register ``rule(*argument types) -> result type``, None where a call does not fit."""

    def register(rule):
        class Template(AbstractTemplate):
            key = function

            def generic(self, args, kws):
                pysig = None
                if kws:
                    if _left_out(function, args, kws):
                        return None
                    parameters = inspect.signature(function).parameters.values()
                    pysig = inspect.Signature([*parameters][: len(args) + len(kws)])
                    args = (*args, *(kws[name] for name in [*pysig.parameters][len(args) :]))
                result = rule(*args)
                return None if result is None else signature(result, *args).replace(pysig=pysig)

        is_ours = function.__module__ == __name__
        infer_global(function, (_Function if is_ours else types.Function)(Template))
        return rule

    return register


def _coded(function: Callable, *pattern: type) -> Callable:
    """Register ``code(builder, signature, args) -> LLVM value`` for calls of such types."""

    def register(code):
        @lower_builtin(function, *(pattern or (types.VarArg(types.Any),)))
        def lower(context, builder, sig, args):
            return code(context, builder, sig, args)

        return code

    return register


_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Copy one scalar into every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, count), [0] * count)
    return builder.shuffle_vector(first, undefined, zeros)


def _as_vector(context, builder, value, source: types.Type, vector: Vector) -> ir.Value:
    """Bring a scalar operand into every lane, in the vector's dtype; vectors stay."""
    if isinstance(source, Vector):
        return value
    return _splat(builder, context.cast(builder, value, source, vector.dtype), vector.count)


def _address(context, builder, array_type, array, index, index_type) -> ir.Value:
    """Return a pointer to the element ``index`` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [context.cast(builder, index, index_type, types.intp)])


def _vector_pointer(builder, pointer, lane_type: ir.Type, count: int) -> ir.Value:
    return builder.bitcast(pointer, ir.VectorType(lane_type, count).as_pointer())


def _first_lanes(builder, n: ir.Value, count: int) -> ir.Value:
    """Return the mask whose first ``n`` lanes hold."""
    for extreme, bound in (("smin", count), ("smax", 0)):  # so that 32 bits are enough
        n = _call(builder, f"llvm.{extreme}.i64", n.type, [n, ir.Constant(n.type, bound)])
    n = builder.trunc(n, _I32)
    index = ir.Constant(ir.VectorType(_I32, count), list(range(count)))
    return builder.icmp_signed("<", index, _splat(builder, n, count))


def _call(builder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _suffix(vector: ir.VectorType) -> str:
    """Return the ending of an intrinsic's name for a vector type, such as ``v16f32``."""
    element = {"float": "f32", "double": "f64"}.get(str(vector.element), str(vector.element))
    return f"v{vector.count}{element}"


def _masked_load(
    builder, pointer, mask, vector: ir.VectorType, align: int, rest: ir.Value | None = None
) -> ir.Value:
    rest = ir.Constant(vector, None) if rest is None else rest
    args = [pointer, ir.Constant(_I32, align), mask, rest]
    return _call(builder, f"llvm.masked.load.{_suffix(vector)}.p0", vector, args)


def _masked_store(builder, value, pointer, mask, align: int) -> None:
    args = [value, pointer, ir.Constant(_I32, align), mask]
    _call(builder, f"llvm.masked.store.{_suffix(value.type)}.p0", ir.VoidType(), args)


def _is_array(*candidates: types.Type) -> bool:
    return all(isinstance(t, types.Array) and t.layout == "C" for t in candidates)


# lanes, load, store, splat


@_typed(lanes)
def _(x):
    return types.intp if _is_array(x) else None


@_coded(lanes)
def _(context, builder, sig, args):
    return context.get_constant(types.intp, _lane_count(sig.args[0].dtype))


def _element(dtype: types.Type, registers: int = 1) -> types.Type:
    """Return what loading from an array of this dtype gives: a vector, or a scalar."""
    return Vector(dtype, registers) if _lane_count(dtype) > 1 else dtype


@_typed(load)
def _(x, i, n=types.intp, rest=types.intp):
    return _element(x.dtype) if _is_array(x) else None


@_coded(load)
def _load(context, builder, sig, args):
    pointer = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
    result = sig.return_type
    if not isinstance(result, Vector):
        return context.unpack_value(builder, result, pointer)
    vector, align = _llvm_vector(result), result.dtype.bitwidth // 8
    if len(args) == 2:
        pointer = _vector_pointer(builder, pointer, vector.element, vector.count)
        return builder.load(pointer, align=align)
    n = context.cast(builder, args[2], sig.args[2], types.intp)
    rest = None
    if len(args) == 4:
        rest = _as_vector(context, builder, args[3], sig.args[3], result)
    pointer = _vector_pointer(builder, pointer, vector.element, vector.count)
    mask = _first_lanes(builder, n, vector.count)
    return _masked_load(builder, pointer, mask, vector, align, rest)


@_typed(load_wide)
def _(x, i, n=types.intp):
    return _element(x.dtype, WIDE) if _is_array(x) else None


_coded(load_wide)(_load)


@_typed(load_mask)
def _(x, i, n, like):
    if not _is_array(x, like) or x.dtype != types.boolean:
        return None
    count = _lane_count(like.dtype)
    return Mask(count) if count > 1 else types.boolean


@_coded(load_mask)
def _(context, builder, sig, args):
    pointer = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
    if not isinstance(sig.return_type, Mask):
        return context.unpack_value(builder, types.boolean, pointer)
    count = sig.return_type.count
    bytes_type = ir.VectorType(ir.IntType(8), count)
    pointer = _vector_pointer(builder, pointer, bytes_type.element, count)
    n = context.cast(builder, args[2], sig.args[2], types.intp)
    loaded = _masked_load(builder, pointer, _first_lanes(builder, n, count), bytes_type, 1)
    return builder.icmp_unsigned("!=", loaded, ir.Constant(bytes_type, None))


@_typed(store)
def _(x, i, value, n=types.intp):
    if not _is_array(x):
        return None
    if isinstance(value, Vector):
        fits = x.dtype == value.dtype
    elif isinstance(value, (Mask, Bits)):
        fits = x.dtype == (types.boolean if isinstance(value, Mask) else types.int64)
    else:
        fits = True  # a scalar
    return types.none if fits else None


def _widened(builder, value: ir.Value, count: int) -> ir.Value:
    """Return an integer vector with 64 bits a lane."""
    wide = ir.VectorType(_I64, count)
    return value if value.type == wide else builder.sext(value, wide)


@_coded(store)
def _(context, builder, sig, args):
    pointer = _address(context, builder, sig.args[0], args[0], args[1], sig.args[1])
    value, kind = args[2], sig.args[2]
    if not isinstance(kind, (Vector, Mask, Bits)):
        dtype = sig.args[0].dtype
        context.pack_value(builder, dtype, context.cast(builder, value, kind, dtype), pointer)
        return context.get_dummy_value()
    if isinstance(kind, Mask):
        value, align = builder.zext(value, ir.VectorType(ir.IntType(8), kind.count)), 1
    elif isinstance(kind, Bits):
        value, align = _widened(builder, value, kind.count), 8
    else:
        align = kind.dtype.bitwidth // 8
    pointer = _vector_pointer(builder, pointer, value.type.element, kind.count)
    if len(args) == 3:
        builder.store(value, pointer, align=align)
    else:
        n = context.cast(builder, args[3], sig.args[3], types.intp)
        _masked_store(builder, value, pointer, _first_lanes(builder, n, kind.count), align)
    return context.get_dummy_value()


@_typed(splat)
def _(value, x):
    return _element(x.dtype) if _is_array(x) else None


@_typed(splat_wide)
def _(value, x):
    return _element(x.dtype, WIDE) if _is_array(x) else None


@_coded(splat)
@_coded(splat_wide)
def _(context, builder, sig, args):
    return _as_type(context, builder, args[0], sig.args[0], sig.return_type)


@_typed(integers)
def _(x, first, step):
    if not _is_array(x) or not all(isinstance(k, types.Integer) for k in (first, step)):
        return None
    element = _element(x.dtype)
    return Bits(element) if isinstance(element, Vector) else types.int64


@_coded(integers)
def _(context, builder, sig, args):
    kind = sig.return_type
    if not isinstance(kind, Bits):
        return context.cast(builder, args[1], sig.args[1], kind)
    return _counted(context, builder, kind, args[1:], sig.args[1:])


def _counted(context, builder, kind: Bits, args, sources) -> ir.Value:
    """Return first, first + step, ... of ``args``, first and step."""
    sides = zip(args, sources, strict=True)
    first, step = (_splat_bits(context, builder, *side, kind) for side in sides)
    count = ir.Constant(first.type, list(range(kind.count)))
    return builder.add(first, builder.mul(step, count))


def _splat_bits(context, builder, value, source: types.Type, kind: Bits) -> ir.Value:
    width = kind.vector.dtype.bitwidth
    lane_type = types.Integer.from_bitwidth(width, signed=True)
    return _splat(builder, context.cast(builder, value, source, lane_type), kind.count)


# Arithmetic and comparison. One operand may be a scalar: it is cast to the vector's dtype, so
# a literal 0.5 beside a float32 vector brings no float64 arithmetic.


def _common(*operands: types.Type) -> Vector | None:
    """Return the vector type that all operands can be brought to, None without a vector."""
    vectors = {operand for operand in operands if isinstance(operand, Vector)}
    if len(vectors) > 1:
        raise TypingError(_no_mixture({vector.dtype for vector in vectors}))
    rest = [operand for operand in operands if not isinstance(operand, (Vector, types.Number))]
    return vectors.pop() if len(vectors) == 1 and not rest else None


def _in_place(function: Callable) -> Callable:
    """Return ``a += b`` for ``a + b``. Vectors are values: both give a new one."""
    return getattr(operator, f"i{function.__name__.rstrip('_')}")


def _operator(function: Callable, instruction: str) -> None:
    def rule(a, b):
        return _common(a, b)

    def code(context, builder, sig, args):
        a, b = _operands(context, builder, sig, args)
        return getattr(builder, instruction)(a, b)

    for form in (function, _in_place(function)):
        _typed(form)(rule)
        for pattern in [(Vector, Vector), (Vector, types.Number), (types.Number, Vector)]:
            _coded(form, *pattern)(code)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _comparison(function: Callable, symbol: str) -> None:
    @_typed(function)
    def _(a, b):
        vector = _common(a, b)
        return Mask(vector.count) if vector else None

    def code(context, builder, sig, args):
        vector = _common(*sig.args)
        sides = zip(args, sig.args, strict=True)
        a, b = (_as_vector(context, builder, *side, vector) for side in sides)
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, a, b)

    for pattern in [(Vector, Vector), (Vector, types.Number), (types.Number, Vector)]:
        _coded(function, *pattern)(code)


_comparison(operator.lt, "<")
_comparison(operator.le, "<=")
_comparison(operator.gt, ">")
_comparison(operator.ge, ">=")
_comparison(operator.eq, "==")
_comparison(operator.ne, "!=")


@_typed(operator.neg)
def _(a):
    return a if isinstance(a, Vector) else None


@_coded(operator.neg, Vector)
def _(context, builder, sig, args):
    return builder.fneg(args[0])


def _mask_operator(function: Callable, instruction: str) -> None:
    def rule(a, b):
        return a if isinstance(a, Mask) and a == b else None

    def code(context, builder, sig, args):
        return getattr(builder, instruction)(*args)

    for form in (function, _in_place(function)):
        _typed(form)(rule)
        _coded(form, Mask, Mask)(code)


_mask_operator(operator.and_, "and_")
_mask_operator(operator.or_, "or_")
_mask_operator(operator.xor, "xor")


@_typed(operator.invert)
def _(a):
    return a if isinstance(a, Mask) else None


@_coded(operator.invert, Mask)
def _(context, builder, sig, args):
    return builder.not_(args[0])


# Bits: reinterpreted, converted, and a little arithmetic; one operand may be a scalar integer.


@_typed(bits)
def _(a):
    return Bits(a) if isinstance(a, Vector) else None


@_coded(bits)
def _(context, builder, sig, args):
    return builder.bitcast(args[0], context.get_value_type(sig.return_type))


@_typed(from_bits)
def _(k):
    return k.vector if isinstance(k, Bits) else None


@_coded(from_bits)
def _(context, builder, sig, args):
    return builder.bitcast(args[0], context.get_value_type(sig.return_type))


@_typed(to_float)
def _(k):
    return k.vector if isinstance(k, Bits) else None


@_coded(to_float)
def _(context, builder, sig, args):
    return builder.sitofp(args[0], context.get_value_type(sig.return_type))


def _bits_operator(function: Callable, instruction: str) -> None:
    def rule(a, b):
        return a if isinstance(a, Bits) and (a == b or isinstance(b, types.Integer)) else None

    def code(context, builder, sig, args):
        (a, b), kind = args, sig.return_type
        if isinstance(sig.args[1], types.Integer):
            b = _splat_bits(context, builder, b, sig.args[1], kind)
        return getattr(builder, instruction)(a, b)

    for form in (function, _in_place(function)):
        _typed(form)(rule)
        for pattern in [(Bits, Bits), (Bits, types.Integer)]:
            _coded(form, *pattern)(code)


_bits_operator(operator.add, "add")
_bits_operator(operator.sub, "sub")
_bits_operator(operator.mul, "mul")
_bits_operator(operator.and_, "and_")
_bits_operator(operator.or_, "or_")
_bits_operator(operator.xor, "xor")
_bits_operator(operator.lshift, "shl")
_bits_operator(operator.rshift, "ashr")


@_typed(operator.ge)
def _(a, b):
    return Mask(a.count) if isinstance(a, Bits) and isinstance(b, types.Integer) else None


@_coded(operator.ge, Bits, types.Integer)
def _(context, builder, sig, args):
    b = _splat_bits(context, builder, args[1], sig.args[1], sig.args[0])
    return builder.icmp_signed(">=", args[0], b)


# Words: 64-bit integers, zipped and halved, for random numbers.

_WORDS = Bits(Vector(types.float64))


@_typed(words)
def _(first, step):
    return _WORDS if all(isinstance(k, types.Integer) for k in (first, step)) else None


@_coded(words)
def _(context, builder, sig, args):
    return _counted(context, builder, _WORDS, args, sig.args)


def _zip(function: Callable, first_half: bool) -> None:
    @_typed(function)
    def _(a, b):
        return a if isinstance(a, Bits) and a == b else None

    @_coded(function)
    def _(context, builder, sig, args):
        count = sig.return_type.count
        start = 0 if first_half else count // 2
        pairs = [(lane, count + lane) for lane in range(start, start + count // 2)]
        index = ir.Constant(ir.VectorType(_I32, count), [lane for pair in pairs for lane in pair])
        return builder.shuffle_vector(*args, index)


_zip(zip_low, first_half=True)
_zip(zip_high, first_half=False)


@_typed(halves)
def _(k):
    return Bits(Vector(types.float32)) if k == _WORDS else None


@_coded(halves)
def _(context, builder, sig, args):
    return builder.bitcast(args[0], context.get_value_type(sig.return_type))


@_typed(fraction)
def _(k, x):
    return Vector(x.dtype) if k == _WORDS and _is_array(x) else None


@_coded(fraction)
def _(context, builder, sig, args):
    source = _fraction32 if sig.return_type.dtype.bitwidth == 32 else _fraction64
    inner = signature(sig.return_type, sig.args[0])
    return context.compile_internal(builder, source, inner, args[:1])


# Functions of vectors that are one LLVM intrinsic; scalars go through the same one.


def _scalar_or_vector(*operands: types.Type) -> types.Type | None:
    """Return the type that a lane-wise function of these operands has."""
    vector = _common(*operands)
    if vector:
        return vector
    numbers = (types.Number, types.Boolean)
    scalars = {operand for operand in operands if isinstance(operand, numbers)}
    if len(scalars) == len(set(operands)) == 1:
        return types.unliteral(scalars.pop())
    return None


def _as_type(context, builder, value, source, target) -> ir.Value:
    if isinstance(target, Vector):
        return _as_vector(context, builder, value, source, target)
    return context.cast(builder, value, source, target)


def _of_floats(count: int) -> Callable:
    """Return the typing rule of a lane-wise function of ``count`` floats or vectors."""

    def rule(*operands):
        result = _scalar_or_vector(*operands)
        is_float = isinstance(result, (Vector, types.Float))
        return result if is_float and len(operands) == count else None

    return rule


def _operands(context, builder, sig, args) -> list[ir.Value]:
    """Bring all operands to the type of the result."""
    sides = zip(args, sig.args, strict=True)
    return [_as_type(context, builder, *side, sig.return_type) for side in sides]


def _intrinsic(function: Callable, name: str, count: int) -> None:
    """Lower a function of ``count`` floats or vectors to the LLVM intrinsic ``name``."""
    _typed(function)(_of_floats(count))

    @_coded(function)
    def _(context, builder, sig, args):
        result = sig.return_type
        values = _operands(context, builder, sig, args)
        kind = values[0].type
        suffix = _suffix(kind) if isinstance(result, Vector) else f"f{result.bitwidth}"
        return _call(builder, f"llvm.{name}.{suffix}", kind, values)


_intrinsic(fma, "fmuladd", 3)  # one instruction where there is one, else multiply and add
_intrinsic(sqrt, "sqrt", 1)
_intrinsic(floor, "floor", 1)
_intrinsic(round, "nearbyint", 1)
_intrinsic(copysign, "copysign", 2)


def _extremum(function: Callable, name: str, symbol: str) -> None:
    @_typed(function)
    def _(a, b):
        return _scalar_or_vector(a, b)

    @_coded(function)
    def _(context, builder, sig, args):
        result = sig.return_type
        a, b = _operands(context, builder, sig, args)
        if isinstance(result, (Vector, types.Float)):
            suffix = _suffix(a.type) if isinstance(result, Vector) else f"f{result.bitwidth}"
            return _call(builder, f"llvm.{name}.{suffix}", a.type, [a, b])
        signed = isinstance(result, types.Integer) and result.signed
        compare = builder.icmp_signed if signed else builder.icmp_unsigned
        return builder.select(compare(symbol, a, b), a, b)


_extremum(maximum, "maximum", ">")
_extremum(minimum, "minimum", "<")


def _lanewise(
    function: Callable, name: str, count: int, polynomial: Callable | None = None
) -> None:
    """Lower a function to one call of the C library's ``name`` for each lane.

    A polynomial takes the place of that for vectors of float32.
    """
    _typed(function)(_of_floats(count))

    @_coded(function)
    def _(context, builder, sig, args):
        result = sig.return_type
        values = _operands(context, builder, sig, args)
        dtype = result.dtype if isinstance(result, Vector) else result
        scalar = context.get_value_type(dtype)
        symbol = name + ("f" if dtype.bitwidth == 32 else "")
        if not isinstance(result, Vector):
            return _call(builder, symbol, scalar, values)
        if polynomial is not None and dtype.bitwidth == 32:
            source = jit.function_of(polynomial)
            return context.compile_internal(builder, source, sig, args)
        out = ir.Constant(values[0].type, ir.Undefined)
        for lane in range(result.count):
            index = ir.Constant(_I32, lane)
            picked = [builder.extract_element(value, index) for value in values]
            out = builder.insert_element(out, _call(builder, symbol, scalar, picked), index)
        return out


_lanewise(power, "pow", 2)
_lanewise(exp, "exp", 1, _float32.exp_float32)
_lanewise(log, "log", 1, _float32.log_float32)
_lanewise(tanh, "tanh", 1, _float32.tanh_float32)
_lanewise(erf, "erf", 1, _float32.erf_float32)


@_typed(abs)
def _(a):
    return a if isinstance(a, Vector) else None


@_coded(abs, Vector)
def _(context, builder, sig, args):
    return _call(builder, f"llvm.fabs.{_suffix(args[0].type)}", args[0].type, list(args))


@_typed(where)
def _(condition, a, b):
    result = a if isinstance(a, Bits) and a == b else _scalar_or_vector(a, b)
    if isinstance(result, (Vector, Bits)):
        fits = isinstance(condition, Mask) and condition.count == result.count
    else:
        fits = isinstance(condition, types.Boolean)
    return result if fits else None


@_coded(where)
def _(context, builder, sig, args):
    result, (a, b) = sig.return_type, args[1:]
    if not isinstance(result, Bits):
        a = _as_type(context, builder, a, sig.args[1], result)
        b = _as_type(context, builder, b, sig.args[2], result)
    return builder.select(args[0], a, b)


def _reduction(function: Callable, combine: Callable) -> None:
    """Lower a reduction over lanes."""

    @_typed(function)
    def _(a):
        if isinstance(a, Bits):
            return types.Integer.from_bitwidth(a.vector.dtype.bitwidth, signed=True)
        return a.dtype if isinstance(a, Vector) else a if isinstance(a, types.Number) else None

    @_coded(function)
    def _(context, builder, sig, args):
        is_vector = isinstance(sig.args[0], (Vector, Bits))
        return _folded(builder, args[0], combine) if is_vector else args[0]


def _folded(builder: ir.IRBuilder, value: ir.Value, combine: Callable) -> ir.Value:
    """Fold a vector's upper half onto the lower until one lane is left."""
    count = value.type.count
    while count > 1:
        count //= 2
        index = ir.VectorType(_I32, count)
        low, high = (
            builder.shuffle_vector(
                value, ir.Constant(value.type, ir.Undefined), ir.Constant(index, list(half))
            )
            for half in (range(count), range(count, 2 * count))
        )
        value = combine(builder, low, high)
    return builder.extract_element(value, ir.Constant(_I32, 0))


def _are_integers(value: ir.Value) -> bool:
    return isinstance(value.type.element, ir.IntType)


def _added(builder, low, high):
    return (builder.add if _are_integers(low) else builder.fadd)(low, high)


def _fold(of_floats: str, of_integers: str) -> Callable:
    def combine(builder, low, high):
        name = of_integers if _are_integers(low) else of_floats
        return _call(builder, f"llvm.{name}.{_suffix(low.type)}", low.type, [low, high])

    return combine


_reduction(reduce_sum, _added)
_reduction(reduce_max, _fold("maximum", "smax"))
_reduction(reduce_min, _fold("minimum", "smin"))


# The tile: an LLVM array of vectors, which its optimiser keeps in registers.


@_typed(tile)
def _(x, rows, columns):
    literal = all(isinstance(count, types.IntegerLiteral) for count in (rows, columns))
    if not _is_array(x) or not isinstance(x.dtype, types.Float) or not literal:
        return None
    return Tile(x.dtype, rows.literal_value, columns.literal_value)


@_typed(tile_square)
def _(x):
    fits = _is_array(x) and isinstance(x.dtype, types.Float)
    return Tile(x.dtype, _lane_count(x.dtype), 1) if fits else None


@_coded(tile_square)
@_coded(tile)
def _(context, builder, sig, args):
    return ir.Constant(context.get_value_type(sig.return_type), None)


def _row_of(context, builder, array_type, array, start, width, kind: Tile) -> list[ir.Value]:
    """Load the tile's ``columns`` vectors from ``array[start], ...``, ``width`` elements of it.

    Without a width all of them are read, and no masks made.
    """
    vector, align = _llvm_vector(kind.vector), kind.vector.dtype.bitwidth // 8
    pointer = _address(context, builder, array_type, array, start, types.intp)
    loaded = []
    for column in range(kind.columns):
        offset = ir.Constant(_I64, column * vector.count)
        at = builder.gep(pointer, [offset])
        at = _vector_pointer(builder, at, vector.element, vector.count)
        if width is None:
            loaded.append(builder.load(at, align=align))
        else:
            mask = _first_lanes(builder, builder.sub(width, offset), vector.count)
            loaded.append(_masked_load(builder, at, mask, vector, align))
    return loaded


def _integers(context, builder, sig, args, *positions: int) -> list[ir.Value]:
    return [context.cast(builder, args[k], sig.args[k], types.intp) for k in positions]


def _clamped(builder, row: int, count: ir.Value) -> ir.Value:
    """Return the number of a row, or of the last of ``count`` rows."""
    index, last = ir.Constant(_I64, row), builder.sub(count, ir.Constant(_I64, 1))
    return builder.select(builder.icmp_signed("<", index, last), index, last)


@_typed(tile_rows)
def _(acc, table, i, count):
    fits = isinstance(acc, Tile) and _is_array(table) and table.dtype == types.int64
    return Rows(acc.rows) if fits else None


@_coded(tile_rows)
def _(context, builder, sig, args):
    i, count = _integers(context, builder, sig, args, 2, 3)
    rows = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
    for row in range(sig.return_type.count):
        at = builder.add(i, _clamped(builder, row, count))
        pointer = _address(context, builder, sig.args[1], args[1], at, types.intp)
        rows = builder.insert_value(rows, builder.load(pointer), row)
    return rows


@_typed(tile_steps)
def _(acc, start, step, count):
    return Rows(acc.rows) if isinstance(acc, Tile) else None


@_coded(tile_steps)
def _(context, builder, sig, args):
    start, step, count = _integers(context, builder, sig, args, 1, 2, 3)
    rows = ir.Constant(context.get_value_type(sig.return_type), ir.Undefined)
    for row in range(sig.return_type.count):
        place = builder.add(start, builder.mul(_clamped(builder, row, count), step))
        rows = builder.insert_value(rows, place, row)
    return rows


@_typed(tile_fma)
def _(acc, a, rows, ia, b, ib):
    fits = isinstance(acc, Tile) and _is_array(a, b) and a.dtype == b.dtype == acc.vector.dtype
    return acc if fits and isinstance(rows, Rows) else None


@_coded(tile_fma)
def _(context, builder, sig, args):
    kind = sig.return_type
    ia, ib = _integers(context, builder, sig, args, 3, 5)
    b_row = _row_of(context, builder, sig.args[4], args[4], ib, None, kind)
    # The index goes through an empty piece of assembly. Else LLVM sees that the places of all rows
    # grow evenly, and adds to a pointer for each row at each step: instead of to one index.
    hidden = ir.InlineAsm(ir.FunctionType(_I64, [_I64]), "", "=r,0")
    ia = builder.call(hidden, [ia])
    acc, vector = args[0], b_row[0].type
    for row in range(kind.rows):
        place = builder.extract_value(args[2], row)
        start = _address(context, builder, sig.args[1], args[1], place, types.intp)
        value = builder.load(builder.gep(start, [ia]))
        a_lanes = _splat(builder, value, vector.count)
        for column, b_lanes in enumerate(b_row):
            index = row * kind.columns + column
            old = builder.extract_value(acc, index)
            new = _call(builder, f"llvm.fmuladd.{_suffix(vector)}", vector, [a_lanes, b_lanes, old])
            acc = builder.insert_value(acc, new, index)
    return acc


@_typed(tile_fma_rows)
def _(acc, a, rows, ia, b, ib, width=types.intp):
    fits = isinstance(acc, Tile) and _is_array(a, b) and a.dtype == b.dtype == acc.vector.dtype
    return acc if fits and isinstance(rows, Rows) else None


@_coded(tile_fma_rows)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    ia, ib = _integers(context, builder, sig, args, 3, 5)
    width = _integers(context, builder, sig, args, 6)[0] if len(args) == 7 else None
    b_row = _row_of(context, builder, sig.args[4], args[4], ib, width, kind)
    for row in range(kind.rows):
        start = builder.add(ia, builder.extract_value(args[2], row))
        a_row = _row_of(context, builder, sig.args[1], args[1], start, width, kind)
        for column, operands in enumerate(zip(a_row, b_row, strict=True)):
            place = row * kind.columns + column
            old = builder.extract_value(acc, place)
            name = f"llvm.fmuladd.{_suffix(old.type)}"
            acc = builder.insert_value(acc, _call(builder, name, old.type, [*operands, old]), place)
    return acc


@_typed(tile_fma_terms)
def _(acc, a, rows, ia, b, ib, pitch, width):
    fits = isinstance(acc, Tile) and _is_array(a, b) and a.dtype == b.dtype == acc.vector.dtype
    return acc if fits and isinstance(rows, Rows) else None


@_coded(tile_fma_terms)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    column_type = Tile(kind.vector.dtype, 1, 1)
    ia, ib, pitch, width = _integers(context, builder, sig, args, 3, 5, 6, 7)

    def terms(which: int, start: ir.Value) -> ir.Value:
        array_type, array = sig.args[which], args[which]
        return _row_of(context, builder, array_type, array, start, width, column_type)[0]

    starts = [builder.mul(pitch, ir.Constant(_I64, column)) for column in range(kind.columns)]
    b_columns = [terms(4, builder.add(ib, start)) for start in starts]
    for row in range(kind.rows):
        a_row = terms(1, builder.add(ia, builder.extract_value(args[2], row)))
        for column, b_lanes in enumerate(b_columns):
            place = row * kind.columns + column
            old = builder.extract_value(acc, place)
            name = f"llvm.fmuladd.{_suffix(old.type)}"
            new = _call(builder, name, old.type, [a_row, b_lanes, old])
            acc = builder.insert_value(acc, new, place)
    return acc


@_typed(tile_add)
def _(acc, x, i, width):
    fits = isinstance(acc, Tile) and _is_array(x) and x.dtype == acc.vector.dtype
    return acc if fits else None


@_coded(tile_add)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    i, width = _integers(context, builder, sig, args, 2, 3)
    row_values = _row_of(context, builder, sig.args[1], args[1], i, width, kind)
    for place in range(kind.rows * kind.columns):
        old = builder.extract_value(acc, place)
        new = builder.fadd(old, row_values[place % kind.columns])
        acc = builder.insert_value(acc, new, place)
    return acc


@_typed(tile_maximum)
def _(acc, number):
    return acc if isinstance(acc, Tile) and isinstance(number, types.Number) else None


@_coded(tile_maximum)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    number = _as_type(context, builder, args[1], sig.args[1], kind.vector)
    for place in range(kind.rows * kind.columns):
        old = builder.extract_value(acc, place)
        name = f"llvm.maximum.{_suffix(old.type)}"
        acc = builder.insert_value(acc, _call(builder, name, old.type, [old, number]), place)
    return acc


@_typed(tile_load)
def _(acc, x, rows, i, count, width):
    fits = isinstance(acc, Tile) and _is_array(x) and x.dtype == acc.vector.dtype
    return acc if fits and isinstance(rows, Rows) else None


@_coded(tile_load)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    i, count, width = _integers(context, builder, sig, args, 3, 4, 5)
    for row in range(kind.rows):
        inside = builder.icmp_signed("<", ir.Constant(_I64, row), count)
        used = builder.select(inside, width, ir.Constant(_I64, 0))
        start = builder.add(i, builder.extract_value(args[2], row))
        values = _row_of(context, builder, sig.args[1], args[1], start, used, kind)
        for column, value in enumerate(values):
            acc = builder.insert_value(acc, value, row * kind.columns + column)
    return acc


@_typed(tile_store)
def _(acc, x, rows, i, count, width):
    fits = isinstance(acc, Tile) and _is_array(x) and x.dtype == acc.vector.dtype
    return types.none if fits and isinstance(rows, Rows) else None


@_coded(tile_store)
def _(context, builder, sig, args):
    kind = sig.args[0]
    vector, align = _llvm_vector(kind.vector), kind.vector.dtype.bitwidth // 8
    i, count, width = _integers(context, builder, sig, args, 3, 4, 5)
    for row in range(kind.rows):
        with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, row), count)):
            start = builder.add(i, builder.extract_value(args[2], row))
            pointer = _address(context, builder, sig.args[1], args[1], start, types.intp)
            for column in range(kind.columns):
                offset = ir.Constant(_I64, column * vector.count)
                mask = _first_lanes(builder, builder.sub(width, offset), vector.count)
                at = builder.gep(pointer, [offset])
                at = _vector_pointer(builder, at, vector.element, vector.count)
                value = builder.extract_value(args[0], row * kind.columns + column)
                _masked_store(builder, value, at, mask, align)
    return context.get_dummy_value()


@_typed(tile_store_sums)
def _(acc, x, rows, i, count, width):
    fits = isinstance(acc, Tile) and _is_array(x) and x.dtype == acc.vector.dtype
    return types.none if fits and isinstance(rows, Rows) else None


@_coded(tile_store_sums)
def _(context, builder, sig, args):
    kind = sig.args[0]
    i, count, width = _integers(context, builder, sig, args, 3, 4, 5)
    vectors = [builder.extract_value(args[0], k) for k in range(kind.rows * kind.columns)]
    sums = _sums_of_lanes(builder, vectors)
    for row in range(kind.rows):
        with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, row), count)):
            start = builder.add(i, builder.extract_value(args[2], row))
            for column in range(kind.columns):
                number = ir.Constant(_I64, column)
                with builder.if_then(builder.icmp_signed("<", number, width)):
                    at = builder.add(start, number)
                    pointer = _address(context, builder, sig.args[1], args[1], at, types.intp)
                    builder.store(sums[row * kind.columns + column], pointer)
    return context.get_dummy_value()


def _sums_of_lanes(builder: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """Fold many vectors as `_folded` does one, with fewer instructions: two at a time.

    A round adds the halves of two vectors' pieces, and has half as many vectors of twice as many
    pieces, which are half as long. In the end each lane is a piece.
    """
    kind = vectors[0].type
    count, sums = kind.count, []
    for first in range(0, len(vectors), count):
        level = vectors[first : first + count]
        level += [ir.Constant(kind, None)] * (count - len(level))
        half = count
        while half > 1:
            half //= 2
            low = [lane for lane in range(2 * count) if not lane & half]
            high = [lane + half for lane in low]
            index = ir.VectorType(_I32, count)
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [
                builder.fadd(
                    builder.shuffle_vector(*pair, ir.Constant(index, low)),
                    builder.shuffle_vector(*pair, ir.Constant(index, high)),
                )
                for pair in pairs
            ]
        sums += [builder.extract_element(level[0], ir.Constant(_I32, k)) for k in range(count)]
    return sums


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value], halves: list[int]) -> list[ir.Value]:
    """Turn a square of vectors: ever other off-diagonal blocks are swapped, of `halves` rows.

    Each round shuffles pairs of rows. The order of the rounds is free. With rows that are missing
    (None) it is best to begin with small blocks, with results that nobody wants with large ones:
    then most of the shuffles are left out.
    """
    count = len(rows)
    undefined = ir.Constant(next(row.type for row in rows if row is not None), ir.Undefined)
    rows = list(rows)
    for half in halves:
        low = [lane if not lane & half else count + lane - half for lane in range(count)]
        high = [lane + half if not lane & half else count + lane for lane in range(count)]
        for row in range(count):
            pair = rows[row], rows[row ^ half]
            if row & half or pair == (None, None):
                continue
            upper, lower = (undefined if value is None else value for value in pair)
            for place, lanes_taken in ((row, low), (row + half, high)):
                index = ir.Constant(ir.VectorType(_I32, count), lanes_taken)
                rows[place] = builder.shuffle_vector(upper, lower, index)
    return rows


def _halves(count: int) -> list[int]:
    return [1 << bit for bit in range(count.bit_length() - 1)]


@_typed(tile_transpose)
def _(acc):
    square = isinstance(acc, Tile) and acc.columns == 1 and acc.rows == acc.vector.count
    return acc if square else None


@_coded(tile_transpose)
def _(context, builder, sig, args):
    acc, count = args[0], sig.return_type.rows
    rows = [builder.extract_value(acc, row) for row in range(count)]
    for row, value in enumerate(_transposed(builder, rows, _halves(count))):
        acc = builder.insert_value(acc, value, row)
    return acc


@_typed(tile_load_turned)
def _(acc, x, start, step, count, width):
    fits = isinstance(acc, Tile) and _is_array(x) and x.dtype == acc.vector.dtype
    return acc if fits and acc.columns == 1 else None


@_coded(tile_load_turned)
def _(context, builder, sig, args):
    kind, acc = sig.return_type, args[0]
    start, step, count, width = _integers(context, builder, sig, args, 2, 3, 4, 5)
    lanes = kind.vector.count
    for first in range(0, kind.rows, lanes):  # as many rows as a vector holds
        rows = min(lanes, kind.rows - first)
        vectors = []
        for lane in range(lanes):
            at = builder.add(start, builder.mul(_clamped(builder, lane, count), step))
            at, left = _plus(builder, at, first), _plus(builder, width, -first)
            left = _least(builder, left, rows)
            vectors += _row_of(context, builder, sig.args[1], args[1], at, left, kind)
        turned = _transposed(builder, vectors, _halves(lanes)[::-1])
        for row in range(rows):
            acc = builder.insert_value(acc, turned[row], first + row)
    return acc


@_typed(tile_store_turned)
def _(acc, x, table, i, start, width):
    fits = isinstance(acc, Tile) and _is_array(x, table) and x.dtype == acc.vector.dtype
    return types.none if fits and table.dtype == types.int64 else None


@_coded(tile_store_turned)
def _(context, builder, sig, args):
    kind = sig.args[0]
    vector, align = _llvm_vector(kind.vector), kind.vector.dtype.bitwidth // 8
    i, start, width = _integers(context, builder, sig, args, 3, 4, 5)
    lanes = vector.count
    blocks = [(k, min(lanes, kind.rows - k)) for k in range(0, kind.rows, lanes)]
    masks = [
        _first_lanes(builder, _least(builder, _plus(builder, width, -k), rows), lanes)
        for k, rows in blocks
    ]
    for column in range(kind.columns - 1, -1, -1):
        turned = []
        for first, rows in blocks:
            numbers = [(first + row) * kind.columns + column for row in range(rows)]
            vectors = [builder.extract_value(args[0], number) for number in numbers]
            turned.append(_transposed(builder, vectors + [None] * (lanes - rows), _halves(lanes)))
        for lane in range(lanes - 1, -1, -1):
            at = _plus(builder, i, column * lanes + lane)
            entry = _address(context, builder, sig.args[2], args[2], at, types.intp)
            place = builder.add(start, builder.load(entry))
            for (first, _), mask, vectors in zip(blocks, masks, turned, strict=True):
                at = _plus(builder, place, first)
                pointer = _address(context, builder, sig.args[1], args[1], at, types.intp)
                pointer = _vector_pointer(builder, pointer, vector.element, lanes)
                _masked_store(builder, vectors[lane], pointer, mask, align)
    return context.get_dummy_value()


def _plus(builder: ir.IRBuilder, value: ir.Value, number: int) -> ir.Value:
    return builder.add(value, ir.Constant(_I64, number))


def _least(builder: ir.IRBuilder, value: ir.Value, number: int) -> ir.Value:
    most = ir.Constant(_I64, number)
    return builder.select(builder.icmp_signed("<", value, most), value, most)


__all__ = [
    "NARROW_ROWS",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "VECTOR_BYTES",
    "WIDE",
    "Bits",
    "Mask",
    "Rows",
    "Tile",
    "Vector",
    "bits",
    "copysign",
    "erf",
    "exp",
    "floor",
    "fma",
    "fraction",
    "from_bits",
    "halves",
    "integers",
    "lanes",
    "load",
    "load_mask",
    "load_wide",
    "log",
    "maximum",
    "minimum",
    "power",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "round",
    "splat",
    "splat_wide",
    "sqrt",
    "store",
    "tanh",
    "tile",
    "tile_add",
    "tile_fma",
    "tile_fma_rows",
    "tile_fma_terms",
    "tile_load",
    "tile_load_turned",
    "tile_maximum",
    "tile_rows",
    "tile_square",
    "tile_steps",
    "tile_store",
    "tile_store_sums",
    "tile_store_turned",
    "tile_transpose",
    "to_float",
    "where",
    "words",
    "zip_high",
    "zip_low",
]
