"""A training as a TOML file: the net, the data and the solver, without a line of Python.

::

    [data]
    name = "mnist"
    shift = 2      # move training images by up to so many pixels; flip = true mirrors some

    [net]
    model = "lenet"

    [solver]
    epochs = 3
    lr = 0.002

In place of a known model stand layers, one table each. What follows from the layer before (such as
``in_channels``) and from the data (the last layer's ``out_features``) may be left out::

    [[net]]
    layer = "Conv2d"
    out_channels = 8
    kernel_size = 3

    [[net]]
    layer = "Flatten"

    [[net]]
    layer = "Linear"

What is wrong with such a file is said with the line that it stands in.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__, layers, models, optim
from ..data.transforms import Compose, Cutout, RandomCrop, RandomFlip, Transform
from ..device import DEVICES
from ..errors import ConfigError, DTypeError, ShapeError, is_whole, nearest
from ..layers import Module, Sequential


class DataFacts(NamedTuple):
    """What is known of a data set without its files."""

    shape: tuple[int, int, int]  # of an image
    classes: int
    train: int
    test: int


DATA = {
    "cifar10": DataFacts((32, 32, 3), 10, 50_000, 10_000),
    "digits": DataFacts((8, 8, 1), 10, 1_437, 360),
    "fashion-mnist": DataFacts((28, 28, 1), 10, 60_000, 10_000),
    "mnist": DataFacts((28, 28, 1), 10, 60_000, 10_000),
}
OPTIMIZERS = {"adam": optim.Adam, "adamw": optim.AdamW, "sgd": optim.SGD}
RATES = {"adam": 0.003, "adamw": 0.003, "sgd": 0.05}  # the learning rates to start from
SCHEDULES: dict[str, optim.Schedule | None] = {
    "constant": None,
    "cosine": optim.cosine,
    "one-cycle": optim.one_cycle(),
    "step-decay": optim.step_decay(),
    "warmup": optim.warmup(),
}
_INNER = ("AvgPool2d", "BatchNorm1d", "BatchNorm2d", "Conv2d", "Dropout", "Flatten", "GELU",
          "LeakyReLU", "Linear", "MaxPool2d", "ReLU", "Sigmoid", "Tanh")  # fmt: skip
LAYERS: dict[str, type[Module]] = {
    **{name: getattr(layers, name) for name in _INNER},
    "GlobalAvgPool2d": models.GlobalAvgPool2d,
    "ResidualBlock": models.ResidualBlock,
}
FOLLOWING = ("in_channels", "in_features", "num_features")  # from the layer before


# ----------------------------------------------------------------- settings


class Setting(NamedTuple):
    """What a key may be: a check that returns the value as it is kept, and the default.

    Attributes
    ----------
    default
        None: there is none, and the key may be missing.
    check
        Raises ValueError with what would fit.
    """

    default: Any
    check: Callable[[Any], Any]


def _whole(default: int | None, least: int, most: int = 2**63 - 1) -> Setting:
    def check(value: Any) -> int:
        if not is_whole(value, least) or value > most:
            raise ValueError(f"needs a whole number of at least {least}")
        return int(value)

    return Setting(default, check)


def _number(default: float | None, *, below: float = math.inf, above: float = -1) -> Setting:
    """Return a setting for a number from 0, or above ``above``, finite in float32."""
    fits = "of at least 0" if above < 0 else f"above {above:g}"
    if below < math.inf:
        fits += f" and below {below:g}"

    def check(value: Any) -> float:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not 0 <= value < below or value <= above:
            raise ValueError(f"needs a number {fits}")
        if value > optim.LARGEST:
            raise ValueError(f"needs a number {fits} that is finite in float32")
        return float(value)

    return Setting(default, check)


def _switch(default: bool | None) -> Setting:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("needs true or false")
        return value

    return Setting(default, check)


def _one_of(default: str | None, known: Iterable[str]) -> Setting:
    known = tuple(known)

    def check(value: Any) -> str:
        name = str(value).lower().replace("_", "-")
        if name not in known:
            raise ValueError(nearest(name, known))
        return name

    return Setting(default, check)


SETTINGS: dict[str, dict[str, Setting]] = {
    "data": {
        "name": _one_of("digits", DATA),
        "train_images": _whole(None, 1),  # only the first so many
        "test_images": _whole(None, 1),
        "flip": _switch(False),  # what is done to training images, each time anew
        "shift": _whole(0, 0),
        "cutout": _whole(0, 0),
    },
    "solver": {
        "epochs": _whole(20, 1),
        "batch_size": _whole(32, 1),
        "optimizer": _one_of("adam", OPTIMIZERS),
        "lr": _number(None),
        "momentum": _number(None, below=1),
        "nesterov": _switch(None),
        "weight_decay": _number(0.0),
        "schedule": _one_of("cosine", SCHEDULES),
        "clip_norm": _number(None, above=0),
        "clip_value": _number(None, above=0),
        "patience": _whole(None, 1),  # of early stopping
        "nan_guard": _switch(False),
        "seed": _whole(0, 0),
        "device": _one_of("cpu", (*DEVICES, "auto")),
        "compile": _switch(True),
    },
}


# ------------------------------------------------------------------- config


@dataclass(frozen=True)
class Config:
    """One training, checked and with all defaults filled in.

    Attributes
    ----------
    data, solver
        Settings by name, those of `SETTINGS`; one that is not set is None.
    net
        ``{"model": name, ...}`` with the model's other arguments, or a list with
        ``{"layer": name, ...}`` for each layer.
    source
        Where it comes from, for messages.
    """

    data: dict[str, Any]
    solver: dict[str, Any]
    net: dict[str, Any] | list[dict[str, Any]]
    source: Source = field(compare=False, repr=False)

    @property
    def title(self) -> str:
        """The name of the model; that of a list of layers is ``net``."""
        return "net" if isinstance(self.net, list) else self.net["model"]

    def toml(self) -> str:
        """Return the file that repeats this training."""
        lines = [f"# numbagrad {__version__}: `numbagrad train` with this file repeats the run."]
        for name in ("data", "solver"):
            lines += ["", f"[{name}]", *_assignments(getattr(self, name))]
        if isinstance(self.net, dict):
            lines += ["", "[net]", *_assignments(self.net)]
        else:
            for layer in self.net:
                lines += ["", "[[net]]", *_assignments(layer)]
        return "\n".join(lines) + "\n"

    def transform(self, shape: tuple[int, int, int]) -> Transform | None:
        """Return what is done to training images of a shape (h, w, c): see ``data.transforms``."""
        changes: list[Transform] = []
        if self.data["shift"]:
            changes.append(RandomCrop(shape[0], padding=self.data["shift"]))
        if self.data["flip"]:
            changes.append(RandomFlip())
        if self.data["cutout"]:
            changes.append(Cutout(self.data["cutout"]))
        return Compose(changes) if changes else None

    def optimizer(self, model: Module) -> optim.Optimizer:
        """Return a new optimiser for a model, which is where it will be trained."""
        solver = self.solver
        options = {"weight_decay": solver["weight_decay"]}
        if solver["optimizer"] == "sgd":
            options |= {"momentum": solver["momentum"], "nesterov": solver["nesterov"]}
        return OPTIMIZERS[solver["optimizer"]](model.parameters(), lr=solver["lr"], **options)

    def model(self, shape: tuple[int, int, int], classes: int) -> Module:
        """Build the net for images of a shape (h, w, c), with weights drawn anew.

        Raises
        ------
        ConfigError
            Naming the line of a layer that cannot be made, or does not take what comes before it.
        """
        if isinstance(self.net, list):
            return self._layers(shape, classes)
        height, _, channels = shape
        arguments = {k: v for k, v in self.net.items() if k != "model"}
        fixed = {"in_channels": channels, "classes": classes, "image_size": height}
        try:
            return models.get(self.net["model"], **{**fixed, **arguments})
        except (TypeError, ValueError) as error:
            raise self.source.error(("net",), str(error)) from None

    def _layers(self, shape: tuple[int, int, int], classes: int) -> Module:
        made: list[Module] = []
        here = (2, *shape)  # two images: BatchNorm takes no variance of one
        for position, table in enumerate(self.net):
            place = ("net", position)
            kind = LAYERS[table["layer"]]
            arguments = {key: value for key, value in table.items() if key != "layer"}
            takes = inspect.signature(kind).parameters
            for name in FOLLOWING:
                if name in takes:
                    arguments.setdefault(name, here[-1])
            is_last = position == len(self.net) - 1
            if is_last and "out_features" in takes:
                arguments.setdefault("out_features", classes)
            try:
                layer = kind(**arguments)
                here = layer.output_spec(here).shape
            except (ShapeError, DTypeError, TypeError, ValueError) as error:
                raise self.source.error(place, str(error)) from None
            made.append(layer)
        if here[1:] != (classes,):
            raise self.source.error(
                ("net", len(self.net) - 1),
                f"the last layer gives each image the shape {here[1:]}; the data has {classes} "
                f"classes, so ({classes},) is needed",
            )
        return Sequential(*made)


def _assignments(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_literal(value)}" for key, value in table.items() if value is not None]


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


# ------------------------------------------------------------------ reading


def read(path: str | os.PathLike, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    r"""Read a training from a TOML file.

    Parameters
    ----------
    path
        The file.
    changes
        Settings to put in the place of the file's, by table.

    Raises
    ------
    ConfigError
        Naming the line of what is wrong.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "net.toml")
    ...     _ = path.write_text('[net]\nmodel = "mlp"\nhidden = [32]')
    ...     config = read(path)
    >>> config.net, config.solver["epochs"]
    ({'model': 'mlp', 'hidden': (32,)}, 20)
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(where[1]) if where and where[1] else text.count("\n") + 1
        what = str(error).removesuffix(where[0]) if where else str(error)
        raise ConfigError(f"{path}:{line}: {what}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text in UTF-8, as a TOML file must be") from None
    for name, settings in (changes or {}).items():
        if isinstance(tables.setdefault(name, {}), dict):
            tables[name] |= settings
    return parse_dict(tables, Source(str(path), text))


