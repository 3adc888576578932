"""An op in one view: formula, kernels, gradient, machine code of its hot loop, work."""

from __future__ import annotations

import ast
import functools
import html
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from .. import dispatch, ops, roofline
from ..array import Array, asarray
from ..autodiff import vjp
from ..dispatch import Call, Op, interpreter, make_call, make_views, workspace_of
from ..errors import GraphError, nearest
from ..jit import Kernel
from . import listings


def _floats(*shape: int) -> Array:
    """Return numbers from 0.5 to 1.5, of which every op has a result."""
    return asarray(np.random.default_rng(0).random(shape, np.float32) + np.float32(0.5))


def _flags() -> Array:
    return asarray(np.random.default_rng(0).random(EACH) < 0.5)


EACH = (64, 1024)  # what ops are shown with that take any shape
INDICES = np.arange(64) % 10
# What to call an op with; any other that takes arrays gets numbers of EACH shape.
EXAMPLES: dict[str, Callable[[], tuple]] = {
    "astype": lambda: (_floats(*EACH), "float64"),
    "avg_pool2d": lambda: (_floats(8, 16, 16, 32), 2),
    "concat": lambda: ([_floats(*EACH), _floats(*EACH)],),
    "conv2d": lambda: (_floats(8, 16, 16, 16), _floats(5, 5, 16, 32), _floats(32)),
    "dropout": lambda: (_floats(*EACH), 0.5),
    "embedding": lambda: (_floats(10, 128), asarray(INDICES)),
    "linear": lambda: (_floats(64, 256), _floats(256, 128), _floats(128)),
    "logical_and": lambda: (_flags(), _flags()),
    "logical_not": lambda: (_flags(),),
    "logical_or": lambda: (_flags(), _flags()),
    "logical_xor": lambda: (_flags(), _flags()),
    "matmul": lambda: (_floats(64, 256), _floats(256, 128)),
    "max_pool2d": lambda: (_floats(8, 16, 16, 32), 2),
    "permute_dims": lambda: (_floats(*EACH), (1, 0)),
    "softmax_cross_entropy": lambda: (_floats(64, 10), asarray(INDICES)),
    "take": lambda: (_floats(10, 128), asarray(INDICES)),
    "where": lambda: (_flags(), _floats(*EACH), _floats(*EACH)),
}
ARRAYS = {"x", "y", "a", "b", "x1", "x2", "target", "logits"}  # parameters of ops that are arrays
WIDTH = 100
HELPERS = 5  # functions of which the source is shown


