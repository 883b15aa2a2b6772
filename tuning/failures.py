"""What really went wrong, out of the accounts that Ray and Ray Train wrap around it."""

from __future__ import annotations


def in_one_line(error: BaseException) -> str:
    """The error that a worker raised, its kind and the first line of its message.

    Ray's account of a driver wraps Ray Train's account of its workers, which wraps what one of them
    raised; the last is what a person wants to read.
    """
    cause = root_cause(error)
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised."""
    while True:
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else None
        inner = inner or getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner
