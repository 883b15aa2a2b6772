"""Registry of the fine-tuning methods: those shipped here and those of plug-ins.

A method is a subclass of `trainers.methods.base.Method` that is registered under its name. A user
adds one without changing this package: write it into a module of its own and name the module under
`plugins` of the trial's configuration, or publish it as an entry point of the group
`lipsum_tune.methods`::

    @register_method("mine", search_space={"parameters": {"optim.lr": {...}}})
    class Mine(Method):
        name: Literal["mine"] = "mine"
"""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, reduce
from importlib.metadata import entry_points
from operator import or_
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, SerializeAsAny, TypeAdapter
from pydantic_core import core_schema

from trainers.errors import ConfigError, first_line
from trainers.methods.base import Method

ENTRY_POINTS = "lipsum_tune.methods"
"""Group of entry points whose modules register methods."""

METHODS: dict[str, type[Method]] = {}
"""The class of each registered method by its name."""

SEARCH_SPACES: dict[str, Mapping[str, Any]] = {}
"""Search space that a method brings, by the method's name: plain values with the keys `parameters`
(dotted key to `{type, low, high, log, step, choices}`) and `initial_points`, the first of which is
the centre of the prior; without it, that is the trial's own values. Shipped methods have theirs in
`search_spaces`."""

_LOADED: dict[str, tuple[dict[str, type[Method]], dict[str, Mapping[str, Any]]]] = {}
"""The part of `METHODS` and of `SEARCH_SPACES` that each imported plug-in has registered."""
_TEXTS: dict[str, str] = {}
"""The text of each plug-in that is a file, as it was imported here or given to `use_texts`."""
_FILE = "lipsum_tune_plugin_"
"""Prefix of the modules of plug-ins that are files."""
_PROPERTIES = [key for key, value in vars(Method).items() if isinstance(value, property)]

MethodT = TypeVar("MethodT", bound=Method)


