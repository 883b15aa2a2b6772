"""open_clip's byte-pair tokenizer with merges of another model.

A file of merges has a version in its first line and one merge, such as `t h`, in each other line,
the most frequent ones first: `bpe_simple_vocab_16e6.txt.gz` of CLIP, or `merges.txt`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from trainers.errors import ConfigError, first_line

MAX_MERGES = 49152 - 256 - 2
"""open_clip's tokenizer ignores further ones."""
_MAX_BYTES = 64 << 20
_VERSION = "#version: 0.2"


def byte_pair_tokenizer(
    merges: Sequence[str], context_length: int, clean: str = "lower"
) -> SimpleTokenizer:
    """The tokenizer with these merges; `clean` is a method of open_clip to clean texts."""
    file = io.BytesIO(packed(merges))
    return SimpleTokenizer(bpe_path=file, context_length=context_length, clean=clean)


def packed(merges: Sequence[str]) -> bytes:
    """Merges as the contents of a `.txt.gz` file."""
    return gzip.compress("\n".join([_VERSION, *merges]).encode(), compresslevel=1, mtime=0)


def merges_of(tokenizer: SimpleTokenizer) -> list[str]:
    """The merges of a tokenizer, in order."""
    return [" ".join(pair) for pair in tokenizer.bpe_ranks]


def clip_merges(count: int) -> list[str]:
    """The first merges of CLIP's own vocabulary."""
    return read_merges(Path(default_bpe()))[:count]


def read_merges(path: Path) -> list[str]:
    """The merges of a file, at most those that open_clip's tokenizer uses.

    Raises:
        ConfigError: the file is missing, damaged, or holds no merges.
    """
    key = "model.tokenizer"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        lines = content.decode("utf-8").rstrip().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(first_line(error), key=key, value=str(path)) from None
    if len(content) > _MAX_BYTES:
        raise ConfigError("larger than 64 MiB", key=key, value=str(path))
    if "version" in lines[0]:
        lines = lines[1:]
    merges = [line.rstrip("\r") for line in lines[:MAX_MERGES]]
    wrong = [line for line in merges if len(line.split()) != 2]
    if wrong or len(set(merges)) < len(merges):
        problem = f"{wrong[0][:40]!r} is not two symbols" if wrong else "a merge is twice"
        raise ConfigError(problem, key=key, value=str(path))
    return merges
