"""`Array`: a value on a device. The data only; operators come from ``ops``."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import device as devices
from .errors import DeviceError, DTypeError, TraceError, users_line

#: The dtypes that arrays can have. Anything else is refused by name.
DTYPES = tuple(
    np.dtype(name)
    for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "bool")
)
FLOATS = (np.dtype("float32"), np.dtype("float64"))


class Spec(NamedTuple):
    """What is known of an array before it exists."""

    shape: tuple[int, ...]
    dtype: np.dtype
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Number of elements."""
        return size_of(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@lru_cache(maxsize=4096)
def the_spec(shape: tuple[int, ...], dtype: np.dtype, device: str) -> Spec:
    """Return one object for all specs that are equal: it is compared often, and so by identity."""
    return Spec(shape, dtype, device)


def size_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    size = 1
    for extent in shape:
        size *= extent
    return size


class Symbol:
    """Stands in an `Array` for data that a traced function has yet to compute."""

    __slots__ = ("index", "where")

    def __init__(self, index: int, where: str):
        self.index, self.where = index, where


class _Staging(threading.local):
    """The trace that this thread is making, if any: it must hear of what bypasses ops."""

    trace: Any = None


staging = _Staging()


class Array:
    """An n-dimensional value: a contiguous buffer with a shape, a dtype and a device.

    Arrays are values. Ops give new ones and never change their inputs; ``x[i] = v`` gives the
    object ``x`` a new value and leaves every other object alone. Make one with
    ``numbagrad.asarray``.

    Attributes
    ----------
    spec : Spec
        Shape, dtype and device.
    requires_grad : bool
        Whether ops on this array are recorded for differentiation.
    """

    __slots__ = ("__weakref__", "_data", "_grad", "_node", "requires_grad", "spec")
    version = 0  # a `State` counts its changes
    __array_priority__ = 1000  # NumPy's operators leave mixed expressions to ours
    __array_ufunc__ = None

    def __init__(self, data: Any, spec: Spec):
        self._data = data
        self.spec = spec
        self.requires_grad = False
        self._grad: Array | None = None
        self._node = None

    @property
    def grad(self) -> Array | None:
        """What ``backward()`` added up for this array."""
        if staging.trace is not None:
            staging.trace.note_grad(self, is_read=True)
        return self._grad

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if staging.trace is not None:
            staging.trace.note_grad(self, is_read=False)
        self._grad = value

    # ------------------------------------------------------------- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each dimension."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of the elements."""
        return self.spec.dtype

    @property
    def device(self) -> str:
        """Where the elements are: ``"cpu"`` or ``"cuda"``."""
        return self.spec.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return size_of(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    # --------------------------------------------------------------- exchange

    def _known_data(self) -> Any:
        """Return the buffer, unless its content is only known when a trace is replayed."""
        if isinstance(self._data, Symbol):
            raise TraceError(
                f"{users_line()} needs the value of an array that is only computed when the traced "
                f"function is replayed (made at {self._data.where}). Return the array and look at "
                "it outside, or choose between values with ng.where."
            )
        return self._data

    def _host(self) -> np.ndarray:
        """Return the values as a NumPy array that must not be written to."""
        return devices.backend(self.device).to_host(self._known_data())

    def numpy(self) -> np.ndarray:
        """Return the values as a new NumPy array, copied from the device.

        What NumPy computes from it is not recorded: gradients end here.
        """
        return np.array(self._host(), copy=True)

    def item(self) -> float | int | bool:
        """Return the one element as a Python number.

        Raises
        ------
        ValueError
            If there is not exactly one element.
        """
        if self.size != 1:
            raise ValueError(f"item() needs exactly one element, got shape {self.shape}")
        return self._host().reshape(-1)[0].item()

    def tolist(self) -> Any:
        """Return the values as nested lists of Python numbers."""
        return self._host().tolist()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if self.device != "cpu":
            raise DeviceError(
                f"NumPy cannot read an array on {self.device!r}; copy it first: x.numpy()"
            )
        host = self._host()
        if dtype is not None and np.dtype(dtype) != host.dtype:
            if copy is False:
                raise ValueError(f"a view of {self.dtype} cannot become {np.dtype(dtype)}")
            return host.astype(dtype)
        if copy:
            return host.copy()
        view = host.view()
        view.flags.writeable = False
        return view

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return devices.backend(self.device).cuda_array_interface(self._known_data())

    def __dlpack__(self, **options: Any) -> Any:
        """Share a GPU's memory, which must not be written to; a CPU's is copied."""
        return devices.backend(self.device).dlpack(self._known_data(), **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return devices.backend(self.device).dlpack_device(self._known_data())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"an array of shape {self.shape} has no single truth value; "
                "compare one element, or use ng.where"
            )
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"only integer arrays can be an index, got {self.dtype}")
        return int(self.item())

    def __reduce__(self):
        return _unpickle, (self.numpy(), self.device, self.requires_grad)

    def __copy__(self):
        return _unpickle(self._host(), self.device, self.requires_grad)

    def __deepcopy__(self, memo):
        return self.__copy__()

    # ------------------------------------------------------------------ looks

    def __repr__(self) -> str:
        return f"Array({self._body()}{self._details()})"

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        if self.size != 1:
            raise TypeError(
                f"an array of shape {self.shape} cannot be written as {spec!r}; format one element"
            )
        return format(self.item(), spec)

    def _body(self) -> str:
        if isinstance(self._data, Symbol):
            return f"traced, shape={self.shape}"
        text = np.array2string(self._host(), separator=", ", prefix="Array(", threshold=100)
        return text

    def _details(self) -> str:
        details = f", dtype={self.dtype}"
        if self.size == 0 and self.ndim > 1:  # the values do not show the shape
            details = f", shape={self.shape}" + details
        if self.device != "cpu":
            details += f", device={self.device!r}"
        if self.requires_grad:
            details += ", requires_grad=True"
        return details

    def _repr_html_(self) -> str:
        head = f"<b>Array</b> {self.shape} {self.dtype} on {self.device}"
        return f"<div>{head}<pre>{self._body()}</pre></div>"


def _unpickle(value: np.ndarray, device: str, requires_grad: bool) -> Array:
    array = from_host(value, device)
    array.requires_grad = requires_grad
    return array


class State(Array):
    """An array that is changed in place, through `assign` alone: weights, moments, counters.

    Its buffer is its own and stays at one address, so that a traced or compiled step can read and
    write it. `version` counts the changes: a gradient that needs an old value can tell.
    """

    __slots__ = ("version",)

    def __init__(self, data, spec):
        super().__init__(data, spec)
        self.version = 0

    def __array__(self, dtype=None, copy=None):
        return super().__array__(dtype, copy=True)  # a view would change under its holder

    def _known_data(self) -> Any:
        if staging.trace is not None:
            raise TraceError(
                f"{users_line()} needs the value of a Parameter or Buffer (weights, statistics, a "
                "learning rate), which will be another one when the traced function is replayed. "
                "Use it in ops only; read it, and change opt.lr, outside."
            )
        return super()._known_data()


def supported(dtype: np.dtype) -> np.dtype:
    """Return a dtype in this machine's byte order.

    Raises
    ------
    DTypeError
        If arrays cannot have it.
    """
    native = np.dtype(dtype.type)
    if native not in DTYPES:
        names = ", ".join(str(known) for known in DTYPES)
        raise DTypeError(f"dtype {dtype} is not supported; convert to one of: {names}")
    return native


def from_host(value: np.ndarray, device: str) -> Array:
    """Copy a NumPy array to a device."""
    value = np.asarray(value)
    dtype = supported(value.dtype)
    data = devices.backend(device).from_host(value.astype(dtype, copy=False))
    return Array(data, the_spec(value.shape, dtype, device))


class Handover:
    """A way for arrays from a thread that prepares them to the one that uses them.

    A GPU gets them from memory that it reads by itself, while the host goes on.

    Parameters
    ----------
    device
        As `asarray` takes it.
    places
        How many arrays may be on their way at a time.
    """

    def __init__(self, device: str | None, places: int):
        self._device = devices.resolve(device)
        self._staging = devices.backend(self._device).staging(places)

    def put(self, value: np.ndarray) -> tuple:
        """Prepare an array, in any thread."""
        dtype = supported(value.dtype)
        return self._staging.put(value.astype(dtype, copy=False)), value.shape, dtype

    def take(self, prepared: tuple) -> Array:
        """Return a prepared array, in the thread that uses it."""
        staged, shape, dtype = prepared
        return Array(self._staging.send(*staged), the_spec(shape, dtype, self._device))


def require_same_device(op: str, arrays: tuple[Array | Spec, ...]) -> str:
    """Return the device that all arrays share.

    Raises
    ------
    DeviceError
        If they live on different ones; the message names both.
    """
    device = arrays[0].device
    for other in arrays[1:]:
        if other.device != device:
            raise DeviceError(
                f"{op}: arrays on different devices, {device!r} and {other.device!r}; nothing "
                f"moves by itself, call x.to({device!r}) or x.to({other.device!r})"
            )
    return device


def asarray(
    x: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Array:
    """Make an array from numbers, nested lists, a NumPy array or another array.

    Parameters
    ----------
    x
        The values. They are copied. An array of CuPy or PyTorch on a GPU stays there.
    dtype
        The dtype wanted. By default Python floats become float32 and NumPy arrays keep theirs.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``; by default the CPU, or where ``x`` lives.
    requires_grad
        Record ops on the array for differentiation; floats only.

    Returns
    -------
    Array

    Raises
    ------
    DTypeError
        If the dtype is not supported, or ``requires_grad`` is asked of integers.
    DeviceError
        If the device cannot be used, or ``x`` lives on another one.

    Examples
    --------
    >>> asarray([1.0, 2.0])
    Array([1., 2.], dtype=float32)
    """
    if isinstance(x, Array):
        if device is not None and devices.resolve(device) != x.device:
            raise DeviceError(
                f"asarray: the array is on {x.device!r}; nothing moves by itself, call "
                f"x.to({device!r})"
            )
        array = x.astype(x.dtype if dtype is None else dtype)
        if requires_grad and not array.requires_grad:
            array = array.detach()  # another object: x itself stays as it is
    elif hasattr(x, "__cuda_array_interface__"):
        array = from_dlpack(x, device=device, copy=True)
        array = array.astype(array.dtype if dtype is None else dtype)
    else:
        host = np.asarray(x)
        if dtype is not None:
            host = host.astype(dtype)
        elif host.dtype == np.float64 and not isinstance(x, (np.ndarray, np.generic)):
            host = host.astype(np.float32)  # Python floats: float32 is the default
        array = from_host(host, devices.resolve(device))
    if requires_grad:
        if array.dtype not in FLOATS:
            raise DTypeError(f"asarray: only floats have gradients, got dtype {array.dtype}")
        array.requires_grad = True
    return array


def from_dlpack(x: Any, *, device: str | None = None, copy: bool | None = None) -> Array:
    """Take over an array of another library, such as PyTorch, CuPy or JAX, with its memory.

    Parameters
    ----------
    x
        Has ``__dlpack__``, or ``__cuda_array_interface__``. As long as the result is in use, nobody
        may write to it: arrays are values.
    device
        Where it should be; nothing moves, another device than its own is an error.
    copy
        True: always copy. False: never. By default what is not C-contiguous is copied, on the CPU.

    Raises
    ------
    DeviceError
        If it is on another device than asked for, or on one that numbagrad does not use.
    DTypeError
        If arrays cannot have its dtype.
    BufferError
        If it would have to be copied, and must not; on a GPU, if it is not C-contiguous.

    Notes
    -----
    Source: "Data interchange mechanisms", Python array API standard.

    Examples
    --------
    >>> import numpy as np
    >>> from_dlpack(np.ones((2, 2)))
    Array([[1., 1.],
           [1., 1.]], dtype=float64)
    """
    where = _where(x)
    if device is not None and devices.resolve(device) != where:
        raise DeviceError(
            f"from_dlpack: the array is on {where!r}; nothing moves by itself, take it over "
            f"there and call .to({device!r})"
        )
    data = devices.backend(where).adopt(x, copy)
    return Array(data, the_spec(tuple(data.shape), supported(data.dtype), where))


_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu"}  # 3: memory of the host, pinned for a GPU


def _where(x: Any) -> str:
    """Return the device of another library's array."""
    if hasattr(x, "__dlpack_device__"):
        number, _ = x.__dlpack_device__()
        if number not in _DLPACK_DEVICES:
            raise DeviceError(
                f"from_dlpack: the array is on DLPack's device {int(number)}; numbagrad uses CPUs "
                "and NVIDIA's GPUs"
            )
        return _DLPACK_DEVICES[number]
    if hasattr(x, "__cuda_array_interface__"):
        return "cuda"
    raise TypeError(
        f"from_dlpack: a {type(x).__name__} has neither __dlpack__ nor __cuda_array_interface__; "
        "ng.asarray copies numbers and lists"
    )
