"""One clear sentence for each mistake: the errors that a user is meant to read.

Everything a user can get wrong before training starts (a key, a value, a folder) ends as a
`ConfigError`, whose message names where it stands, what it is and what would do instead. The
command line prints it without a traceback and exits with status 2. What storage does to a search
that is under way, a full disk or a bucket that refuses, ends as a `StorageFailed`, in one line too.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Unset:
    """Marks a value that an error does not have; None is a value."""


UNSET = _Unset()


class ConfigError(ValueError):
    """A mistake of the user, found before any worker starts. Shown as one line.

    The text is `source: key = value: problem (hint)`, without the parts that are not given. Tests
    and callers read the fields; the text is for people.

    Args:
        problem: what is wrong, as a full clause, such as `must be at least 1`.
        key: dotted key of the configuration, option or column.
        value: what the user gave for it.
        hint: what would work instead, such as `did you mean 'lr'?`.
        source: file, folder or URL in which the mistake stands.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        value: object = UNSET,
        hint: str | None = None,
        source: object = None,
    ) -> None:
        self.problem, self.key, self.value, self.hint = problem, key, value, hint
        self.source = None if source is None else str(source)
        named = "" if key is None else key if value is UNSET else f"{key} = {value!r}"
        text = ": ".join(part for part in (self.source, named, problem) if part)
        super().__init__(text + (f" ({hint})" if hint else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild with all fields: Ray pickles errors of its workers."""
        value = None if self.value is UNSET else repr(self.value)
        return _rebuilt, (self.problem, self.key, value, self.hint, self.source, str(self))


def _rebuilt(
    problem: str,
    key: str | None,
    value: object,
    hint: str | None,
    source: str | None,
    text: str,
) -> ConfigError:
    error = ConfigError(problem, key=key, value=value, hint=hint, source=source)
    error.args = (text,)
    return error


class TrainingDiverged(FloatingPointError):
    """The training loss is no longer a finite number."""


class StorageFailed(Exception):
    """What was to be kept could not be written or read; the message names where, and why.

    It is nobody's mistake, and no trial's: what runs can go on from its last checkpoint once there
    is room, or the storage answers again.
    """


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of `OSError.errno`: there is no room, whoever asks for it."""


@contextmanager
def storage_failures(where: object, what: str) -> Iterator[None]:
    """Within the block, an error of the system is one of storage: `{where}: {what}: No space left`.

    Raises:
        StorageFailed: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{where}: {what}: {system_words(error)}") from error


def system_words(error: OSError) -> str:
    """What the system said, in one line."""
    return os.strerror(error.errno) if error.errno else first_line(error)


def system_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind one that a library made of it; None where there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    """What an error says, without the page that some libraries add; its kind where it is silent."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message: ` (did you mean 'lr'?)`, or the list of known words."""
    words = [str(k) for k in known]
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(sorted(words))})" if words else ""


def validate(model: type[ModelT], values: Mapping[str, Any], source: str) -> ModelT:
    """`values` as a `model`.

    Raises:
        ConfigError: with one line a mistake, each naming `source`, the dotted key and the value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item, source) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _explain(model: type[BaseModel], item: Any, source: str) -> str:
    """One line for one pydantic error."""
    location = [part for part in item["loc"] if isinstance(part, str | int)]
    where, names = _dotted(model, location)
    value = item["input"]
    if item["type"] == "extra_forbidden":
        unknown = str(location[-1])
        return f"{source}: unknown key {where!r} = {value!r}{did_you_mean(unknown, names)}"
    if item["type"] == "missing":
        return f"{source}: the key {where!r} is missing"
    if item["type"] == "union_tag_not_found":
        tag = str(item["ctx"]["discriminator"]).strip("'")
        return f"{source}: the key '{where}.{tag}' is missing"
    if item["type"] in ("literal_error", "union_tag_invalid"):
        expected = item["ctx"].get("expected", item["ctx"].get("expected_tags", ""))
        choices = [word.strip(" '\"") for word in expected.replace(" or ", ",").split(",")]
        given = str(value.get("name")) if isinstance(value, Mapping) else str(value)
        key = f"{where}.name" if isinstance(value, Mapping) else where
        return f"{source}: {key} = {given!r} is not one of its values{did_you_mean(given, choices)}"
    message = item["msg"].removeprefix("Value error, ")
    if where and isinstance(value, Mapping):  # a whole section, of which the message names the key
        return f"{source}: {where}: {message}"
    return f"{source}: {where} = {value!r}: {message}" if where else f"{source}: {message}"


def _dotted(model: type[BaseModel], location: list[str | int]) -> tuple[str, list[str]]:
    """The dotted key of an error, without pydantic's union tags, and the names known beside it."""
    parts: list[str] = []
    names = list(model.model_fields)
    current: type[BaseModel] | None = model
    candidates: list[type[BaseModel]] = []
    for part in location:
        tagged = next((c for c in candidates if _tag(c) == part), None)
        if tagged is not None:  # the tag of a discriminated union, no key of the user's
            current, names, candidates = tagged, list(tagged.model_fields), []
            continue
        parts.append(str(part))
        field = current.model_fields.get(str(part)) if current is not None else None
        candidates = _models(field.annotation) if field is not None else []
        current = candidates[0] if len(candidates) == 1 else None
        if current is not None:
            names = list(current.model_fields)
            candidates = []
    return ".".join(parts), names


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name") or model.model_fields.get("type")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if values else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model inside a type annotation; of an abstract one, its subclasses."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _subclasses(annotation) if inspect.isabstract(annotation) else [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The model and all that derive from it."""
    return [model, *(found for sub in model.__subclasses__() for found in _subclasses(sub))]
