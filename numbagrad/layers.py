"""Layers: functions that hold their weights, and `Module`, which puts them together.

A module is a plain Python object. Its parameters, buffers and inner modules are whatever of these
kinds its attributes hold, in the order in which they were set::

    class Residual(Module):
        def __init__(self, channels):
            self.conv = Conv2d(channels, channels, 3, padding=1)

        def forward(self, x):
            return x + ops.relu(self.conv(x))

There is nothing to register and no ``super().__init__()`` to forget. Images are NHWC.
"""

from __future__ import annotations

import html
import inspect
import io
import math
import numbers
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from . import device as devices
from . import ops, random, roofline
from .array import FLOATS, Array, Spec, State, Symbol, asarray, staging
from .autodiff import no_grad
from .dispatch import Op, interpreter, make_call
from .errors import (
    DataError,
    DTypeError,
    ShapeError,
    TraceError,
    is_whole,
    users_line,
    whole_number,
)
from .ops.elementwise import require_arrays, require_float

# ------------------------------------------------------------------- states


class Buffer(State):
    """A state that is not trained: a running mean, a counter, a learning rate.

    Parameters
    ----------
    value
        What ``asarray`` takes. It is copied.
    device
        Where the state lives; by default the CPU, or where ``value`` lives.
    """

    __slots__ = ()

    def __init__(self, value: Any, *, device: str | None = None):
        array = asarray(value, device=device)
        if staging.trace is not None or isinstance(array._data, Symbol):
            raise TraceError(
                f"{users_line()} makes a {type(self).__name__} while a function is traced, and a "
                "replay would not make another. Build modules and optimisers before the function, "
                "and use them in it."
            )
        data = devices.backend(array.device).copy(array._data)  # a buffer of its own
        super().__init__(data, array.spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._body()}{self._details()})"

    def __reduce__(self):
        return _rebuilt, (type(self), self.numpy(), self.device, self.requires_grad)

    def __copy__(self):
        return _rebuilt(type(self), self, self.device, self.requires_grad)


class Parameter(Buffer):
    """A state that is trained: ``requires_grad`` is True, and optimisers update it.

    Set ``requires_grad = False`` to freeze it.

    Parameters
    ----------
    value
        Floats, as ``asarray`` takes them. They are copied.
    device
        Where the parameter lives; by default the CPU, or where ``value`` lives.

    Examples
    --------
    >>> Parameter([1.0, 2.0])
    Parameter([1., 2.], dtype=float32, requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, value: Any, *, device: str | None = None):
        super().__init__(value, device=device)
        if self.dtype not in FLOATS:
            raise DTypeError(f"Parameter: needs float32 or float64, got {self.dtype}")
        self.requires_grad = True


def _rebuilt(kind: type[Buffer], value: Any, device: str, requires_grad: bool) -> Buffer:
    state = kind(value, device=device)
    state.requires_grad = requires_grad
    return state


def load_states(states: Mapping[str, State], values: Mapping[str, Any], strict: bool) -> None:
    """Write values into states of the same names: all of them, or none and one error.

    Raises
    ------
    TypeError
        If ``values`` is no mapping.
    DataError
        Naming every missing and unexpected name (unless ``strict`` is False) and every value of
        another shape or dtype.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            "load_state_dict: needs arrays by name, as state_dict() and numbagrad.weights.load() "
            f"give them, got {type(values).__name__}"
        )
    hosts = {name: as_numpy(value) for name, value in values.items()}
    problems = []
    if strict:
        problems += [f"missing: {n}, {x.shape}" for n, x in states.items() if n not in hosts]
        problems += [f"unexpected: {n}, {x.shape}" for n, x in hosts.items() if n not in states]
    common = [name for name in states if name in hosts]
    for name in common:
        state, host = states[name], hosts[name]
        if host.shape != state.shape or host.dtype != state.dtype:
            problems.append(
                f"does not fit: {name} is {host.dtype} of shape {host.shape}, "
                f"needs {state.dtype} of shape {state.shape}"
            )
    if problems:
        raise DataError("state does not fit, nothing was loaded:\n  " + "\n  ".join(problems))
    for name in common:
        ops.assign(states[name], hosts[name])


def as_numpy(value: Any) -> np.ndarray:
    """Return any values as a NumPy array, those of an Array on a GPU too."""
    return value.numpy() if isinstance(value, Array) else np.asarray(value)


# ------------------------------------------------------------------- module


