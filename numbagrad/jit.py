"""Compile and cache CPU kernels.

``njit`` is Numba's own compiler with three things added:

* a disk cache whose key is the *content* of the kernel: its bytecode, that of everything it
  calls, the constants it reads, the versions of Python, Numba and llvmlite, and the CPU. An edit
  anywhere changes the key, so a stale kernel can never be loaded. One file per compiled
  signature, written to a temporary name and renamed: two processes never see half of one.
* a line ``compiling conv2d_forward ...`` on stderr when a compile takes over half a second.
* ``nogil``: kernels run beside the data loader's thread.

No setting of Numba's is touched: each kernel carries its own cache object.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import inspect
import itertools
import os
import pickle
import sys
import tempfile
import threading
import types as pytypes
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, serialize, typed_passes, types, untyped_passes
from numba.core.codegen import JITCodeLibrary, get_host_cpu_features
from numba.core.compiler import Compiler, CompileResult, compile_result
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys
from numba.core.typing.templates import AbstractTemplate, Signature, infer_global
from numba.core.typing.templates import signature as make_signature
from numba.extending import lower_builtin
from numba.np.numpy_support import as_dtype

__numba_extension__ = True  # how `start` lowers is part of the key of what calls it

ANNOUNCE_AFTER = 0.5  # seconds
# What a version names.
SETTLED = ("builtins", "ctypes", "inspect", "llvmlite", "math", "numba", "numpy")
OURS = ("numbagrad",)


# ------------------------------------------------------------------ where


@functools.cache
def cache_dir() -> Path:
    """Return the folder of compiled kernels, made if missing.

    ``$NUMBAGRAD_CACHE_DIR`` comes first, then ``numbagrad`` in the user's cache folder. A folder
    that cannot be written is replaced by a temporary one, with one warning.
    """
    chosen = os.environ.get("NUMBAGRAD_CACHE_DIR")
    if chosen:
        wanted = Path(chosen)
    elif sys.platform == "win32":
        wanted = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "numbagrad"
    elif sys.platform == "darwin":
        wanted = Path.home() / "Library/Caches/numbagrad"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        wanted = Path(base) / "numbagrad"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            pass
    except OSError as error:
        return instead_of(wanted, error)
    return wanted


def instead_of(wanted: Path, error: OSError) -> Path:
    """Return a temporary folder in place of one that cannot be written, with one warning."""
    if wanted not in _replaced:
        _replaced[wanted] = Path(tempfile.mkdtemp(prefix="numbagrad-"))
        warnings.warn(
            f"numbagrad cannot write its kernel cache to {wanted} ({error}); using "
            f"{_replaced[wanted]}. Set NUMBAGRAD_CACHE_DIR to a folder that can be written.",
            stacklevel=3,
        )
    return _replaced[wanted]


_replaced: dict[Path, Path] = {}  # folders that cannot be written


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file so that a reader finds the old content or the new, never half of one.

    ``durable`` waits until it is on the disk: then a power failure, too, leaves one of the two.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)  # the new name is a part of the folder
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what went wrong first is what to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say of which file
        raise


# ------------------------------------------------------------- content key


def content_key(function: Callable) -> str | None:
    """Return a hash of everything that a compiled function depends on.

    That is its bytecode, the bytecode of every function it reaches through globals, modules and
    closures, and the value of every constant found on the way. A module that defines Numba
    extensions (types, intrinsics) sets ``__numba_extension__ = True``: its whole source then
    counts, since how a call lowers cannot be seen in the caller's bytecode. None means that the
    function reads something that cannot be looked into, such as a class: it is not cached.
    """
    digest = hashlib.sha256()
    digest.update(
        f"{sys.version_info}|{numba.__version__}|{llvmlite.__version__}|{np.__version__}".encode()
    )
    seen: set[int] = set()
    try:
        for piece in _pieces(function, seen):
            digest.update(piece)
            digest.update(b"\0")
    except _OpaqueError:
        return None
    return digest.hexdigest()[:32]


class _OpaqueError(Exception):
    """A callable whose code cannot be read."""


def function_of(value: object) -> object:
    """Return the Python function behind what Numba made of it, and anything else as it is."""
    value = getattr(value, "_dispatcher", value)  # of a function made by numba.vectorize
    for name in ("py_func", "_pyfunc", "_defn"):  # of dispatchers, C callbacks and intrinsics
        value = getattr(value, name, value)
    return value


def is_settled(value: object, packages: Sequence[str] = SETTLED) -> bool:
    """Return whether a value comes from a package, or is a module of one, that nobody edits."""
    home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return str(home).partition(".")[0] in packages


def _pieces(value: object, seen: set[int]) -> Iterator[bytes]:
    """Walk from a function to all that it depends on, each thing once."""
    options = getattr(value, "targetoptions", None)  # an @njit(fastmath=True) is another function
    value = function_of(value)
    if getattr(value, "runs_on_the_host", False):  # no compiled code is made of it
        yield value.__name__.encode()
    elif isinstance(value, pytypes.FunctionType) and not is_settled(value):
        if id(value) in seen:
            return
        seen.add(id(value))
        yield repr(options).encode()
        yield from _extension_source(value.__module__, seen)
        yield from _code_pieces(value.__code__)
        yield from _pieces(value.__defaults__ or (), seen)
        yield from _pieces(tuple(sorted((value.__kwdefaults__ or {}).items())), seen)
        for _, name, found in references(value):
            yield name.encode()
            yield from _pieces(found, seen)
    elif isinstance(value, tuple):
        yield f"tuple:{len(value)}".encode()
        for item in value:
            yield from _pieces(item, seen)
    elif isinstance(value, (np.ndarray, np.generic)):
        yield f"{value.dtype}:{value.shape}".encode()
        yield value.tobytes()
    elif _is_named(value):
        yield f"{type(value).__qualname__}:{value.__name__}".encode()
    elif callable(value) and not is_settled(value):
        raise _OpaqueError
    else:
        yield repr(value).encode()


def _is_named(value: object) -> bool:
    """Return whether a name is enough: what it stands for has a version or is walked through."""
    if isinstance(value, (pytypes.ModuleType, pytypes.BuiltinFunctionType)):
        return True
    return hasattr(value, "__name__") and (is_settled(value) or _is_extension(value.__module__))


def _code_pieces(code: pytypes.CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
    for constant in code.co_consts:
        if isinstance(constant, pytypes.CodeType):
            yield from _code_pieces(constant)
        else:
            yield repr(constant).encode()


def references(function: pytypes.FunctionType) -> Iterator[tuple[dict, str, object]]:
    """Yield (namespace, name, value) of all that a function may read by name.

    The namespaces are its closure, its globals and, however deep, those of the modules found.
    """
    code, cells = function.__code__, function.__closure__ or ()
    closure = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    names = {*_names(code), *closure}
    namespaces, seen = [closure, function.__globals__], set()
    for namespace in namespaces:
        for name in sorted(names & namespace.keys()):
            found = namespace[name]
            yield namespace, name, found
            if isinstance(found, pytypes.ModuleType) and id(found) not in seen:
                seen.add(id(found))
                if not is_settled(found):
                    namespaces.append(vars(found))


def _names(code: pytypes.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, pytypes.CodeType):
            yield from _names(constant)


def _is_extension(module_name: str | None) -> bool:
    return getattr(sys.modules.get(module_name or ""), "__numba_extension__", False)


def _extension_source(module_name: str | None, seen: set[int]) -> Iterator[bytes]:
    module = sys.modules.get(module_name or "")
    if _is_extension(module_name) and id(module) not in seen:
        seen.add(id(module))
        yield inspect.getsource(module).encode()


# ------------------------------------------------------------------- cache


FORMAT = 2  # of the files; another one reads none of those before


class ContentCache:
    """The disk cache of one kernel, in the form that a Numba dispatcher asks for."""

    form = "kernel"  # so that nobody takes a file for another thing
    pack = staticmethod(CompileResult._reduce)
    unpack = staticmethod(CompileResult._rebuild)

    def __init__(self, function: Callable, options: dict):
        self._function = function
        self._options = repr(sorted(options.items()))

    @functools.cached_property
    def key(self) -> str | None:
        return content_key(self._function)  # at first use: all callees exist by then

    @property
    def cache_path(self) -> str:
        return str(cache_dir())

    def _path(self, signature: Signature | tuple, codegen) -> Path:
        args = signature.args if isinstance(signature, Signature) else signature
        text = f"{FORMAT}|{self.form}|{self.key}|{self._options}|{args}|{codegen.magic_tuple()}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        return cache_dir() / f"{self._function.__name__}-{digest}.nbc"

    def has(self, signature: tuple, codegen) -> bool:
        """Return whether there is a file for arguments of these types."""
        return self.key is not None and self._path(signature, codegen).exists()

    def load_overload(self, signature, target_context) -> CompileResult | None:
        if self.key is None:
            return None
        if is_settled(self._function, OURS):
            rtsys.initialize(target_context)  # allocation, and the only help that ours call
        else:
            target_context.refresh()  # all that Numba can do: a third of a second
        path = self._path(signature, target_context.codegen())
        try:
            reduced = pickle.loads(path.read_bytes())
            return self.unpack(target_context, *reduced)
        except FileNotFoundError:
            return None
        except Exception:  # a damaged file is a miss: it is compiled and written again
            return None

    def save_overload(self, signature, result: CompileResult) -> None:
        lifted = all(lift.can_cache for lift in result.lifted)
        if self.key is None or result.library.has_dynamic_globals or not lifted:
            return
        path = self._path(signature, result.codegen)
        with contextlib.suppress(OSError):  # a full disk costs the next process a compile
            write_atomically(path, serialize.dumps(self.pack(result)))

    def enable(self) -> None: ...

    def disable(self) -> None: ...

    def flush(self) -> None:
        """Forget the key: Numba's ``recompile()`` asks for it, when a callee may be another."""
        self.__dict__.pop("key", None)


