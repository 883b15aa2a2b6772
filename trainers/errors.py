"""Errors that a user is meant to read: one line each, without a traceback.

A mistake that can be found before training starts (a key, a value, a folder) raises `ConfigError`;
the command line prints it and exits with status 2. A storage failure during a search (a full disk,
a bucket that refuses) raises `StorageFailed`; the exit status is 75.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from trainers.redact import redact

ModelT = TypeVar("ModelT", bound=BaseModel)


class ConfigError(ValueError):
    """A mistake of the user, found before any worker starts. Shown as one line.

    The text is `source: key = value: problem (hint)`, without the parts that are not given and
    without secrets; a long value is shortened. Tests and callers read the fields; the text is for
    people.

    Args:
        problem: what is wrong, as a full clause, such as `must be at least 1`.
        key: dotted key of the configuration, option or column.
        value: what the user gave for it; without one, `...`, because None is a value.
        hint: what would work instead, such as `did you mean 'lr'?`.
        source: file, folder or URL in which the mistake stands, or the option `--set`.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        value: object = ...,
        hint: str | None = None,
        source: object = None,
    ) -> None:
        self.problem, self.key, self.value, self.hint = problem, key, value, hint
        self.source = None if source is None else str(source)
        shown = "" if value is ... else f" = {shortened(redact(repr(value)))}"
        named = "" if key is None else f"{key}{shown}"
        text = ": ".join(part for part in (self.source, named, problem) if part)
        super().__init__(redact(text + (f" ({hint})" if hint else "")))

    def within(self, source: object) -> ConfigError:
        """The same mistake, with the file or folder in which it stands before its text."""
        text = "\n".join(f"{source}: {line}" for line in str(self).splitlines())
        fields = {name: getattr(self, name) for name in ("key", "value", "hint")}
        error = ConfigError(self.problem, source=source, **fields)
        error.args = (redact(text),)
        return error


class TrainingDiverged(FloatingPointError):
    """The training loss is no longer a finite number."""


class MicroBatchTooLarge(RuntimeError):
    """The model does not fit into a worker's memory with so many images, and other workers wait.

    The attempt ends, and the next one begins with `micro_batch_size` images at once, as do later
    trainings of the same workers' slot.
    """

    def __init__(self, micro_batch_size: int) -> None:
        super().__init__(micro_batch_size)
        self.micro_batch_size = micro_batch_size

    def __str__(self) -> str:
        return f"out of memory; the next attempt has {self.micro_batch_size} images at once"


UNEXPECTED = 70
"""Exit status for an error that this package did not foresee. EX_SOFTWARE of sysexits.h."""

MAY_CONTINUE = 75
"""Exit status for what has to do with the machines: the same command may be repeated. EX_TEMPFAIL
of sysexits.h."""


def is_memory_exhausted(error: RuntimeError) -> bool:
    """Whether a GPU has run out of memory: for tensors, or for the handles of cuBLAS and cuDNN.

    PyTorch 2.13 reports the latter as plain RuntimeErrors (`CUBLAS_STATUS_ALLOC_FAILED`).
    """
    return type(error).__name__ == "OutOfMemoryError" or "_STATUS_ALLOC_FAILED" in str(error)


class MayContinue(Exception):
    """What has to do with the machines has ended the work: the same command may be repeated."""


class StorageFailed(MayContinue):
    """A checkpoint or record could not be written or read; the message has the place and reason.

    It is not a failure of the trial: after the storage problem is solved, the search can be resumed
    from the last checkpoints.
    """


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Values of `OSError.errno` for a full disk or an exhausted quota."""

WRONG_PATH = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
})  # fmt: skip
"""Values of `OSError.errno` for a path that is not what it should be, on a disk that works."""

DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Values of `OSError.errno` for a file or folder that this user cannot write or read."""


@contextmanager
def storage_failures(where: object, what: str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageFailed: `{where}: {what}: No space left`."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{where}: {what}: {system_words(error)}") from error


def unreadable(error: OSError, where: object, **fields: Any) -> ConfigError | StorageFailed:
    """A ConfigError if a file is missing or denied; otherwise its storage does not answer."""
    problem = f"cannot be read: {system_words(error)}"
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        return ConfigError(problem, **fields)
    return StorageFailed(f"{where}: {problem}")


def system_words(error: OSError) -> str:
    """The operating system's description of the error, in one line."""
    return os.strerror(error.errno) if error.errno else first_line(error)


def where_and_why(error: OSError) -> str:
    """The file of an error, if it names one, and the operating system's description."""
    where = f"{shortened(str(error.filename))}: " if error.filename else ""
    return f"{where}{system_words(error)}"