def register_method(
    name: str, *, search_space: Mapping[str, Any] | None = None
) -> Callable[[type[MethodT]], type[MethodT]]:
    """Class decorator that makes a method known under `trial.method.name = name`.

    Args:
        name: also the default of the class's field `name: Literal[name]`.
        search_space: as in `SEARCH_SPACES`.

    Raises:
        ValueError: another class has the name, the class's `name` field differs from it, or what
            must be a property is a method.
    """

    def register(cls: type[MethodT]) -> type[MethodT]:
        if cls.model_fields["name"].default != name:
            raise ValueError(f"{cls.__name__}.name must be Literal[{name!r}] = {name!r}")
        for key in _PROPERTIES:
            # Without @property, a method that returns False would count as true.
            if callable(getattr(cls, key)):
                raise ValueError(f"{cls.__name__}.{key} must be a property: put @property above it")
        known = METHODS.get(name, cls)
        places = {(of.__module__, of.__qualname__) for of in (known, cls)}
        # Of two files, such as two versions of a method, each configuration has its own.
        if len(places) > 1 and not all(module.startswith(_FILE) for module, _ in places):
            raise ValueError(f"method {name!r} is already registered by {known.__module__}")
        METHODS[name] = cls
        if search_space is not None:
            SEARCH_SPACES[name] = search_space
        return cls

    return register


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import the modules that register further methods, each once per process.

    They are importable names, or paths of `.py` files. Those of the entry-point group
    `lipsum_tune.methods` are always imported.
    """
    _load_entry_points()
    owners: dict[str, str] = {}
    for module in modules:
        _load_module(module)
        for name in _LOADED[module][0]:
            if owners.setdefault(name, module) != module:
                problem = f"has the method {name!r}, as {owners[name]} has"
                raise ConfigError(problem, key="plugins", value=module)


def texts_of(plugins: Iterable[str]) -> dict[str, str]:
    """The texts of imported plug-ins that are files, for `use_texts` in another process."""
    return {plugin: _TEXTS[plugin] for plugin in plugins if plugin in _TEXTS}


def text_of_file(plugin: str) -> str:
    """The text of a plug-in on the disk, decoded as Python decodes it."""
    return importlib.util.decode_source(Path(plugin).read_bytes())


def use_texts(texts: Mapping[str, str]) -> None:
    """Import these plug-ins with these texts: a file may be edited while a search runs."""
    _TEXTS.update(texts)


def is_available(method: str, plugins: Collection[str]) -> bool:
    """Whether workers that import these plug-ins can have a registered method.

    They do not have those of a script or notebook, and of files that only other configurations of
    this process name.
    """
    module = METHODS[method].__module__
    if module.startswith(_FILE):
        return module in map(_module_of, plugins)
    return module != "__main__"


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except (Exception, SystemExit) as error:  # whatever a foreign module or script raises
            source = f"entry point {entry.value!r} of {ENTRY_POINTS}"
            raise ConfigError(_import_problem(error), source=source) from error


def _load_module(module: str) -> None:
    if module in _LOADED:
        methods, spaces = _LOADED[module]
        METHODS.update(methods)  # another file may have replaced some
        SEARCH_SPACES.update(spaces)
        return
    before = dict(METHODS)
    name = _module_of(module)
    is_file = name != module
    if is_file and module not in _TEXTS and not Path(module).is_file():
        hint = "if a run folder names it, put the file back there, or a link to it"
        raise ConfigError("no such file", key="plugins", value=module, hint=hint)
    try:
        if is_file:
            _import_file(module, name)
        else:
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a foreign module or script raises
        sys.modules.pop(name, None)
        _TEXTS.pop(module, None)
        raise ConfigError(_import_problem(error), key="plugins", value=module) from error
    new = {name: cls for name, cls in METHODS.items() if before.get(name) is not cls}
    _LOADED[module] = new, {name: SEARCH_SPACES[name] for name in new if name in SEARCH_SPACES}


def _import_file(file: str, name: str) -> None:
    """Import a plug-in as a module, with its text in `_TEXTS`, which a search freezes."""
    if file not in _TEXTS:
        _TEXTS[file] = text_of_file(file)
    text = _TEXTS[file]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    # Tracebacks, and pydantic's search for docstrings, look lines up here.
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    # Registered in sys.modules first, as pydantic looks up annotations there.
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    exec(compile(text, file, "exec", dont_inherit=True), loaded.__dict__)


def _import_problem(error: Exception | SystemExit) -> str:
    return f"cannot be imported: {type(error).__name__}: {first_line(error)}"


def _module_of(plugin: str) -> str:
    """Name of a plug-in's module; of a file, unique to its path."""
    path = Path(plugin)
    is_file = path.suffix == ".py"
    return f"{_FILE}{path.stem}_{zlib.crc32(bytes(path)):08x}" if is_file else plugin


def plugin_of(method: str) -> str | None:
    """The plug-in that registered a method; None if it is not of one."""
    return next((plugin for plugin, (own, _) in _LOADED.items() if method in own), None)


@cache
def _adapter(classes: tuple[type[Method], ...]) -> TypeAdapter[Method]:
    """A union told apart by `name`, whose errors name the valid choices."""
    return TypeAdapter(Annotated[reduce(or_, classes), Field(discriminator="name")])  # type: ignore[arg-type]


class _OpenUnion:
    """Makes a field of type `Method` hold any registered method.

    pydantic fixes a union when the class of the configuration is made; plug-ins come later.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        def method_of(value: Any) -> Method:
            if isinstance(value, Method):
                return value
            return _adapter(tuple(METHODS.values())).validate_python(value)

        return core_schema.no_info_before_validator_function(method_of, handler(source))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        return handler(_adapter(tuple(METHODS.values())).core_schema)


MethodConfig = Annotated[SerializeAsAny[Method], _OpenUnion]
"""Type of a configuration's field that holds any registered method."""
