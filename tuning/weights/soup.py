"""Soups of the best trials of a search (see `trainers.weights.soups`), made for an export.

Their figures are those of the validation splits, like those of the trials.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import get_args

from rich.console import Console

from trainers.checkpoints.format import whole_header
from trainers.data.data_root import resolve_root
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, storage_failures
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from trainers.weights.soups import Recipe, build_soup
from tuning.checkpoints.files import fetched, kept_checkpoint
from tuning.runs.environment import check_same_inputs
from tuning.runs.ranking import misses, ranked
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import LoadedRun, config_of
from tuning.weights.sources import Source

_CHOSEN = {
    "uniform": "The mean of {those}.",
    "greedy": "The mean of {those}, which do not lower its {id_acc}.",
    "stock": "Model Stock of {those}.",
    "lines": "LiNeS of {those}: from {alpha:g} of the change in the first block to all of it.",
}


def soup_of(run: LoadedRun, recipe: Recipe, top: int) -> Source:
    """Build a soup of at most `top` of a search's best trials, and evaluate it in this process.

    Raises:
        ConfigError: no such recipe, too few trials, or data that have changed since the search.
    """
    if recipe not in (known := get_args(Recipe)):
        problem = f"no such recipe{did_you_mean(recipe, known)}"
        raise ConfigError(problem, key="--soup", value=recipe, hint=", ".join(known))
    found = ingredients(run, top, at_least=1 if recipe == "lines" else 2)
    best, _ = found[0]
    # LiNeS chooses its alpha by the search's goal, also where trials choose no point of a line.
    line = {"eval.line": "auto"} if recipe == "lines" else {}
    trial = run.file.trial_config({**best.params, **line})
    resolve_root(trial.data.root, progress=True)
    check_same_inputs(run.folder, run.file.trial)
    by_id = sorted(found, key=lambda one: (-(one[0].last(ID_ACC) or 0.0), one[0].number))
    with ExitStack() as stack:
        stack.enter_context(Console(stderr=True).status(f"{recipe} soup of {len(found)} trials"))
        folders = [stack.enter_context(fetched(checkpoint)) for _, checkpoint in by_id]
        soup = build_soup(trial, folders, recipe)
    used = [by_id[index][0] for index in soup.used]
    those = ", ".join(record.trial_id for record in used)
    gains = {"ID": ID_ACC, "mean OOD": OOD_MEAN_ACC}
    against = ", ".join(
        f"{soup.metrics[key] - best.metrics[key]:+.1f} {label}"
        for label, key in gains.items()
        if key in soup.metrics
    )
    chosen = _CHOSEN[recipe].format(those=those, id_acc=ID_ACC, alpha=soup.alpha)
    origin = {
        "run": run.search.name,
        "soup": recipe,
        "trials": [record.trial_id for record in used],
        "method": ", ".join(dict.fromkeys(run.search.method(record) or "?" for record in used)),
        "chosen": f"{chosen} Validation accuracy against {best.trial_id}: {against}.",
        "looks_at_ood": run.search.sees_ood,
    }
    title = f"{run.search.name}, {recipe} soup"
    return Source(title, lambda: (soup.weights, soup.class_names), trial, origin, soup.metrics)


def ingredients(run: LoadedRun, top: int, at_least: int) -> list[tuple[TrialRecord, Store]]:
    """The best finished trials that meet the constraints and whose weights were kept.

    The best one is first. Those that cannot be averaged with it are left out: of another model,
    other classes, or a method that trains other parts.

    Raises:
        ConfigError: there are too few.
    """
    search, records, checkpoints = run.search, run.history.records, run.checkpoints
    if top < at_least:
        raise ConfigError(f"the soup needs {at_least} trials", key="--top", value=top)
    missed, kinds = misses(search, records), []
    found: list[tuple[TrialRecord, Store]] = []
    with storage_failures(checkpoints.url, "cannot be read"):
        for record in ranked(search, records):
            checkpoint = kept_checkpoint(checkpoints, record.trial_id)
            if record.outcome != "finished" or missed[record.trial_id] or checkpoint is None:
                continue
            header = whole_header(checkpoint)
            kinds.append((config_of(run.file, record).model, header.class_names, header.shapes))
            if kinds[-1] == kinds[0]:
                found.append((record, checkpoint))
    if len(found) < at_least:
        raise ConfigError(
            f"a soup needs {at_least} finished trials that meet the constraints, whose weights "
            f"were kept and that can be averaged, and there are {len(found)}",
            hint=f"set search.checkpoints.keep_top = {top} before a search, or for further trials",
            source=run.folder,
        )
    return found[:top]
