"""Write a compiled step as one Python file that needs only Numba and NumPy.

The file holds what the step runs, in the order in which one reads it: SIMD vectors, the kernels
with all that they call, the regions, and ``step``. The arrays lie beside it in an .npz file.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import itertools
import re
import sys
import textwrap
import types as pytypes
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import formulas, jit, kernels_cpu, simd
from ..errors import NO_ERROR, GraphError
from ..jit import function_of, is_settled, references, write_atomically
from . import linkage
from .compiled import CPUExecutable
from .graph import Buffer, Ref
from .trace import map_leaves

PACKAGE = __name__.partition(".")[0]

HEAD = '''
from __future__ import annotations

import sys
import types as pytypes
from pathlib import Path

import numba
import numpy as np


def njit(function=None, *, parallel=False, cache=False):
    """Compile as the kernels are compiled: without the interpreter's lock, and 1 / 0 is inf."""
    options = {"nogil": True, "error_model": "numpy", "parallel": parallel, "cache": cache}
    return numba.njit(**options)(function) if function else numba.njit(**options)


def namespace(name):
    """Return what is defined so far as a module: the code below says simd.load, formulas.bind."""
    module = pytypes.ModuleType(name)
    vars(module).update(globals())
    return module
'''


def export(executable: CPUExecutable, path: str | Path) -> None:
    """Write a step to ``path`` and its arrays beside it; see `CompiledFunction.export`."""
    path = Path(path)
    if path.suffix != ".py":
        raise ValueError(f"export: the path must end in .py, got {str(path)!r}")
    text, arrays = _Exported(executable, path.stem).module()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".npz"), buffer.getvalue())
    write_atomically(path, text.encode())


class _Exported:
    def __init__(self, executable: CPUExecutable, stem: str):
        self.source, self.plan, self.stem = executable.source, executable.plan, stem
        if self.plan.gradients_read:
            raise GraphError(
                f"export: {self.plan.name} adds to gradients from before; call zero_grad() inside"
            )
        self.arrays = {buffer.name: buffer.leaf.numpy() for buffer in self.plan.leaves}

    def module(self) -> tuple[str, dict[str, np.ndarray]]:
        regions = self.source.text.partition("from numbagrad.kernels_cpu import vector\n")[2]
        regions = re.sub(r"(?m)^\w+ = linked\(.*\)\n", "", regions)
        regions = regions.replace("@njit\ndef region_", "@njit(cache=True)\ndef region_")
        numba_types = re.findall(r"(?m)^from numba import .*$", self.source.text)
        ours = {n: k for n, k in self.source.kernels.items() if _is_ours(n, k)}
        users = {n: k for n, k in self.source.kernels.items() if n not in ours}
        wanted = {*ours, "vector"} if "vector." in regions else set(ours)
        vectors = inspect.getsource(formulas).partition("\ndef _erf(")[0]
        vectors = re.sub(r"\btypes\.", "pytypes.", vectors)  # simd's `types` are Numba's
        parts = [
            _title("helpers"),
            picked(jit, {"cpu_features", "function_of", "array_of"}),
            'jit = namespace("jit")',
            _title("formulas"),
            _without_imports(vectors, {"types"}),
            'formulas = namespace("formulas")',
            _title("simd"),
            _without_imports(inspect.getsource(simd)),
            'simd = namespace("simd")',
            _title("arrays at addresses"),
            picked(linkage, {"array_at"}),
            _title("kernels"),
            picked(kernels_cpu, wanted),
            USERS,
            _title("regions"),
            *numba_types,
            regions.strip(),
            _title("step"),
        ]
        names = {n for part in parts for st, _ in _statements(part) for n in _bound(st)}
        parts[parts.index(USERS)] = _user_kernels(users, names - users.keys())
        step = self._step()  # may add arrays
        text = "\n\n".join([self._docstring() + HEAD, *parts, step])
        return re.sub(r"\n{4,}", "\n\n\n", text).rstrip() + "\n", self.arrays

    def _docstring(self) -> str:
        arguments = [
            f"    {b.name}: {b.spec.dtype.name} of shape {b.spec.shape}"
            for b in self.plan.arguments
        ] or ["    none"]
        return "\n".join([
            f'"""{self.plan.name}, compiled by numbagrad; it needs only Numba and NumPy.',
            "",
            f"``step`` takes NumPy arrays, changes ``states`` (loaded from {self.stem}.npz) in",
            "place, and returns NumPy arrays. Its arguments:",
            "",
            *arguments,
            '"""',
        ])  # fmt: skip

    # ------------------------------------------------------------------- step

    def _step(self) -> str:
        plan = self.plan
        memory: list[str] = []
        for slot, what in enumerate(self.source.slots):
            if isinstance(what, int):
                value = str(what)
            elif isinstance(what, np.ndarray):
                self.arrays[f"table_{slot}"] = what
                value = f'address(states["table_{slot}"])'
            elif what.source == "argument":
                value = f"address(arguments[{what.index}])"
            elif what.source == "leaf":
                value = f'address(states["{what.name}"])'
            elif what in plan.places:
                value = f"address(ARENA) + {plan.places[what]}"
            else:
                value = f'address(kept["{what.name}"])'
            memory.append(f"        {value},  # {slot}: {getattr(what, 'name', 'parameter')}")
        kept = [
            f'        "{b.name}": np.empty({b.spec.shape}, np.dtype("{b.spec.dtype.name}")),'
            for b in plan.kept
        ]
        runs = []
        for name, region in zip(self.source.functions, plan.regions, strict=True):
            bounds = region.bounds.tolist()
            rows = list(itertools.pairwise(bounds))[: region.shards]
            runs.append(f"    for shard, (first, stop) in enumerate({rows}):")
            runs.append(f"        {name}(memory, SCRATCH, shard, first, stop)")
        checks = []
        for node in plan.checked:
            flag = node.outputs[-1].name
            checks.append(f'    check("{node.op.name}", int(kept["{flag}"][0]))')
        gradients = [
            f'    gradients["{self._state(leaf)}"] = {self._value(ref)!r}'
            for leaf, ref in plan.gradients
            if ref is not None
        ]
        most = max((region.scratch_bytes for region in plan.regions), default=0)
        specs = [(b.name, b.spec.shape, b.spec.dtype.name) for b in plan.arguments]
        result = map_leaves(plan.result, self._value)
        lines = [
            f"ARGUMENTS = {specs!r}",
            "",
            "",
            "def aligned(nbytes):",
            '    """Return memory that begins with a cache line."""',
            "    raw = np.zeros(nbytes + 64, np.uint8)",
            "    first = -raw.ctypes.data % 64",
            "    return raw[first : first + nbytes]",
            "",
            "",
            "def address(array):",
            '    return array.__array_interface__["data"][0]',
            "",
            "",
            "def check(op, position):",
            '    """Raise if a kernel found a bad value, such as a label out of range."""',
            f"    if position != {NO_ERROR}:",
            '        raise IndexError(f"{op}: the value at position {position} is out of range")',
            "",
            "",
            'with np.load(Path(__file__).with_suffix(".npz")) as _file:',
            "    states = {name: np.ascontiguousarray(_file[name]).reshape(_file[name].shape)",
            "              for name in _file.files}",
            "gradients = {}",
            f"ARENA = aligned({plan.arena_bytes})",
            f"SCRATCH = aligned({max(most, 1)})",
            "",
            "",
            "def step(*arrays):",
            '    """Run the regions in order; see the top of this file for the arguments."""',
            "    if len(arrays) != len(ARGUMENTS):",
            '        raise TypeError(f"step takes {len(ARGUMENTS)} arrays, got {len(arrays)}")',
            "    arguments = []",
            "    for array, (name, shape, dtype) in zip(arrays, ARGUMENTS, strict=True):",
            '        array = np.asarray(array, order="C")',
            "        if array.shape != shape or array.dtype != dtype:",
            '            wanted = f"{name} must be {dtype} of shape {shape}"',
            '            got = f"{array.dtype} of shape {array.shape}"',
            '            raise TypeError(f"step: {wanted}, got {got}")',
            "        arguments.append(array)",
            "    kept = {",
            *kept,
            "    }",
            "    memory = np.array([",
            *(memory or ["        0,"]),
            "    ], np.int64)",
            *runs,
            *checks,
            *gradients,
            f"    return {result!r}",
        ]
        return "\n".join(lines)

    def _state(self, leaf: Any) -> str:
        names = [b.name for b in self.plan.leaves if b.leaf is leaf]
        if names:
            return names[0]
        name = f"captured_{len(self.arrays)}"
        self.arrays[name] = leaf.numpy()
        return name

    def _value(self, ref: Any) -> _Text:
        if not isinstance(ref, Ref):
            return _Text(f'states["{self._state(ref)}"].copy()')
        buffer: Buffer = ref.buffer
        if buffer.source == "argument":
            text = f"arguments[{buffer.index}]"
        elif buffer.source == "leaf":
            text = f'states["{buffer.name}"].copy()'
        else:
            text = f'kept["{buffer.name}"]'
        if ref.offset or ref.spec.size != buffer.spec.size:
            text += f".reshape(-1)[{ref.offset}:{ref.offset + ref.spec.size}]"
        return _Text(text if ref.spec == buffer.spec else f"{text}.reshape({ref.spec.shape})")


class _Text(str):
    """An expression, whose ``repr`` in a tuple, list or dict is itself."""

    def __repr__(self) -> str:
        return str(self)


def _title(name: str) -> str:
    return f"\n# {'=' * 70} {name}"


def _is_ours(name: str, kernel: Callable) -> bool:
    return getattr(kernels_cpu, name, None) is kernel


# ------------------------------------------------------------ pieces of modules


def _statements(text: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield the statements of a module with their text, decorators included."""
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(d.lineno for d in decorators)])
        yield statement, "\n".join(lines[first - 1 : statement.end_lineno])


def _without_imports(text: str, but: Iterable[str] = ()) -> str:
    """Return a module's text but for docstring, ``__all__``, own package and ``__future__``."""
    lines = text.splitlines()
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.ImportFrom):
            drop = statement.level or statement.module == "__future__"
        elif isinstance(statement, ast.Import):
            drop = statement.names[0].name in but
        elif isinstance(statement, ast.Assign):
            drop = _bound(statement) == {"__all__"}
        else:
            drop = statement.lineno == 1 and isinstance(statement, ast.Expr)
        if drop:
            count = statement.end_lineno - statement.lineno + 1
            lines[statement.lineno - 1 : statement.end_lineno] = [""] * count
    return "\n".join(lines).strip()


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module gives a meaning."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).partition(".")[0] for a in statement.names}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)}


def _used(statement: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def picked(module: pytypes.ModuleType, wanted: set[str]) -> str:
    """Return the part of a module that some of its names need, in the module's order.

    What is registered for a picked function by a decorator, such as its type, is picked with it.
    """
    statements = list(_statements(inspect.getsource(module)))
    names, size = set(wanted), -1
    while len(names) != size:
        size = len(names)
        for statement, _ in statements:
            if _bound(statement) & names or _registers(statement, names):
                names |= _bound(statement) | _used(statement)
    texts = []
    for statement, text in statements:
        if not (_bound(statement) & names or _registers(statement, names)):
            continue
        if isinstance(statement, ast.ImportFrom):
            text = _import(module, statement, names)
        texts.append(text)
    return "\n\n".join(filter(None, texts))


def _registers(statement: ast.stmt, names: set[str]) -> bool:
    decorators = getattr(statement, "decorator_list", [])
    calls = [d for d in decorators if isinstance(d, ast.Call)]
    first = [d.args[0].id for d in calls if d.args and isinstance(d.args[0], ast.Name)]
    return any(name in names for name in first)


def _import(module: pytypes.ModuleType, statement: ast.ImportFrom, names: set[str]) -> str:
    """Return an import, or for what comes from this package its value if it is a number."""
    if not statement.level:
        return "" if statement.module == "__future__" else ast.unparse(statement)
    home = importlib.import_module("." * statement.level + (statement.module or ""),
                                   module.__package__)  # fmt: skip
    values = {a.asname or a.name: getattr(home, a.name, None) for a in statement.names}
    return "\n".join(
        f"{name} = {value!r}" for name, value in values.items()
        if name in names and isinstance(value, (int, float))
    )  # fmt: skip


# ---------------------------------------------------------------- users' kernels


USERS = "# users' kernels"


def _user_kernels(kernels: dict[str, Callable], taken: set[str]) -> str:
    """Return the source of users' kernels and of what they call, under the names in the regions.

    All lies in one namespace: a name that would mean two things is an error.
    """
    found: dict[str, str] = {}
    for name, kernel in sorted(kernels.items()):
        texts: dict[str, str] = {}
        function = function_of(kernel)
        _collect(function, texts)
        if function.__name__ != name:
            texts[name] = f"{name} = {function.__name__}"
        for key, text in texts.items():
            clash = key in taken and not text.startswith("import ")
            if clash or found.setdefault(key, text) != text:
                raise GraphError(
                    f"export: {key}, which the kernel {function.__name__} reads, has another "
                    "meaning in the exported module; rename it"
                )
    return "\n\n\n".join([USERS, *found.values()])


def _collect(function: Callable, texts: dict[str, str]) -> None:
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text).body[0]
        if not isinstance(tree, ast.FunctionDef):
            raise OSError("it is not a def")
    except (OSError, TypeError, SyntaxError) as error:
        name = getattr(function, "__name__", repr(function))
        raise GraphError(f"export: no source can be had of the kernel {name}: {error}") from None
    texts[function.__name__] = ""  # its place is after what it needs
    for space, name, value in references(function):
        if space is not function.__globals__ and name not in function.__code__.co_freevars:
            continue  # an attribute of a module
        if name in texts or value is simd:
            continue
        inner = function_of(value)
        if isinstance(value, pytypes.ModuleType) and is_settled(value):
            texts[name] = f"import {value.__name__} as {name}"
        elif isinstance(inner, pytypes.FunctionType) and not is_settled(inner):
            if inner.__name__ not in texts:
                _collect(inner, texts)
            if name not in texts:  # another name for it
                texts[name] = f"{name} = {inner.__name__}"
        elif isinstance(value, (bool, int, float, str)):
            texts[name] = f"{name} = {value!r}"
        elif is_settled(value) and getattr(sys.modules.get(value.__module__), name, None) is value:
            texts[name] = f"from {value.__module__} import {name}"
        elif value is not jit.njit:
            raise GraphError(f"export: {function.__name__} reads {name}, which cannot be written")
    lines = text.splitlines()[tree.lineno - 1 :]
    del texts[function.__name__]
    texts[function.__name__] = "@njit\n" + "\n".join(lines)