class _Compiler(_FunctionCompiler):
    """Numba's compiler of one function, for what the cache does not have; says if it is slow."""

    content_key: Callable[[], str | None]

    def compile(self, args, return_type):
        with announced(self.py_func.__name__), _named_by_content(self.py_func, self.content_key()):
            return super().compile(args, return_type)


@contextlib.contextmanager
def _named_by_content(function: Callable, key: str | None) -> Iterator[None]:
    """Name a function after what it depends on, while it is compiled.

    Machine code calls by name. Numba tells closures of one name apart by numbering what a process
    compiles: in a process that loads one from disk and compiles another, the numbers mean nothing.
    """
    name = function.__qualname__
    function.__qualname__ = f"_{key or os.urandom(16).hex()}.{name}"
    try:
        yield
    finally:
        function.__qualname__ = name


class _Compiling(threading.local):
    depth = 0  # a kernel that compiles its callees announces itself alone


_compiling = _Compiling()


@contextlib.contextmanager
def announced(name: str) -> Iterator[None]:
    """Announce what is being compiled if it takes long, unless it is a part of something else."""
    if not _compiling.depth:
        timer = threading.Timer(ANNOUNCE_AFTER, announce, [name])
        timer.daemon = True
        timer.start()
    _compiling.depth += 1
    try:
        yield
    finally:
        _compiling.depth -= 1
        if not _compiling.depth:
            timer.cancel()


