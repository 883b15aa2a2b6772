"""Whether each node of a cluster sees and writes the storage of checkpoints."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress

from trainers.data.storage import Store, open_store
from trainers.errors import ConfigError, first_line, system_words
from tuning.execution.tasks import ask_nodes


def storage_faults(url: str, nodes: Iterable[str], deadline_s: float) -> dict[str, str]:
    """What is wrong with a storage on each node, by Ray's identifier; empty if nothing is.

    The driver writes a file, and a task on each node looks for it and writes another one.

    Raises:
        ConfigError: the driver itself cannot write there, or the URL is invalid.
    """
    store, probe = open_store(url), f".lipsum-tune-doctor-{secrets.token_hex(4)}"
    try:
        with store.write(probe) as file:
            file.write(b"")
    except OSError as error:
        raise ConfigError(f"it cannot be written: {system_words(error)}") from None
    try:
        answers = ask_nodes(_look, dict.fromkeys(nodes, (url, probe)), deadline_s)
    finally:
        _remove(store, probe)
    silent = f"does not answer within {deadline_s:g} s"
    return {
        node: first_line(answer)
        if isinstance(answer, Exception)
        else silent
        if answer is None
        else answer
        for node, answer in answers.items()
    }


def _look(url: str, probe: str) -> str:
    own = f"{probe}-{secrets.token_hex(4)}"
    try:
        store = open_store(url)
        if not store.exists(probe):
            return "does not see this folder"
        with store.write(own) as file:
            file.write(b"")
        _remove(store, own)
    except (OSError, ConfigError) as error:
        return system_words(error) if isinstance(error, OSError) else first_line(error)
    return ""


def _remove(store: Store, path: str) -> None:
    with suppress(OSError):
        store.filesystem.delete_file(store.full(path))