def parse_dict(tables: Mapping[str, Any], source: Source | None = None) -> Config:
    """Return a checked config of what a TOML file holds.

    Raises
    ------
    ConfigError
        Naming what is wrong, and its line if the source is known.
    """
    source = source or Source()
    known = (*SETTINGS, "net")
    for name in tables:
        if name not in known:
            raise source.error((name,), f"no table is called [{name}]; {nearest(name, known)}")
    sections = {name: _section(name, tables.get(name, {}), source) for name in SETTINGS}
    _settle_solver(sections["solver"], source)
    if "net" not in tables:
        raise source.error(
            (), 'there is no net: write [net] with model = "lenet", or [[net]] for each layer'
        )
    return Config(**sections, net=_net(tables["net"], source), source=source)


def _section(name: str, table: Any, source: Source) -> dict[str, Any]:
    """Return all settings of a table, with their defaults where the file has none."""
    known = SETTINGS[name]
    if not isinstance(table, Mapping):
        raise source.error((name,), f"{name} must be a table, [{name}]")
    for key in table:
        if key not in known:
            raise source.error((name, key), f"[{name}] has no key {key!r}; {nearest(key, known)}")
    checked = {}
    for key, setting in known.items():
        checked[key] = setting.default
        if table.get(key) is not None:
            try:
                checked[key] = setting.check(table[key])
            except ValueError as error:
                text = f"{key} = {_shown(table[key])}: {error}"
                raise source.error((name, key), text) from None
    return checked


