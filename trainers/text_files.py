"""Reading text files that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.errors import ConfigError, system_words

MAX_BYTES = 64 << 20


def read_text_file(path: Path, encoding: str = "utf-8", **where: Any) -> str:
    """The content of a file of at most 64 MiB.

    Args:
        where: `key`, `value` or `source` of the error.

    Raises:
        ConfigError: it cannot be read, is a folder, a device or too large, or is not UTF-8.
    """
    try:
        if path.is_char_device() or path.is_block_device():  # some never end
            raise ConfigError("not a regular file", **where)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError("larger than 64 MiB", **where)
        return content.decode(encoding)
    except OSError as error:
        raise ConfigError(system_words(error), **where) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(error), **where) from None
