"""Figures within the page, in which a trial is highlighted together with its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree
from zlib import crc32

from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.views.formatting import format_metric, format_params, trial_label

TRIAL_GID: Final = "trial:"
"""Start of the ID that an artist of one trial has in an SVG; the trial's name follows."""
MAX_LINKED: Final = 200
"""With more trials, none can be highlighted: their vectors would make a page of several MB."""

_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
_HIT_STYLE: Final = "fill: none; stroke: transparent; stroke-width: 9"
"""Of an invisible line around a curve, which is too thin to point at."""

SCRIPT: Final = """<script>
const marks = document.querySelectorAll("[data-trial]"), pinned = new Set()
let current
function show(trial) {
  current = trial
  document.body.classList.toggle("chosen", Boolean(trial || pinned.size))
  for (const mark of marks) {
    const isPinned = pinned.has(mark.dataset.trial)
    mark.classList.toggle("on", isPinned || mark.dataset.trial === trial)
    mark.classList.toggle("pinned", isPinned)
    if (mark.matches("[role=button]")) mark.setAttribute("aria-pressed", isPinned)
  }
}
function pin(trial) {
  if (!pinned.delete(trial)) pinned.add(trial)
  show(trial)
}
const trialOf = event => event.target.closest("[data-trial]")?.dataset.trial
for (const mark of marks) mark.tabIndex = 0
for (const kind of ["pointerover", "focusin"])
  document.addEventListener(kind, event => trialOf(event) === current || show(trialOf(event)))
document.addEventListener("focusout", () => show())
document.documentElement.addEventListener("pointerleave", () => show())
document.addEventListener("click", event => trialOf(event) && pin(trialOf(event)))
document.addEventListener("keydown", event => {
  if (event.key === "Escape") { pinned.clear(); show() }
  if (!trialOf(event) || !["Enter", " "].includes(event.key)) return
  event.preventDefault()
  pin(trialOf(event))
})
</script>"""
"""Highlights the trial under the pointer or the focus everywhere; a click, Enter or the space bar
pins it, Escape releases all."""

STYLE: Final = """
[data-trial][tabindex] { cursor: pointer }
.chosen svg [data-trial]:not(.on) { opacity: .15 }
svg .on { filter: drop-shadow(0 0 2px #d55e00) drop-shadow(0 0 1px #d55e00) }
tr.on { background: var(--mark) } tr.pinned td:first-child { box-shadow: inset 4px 0 #d55e00 }
"""


def inline_svg(drawn: bytes, description: str, titles: Mapping[str, str]) -> str:
    """A figure of Matplotlib as an element of the page, with IDs that no other figure has.

    Args:
        drawn: SVG in which artists have IDs of `TRIAL_GID` and a trial's name.
        titles: text of each trial, which browsers show beside the pointer.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    prefix = f"f{crc32(drawn):x}-"
    svg = ElementTree.fromstring(drawn)
    svg.attrib |= {"role": "group", "aria-label": description}
    for metadata in svg.findall(f"{{{_SVG}}}metadata"):
        svg.remove(metadata)
    for element in list(svg.iter()):
        if element.get("id", "").startswith(TRIAL_GID):
            _link(element, titles)
        for key, value in element.items():
            if key == "id":
                element.set(key, prefix + value)
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            else:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
    return ElementTree.tostring(svg, "unicode")


def _link(element: ElementTree.Element, titles: Mapping[str, str]) -> None:
    """Let an element stand for its trial. It loses its ID, since a trial may have several."""
    trial = element.attrib.pop("id").removeprefix(TRIAL_GID)
    element.attrib |= {"data-trial": trial, "role": "button"}
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = titles[trial]
    lines = element.findall(f"{{{_SVG}}}path")
    hits = [
        ElementTree.Element(line.tag, {"d": line.get("d", ""), "style": _HIT_STYLE})
        for line in lines
    ]
    element[:0] = [title, *hits]


def trial_title(search: SearchRecord, record: TrialRecord) -> str:
    """Name, parameters, accuracies and objective of a trial, in lines."""
    names = {ID_ACC: "ID", OOD_MEAN_ACC: "mean OOD"}
    metrics = dict.fromkeys([*names, *(objective.metric for objective in search.objectives)])
    values = {metric: record.last(metric) for metric in metrics}
    lines = [f"{trial_label(search, record)}, {record.outcome}", format_params(record.params)]
    lines += [
        f"{names.get(metric, metric)} {format_metric(metric)(value)}"
        for metric, value in values.items()
        if value is not None
    ]
    return "\n".join(line for line in lines if line)