def _settle_solver(solver: dict[str, Any], source: Source) -> None:
    """Fill in what depends on the optimiser."""
    kind = solver["optimizer"]
    if solver["lr"] is None:
        solver["lr"] = RATES[kind]
    if kind == "sgd":
        solver["momentum"] = 0.9 if solver["momentum"] is None else solver["momentum"]
        solver["nesterov"] = bool(solver["nesterov"])
    for key in ("momentum", "nesterov"):
        if kind != "sgd" and solver[key]:
            raise source.error(("solver", key), f'{key} is for optimizer = "sgd", not "{kind}"')
    if solver["nesterov"] and not solver["momentum"]:
        raise source.error(("solver", "nesterov"), "nesterov needs a momentum above 0")


def _net(net: Any, source: Source) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the net with names that are known, and arguments that these take."""
    if isinstance(net, Mapping):
        return _named(("net",), net, "model", models.MODELS, source)
    if not isinstance(net, list) or not net:
        raise source.error(("net",), "net must be a table, [net], or one for each layer, [[net]]")
    return [
        _named(("net", position), table, "layer", LAYERS, source)
        for position, table in enumerate(net)
    ]


def _named(
    place: tuple, table: Any, what: str, known: Mapping[str, Callable], source: Source
) -> dict[str, Any]:
    if not isinstance(table, Mapping) or what not in table:
        raise source.error(place, f"{what} = is missing; Known: {', '.join(sorted(known))}")
    any_case = {one.lower(): one for one in known}
    name = any_case.get(str(table[what]).lower())
    if name is None:
        text = f"{what} = {_shown(table[what])}: {nearest(table[what], known)}"
        raise source.error((*place, what), text)
    takes = inspect.signature(known[name]).parameters
    for key, value in table.items():
        if key != what and key not in takes:
            text = f"{name} takes no argument {key!r}; {nearest(key, takes)}"
            raise source.error((*place, key), text)
        if isinstance(value, Mapping):
            raise source.error((*place, key), f"{key} must not be a table")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    return {**values, what: name}


def _shown(value: Any) -> str:
    return _literal(value) if isinstance(value, (str, bool, int, float)) else repr(value)


# -------------------------------------------------------------------- lines


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]\[]+?)\s*\]")
_KEY = re.compile(
    r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*="""
)