class _Calling(threading.local):
    """The calls of modules that this thread is in, and who is told of each layer's output."""

    observer: Callable[[Module, Any], None] | None = None

    def __init__(self):
        self.modules: list[Module] = []  # the outermost first


_calling = _Calling()


@contextmanager
def observing(observer: Callable[[Module, Any], None]) -> Iterator[None]:
    """Call ``observer(module, output)`` after each layer that this thread runs, inner first."""
    outer, _calling.observer = _calling.observer, observer
    try:
        yield
    finally:
        _calling.observer = outer


class Module:
    """The base of all layers and models.

    A subclass sets parameters, buffers and other modules as attributes, and defines ``forward``.

    Attributes
    ----------
    training : bool
        True between ``train()`` and ``eval()``: Dropout and BatchNorm behave differently.
    """

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output; to be defined by each layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``forward(...)``; an error on the way names the layer that it comes from."""
        modules = _calling.modules
        modules.append(self)
        try:
            out = self.forward(*args, **kwargs)
        except Exception as error:
            _name_layer(error, self, modules[0])
            raise
        finally:
            modules.pop()
        if _calling.observer is not None:
            _calling.observer(self, out)
        return out

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (list, tuple, dict)):
            inner = value.values() if isinstance(value, dict) else value
            if any(isinstance(one, (Module, Buffer)) for one in inner):
                raise TypeError(
                    f"{type(self).__name__}.{name}: layers in a {type(value).__name__} would not "
                    "be found by parameters(); use ModuleList or an attribute for each"
                )
        held = vars(self).get(name)
        if isinstance(held, Buffer) and value is not None and not isinstance(value, Buffer):
            kind = type(held).__name__
            raise TypeError(
                f"{type(self).__name__}.{name} is a {kind}, and a {type(value).__name__} in its "
                f"place would not be found by parameters(); write {name}[...] = value inside "
                f"no_grad(), or wrap it: {kind}(value)"
            )
        super().__setattr__(name, value)

    # ------------------------------------------------------- what is inside

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules directly inside with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield this module (named ``""``) and all inside it, each once, outer before inner."""
        yield from _walk("", self, set())

    def modules(self) -> Iterator[Module]:
        """Yield this module and all inside it."""
        for _, module in self.named_modules():
            yield module

    def _named_states(self) -> dict[str, Buffer]:
        """Parameters and buffers, each once, under its first name."""
        found: dict[str, Buffer] = {}
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Buffer) and id(value) not in seen:
                    seen.add(id(value))
                    found[_joined(prefix, name)] = value
        return found

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once, with a name such as ``"0.weight"``."""
        for name, state in self._named_states().items():
            if isinstance(state, Parameter):
                yield name, state

    def parameters(self) -> Iterator[Parameter]:
        """Yield each parameter once: what an optimiser takes."""
        for _, parameter in self.named_parameters():
            yield parameter

    def buffers(self) -> Iterator[Buffer]:
        """Yield each state that is not trained."""
        for state in self._named_states().values():
            if not isinstance(state, Parameter):
                yield state

    # ---------------------------------------------------------------- modes

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all inside it to training; return it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch this module and all inside it to evaluation; return it."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluate for a while, without recording; then give each module its mode back."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    # ---------------------------------------------------------------- states

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every parameter and buffer by name."""
        return {name: state.numpy() for name, state in self._named_states().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Write saved values into the parameters and buffers.

        Parameters
        ----------
        state
            What ``state_dict`` returned, or arrays by the same names.
        strict
            Refuse missing and unexpected names.

        Raises
        ------
        DataError
            Naming everything that does not fit; then nothing has been changed.
        """
        load_states(self._named_states(), state, strict)

    def to(self, device: str) -> Module:
        """Move all parameters and buffers to a device and return this module.

        Gradients are dropped. Make the optimiser afterwards: its moments live with the parameters.
        """
        name = devices.resolve(device)
        for state in self._named_states().values():
            if state.device != name:
                state._data = devices.backend(name).from_host(state._host())
                state.spec = state.spec._replace(device=name)
                state.version += 1
                state.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget the parameters' gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    # ----------------------------------------------------------------- looks

    def output_spec(self, shape: tuple[int, ...], dtype: Any = "float32") -> Spec:
        """Return the output's shape and dtype for an input's, without computing anything.

        Raises
        ------
        ShapeError
            If the model does not take such an input; the message names the layer.
        TraceError
            If ``forward`` looks at values, which are not there.
        TypeError
            If the model does not return one Array.
        """
        return one_array(self, self.dry_run(shape, dtype)).spec

    def dry_run(self, shape: tuple[int, ...], dtype: Any, run: Callable | None = None) -> Any:
        """Call the module on an array that has a shape and no values.

        ``run`` is what stands in for ops, an interpreter; by default it works out shapes.
        """
        device = next((state.device for state in self._named_states().values()), "cpu")
        x = _without_values(Spec(tuple(shape), np.dtype(dtype), device))
        try:
            with self.evaluating(), interpreter(run or infer_only):
                return self(x)
        except TraceError as error:
            layer = f"layer {error.layer!r}" if error.layer else "the model"
            raise TraceError(
                f"only shapes flow through the model here, but the forward() of {layer} looks at "
                "values (item(), numpy(), `if x > 0`, ...) or builds layers; call the model on an "
                "array instead"
            ) from None

    def summary(self, input_shape: tuple[int, ...], *, dtype: Any = "float32") -> Summary:
        """Return a table of the layers: output shapes, parameters, arithmetic, memory.

        Nothing is computed and nothing changed: only shapes flow through the model, as they do in
        evaluation. Operations are those of one forward pass: two for each multiply-add of products
        and convolutions, one for each element of an elementwise op; a training step takes about
        three times as many. Memory is that of each layer's output, which training keeps.

        Parameters
        ----------
        input_shape
            One example's shape, such as (28, 28, 1); or a whole batch's.
        dtype
            The input's dtype: ``"int64"`` for a model that starts with an Embedding.

        Returns
        -------
        Summary
            Print it, or leave it as the last line of a notebook's cell.

        Examples
        --------
        >>> print(Sequential(Linear(200, 300), ReLU()).summary((200,)))
        ───────────────────────────────────────────────────────────────────────
         name    layer              output shape   parameters   MFLOP   memory
        ───────────────────────────────────────────────────────────────────────
         0       Linear(200, 300)   (1, 300)           60,300    0.12   1.2 KB
         1       ReLU()             (1, 300)                0    0.00   1.2 KB
        ───────────────────────────────────────────────────────────────────────
         total                                         60,300    0.12   2.3 KB
        ───────────────────────────────────────────────────────────────────────
        """
        rows: list[LayerSummary] = []
        names = {id(module): name for name, module in self.named_modules()}
        counted: set[int] = set()
        work: dict[int, float] = {}  # operations of each module's own kernels since its last row

        def run(op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets: Any) -> tuple:
            if op.kernel is not None:
                call = make_call(op, tuple(x.spec for x in inputs), params)
                module = id(_calling.modules[-1])
                work[module] = work.get(module, 0.0) + roofline.work(op, call)[0]
            return infer_only(op, inputs, params, targets)

        def observe(module: Module, out: Any) -> None:
            own = [x for x in vars(module).values() if isinstance(x, Parameter)]
            is_leaf, ran = not any(module.named_children()), id(module) in work
            if own or is_leaf or ran:
                fresh = [x for x in own if id(x) not in counted]
                counted.update(map(id, fresh))
                is_array = isinstance(out, Array)
                rows.append(
                    LayerSummary(
                        names[id(module)],
                        repr(module) if is_leaf else f"{type(module).__name__}, itself",
                        out.shape if is_array else None,
                        sum(x.size for x in fresh),
                        work.pop(id(module), 0.0),
                        out.size * out.dtype.itemsize if is_array and ran else 0,
                    )
                )

        with observing(observe):
            try:
                self.dry_run((1, *input_shape), dtype, run)
            except ShapeError as error:
                for noted in (rows, counted, work):
                    noted.clear()
                try:
                    self.dry_run(input_shape, dtype, run)  # perhaps it is a whole batch's
                except ShapeError:
                    raise error from None
        return Summary(rows)

    def __repr__(self) -> str:
        children = list(self.named_children())
        head = type(self).__name__
        if not children:
            return f"{head}({', '.join(self._arguments())})"
        lines = [f"  {name}: {child!r}".replace("\n", "\n  ") for name, child in children]
        return "\n".join([f"{head}(", *lines, ")"])

    def _arguments(self) -> Iterator[str]:
        """Yield the constructor's arguments, as far as attributes of the same names hold them.

        Those that may be left out are named, and left out where they have their default.
        """
        for name, argument in inspect.signature(type(self)).parameters.items():
            if not hasattr(self, name):
                continue
            value, default = getattr(self, name), argument.default
            if isinstance(default, bool) and not isinstance(value, bool):
                value = value is not None  # such as bias: a Parameter or None
            if default is argument.empty:
                yield repr(value)
            elif value != default:
                yield f"{name}={value!r}"


# Not a function inside `named_modules`: one that calls itself there is a reference cycle.
def _walk(prefix: str, module: Module, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) not in seen:
        seen.add(id(module))
        yield prefix, module
        for name, child in module.named_children():
            yield from _walk(_joined(prefix, name), child, seen)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _name_layer(error: Exception, module: Module, outermost: Module) -> None:
    """Put the layer that an error comes from in front of its message, once."""
    if hasattr(error, "layer"):
        return
    error.layer, where = _place(module, outermost)
    kinds = (ValueError, TypeError, RuntimeError, IndexError)
    if isinstance(error, kinds) and len(error.args) == 1:
        error.args = (f"{where}: {error.args[0]}",)
    else:
        error.add_note(where)


def _place(module: Module, outermost: Module) -> tuple[str, str]:
    """Return a module's path inside another, and in words where it is."""
    path = next((n for n, inner in outermost.named_modules() if inner is module), "")
    what = type(module).__name__ if any(module.named_children()) else repr(module)
    return path, f"in layer {path!r} ({what})" if path else f"in {what}"


def running_layer() -> tuple[str, str] | None:
    """Return path and description of the layer whose ``forward`` this thread runs, if any."""
    modules = _calling.modules
    return _place(modules[-1], modules[0]) if modules else None


def running_modules() -> tuple[Module, ...]:
    """Return the modules whose ``forward`` this thread runs, the outermost first."""
    return tuple(_calling.modules)


def one_array(module: Module, out: Any) -> Array:
    """Return a module's output if it is an Array."""
    if not isinstance(out, Array):
        raise TypeError(
            f"{type(module).__name__}.forward() returns a {type(out).__name__}; one Array is "
            "needed here"
        )
    return out


def _without_values(spec: Spec) -> Array:
    return Array(Symbol(0, "Module.output_spec"), spec)


def infer_only(op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets: Any) -> tuple:
    """Stand in for the eager interpreter: work out shapes and dtypes, run nothing."""
    call = make_call(op, tuple(x.spec for x in inputs), params)
    return tuple(_without_values(spec) for spec in call.outputs[: len(op.outputs)])


# ------------------------------------------------------------------ summary


class LayerSummary(NamedTuple):
    """One line of a `Summary`.

    Attributes
    ----------
    name, layer
        Its path in the model, and what it is; a layer with others inside has a line of its own
        where it computes something itself.
    output_shape
        None where the output is no array.
    parameters
        How many numbers it trains; what several layers share counts once.
    flops
        Operations of a forward pass.
    nbytes
        Of its output; 0 where that is the input, seen another way.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...] | None
    parameters: int
    flops: float
    nbytes: int


class Summary:
    """A table of a model's layers; ``str()`` draws it, and notebooks show it as HTML.

    Attributes
    ----------
    layers : list of LayerSummary
    parameters : int
        How many numbers the whole model trains.
    flops : float
        Operations of one forward pass.
    nbytes : int
        Of all layers' outputs together.
    """

    COLUMNS = ("name", "layer", "output shape", "parameters", "MFLOP", "memory")
    NUMBERS = COLUMNS[3:]

    def __init__(self, layers: list[LayerSummary]):
        self.layers = layers
        self.parameters = sum(layer.parameters for layer in layers)
        self.flops = sum(layer.flops for layer in layers)
        self.nbytes = sum(layer.nbytes for layer in layers)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (row.name, row.layer, str(row.output_shape or "?"), *_numbers(row))
            for row in self.layers
        ]

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.HORIZONTALS, show_footer=True)
        for column, total in zip(self.COLUMNS, ("total", "", "", *_numbers(self)), strict=True):
            is_number = column in self.NUMBERS
            table.add_column(column, total, justify="right" if is_number else "left")
        for cells in self._cells():
            table.add_row(*cells)
        text = io.StringIO()
        Console(file=text, width=140, markup=False, highlight=False).print(table)
        return textwrap.dedent("\n".join(map(str.rstrip, text.getvalue().splitlines())))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        total = ("total", "", "", *_numbers(self))
        rows = [("th", self.COLUMNS), *(("td", cells) for cells in self._cells()), ("th", total)]
        sides = ["right" if column in self.NUMBERS else "left" for column in self.COLUMNS]
        lines = [
            "<tr>"
            + "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            + "</tr>"
            for tag, cells in rows
        ]
        return "<table>" + "".join(lines) + "</table>"


def _numbers(row: LayerSummary | Summary) -> tuple[str, str, str]:
    return f"{row.parameters:,}", f"{row.flops / 1e6:,.2f}", _memory(row.nbytes)


def _memory(nbytes: int) -> str:
    return f"{nbytes / 1024:,.1f} KB" if nbytes < 1 << 20 else f"{nbytes / (1 << 20):,.1f} MB"


# --------------------------------------------------------------- containers


class ModuleList(Module):
    """Modules in a row, named ``"0"``, ``"1"``, ...: index it, walk it, append to it."""

    def __init__(self, *layers: Module):
        for layer in layers:
            self.append(layer)

    def append(self, layer: Module) -> None:
        """Add a module at the end."""
        if not isinstance(layer, Module):
            raise TypeError(
                f"{type(self).__name__}: layer {len(self)} is a {type(layer).__name__}, not a "
                "Module"
            )
        setattr(self, str(len(self)), layer)

    def __len__(self) -> int:
        return sum(1 for _ in self.named_children())

    def __iter__(self) -> Iterator[Module]:
        return (layer for _, layer in self.named_children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules called one after the other, each with the output of the one before.

    Examples
    --------
    >>> model = Sequential(Linear(4, 8), ReLU(), Linear(8, 2))
    >>> model(asarray([[1.0, 2.0, 3.0, 4.0]])).shape
    (1, 2)
    """

    def forward(self, x: Any) -> Any:
        """Call the layers in order."""
        for layer in self:
            x = layer(x)
        return x


# ------------------------------------------------------- layers with weights


def _uniform(shape: tuple[int, ...], fan_in: int) -> Parameter:
    """Draw from U(-b, b), b = 1 / sqrt(fan_in): what PyTorch starts linear and conv layers with."""
    bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
    return Parameter(random.uniform(shape, -bound, bound))


class Linear(Module):
    """``x @ weight + bias``.

    Parameters
    ----------
    in_features, out_features
        Extents of the last axis of the input and of the output.
    bias
        Add a bias.

    Attributes
    ----------
    weight : Parameter, shape (in_features, out_features)
    bias : Parameter, shape (out_features,), or None
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        self.in_features = whole_number("Linear", "in_features", in_features)
        self.out_features = whole_number("Linear", "out_features", out_features)
        self.weight = _uniform((self.in_features, self.out_features), self.in_features)
        self.bias = _uniform((self.out_features,), self.in_features) if bias else None

    def forward(self, x: Array) -> Array:
        """(..., in_features) to (..., out_features)."""
        require_arrays("linear", x=x)
        require_float("linear", x.spec, self.weight.spec)
        return ops.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """A two-dimensional convolution; see `numbagrad.conv2d`.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input and of the output.
    kernel_size, stride, padding, dilation
        An int, or a pair (rows, columns).
    groups
        Cut the channels into groups that do not see each other.
    bias
        Add a bias.

    Attributes
    ----------
    weight : Parameter, shape (rows, columns, in_channels / groups, out_channels)
    bias : Parameter, shape (out_channels,), or None
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        self.in_channels = whole_number("Conv2d", "in_channels", in_channels)
        self.out_channels = whole_number("Conv2d", "out_channels", out_channels)
        self.kernel_size = _sides("Conv2d", "kernel_size", kernel_size)
        self.stride = _sides("Conv2d", "stride", stride)
        self.padding = _sides("Conv2d", "padding", padding, least=0)
        self.dilation = _sides("Conv2d", "dilation", dilation)
        self.groups = whole_number("Conv2d", "groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups={groups} must divide in_channels={in_channels} and "
                f"out_channels={out_channels}"
            )
        size = self.kernel_size
        window = (size, size) if isinstance(size, int) else size
        weight_shape = (*window, self.in_channels // self.groups, self.out_channels)
        fan_in = math.prod(weight_shape[:-1])
        self.weight = _uniform(weight_shape, fan_in)
        self.bias = _uniform((self.out_channels,), fan_in) if bias else None

    def forward(self, x: Array) -> Array:
        """(n, h, w, in_channels) to (n, h', w', out_channels)."""
        return ops.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class Embedding(Module):
    """A table of vectors, looked up by index.

    Parameters
    ----------
    num_embeddings
        Rows of the table.
    embedding_dim
        Numbers in each row.

    Attributes
    ----------
    weight : Parameter, shape (num_embeddings, embedding_dim)
        Starts from the normal distribution.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int):
        self.num_embeddings = whole_number("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = whole_number("Embedding", "embedding_dim", embedding_dim)
        self.weight = Parameter(random.normal((self.num_embeddings, self.embedding_dim)))

    def forward(self, indices: Array) -> Array:
        """(...,) integers to (..., embedding_dim)."""
        return ops.embedding(self.weight, indices)


class BatchNorm2d(Module):
    """Normalise each channel over the batch; see `numbagrad.batch_norm`.

    Ioffe and Szegedy, "Batch Normalization" (2015). In training the batch's own mean and variance
    are used, and running ones are kept for evaluation.

    Parameters
    ----------
    num_features
        Channels.
    eps
        Added to the variance.
    momentum
        The share of the new batch in the running statistics.

    Attributes
    ----------
    weight, bias : Parameter, shape (num_features,)
    running_mean, running_var : Buffer, shape (num_features,)
    """

    ndim = 4

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        self.num_features = whole_number(type(self).__name__, "num_features", num_features)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))

    def forward(self, x: Array) -> Array:
        """(n, h, w, num_features) to the same shape."""
        require_arrays("batch_norm", x=x)
        if x.ndim != self.ndim:
            raise ShapeError(f"batch_norm: needs {self.ndim} dimensions, got shape {x.shape}")
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )


class BatchNorm1d(BatchNorm2d):
    """`BatchNorm2d` for vectors: (n, num_features) to the same shape."""

    ndim = 2


# ---------------------------------------------------- layers without weights


class _Pool2d(Module):
    """A window that moves over the image; ``stride`` is the window's size unless given.

    Parameters
    ----------
    kernel_size, stride, padding
        An int, or a pair (rows, columns).
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ):
        layer = type(self).__name__
        self.kernel_size = _sides(layer, "kernel_size", kernel_size)
        self.stride = None if stride is None else _sides(layer, "stride", stride)
        self.padding = _sides(layer, "padding", padding, least=0)


class MaxPool2d(_Pool2d):
    """The largest value in each window; see `numbagrad.max_pool2d`."""

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) to (n, h', w', c)."""
        return ops.max_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding)


class AvgPool2d(_Pool2d):
    """The mean of each window; see `numbagrad.avg_pool2d`."""

    def forward(self, x: Array) -> Array:
        """(n, h, w, c) to (n, h', w', c)."""
        return ops.avg_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding)


class Flatten(Module):
    """Make one long row of each example."""

    def forward(self, x: Array) -> Array:
        """(n, ...) to (n, features)."""
        require_arrays("flatten", x=x)
        if x.ndim == 0:
            raise ShapeError("flatten: needs (n, ...), got a 0-d array")
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class ReLU(Module):
    """``max(x, 0)``; see `numbagrad.relu`."""

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.relu(x)


class LeakyReLU(Module):
    """``x`` where it is positive, else ``negative_slope * x``; see `numbagrad.leaky_relu`."""

    def __init__(self, negative_slope: float = 0.01):
        self.negative_slope = negative_slope

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.leaky_relu(x, self.negative_slope)


class GELU(Module):
    """``x Phi(x)``; see `numbagrad.gelu`."""

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.gelu(x)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``; see `numbagrad.sigmoid`."""

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent; see `numbagrad.tanh`."""

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.tanh(x)


class Dropout(Module):
    """Zero each element with probability ``p`` in training; see `numbagrad.dropout`."""

    def __init__(self, p: float = 0.5):
        if not isinstance(p, numbers.Real) or not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be a number from 0 to below 1, got {p!r}")
        self.p = p

    def forward(self, x: Array) -> Array:
        """Any shape to the same."""
        return ops.dropout(x, self.p, training=self.training)


def _sides(layer: str, name: str, value: Any, least: int = 1) -> int | tuple[int, int]:
    """Return an int, or a pair (rows, columns), whichever was given."""
    if is_whole(value, least):
        return int(value)
    pair = value if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(is_whole(side, least) for side in pair):
        raise ValueError(
            f"{layer}: {name} must be a whole number of at least {least}, or a pair (rows, "
            f"columns) of them, got {value!r}"
        )
    return int(pair[0]), int(pair[1])