def announce(name: str) -> None:
    """Say on stderr that something is being compiled."""
    print(f"compiling {name} ...", file=sys.stderr, flush=True)


# Numba's passes over the code of a function, without those for closures, context managers, array
# expressions and the like, after each of which it would analyse the code anew.
_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class _Pipeline(Compiler):
    """Numba's compiler, with fewer passes over our sequential kernels: they use less of Python."""

    def define_pipelines(self):
        ours = self.state.func_id.modname.partition(".")[0] in OURS
        if not ours or self.state.flags.auto_parallel.enabled:
            return super().define_pipelines()
        manager = PassManager("numbagrad")
        for each in _PASSES:
            manager.add_pass(each, each._name)
        manager.finalize()
        return [manager]


class Kernel(CPUDispatcher):
    """A Numba dispatcher that announces slow compiles and uses the content-keyed cache."""

    def __init__(self, py_func: Callable, locals: dict, targetoptions: dict):
        super().__init__(py_func, locals, targetoptions)
        self._compiler = _Compiler(py_func, self.targetdescr, targetoptions, locals, _Pipeline)
        self._cache = ContentCache(py_func, targetoptions)
        self._compiler.content_key = lambda: self.content_key

    @property
    def content_key(self) -> str | None:
        """What `content_key` said of its function when it was compiled."""
        return self._cache.key

    def is_compiled(self, kinds: tuple[types.Type, ...]) -> bool:
        """Return whether it is compiled for arguments of these types, here or on disk."""
        return kinds in self.overloads or self._cache.has(kinds, self.targetctx.codegen())

    def listings(self, kinds: tuple[types.Type, ...]) -> tuple[str, str]:
        """Return its LLVM and its assembly for arguments of these types.

        It is compiled anew, for what is read from a cache has neither.
        """
        fresh = Kernel(self.py_func, self.locals, self.targetoptions)
        fresh._cache.load_overload = lambda signature, context: None
        fresh._cache.save_overload = lambda signature, result: None
        fresh.compile(kinds)
        return fresh.inspect_llvm(kinds), fresh.inspect_asm(kinds)

    @functools.cached_property
    def _callee(self) -> CPUDispatcher:
        """Itself as others call it; a user's is as Numba has it, for it may print or recurse."""
        if not is_settled(self.py_func, OURS):
            return super()
        return _Callee(self.py_func, self.locals, self.targetoptions)

    def get_call_template(self, args, kws):
        """Compile once for all numbers of a type: Numba would, for a literal, once more."""
        args = tuple(map(types.unliteral, args))
        kws = {name: types.unliteral(kind) for name, kind in kws.items()}
        return self._callee.get_call_template(args, kws)

    def get_overload(self, signature):
        return self._callee.get_overload(signature)


