"""That a domain's folder is one preparation's alone, and as whole as its record is to say."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from filelock import FileLock, Timeout

from trainers.data.shards import Shard, ShardReport, finished
from trainers.data.storage import Store
from trainers.errors import ConfigError
from tuning.preparation.manifest import read_record
from tuning.preparation.plan import DomainPlan, other_parts
from tuning.preparation.tasks import PreparationFailed

LOCK = ".prepare.lock"
_READ_AT_ONCE = 16
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def alone(domain: DomainPlan) -> Iterator[bool]:
    """Keep other preparations out of a domain's folder; on a bucket only `require_own` can tell.

    Returns:
        Whether the folder is locked.

    Raises:
        ConfigError: another one is at work there, or was since the plan was made.
    """
    folder = domain.store
    with _locked(folder) as is_locked:
        if read_record(folder) != domain.record:
            raise ConfigError(
                f"{folder.url}: another `prepare` was at work there just now; look at what it made"
            )
        yield is_locked


@contextmanager
def _locked(folder: Store) -> Iterator[bool]:
    if not folder.is_local:
        yield False
        return
    folder.local_path().mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.local_path(LOCK))
    is_locked = True
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"{folder.url}: another `prepare` is at work there") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        is_locked = False  # a network file system without locks
    try:
        yield is_locked
    finally:
        lock.release()


def require_own(folder: Store, run: str | None) -> None:
    """Check that no other preparation has begun in a domain's folder.

    Args:
        folder: the domain's.
        run: what the record is to say, None for one that an earlier version wrote.

    Raises:
        PreparationFailed: one has.
    """
    if (read_record(folder) or {}).get("run") != run:
        raise PreparationFailed(f"{folder.url}: another `prepare` has begun there meanwhile")


def require_whole(
    destination: Store, domain: DomainPlan, made: Sequence[tuple[Shard, ShardReport]]
) -> None:
    """Check from here that every shard is there as it was made, and no other.

    Raises:
        PreparationFailed: the first file that is missing, differs, or is too many.
    """
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        there = pool.map(partial(finished, destination), [shard for shard, _ in made])
        for (shard, report), found in zip(made, there, strict=True):
            if found == report:
                continue
            file = f"{destination.url}/{shard.path}"
            if destination.exists(shard.path):
                raise PreparationFailed(f"{file}: another program has changed it meanwhile")
            raise PreparationFailed(
                f"{file}: written by a worker, and not to be seen from here: "
                "is it a disk that every machine shares?"
            )
    if others := other_parts(domain.store, domain.shards):
        raise PreparationFailed(
            f"{domain.store.url}/{others[0]}: another program has put it there meanwhile"
        )
