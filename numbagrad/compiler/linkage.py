"""What compiled steps call: arrays at addresses, and kernels that are compiled already.

A step knows its memory as addresses, for it plans all of it. And it does not take kernels in: Numba
would build each of them into the step and compile it once more. `linked` makes a kernel callable
by its address, under a name that says what it was compiled from. So a step of fifty kernels
compiles in the time of fifty calls, and its machine code can be kept on disk.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
import numpy as np
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, builtin_registry, infer_global
from numba.core.typing.templates import signature as make_signature
from numba.np.numpy_support import as_dtype

from ..jit import RETURNS, Kernel, array_of

__numba_extension__ = True


# ---------------------------------------------------------- arrays by address


def array_at(address: int, shape: tuple[int, ...], dtype: types.Type) -> np.ndarray:
    """Return the array of a shape that lies, row after row, at an address.

    Nobody keeps the memory alive on its behalf.

    Examples
    --------
    >>> x = np.arange(6.0, dtype=np.float32)
    >>> array_at(x.ctypes.data + 8, (2, 2), types.float32)
    array([[2., 3.],
           [4., 5.]], dtype=float32)
    """
    kind = as_dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    memory = (ctypes.c_char * nbytes).from_address(int(address))
    return np.frombuffer(memory, kind).reshape(shape)


@infer_global(array_at)
class _ArrayAtTyping(AbstractTemplate):
    def generic(self, args, kws):
        address, shape, dtype = args
        if not (isinstance(address, types.Integer) and isinstance(shape, types.BaseTuple)):
            return None
        array = types.Array(dtype.instance_type, len(shape), "C")
        extents = types.UniTuple(types.int64, len(shape))
        return make_signature(array, types.int64, extents, dtype)


@lower_builtin(array_at, types.Integer, types.BaseTuple, types.Any)
def _lower_array_at(context, builder, signature, args):
    address, shape, _ = args
    extents = cgutils.unpack_tuple(builder, shape)
    return array_of(context, builder, signature.return_type, address, extents)


# ----------------------------------------------------------- kernels by name


#: The kernels of users' ops, by a hash of what they were compiled from.
user_kernels: dict[str, Callable] = {}


@functools.cache
def linked(kernel: Callable) -> Callable:
    """Return what calls a kernel from compiled code without taking it in.

    Before machine code that calls it is loaded, `link` must have been called for the types it is
    given.
    """
    if not isinstance(kernel, Kernel):
        return kernel  # with the JIT off a kernel is a Python function

    def call(*arguments):
        kernel(*arguments)

    call.__name__ = call.__qualname__ = kernel.__name__

    class _Typing(AbstractTemplate):
        key = call

        def generic(self, args, kws):
            kinds = tuple(map(types.unliteral, args))
            link(kernel, kinds)
            return make_signature(types.none, *kinds)

    builtin_registry.register_global(call, types.Function(_Typing))

    @lower_builtin(call, types.VarArg(types.Any))
    def _lower(context, builder, signature, args):
        convention = context.call_conv
        function = cgutils.get_or_insert_function(
            builder.module,
            convention.get_function_type(types.none, signature.args),
            _symbol(kernel, signature.args),
        )
        status, _ = convention.call_function(
            builder, function, types.none, signature.args, list(args)
        )
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return call


_linked: set[str] = set()


def link(kernel: Callable, kinds: Sequence[types.Type]) -> None:
    """Compile a kernel for arguments of these types, and give its machine code a name.

    Raises
    ------
    TypeError
        If the kernel returns a value, for which there would be no place.
    """
    kinds = tuple(kinds)
    symbol = _symbol(kernel, kinds)
    if symbol in _linked:
        return
    kernel.compile(kinds)
    result = kernel.overloads[kinds]
    if result.signature.return_type != types.none:
        raise TypeError(RETURNS.format(kernel.__name__, result.signature.return_type))
    address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    llvm.add_symbol(symbol, address)
    _linked.add(symbol)


def _symbol(kernel: Kernel, kinds: tuple[types.Type, ...]) -> str:
    """Return the name of a kernel's machine code for arguments of these types."""
    key = kernel.content_key or str(id(kernel))  # the id: it is never kept on disk
    digest = hashlib.sha256(f"{key}|{kinds}".encode()).hexdigest()[:16]
    return f"numbagrad.{kernel.__name__}.{digest}"