class _Callee(CPUDispatcher):
    """A kernel as others call it: not yet optimised, for each takes in a copy and optimises that.

    Numba would make machine code of every function that a kernel calls, which nobody runs, and
    optimise the copy once more: a quarter of the time that kernels take to compile.
    """

    def __init__(self, py_func: Callable, locals: dict, targetoptions: dict):
        options = targetoptions | {"no_cpython_wrapper": True}
        super().__init__(py_func, locals, options)
        pipeline = _CalleePipeline
        self._compiler = _CalleeCompiler(py_func, self.targetdescr, options, locals, pipeline)
        self._cache = _CalleeCache(py_func, options)
        self._compiler.content_key = lambda: self._cache.key

    def add_overload(self, result: CompileResult) -> None:
        self.overloads[result.signature.args] = result


class _CalleeCompiler(_Compiler):
    """The compiler of a callee, which compiled code knows by its library."""

    def compile(self, args, return_type):
        result = super().compile(args, return_type)
        library = result.library
        library.finalize()
        result.target_context.insert_user_function(library, result.fndesc, [library])
        return result._replace(entry_point=library)


class _CalleePipeline(_Pipeline):
    """Numba's compiler, which stops at LLVM's language."""

    def define_pipelines(self):
        name = self.state.func_id.func_qualname
        self.state.library = _CalleeLibrary(self.state.targetctx.codegen(), name)
        self.state.flags.no_compile = True
        return super().define_pipelines()


class _CalleeLibrary(JITCodeLibrary):
    """LLVM code that is optimised, and made machine code, as a part of what calls it."""

    def _optimize_final_module(self): ...

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _CalleeCache(ContentCache):
    """The disk cache of a callee: LLVM code, and what it takes to call it."""

    form = "callee"

    @staticmethod
    def pack(result: CompileResult) -> tuple:
        result.fndesc.typemap = result.fndesc.calltypes = None
        library = result.library.name, result.library._final_module.as_bitcode()
        reloads = list(result.library._reload_init)
        return library, reloads, result.fndesc, result.signature

    @staticmethod
    def unpack(target_context, library, reloads, fndesc, signature) -> CompileResult:
        for reload in reloads:
            reload()
        name, bitcode = library
        library = _CalleeLibrary(target_context.codegen(), name)
        library._final_module = llvm.parse_bitcode(bitcode)
        library._finalize_final_module()
        library._reload_init.update(reloads)
        return compile_result(
            target_context=target_context,
            typing_context=target_context.typing_context,
            library=library,
            entry_point=library,
            fndesc=fndesc,
            signature=signature,
            objectmode=False,
        )


