"""A preparation for people: what is there now, what was found, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trainers.data.encoding import CHANGES
from tuning.preparation.manifest import FINDINGS
from tuning.preparation.prepare import PreparationReport
from tuning.reporting.formatting import format_seconds

_SPLITS = ("train", "val", "test")


def render(report: PreparationReport) -> RenderableType:
    """A table of images by domain and split, the findings by kind, and what to do with it.

    Where there is but one finding of a kind, what it says is shown: it may count for itself.
    """
    parts: list[RenderableType] = [
        Rule(f"[bold]{escape(report.destination)}[/]", align="left", style="dim"),
        _images(report),
        *_findings(report),
        *(Text(line, style="yellow") for line in _remarks(report)),
    ]
    if report.made:
        rate = report.made / report.seconds
        took = format_seconds(report.seconds)
        parts.append(Text(f"Read        {report.made:,} images in {took}, {rate:,.0f} a second"))
    if not report.refused:
        parts.append(Text(f"Config      trial.data.root: {report.destination}"))
    return Group(*parts)


def refusal(report: PreparationReport) -> str:
    """One line for each domain with too many bad images: how many, of which kinds, where they are
    listed, and what leaves them out."""
    return "\n".join(
        f"{domain.url}: {domain.bad:,} of {domain.images:,} images cannot be used "
        f"({_kinds(domain.kinds(bad=True))}), listed in {domain.url}/{FINDINGS}; mend them, or "
        f"leave them out with --skip-bad {domain.bad}, and run the same command again"
        for domain in report.refused
    )


def _images(report: PreparationReport) -> Table:
    splits = [s for s in _SPLITS if any(s in domain.splits for domain in report.domains)]
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    for header in (*splits, "size", "bad", "status"):
        table.add_column(header, justify="right", no_wrap=True)
    for domain in report.domains:
        made = domain.splits
        counts = [f"{made[s].images:,}" if s in made else "" for s in splits]
        size = _size(sum(split.bytes for split in made.values()))
        style = "red" if domain.status == "refused" else ""
        table.add_row(
            escape(domain.domain), *counts, size, f"{domain.bad:,}", domain.status, style=style
        )
    return table


def _findings(report: PreparationReport) -> Iterator[RenderableType]:
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
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    for header in ("found", "times", ""):
        table.add_column(header, justify="right" if header == "times" else "left")
    for (is_usable, kind), items in groupby(found, key=lambda item: item[:2]):
        places, details = zip(*(item[2:] for item in items), strict=True)
        where = ", ".join(dict.fromkeys(places))
        said = where if is_usable else f"bad: {where}"
        if len(places) == 1 and details[0]:  # often a count of its own
            said += f": {details[0]}"
        table.add_row(kind, f"{len(places):,}", escape(said), style="" if is_usable else "red")
    yield Text()
    yield table
    yield Text()


def _remarks(report: PreparationReport) -> Iterator[str]:
    for domain in report.domains:
        usable = domain.kinds(bad=False)
        converted = sum(usable[kind] for kind in usable.keys() & CHANGES)
        counts = {
            "bad images" if domain.status == "refused" else "bad images left out": domain.bad,
            "conversions of images": converted,
            "other findings": sum(usable.values()) - converted,
        }
        if said := ", ".join(f"{number:,} {what}" for what, number in counts.items() if number):
            yield f"! {domain.domain}: {said}, listed in {domain.url}/{FINDINGS}"


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {number:,}" for kind, number in kinds.items())


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