def system_error(error: BaseException | None) -> OSError | None:
    """The OSError that a library's error was caused by, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shortened(text: str, most: int = 200) -> str:
    """The text, or its first words and `...` if it has more than `most` characters."""
    if len(text) <= most:
        return text
    words = text[: most + 1].rpartition(" ")[0]
    return f"{words if 2 * len(words) > most else text[:most]}..."


def suggestion(word: str, known: Iterable[object]) -> str | None:
    """A hint for an unknown word: `did you mean 'lr'?`, or the known words; None if none exist."""
    words = [str(k) for k in known]
    return nearest(word, words) or (f"known: {', '.join(sorted(words))}" if words else None)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint for an unknown word, `did you mean 'lr'?`; None if no known one is like it.

    Of two that are equally like it, the longer common part decides, then the order of `known`, in
    which accuracies come before other metrics.
    """
    matcher = difflib.SequenceMatcher(b=word)

    def likeness(name: str) -> tuple[float, int]:
        matcher.set_seq1(name)
        return matcher.ratio(), matcher.find_longest_match().size

    close = max(known, key=likeness, default="")
    return f"did you mean {close!r}?" if close and likeness(close)[0] >= 0.6 else None


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """The `suggestion` in parentheses, to append to a message."""
    hint = suggestion(word, known)
    return f" ({hint})" if hint else ""


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first few of many names, for a message."""
    words = [str(name) for name in names]
    shown = ", ".join(words[:most]) or "nothing"
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def quoted(names: Iterable[object]) -> str:
    """The first three of many names in quotes, for a message."""
    return listed(map(repr, names), 3)


def validate(
    model: type[ModelT], values: Mapping[str, Any], source: str | Callable[[str | None], str]
) -> ModelT:
    """The values as a `model`.

    Several mistakes are one ConfigError: its fields are those of the first, its text has one line
    for each. `source` may be a function that returns the source of a key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = [_config_error(model, item) for item in error.errors(include_url=False)]
        problems = [e.within(source(e.key) if callable(source) else source) for e in found]
        problems[0].args = ("\n".join(map(str, problems)),)
        raise problems[0] from None


def validation_problem(error: ValidationError) -> str:
    """The first problem of a validation, without pydantic's decoration."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {str(first['loc'][-1])!r}"
    return first["msg"].removeprefix("Value error, ")


def _config_error(model: type[BaseModel], item: Any) -> ConfigError:
    """The ConfigError for one pydantic error."""
    key, names = _key_of(model, item["loc"])
    value, kind = item["input"], item["type"]
    if kind == "extra_forbidden":
        word = str(item["loc"][-1])
        deeper = nearest(word, names) is None and _place_of(word, model)
        hint = f"did you mean {deeper!r}?" if deeper else suggestion(word, names)
        return ConfigError("unknown key", key=key, value=value, hint=hint)
    if kind == "missing":
        return ConfigError("this key is missing", key=key)
    if kind == "union_tag_not_found":
        tag = str(item["ctx"]["discriminator"]).strip("'")
        return ConfigError("this key is missing", key=f"{key}.{tag}")
    if kind in ("literal_error", "union_tag_invalid"):
        expected = item["ctx"].get("expected", item["ctx"].get("expected_tags", ""))
        choices = [word.strip(" '\"") for word in expected.replace(" or ", ",").split(",")]
        if kind == "union_tag_invalid":
            key, value = f"{key}.name", item["ctx"]["tag"]
        hint = suggestion(str(value), choices)
        return ConfigError("unknown value", key=key, value=value, hint=hint)
    problem = item["msg"].removeprefix("Value error, ")
    if isinstance(value, Mapping) and kind == "value_error":  # the message names the key itself
        return ConfigError(problem, key=key or None)
    return ConfigError(problem, key=key or None, value=value if key else ...)


def _key_of(model: type[BaseModel], location: Iterable[Any]) -> tuple[str, list[str]]:
    """The dotted key of a pydantic location, and the names of the fields that are valid there.

    Pydantic's location also has the tags of discriminated unions, which are not keys of the user's.
    """
    parts: list[str] = []
    candidates = [model]
    for part in location:
        tagged = [candidate for candidate in candidates if _tag(candidate) == part]
        if len(candidates) > 1 and tagged:
            candidates = tagged[-1:]  # the last one, if a plug-in was loaded twice
            continue
        parts.append(str(part))
        # A key of a mapping or an index of a list is no field: the candidates stay.
        field = candidates[0].model_fields.get(str(part)) if len(candidates) == 1 else None
        if field is not None:
            candidates = _models(field.annotation)
    return ".".join(parts), list(candidates[0].model_fields) if len(candidates) == 1 else []


def _place_of(name: str, model: type[BaseModel]) -> str | None:
    """The dotted key of the first field of that name, of those with the fewest dots."""
    level = [("", model)]
    while level:
        inner = [
            (f"{at}{key}", field) for at, one in level for key, field in one.model_fields.items()
        ]
        if found := next((key for key, _ in inner if key.rpartition(".")[2] == name), None):
            return found
        below = [(key, _models(field.annotation)) for key, field in inner]
        level = [(f"{key}.", models[0]) for key, models in below if len(models) == 1]
    return None


def _tag(model: type[BaseModel]) -> str:
    """The tag of a model in a discriminated union: its only `name` or `type`, or its class name."""
    field = model.model_fields.get("name") or model.model_fields.get("type")
    values = get_args(field.annotation) if field is not None else ()
    return str(values[0]) if values else model.__name__


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All pydantic models inside a type annotation, with everything that derives from them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, *(m for sub in annotation.__subclasses__() for m in _models(sub))]
    return [model for argument in get_args(annotation) for model in _models(argument)]