@dataclass(frozen=True)
class Part:
    """One of the things that there are to see.

    Attributes
    ----------
    title
        What it is.
    text
        It.
    note
        What to know of it.
    """

    title: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: print it, or leave it as the last line of a notebook's cell.

    Attributes
    ----------
    name
        The op.
    call
        With which inputs it was run.
    parts : tuple of Part
        In the order in which to read them.
    """

    name: str
    call: str
    parts: tuple[Part, ...]

    def __getitem__(self, title: str) -> str:
        """Return the text of the first part whose title begins so."""
        found = next((part for part in self.parts if part.title.startswith(title)), None)
        if found is None:
            raise KeyError(f"no part {title!r}; {nearest(title, [p.title for p in self.parts])}")
        return found.text

    def __str__(self) -> str:
        lines = [self.call]
        for part in self.parts:
            lines += ["", f"── {part.title} ".ljust(WIDTH, "─")]
            lines += [part.note] if part.note else []
            lines += ["", part.text] if part.note else [part.text]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        shown = []
        for position, part in enumerate(self.parts):
            note = f"<p>{html.escape(part.note)}</p>" if part.note else ""
            shown.append(
                f"<details{' open' if position == 0 else ''}>"
                f'<summary style="cursor:pointer"><b>{html.escape(part.title)}</b></summary>{note}'
                f'<pre style="overflow-x:auto;max-height:36em">{html.escape(part.text)}</pre>'
                "</details>"
            )
        return f"<div><code>{html.escape(self.call)}</code>{''.join(shown)}</div>"


def explain(name: str, *inputs: Any, **params: Any) -> Explanation:
    """Show an op: formula, both kernels, gradient, hot loop as LLVM and assembly, and its work.

    It is run once, with its gradient, so that what is shown is what runs for these inputs. With
    the CUDA toolkit installed the GPU kernel's PTX is shown, too; a GPU is not needed.

    Parameters
    ----------
    name
        The public name of an op, such as ``"conv2d"``.
    inputs, params
        What to call it with; by default inputs of a middling size.

    Raises
    ------
    ValueError
        If there is no such op; the nearest is named.
    TypeError
        If it needs inputs to be given.

    Examples
    --------
    >>> explanation = explain("relu")
    >>> print(explanation["formula"].splitlines()[0])
    out[i] = max(x[i], 0).
    >>> [part.title for part in explanation.parts][:3]
    ['formula', 'CPU kernel: relu_forward', 'CUDA kernel: relu_forward']
    """
    function = _function(name)
    if not inputs:
        inputs = _example(name, function)
    inputs = tuple(asarray(x) if isinstance(x, np.ndarray) else x for x in inputs)
    forward, backward = _calls(name, function, inputs, params)
    op, call = _main(name, forward)
    parts = [
        Part("formula", _formula(op, function)),
        *_sources(op),
        Part("gradient", _source(op.vjp) if op.vjp else "none: it is not differentiable"),
        *_machine_code(op, call),
        *_ptx(op, call),
        Part("work", _work(forward, backward), _work_note(op, call)),
    ]
    return Explanation(name, _shown_call(name, inputs, params), tuple(parts))


# ---------------------------------------------------------------- the call


def _function(name: str) -> Callable:
    known = [one for one in ops.__all__ if inspect.isfunction(getattr(ops, one))]
    if name not in known:
        raise ValueError(f"explain: no op is called {name!r}; {nearest(name, known)}")
    return getattr(ops, name)


def _example(name: str, function: Callable) -> tuple:
    """Return inputs for an op."""
    if name in EXAMPLES:
        return EXAMPLES[name]()
    needed = [
        one.name
        for one in inspect.signature(function).parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    if not needed or not set(needed) <= ARRAYS:
        raise TypeError(
            f"explain: give inputs to call {name} with, such as explain({name!r}, x); it takes "
            f"{', '.join(inspect.signature(function).parameters)}"
        )
    return tuple(_floats(*EACH) for _ in needed)


def _calls(
    name: str, function: Callable, inputs: tuple, params: dict[str, Any]
) -> tuple[list[tuple[Op, Call]], list[tuple[Op, Call]]]:
    """Run the op and its gradient; return the ops that ran, with what they were given."""
    noted: list[tuple[Op, Call]] = []

    def note(op: Op, arrays: tuple[Array, ...], settings: dict[str, Any], targets: Any) -> tuple:
        noted.append((op, make_call(op, tuple(x.spec for x in arrays), settings)))
        return dispatch.run_eagerly(op, arrays, settings, targets)

    is_float = [isinstance(x, Array) and x.dtype.kind == "f" for x in inputs]

    def of_floats(*floats: Array) -> Array:
        left = iter(floats)
        return function(*(next(left) if f else x for f, x in zip(is_float, inputs)), **params)

    floats = [x for f, x in zip(is_float, inputs) if f]
    with interpreter(note):
        try:
            out, pullback = vjp(of_floats, *floats)
            forward = [pair for pair in noted if pair[0].kernel is not None]
            noted.clear()
            pullback(out)
        except (GraphError, TypeError):  # no gradient
            noted.clear()
            function(*inputs, **params)
            return [pair for pair in noted if pair[0].kernel is not None], []
    return forward, [pair for pair in noted if pair[0].kernel is not None]


def _main(name: str, forward: list[tuple[Op, Call]]) -> tuple[Op, Call]:
    """Return the op to show of those that ran: the one of that name, or what works most."""
    if not forward:
        raise ValueError(f"explain: {name} runs no kernel: it only looks at a buffer another way")
    named = [pair for pair in forward if pair[0].name == name]
    return named[0] if named else max(forward, key=lambda pair: roofline.work(*pair))


def _shown_call(name: str, inputs: Iterable, params: dict[str, Any]) -> str:
    def shown(x: Any) -> str:
        if isinstance(x, Array):
            return f"{x.dtype}[{','.join(map(str, x.shape))}]"
        return f"[{', '.join(map(shown, x))}]" if isinstance(x, list) else repr(x)

    given = [shown(x) for x in inputs] + [f"{k}={shown(v)}" for k, v in params.items()]
    return f"{name}({', '.join(given)})"


# ------------------------------------------------------------------ sources


def _cpu_kernel(op: Op) -> Any:
    return dispatch.find_kernel(op, "cpu")


def _plain(function: Any) -> Any:
    """Return the Python function inside what a decorator made."""
    return getattr(function, "py_func", function)


def _source(function: Any) -> str:
    function = _plain(function)
    if isinstance(function, functools.partial):
        function = function.func
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return f"the source of {function!r} is not at hand"


def _formula(op: Op, function: Callable) -> str:
    """Return what the kernel's docstring says; without one, what the function's does."""
    doc = inspect.getdoc(_plain(_cpu_kernel(op))) or inspect.getdoc(function) or ""
    if op.formula is not None:
        from .. import formulas

        written = getattr(formulas, op.formula, None)
        if inspect.isfunction(written):
            return f"{doc}\n\n{_source(written)}".strip()
    return doc


@functools.cache
def _definitions(file: str) -> dict[str, ast.stmt]:
    """Return what a module of kernels defines by name; that for CUDA cannot always be imported."""
    path = Path(ops.__file__).parents[1] / file
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def _kernel_source(file: str, names: Iterable[str]) -> str:
    """Return the source of functions, and below it of those of the same file that they call."""
    known = _definitions(file)
    waiting, shown = [name for name in names if name in known], []
    while waiting and len(shown) < HELPERS:
        node = known[waiting.pop(0)]
        if node in shown:
            continue
        shown.append(node)
        called = [one.id for one in ast.walk(node) if isinstance(one, ast.Name)]
        waiting += [n for n in called if isinstance(known.get(n), ast.FunctionDef)]
    lines = (Path(ops.__file__).parents[1] / file).read_text(encoding="utf-8").splitlines()
    return "\n\n\n".join(
        "\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in shown
    )


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])


def _sources(op: Op) -> list[Part]:
    """Return the kernels of both devices."""
    if not isinstance(op.kernel, str):  # a user's own
        return [Part(f"{device} kernel", _source(one)) for device, one in op.kernel.items()]
    cuda = _kernel_source("kernels_cuda.py", (f"_{op.kernel}", op.kernel))
    return [
        Part(f"CPU kernel: {op.kernel}", _kernel_source("kernels_cpu.py", [op.kernel])),
        Part(f"CUDA kernel: {op.kernel}", cuda or "none: this op runs on the CPU alone"),
    ]


# -------------------------------------------------------------- machine code


def _stand_ins(op: Op, call: Call) -> list[Any]:
    """Return arguments as the kernel gets them, of the right shapes."""
    views = make_views(op, call)
    scratch = workspace_of(op, call)
    dtypes = [spec.dtype for spec in (*call.inputs, *call.outputs)] + [
        dtype for _, dtype in scratch
    ]
    shapes = [*views.inputs, *views.outputs, *(shape for shape, _ in scratch)]
    arrays = [np.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes)]
    return [*arrays[: len(call.inputs)], *views.scalars, *arrays[len(call.inputs) :]]


def _machine_code(op: Op, call: Call) -> list[Part]:
    kernel = _cpu_kernel(op)
    if not isinstance(kernel, Kernel):
        return [Part("machine code", "none: the JIT is off, the kernel runs as plain Python")]
    kinds = tuple(numba.typeof(argument) for argument in _stand_ins(op, call))
    llvm, assembly = kernel.listings(kinds)
    loop = listings.of_assembly(assembly)
    count, vectors = listings.instructions(loop)
    note = (
        f"{count} instructions in the loop with the most arithmetic, {vectors} of them on vectors; "
        f"{len(assembly.splitlines()):,} lines in all"
    )
    return [
        Part(
            "LLVM of the hot loop", "\n".join(listings.of_llvm(llvm)) or "no arithmetic in a loop"
        ),
        Part("assembly of the hot loop", "\n".join(loop) or "no loop", note if loop else ""),
    ]


def _ptx(op: Op, call: Call) -> list[Part]:
    """Compile the CUDA kernel for an H100 if the toolkit is installed."""
    if not isinstance(op.kernel, str) or op.kernel not in _definitions("kernels_cuda.py"):
        return []
    try:
        from .. import kernels_cuda
        from ..cuda_support import compile_offline, record_launches

        gpu = make_call(op, tuple(s._replace(device="cuda") for s in call.inputs), call.params)
        with record_launches() as launches:
            getattr(kernels_cuda, op.kernel)(*_stand_ins(op, gpu), 0)
        report = compile_offline(*next(iter(launches)))
    except (ImportError, RuntimeError, TypeError) as error:  # no toolkit, or the simulator
        reason = " ".join(str(error).split())[:300]
        return [Part("PTX", f"not compiled: {reason}")]
    loop = listings.of_assembly(report.ptx)
    note = (
        f"for {report.arch}: {report.registers} registers for each thread, "
        f"{report.shared_bytes:,} bytes of shared memory; {len(report.ptx.splitlines()):,} lines "
        f"in all{', of which the hot loop' if loop else ''}"
    )
    text = "\n".join(loop) or report.ptx.rstrip()
    return [Part("PTX", re.sub(r"\b_ZN\w+?(?=_param_\d+|\()", f"_{op.kernel}", text), note)]


# --------------------------------------------------------------------- work


def _work(forward: list[tuple[Op, Call]], backward: list[tuple[Op, Call]]) -> str:
    rows = [("", "op", "MFLOP", "KB moved", "FLOP/byte")]
    for what, pairs in (("forward", forward), ("backward", backward)):
        for op, call in pairs:
            flops, moved = roofline.work(op, call)
            rows.append((
                what, op.name, f"{flops / 1e6:,.2f}", f"{moved / 1024:,.1f}",
                f"{flops / moved:.2f}" if moved else "",
            ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e:>{widths[4]}}"
        for a, b, c, d, e in rows
    )


def _work_note(op: Op, call: Call) -> str:
    flops, moved = roofline.work(op, call)
    return (
        f"{op.name}: {flops:,.0f} floating-point operations on {moved:,.0f} bytes, what these "
        "inputs take at least"
    )


__all__ = ["Explanation", "Part", "explain"]
