"""The original error behind the errors that Ray and Ray Train wrap around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from trainers.errors import FULL, StorageFailed, first_line, where_and_why
from trainers.redact import redact


def error_text(error: BaseException) -> str:
    """In one line the error that a worker raised, and below it its traceback, without secrets.

    Ray's error of a slot's process wraps Ray Train's error of its workers, which wraps the error of
    one of them.
    """
    cause = root_cause(error)
    traceback = getattr(cause, "worker_traceback", "")  # see `trainers.ray_trainer.serve`
    return redact(f"{type(cause).__name__}: {first_line(cause)}\n{traceback}".rstrip())


def root_cause(error: BaseException) -> BaseException:
    """The innermost error; that of the first one, if several workers raised."""
    return next(root_causes(error))


def root_causes(error: BaseException) -> Iterator[BaseException]:
    """The innermost errors of all workers."""
    wrapped = [*wrapped_errors(error)]
    if not wrapped:
        yield error
    for one in wrapped:
        yield from root_causes(one)


def is_rays(error: BaseException) -> bool:
    """Whether the class of an error is one of Ray, or derives from one."""
    return any(base.__module__.partition(".")[0] == "ray" for base in type(error).__mro__)


def storage_failure(error: BaseException | None) -> StorageFailed | None:
    """The storage failure behind an error of any worker; None if there is none.

    A full disk always is one: it is not the fault of the trial that ran into it.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        # An error of Ray may also have the type of its cause, so what it wraps comes first.
        if inner := [*wrapped_errors(error)]:
            waiting += reversed(inner)
        elif isinstance(error, StorageFailed):
            return error
        elif isinstance(error, OSError) and error.errno in FULL:
            return StorageFailed(where_and_why(error))
        else:
            waiting += [error.__context__, error.__cause__]
    return None


@contextmanager
def resumable(go_on: str) -> Iterator[None]:
    """Within the block, a storage failure ends the work and says how to go on with it.

    Raises:
        StorageFailed: in place of any error that a storage failure has caused.
    """
    try:
        yield
    except Exception as error:
        failure = storage_failure(error)
        if failure is None:
            raise
        text = str(failure)
        raise StorageFailed(text if go_on in text else f"{text}; {go_on}") from None


def wrapped_errors(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error of Ray wraps, those of several workers in their order.

    They are found under any name: Ray 2.60 has public ones for some of them only, and with a name
    missed, the loss of a worker would count as a failure of its training.
    """
    if not is_rays(error):
        return
    for value in vars(error).values():
        for inner in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(inner, BaseException) and inner is not error:
                yield inner
