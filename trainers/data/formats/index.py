"""Index of a source: labelled images by domain and split, which readers make and shards hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from trainers.data.formats.readers import Source
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean
from trainers.text_files import read_text_file
from trainers.texts import IGNORED, as_tokenized, both, spoken

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)
"""In the order in which readers list them."""

SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Usual names of split folders, in lower case."""

_WORD_BOUNDARIES = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled image that has not been read yet."""

    source: Source
    path: str
    """Its name in the data set and in reports, in UTF-8. Validation splits are carved by it, so it
    does not depend on how many folders of an archive the source leaves out."""
    label: int
    """Index into the class names. Its range is checked when the image is read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something unusual about an image, a class or a list."""

    path: str
    kind: str
    """One or two words, such as `truncated`, `CMYK`, `missing class`, `duplicate`."""
    detail: str = ""
    bad: bool = False
    """Whether the image cannot be used, which counts against the ceiling of `--skip-bad`."""


@dataclass(frozen=True)
class Index:
    """The images of one split of one domain."""

    domain: str
    split: Split
    class_names: tuple[str, ...]
    """In the order of the labels. They identify classes across domains (folder names or WordNet
    ids); the words that prompts use for them are defined by a suite."""
    examples: tuple[Example, ...]
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Stored in the Parquet files. Two keys change how the data are read: `class_map` (JSON: a
    class of this domain to a list of ID classes) and `crop_pct` (share of an image that evaluation
    crops; 1.0 if images are cropped already)."""
    border: int = 0
    """Pixels to cut off every side first (ObjectNet images have a red frame of 2)."""


@dataclass(frozen=True)
class LayoutOptions:
    """Options of `prepare` about the source. A layout refuses those that it does not use."""

    domain: str | None = None
    """Name of the domain, for layouts of a single one."""
    domains: tuple[str, ...] = ()
    """Domains to prepare, for layouts of several; empty means all."""
    id: str | None = None
    """The domain to fine-tune on. The images of the others need no train split."""
    ood: tuple[str, ...] = ()
    """The domains that are only evaluated; empty means all but `id`."""
    split: Split | None = None
    """Split of the images whose folders and files name none."""
    deduplicate: str | None = None
    """Text file with paths to leave out, one a line."""
    class_names: str | None = None
    """Text file with class names, one a line, in the order of the labels."""
    image_column: str | None = None
    label_column: str | None = None


def check_options(options: LayoutOptions, layout: str, *allowed: str) -> None:
    """Raise a ConfigError for an option that the layout does not use."""
    for option in fields(options):
        value = getattr(options, option.name)
        if option.name not in allowed and value != option.default:
            flags = ", ".join(map(_flag, allowed)) or "none of these options"
            raise ConfigError(
                f"the layout {layout} does not use this option",
                key=_flag(option.name),
                value=",".join(value) if isinstance(value, tuple) else value,
                hint=f"it takes {flags}",
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split_in_words(name: str) -> Split | None:
    """Split that a file name contains: `validation-00000-of-00005` is `val`."""
    words = _WORD_BOUNDARIES.split(name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def domain_name(source: Store, options: LayoutOptions) -> str:
    """`--domain`, or the name of the source's folder.

    Raises:
        ConfigError: the source is the root of a file system, which has no name.
    """
    name = options.domain or source.root.rpartition("/")[2]
    if not name:
        raise ConfigError(
            "is needed, for this folder has no name", key="--domain", source=source.url
        )
    return name


def chosen_domains(source: Store, found: Iterable[str], wanted: Collection[str]) -> list[str]:
    """Domains in `found` that `--domains` asks for, in the order found; none or `all` means all.

    Raises:
        ConfigError: an unknown domain is asked for.
    """
    names = list(found)
    if not wanted or list(wanted) == ["all"]:
        return names
    for domain in wanted:
        if domain not in names:
            raise ConfigError(
                f"no such domain{did_you_mean(domain, names)}",
                key="--domains",
                value=domain,
                source=source.url,
            )
    return [name for name in names if name in wanted]


def join(*parts: str) -> str:
    """Path or URL of parts, any of which may be empty."""
    return "/".join(part.rstrip("/") for part in parts if part)


def read_text(store: Store, file: str) -> tuple[str, str]:
    """Content of a text file, and the SHA-256 of its bytes in hexadecimal.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        data = store.read_bytes(file)
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", source=join(store.url, file)) from None


def read_class_names_file(path: str) -> tuple[str, ...]:
    """Names in the text file of `--class-names`, one a line in the order of the labels.

    Raises:
        ConfigError: as `trainers.text_files.read_text_file`, a blank line, or a repeated name.
    """
    file = Path(path).expanduser()
    text = read_text_file(file, "utf-8-sig", key="--class-names", value=path)
    return parse_class_names(text, path)


def parse_class_names(text: str, where: str) -> tuple[str, ...]:
    """The lines of a text as class names; `where` names the text in messages.

    Raises:
        ConfigError: no line, a blank line, or a repeated name.
    """
    names = tuple(line.strip() for line in text.splitlines())
    if not names or "" in names:
        problem = f"line {names.index('') + 1} is blank" if names else "the file is empty"
        raise ConfigError(f"{problem}; each line is a class name", source=where)
    check_distinct(names, where)
    return names


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raise a ConfigError if two labels have the same name."""
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        if labels.setdefault(name, label) != label:
            raise ConfigError(
                f"duplicate names: the classes {labels[name]} and {label} (from 0) are both "
                f"{name!r}",
                hint="--class-names FILE can tell them apart",
                source=where,
            )


def check_distinct_in_prompts(names: Iterable[str], where: str) -> None:
    """Raise a ConfigError if two names differ only in what `spoken` and tokenizers ignore.

    Prompts could not tell them apart, and a file system without case would merge their folders.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(as_tokenized(spoken(name)), name)
        if other != name:
            raise ConfigError(
                f"duplicate names: the classes {both(other, name)} are the same in a prompt",
                hint=IGNORED,
                source=where,
            )
