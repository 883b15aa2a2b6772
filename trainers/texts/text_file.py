"""Texts of the user's own, a line each, in place of random ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainers.errors import ConfigError


def read_texts(path: Path) -> list[str]:
    """The lines that say anything, in order.

    Raises:
        ConfigError: the file cannot be read, is no UTF-8, or says nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"texts_file = {str(path)!r}: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"texts_file = {str(path)!r}: there is no text in it")
    return texts


def digest(path: Path) -> str:
    """SHA-256 of the texts, so that white space and empty lines do not count.

    Raises:
        ConfigError: as `read_texts`.
    """
    return hashlib.sha256("\n".join(read_texts(path)).encode()).hexdigest()
