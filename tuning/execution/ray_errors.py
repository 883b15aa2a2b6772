"""What really went wrong, out of the accounts that Ray and Ray Train wrap around it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.tune import TuneError
from ray.tune.experiment import Trial

from trainers.errors import FULL, StorageFailed, system_words


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
    while inner := next(_wrapped(error), None):
        error = inner
    return error


def storage_failure(error: BaseException | None) -> StorageFailed | None:
    """The failure of storage behind an error, on whichever worker; None where there is none.

    A disk that is full is one, whoever found it to be: no trial is to blame for it.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if inner := [*_wrapped(error)]:  # Ray's account, whose type may be that of what it is about
            waiting += reversed(inner)
        elif isinstance(error, StorageFailed):
            return error
        elif isinstance(error, OSError) and error.errno in FULL:
            return StorageFailed(_where_and_why(error))
        else:
            waiting += [error.__context__, error.__cause__]
    return None


@contextmanager
def resumable(run_folder: Path) -> Iterator[None]:
    """Within the block a search runs, which a failure of storage ends so that it can go on.

    Raises:
        StorageFailed: in place of whatever was made of it on the way here.
    """
    try:
        yield
    except Exception as error:
        failure = storage_failure(error)
        if failure is None:
            raise
        raise StorageFailed(
            f"{failure}; put that right, and `lipsum-tune resume {run_folder}` goes on from the "
            "last checkpoints"
        ) from None


def check_own_failure(trial: Trial) -> None:
    """Raise where a trial of Tune that failed is no more to blame for it than any other would be.

    Raises:
        StorageFailed: its checkpoints could not be kept, nor could those of the next.
        TuneError: it did not fail at all, but searcher or recorder did, which were told of its end.
    """
    error = error_of(trial)
    if error is None:
        raise TuneError(f"the end of {trial} could not be recorded")  # Python adds, because of what
    if failure := storage_failure(error):
        raise failure


def error_of(trial: Trial) -> BaseException | None:
    """What a failed trial of Tune raised on its worker, which Tune keeps in a file."""
    file = Path(trial.pickled_error_file or "")
    if not file.is_file():
        return None
    error: BaseException = pickle.loads(file.read_bytes())
    return error


def _where_and_why(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{system_words(error)}"


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The errors that Ray says another one is about; of several workers, in their order."""
    workers = getattr(error, "worker_failures", None) or {}
    others = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause")]
    for inner in (*workers.values(), *others):
        if isinstance(inner, BaseException) and inner is not error:
            yield inner