@dataclass(frozen=True)
class Source:
    r"""The text that a config was read from, to find the line of a key in. (`tomllib` tells none.)

    Examples
    --------
    >>> source = Source("net.toml", '[[net]]\nlayer = "ReLU"\n\n[[net]]\nlayer = "GELU"')
    >>> source.line(("net", 1, "layer")), source.line(("net", 0)), source.line(("data",))
    (5, 1, None)
    """

    name: str = ""
    text: str = ""

    def error(self, place: tuple, text: str) -> ConfigError:
        """Return the error about a key, with the line where it stands."""
        line = self.line(place)
        where = f"{self.name}:{line}: " if line else f"{self.name}: " if self.name else ""
        return ConfigError(where + text)

    def line(self, place: tuple) -> int | None:
        """Return the line of a key, or of the innermost table around it that has a line.

        Parameters
        ----------
        place
            Keys and positions from the outermost, such as ``("net", 2, "kernel_size")``.
        """
        found, depth = None, 0
        for path, number in self._paths():
            if len(path) > depth and place[: len(path)] == path:
                found, depth = number, len(path)
        return found

    def _paths(self) -> Iterable[tuple[tuple, int]]:
        """Yield the place of each table and key with its line."""
        table: tuple = ()
        counts: dict[tuple, int] = {}
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = _parts(header[2])
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                    table = *table, counts[table]
                yield table, number
            elif key := _KEY.match(line):
                yield (*table, *_parts(key[1])), number


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