def njit(function: Callable | None = None, *, parallel: bool = False) -> Callable:
    """Compile a function for the CPU at its first call with each signature.

    Parameters
    ----------
    function
        A function in Numba's subset of Python.
    parallel
        Let ``numba.prange`` run on several threads. Kernels are sequential; only the loop
        that spreads them over threads uses it.

    Examples
    --------
    >>> import numpy as np
    >>> @njit
    ... def total(x):
    ...     acc = x.dtype.type(0)
    ...     for i in range(x.size):
    ...         acc += x[i]
    ...     return acc
    >>> float(total(np.ones(3, np.float32)))
    3.0
    """
    if function is None:
        return functools.partial(njit, parallel=parallel)
    if config.DISABLE_JIT:
        return function
    options = {
        "nopython": True,
        "nogil": True,
        "parallel": parallel,
        "boundscheck": None,
        "error_model": "numpy",  # 1 / 0 is inf, as in NumPy, not an exception
        # Ours allocate nothing, and so count no references: a tenth less to compile.
        "_nrt": parallel or not is_settled(function, OURS),
        "no_cfunc_wrapper": True,  # nobody calls kernels from C: a tenth less to compile
    }
    return Kernel(function, {}, options)


# ----------------------------------------------------- calls by an address


RETURNS = "kernel {} must write into its outputs and return nothing; it returns {}"


def entry_point(kernel: Callable, arguments: Sequence[object]) -> Callable:
    """Return what runs a kernel on arguments of just these types.

    Numba's dispatcher looks at the type of each argument at each call. This does not: it must
    never be given others. A function that `njit` did not make is returned as it is.
    """
    if not isinstance(kernel, Kernel):
        return kernel
    return kernel.compile(tuple(numba.typeof(argument) for argument in arguments))


@global_compiler_lock  # two threads may ask for the same one
def entry_address(kernel: Callable, arguments: Sequence[object]) -> int:
    """Return the address of a second way into a kernel, which reads its arguments from words.

    All kernels are the same from there, so one compiled loop starts any of them: see `start`.
    Numba would build a kernel that compiled code names into the caller, and compile it once more.

    Parameters
    ----------
    kernel
        What `njit` made.
    arguments
        Arguments of the types that it will be given.

    Raises
    ------
    TypeError
        If the kernel returns a value, for which there would be no place.
    """
    signature = tuple(numba.typeof(argument) for argument in arguments)
    kernel.compile(signature)
    result = kernel.overloads[signature]
    if result.signature.return_type != types.none:
        raise TypeError(RETURNS.format(kernel.__name__, result.signature.return_type))
    if result.library not in _entries:
        _entries[result.library] = _compile_entry(result)
    library, name = _entries[result.library]
    return library.get_pointer_to_function(name)


def address_of(array: np.ndarray) -> int:
    """Return where an array's elements are.

    The pointer stands behind the object's head, as NumPy's C interface says (PyArrayObject). To ask
    the array for it takes four times as long, for the answer comes in a dict of seven things.
    """
    return ctypes.c_size_t.from_address(id(array) + object.__basicsize__).value


def words_of(argument: object) -> list[int]:
    """Return an argument as 64-bit words: how `start` has it read.

    An array is its address, the bytes from one thread's copy of it to the next (0: they share it),
    and its extents; a tuple is its parts one after the other.
    """
    if isinstance(argument, np.ndarray):
        return [address_of(argument), 0, *argument.shape]
    if isinstance(argument, tuple):
        return [word for part in argument for word in words_of(part)]
    if isinstance(argument, (float, np.floating)):
        return [int(np.float64(argument).view(np.int64))]
    return [int(argument)]


_entries: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by the kernel's machine code
_numbers = itertools.count()


def _compile_entry(result: CompileResult):
    """Compile ``int32 entry(int64 *words, int64 thread)``, which calls a kernel."""
    context = result.target_context
    name = f"numbagrad_entry_{next(_numbers)}"
    library = context.codegen().create_library(name)
    module = context.create_module(name)
    word = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.IntType(32), [word.as_pointer(), word]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    words, thread = function.args
    position = itertools.count()

    def next_word() -> ir.Value:
        return builder.load(builder.gep(words, [word(next(position))]))

    def read(kind: types.Type) -> ir.Value:
        if isinstance(kind, types.Array):
            address, apart = next_word(), next_word()
            address = builder.add(address, builder.mul(apart, thread))
            return array_of(
                context, builder, kind, address, [next_word() for _ in range(kind.ndim)]
            )
        if isinstance(kind, types.BaseTuple):
            return context.make_tuple(builder, kind, [read(part) for part in kind])
        value, target = next_word(), context.get_value_type(kind)
        if isinstance(kind, types.Float):
            value = builder.bitcast(value, ir.DoubleType())
            return value if value.type == target else builder.fptrunc(value, target)
        return value if value.type == target else builder.trunc(value, target)

    kinds, convention = result.signature.args, context.call_conv
    values = [read(kind) for kind in kinds]
    kernel = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    pointer = convention.get_function_type(types.none, kinds).as_pointer()
    pointer = builder.inttoptr(word(kernel), pointer)
    status, _ = convention.call_function(builder, pointer, types.none, kinds, values)
    builder.ret(builder.select(status.is_ok, status.code.type(0), status.code))
    library.add_ir_module(module)
    library.finalize()
    return library, name


