"""A preparation in the terminal: its progress, and the summary at its end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import yaml
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

from trainers.data.encoding import CHANGES
from trainers.data.formats.index import SPLITS, Split
from trainers.data.shards import Shard, ShardReport
from tuning.preparation.manifest import FINDINGS, Found, Status
from tuning.views.formatting import accuracy_margin, format_seconds
from tuning.views.result_table import borderless_table

_FEW_IMAGES = 100
"""Fewer validation images than this are said to be few: ± 10 points."""


@dataclass(frozen=True)
class SplitReport:
    """A split as it is on disk."""

    images: int
    bytes: int


@dataclass(frozen=True)
class DomainReport:
    """A domain whose shards are all made."""

    domain: str
    url: str
    status: Status
    splits: dict[Split, SplitReport]
    findings: tuple[Found, ...]
    images: int
    """In the index, unusable ones included."""

    @property
    def bad(self) -> int:
        """Number of images that cannot be used."""
        return sum(found.finding.bad for found in self.findings)

    def kinds(self, *, bad: bool) -> dict[str, int]:
        """Number of findings of each kind, the most frequent first."""
        of_kind = (f.finding.kind for f in self.findings if f.finding.bad == bad)
        return dict(Counter(of_kind).most_common())


@dataclass(frozen=True)
class PreparationReport:
    """Result of a preparation."""

    destination: str
    domains: tuple[DomainReport, ...]
    made: int
    """Images read by this run; those of shards that were there already are not counted."""
    seconds: float
    id_domain: str | None = None
    """The domain to fine-tune on, if it was named."""

    @property
    def refused(self) -> tuple[DomainReport, ...]:
        """Domains with more bad images than may be left out."""
        return tuple(domain for domain in self.domains if domain.status == "refused")


class Display:
    """Progress over the images: a bar, or a line for each shard if there is no terminal."""

    def __init__(self, console: Console, images: int) -> None:
        self._console, self._images = console, images
        self._ended, self._bad = 0, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("images", total=images)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def shard_ended(self, shard: Shard, report: ShardReport) -> None:
        """Advance the bar, or print a line."""
        self._ended += len(shard.examples)
        self._bad += sum(finding.bad for finding in report.findings)
        bad = f", {self._bad:,} bad" if self._bad else ""
        description = f"{shard.domain}/{shard.split}{bad}"
        self._progress.update(self._task, completed=self._ended, description=description)
        if not self._console.is_terminal:
            done = "there already" if report.reused else "done"
            counts = f"{report.rows:,} images  ({self._ended:,} of {self._images:,})"
            self._console.out(f"{shard.path}  {done}  {counts}", highlight=False)


def render(report: PreparationReport) -> RenderableType:
    """Images by domain and split, findings by kind, and the line for the configuration.

    The detail of a finding is shown if it is the only one of its kind.
    """
    splits = [s for s in SPLITS if any(s in domain.splits for domain in report.domains)]
    images = borderless_table("", *splits, "size", "bad", "status")
    for domain in report.domains:
        made = domain.splits
        counts = [f"{made[s].images:,}" if s in made else "" for s in splits]
        size = decimal(sum(split.bytes for split in made.values()))
        style = "red" if domain.status == "refused" else ""
        images.add_row(
            escape(domain.domain), *counts, size, f"{domain.bad:,}", domain.status, style=style
        )
    title = Rule(f"[bold]{escape(report.destination)}[/]", align="left", style="dim")
    parts: list[RenderableType] = [title, images, *_findings(report)]
    for domain in report.domains:
        usable = domain.kinds(bad=False)
        changed = sum(usable[kind] for kind in usable.keys() & CHANGES)
        left_out = "" if domain.status == "refused" else " left out"
        counts = [
            f"{number:,} {one if number == 1 else several}"
            for number, one, several in (
                (domain.bad, f"bad image{left_out}", f"bad images{left_out}"),
                (changed, "conversion of an image", "conversions of images"),
                (sum(usable.values()) - changed, "other finding", "other findings"),
            )
            if number
        ]
        if counts:
            line = f"! {domain.domain}: {', '.join(counts)}, listed in {domain.url}/{FINDINGS}"
            parts.append(Text(line, style="yellow"))
    if report.made:
        rate = report.made / report.seconds
        took = format_seconds(report.seconds)
        parts.append(Text(f"Read        {report.made:,} images in {took}, {rate:,.0f} a second"))
    parts += [Text(f"! {line}", style="bold yellow") for line in _missing_splits(report)]
    if not report.refused:
        parts.append(Text(f"Config      trial.data.root: {report.destination}"))
        names = [domain.domain for domain in report.domains]
        if id_domain := report.id_domain or (names[0] if len(names) == 1 else None):
            ood = [name for name in names if name != id_domain]
            suite = {"id_domain": id_domain, "ood_domains": ood}
            text = yaml.safe_dump(
                suite, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True
            )
            parts.append(Text(f"            trial.data.suite: {text.strip()}"))
            if not ood:
                parts.append(Text("            search.objective: {metric: id_val/acc}"))
    return Group(*parts)


def _missing_splits(report: PreparationReport) -> Iterator[str]:
    """What a search on these data will lack, and the option that changes it."""
    for split, reader, option in (
        ("val", "a search", "--val-fraction 0.1"),
        ("test", "`confirm`", "--test-fraction 0.2"),
    ):
        if lacking := [d.domain for d in report.domains if split not in d.splits]:
            yield (
                f"No {split} split, which {reader} needs: {', '.join(lacking)}. {option} takes it "
                "from images of train (with --overwrite, since the data are there)."
            )
    for domain in report.domains:
        if (val := domain.splits.get("val")) and val.images < _FEW_IMAGES:
            margin = f"± {accuracy_margin(50.0, val.images):.0f} points (95 %)"
            yield (
                f"{domain.domain}: an accuracy on {val.images} val images is known to {margin}. "
                "--val-fraction makes more."
            )
    trained = [domain.domain for domain in report.domains if "train" in domain.splits]
    if len(trained) > 1 and not report.id_domain:
        yield (
            f"{len(trained)} domains have a train split, and a search reads that of one. The "
            "layout `folders` takes --id DOMAIN and divides train of the others into val and test."
        )


def refusal(report: PreparationReport) -> str:
    """One line for each domain with too many bad images, with the command that leaves them out."""
    lines = []
    for domain in report.refused:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in domain.kinds(bad=True).items())
        lines.append(
            f"{domain.url}: {domain.bad:,} of {domain.images:,} images cannot be used ({kinds}), "
            f"listed in {domain.url}/{FINDINGS}; repair them, or leave them out with --skip-bad "
            f"{domain.bad}, and run the same command again"
        )
    return "\n".join(lines)


def _findings(report: PreparationReport) -> Iterator[RenderableType]:
    """A table of findings by kind, the bad ones first."""
    found = sorted(
        (
            (not f.finding.bad, f.finding.kind, domain.domain, f.finding.detail)
            for domain in report.domains
            for f in domain.findings
        ),
        key=lambda item: item[:2],
    )
    if not found:
        return
    table = borderless_table("found", "times", "", text=(0, 2))
    for (is_usable, kind), items in groupby(found, key=lambda item: item[:2]):
        domains, details = zip(*(item[2:] for item in items), strict=True)
        where = ", ".join(dict.fromkeys(domains))
        shown = where if is_usable else f"bad: {where}"
        if len(domains) == 1 and details[0]:
            shown += f": {details[0]}"
        table.add_row(kind, f"{len(domains):,}", escape(shown), style="" if is_usable else "red")
    yield from (Text(), table, Text())
