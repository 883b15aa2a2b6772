"""A preparation in the terminal: which domains there are, and a table at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from trainers.data.folders import SKIPPED, SPLITS
from trainers.data.prepare import BAD, Report
from trainers.data.sources import Source, domain_names
from trainers.errors import ConfigError, did_you_mean
from tuning.results.ranking import accuracy_margin
from tuning.views.result_table import borderless_table

FEW_IMAGES = 100
"""Fewer validation images than this are said to be few: ± 10 points."""


def sources_of(
    source: Source,
    *,
    id_domain: str | None = None,
    ood: Sequence[str] = (),
    domain: str | None = None,
) -> dict[str, Source]:
    """The source of each domain, the ID domain first.

    Without `id_domain`, all domains of a published data set, or one domain that is called `domain`
    or after its folder.
    """
    root = Path(source.path).expanduser()
    below = source.layout == "folders" and id_domain is not None
    if below:
        if not root.is_dir():
            raise ConfigError("no such folder", source=source.path)
        folders = (path.name for path in sorted(root.iterdir()) if path.is_dir())
        known = [name for name in folders if not name.startswith(SKIPPED)]
    else:
        known = domain_names(source)
    if len(known) == 1 and not ood and not below:  # it has no name of its own
        return {domain or id_domain or known[0]: source}
    if domain is not None or (id_domain is None and ood):
        raise ConfigError(
            "the source has several domains with names",
            key="--domain" if domain else "--ood",
            hint="choose them by --id and --ood",
        )
    if id_domain is None:
        return dict.fromkeys(known, source)
    for key, name in (("--id", id_domain), *(("--ood", name) for name in ood)):
        if name not in known:
            problem = f"no such domain{did_you_mean(name, known)}"
            raise ConfigError(problem, key=key, value=name, source=source.path)
    if id_domain in ood:
        raise ConfigError("is the domain of --id", key="--ood", value=id_domain)
    others = [name for name in known if name != id_domain]
    return {
        name: source.model_copy(update={"path": str(root / name)}) if below else source
        for name in (id_domain, *(ood or others))
    }


def render(report: Report) -> RenderableType:
    """Images by domain and split, what was left out, and the lines for the configuration."""
    table = borderless_table("", *SPLITS, "left out", "status")
    lines = []
    for domain in report.domains:
        counts = [f"{domain.images[s]:,}" if s in domain.images else "" for s in SPLITS]
        table.add_row(escape(domain.domain), *counts, f"{domain.left_out:,}", domain.status)
        if domain.left_out:
            listed = f"{report.destination}/{domain.domain}/{BAD}"
            lines.append(f"! {domain.domain}: what was left out, and why, is listed in {listed}")
        missing = [split for split in ("val", "test") if not domain.images.get(split)]
        lines += [f"! {domain.domain}: no {split} split" for split in missing]
        if 0 < (number := domain.images.get("val", 0)) < FEW_IMAGES:
            margin = accuracy_margin(50.0, number)
            lines.append(f"! {domain.domain}: {number} val images: accuracy ± {margin:.0f} points")
    lines += [f"! {remark}" for remark in report.remarks]
    parts: list[RenderableType] = [table, *(Text(line, style="yellow") for line in lines)]
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