def array_of(context, builder, kind: types.Array, address: ir.Value, extents: list) -> ir.Value:
    """Build, in LLVM, an array of what lies, row after row, at an address."""
    itemsize = ir.IntType(64)(as_dtype(kind.dtype).itemsize)
    strides, size = [], itemsize
    for extent in reversed(extents):
        strides.insert(0, size)
        size = builder.mul(size, extent)
    array = cgutils.create_struct_proxy(kind)(context, builder)
    array.meminfo = array.meminfo.type(None)  # nobody counts references to it
    array.parent = array.parent.type(None)
    array.nitems = functools.reduce(builder.mul, extents, ir.IntType(64)(1))
    array.itemsize = itemsize
    array.data = builder.inttoptr(address, array.data.type)
    array.shape = cgutils.pack_array(builder, extents, ir.IntType(64))
    array.strides = cgutils.pack_array(builder, strides, ir.IntType(64))
    return array._getvalue()


def start(entry: int, words: np.ndarray, row: int, thread: int) -> int:
    """Run, inside compiled code, a kernel on the arguments in a row of ``words``.

    Parameters
    ----------
    entry
        What `entry_address` gave.
    words
        Arguments as `words_of` gives them, a row for each run.
    row
        Which row.
    thread
        The number of the thread, for arrays of which each thread has its own.

    Returns
    -------
    int
        0, or another number if the kernel raised: threads without the interpreter's lock cannot
        raise, so the caller runs the kernel again as a Python function.
    """
    raise NotImplementedError("with the JIT off, kernels are called as they are")


@infer_global(start)
class _StartTyping(AbstractTemplate):
    def generic(self, args, kws):
        return make_signature(types.int32, *args)


@lower_builtin(start, types.Integer, types.Array, types.Integer, types.Integer)
def _lower_start(context, builder, signature, args):
    entry, words, row, thread = args
    array = context.make_array(signature.args[1])(context, builder, words)
    word = ir.IntType(64)
    row, thread = (
        context.cast(builder, value, kind, types.int64)
        for value, kind in zip((row, thread), signature.args[2:], strict=True)
    )
    width = builder.extract_value(array.shape, 1)
    first = builder.gep(array.data, [builder.mul(row, width)])
    function = ir.FunctionType(ir.IntType(32), [word.as_pointer(), word])
    return builder.call(builder.inttoptr(entry, function.as_pointer()), [first, thread])


# ------------------------------------------------------------- CPU target


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the instruction-set features that Numba compiles for (``avx2``, ``fma``, ...).

    These are Numba's *effective* features: ``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` count.
    """
    # Asking Numba's own target would do, but would load all of it: half a second at import.
    flags = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    enabled = {flag[1:] for flag in flags.split(",") if flag.startswith("+")}
    if config.CPU_NAME is not None and config.CPU_FEATURES is None:
        enabled &= _features_of(config.CPU_NAME)
    return frozenset(enabled)


def _features_of(cpu_name: str) -> set[str]:
    """Return what a CPU model named by the user offers, of the features that matter here."""
    avx2 = {"avx", "avx2", "fma"}
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
    models = {
        "generic": set(),
        "x86-64": set(),
        "x86-64-v2": set(),
        "x86-64-v3": avx2,
        "x86-64-v4": avx512,
        "haswell": avx2,
        "broadwell": avx2,
        "skylake": avx2,
        "znver1": avx2,
        "znver2": avx2,
        "znver3": avx2,
    }
    return models.get(cpu_name, avx512 | {"neon"})
