"""A greedy soup of the best trials of a search (see `trainers.weights.soups`), made for an export.

Its figures are those of the validation splits, like those of the trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack

from rich.console import Console

from trainers.checkpoints.format import whole_header
from trainers.data.data_root import resolve_root
from trainers.data.store import Store
from trainers.errors import ConfigError, storage_failures
from trainers.evaluation.metrics import ID_ACC, OOD_MEAN_ACC
from trainers.weights.soups import Merit, build_soup
from tuning.checkpoints.files import fetched, kept_checkpoint
from tuning.runs.environment import check_same_inputs
from tuning.runs.ranking import misses, ranked
from tuning.runs.records import TrialRecord
from tuning.runs.run_folder import RunFolder, config_of
from tuning.weights.sources import Source


def soup_of(run: RunFolder, top: int) -> Source:
    """Build a soup of at most `top` of a search's best trials, and evaluate it in this process.

    A trial is kept if it lowers no objective of the soup, and does not move it away from meeting a
    constraint.

    Raises:
        ConfigError: too few trials, or data that have changed since the search.
    """
    search, found = run.search, ingredients(run, top)
    best, _ = found[0]
    trial = run.file.trial_config(best.params)
    resolve_root(trial.data.root, trial.data.trial_parts)
    check_same_inputs(run.folder, run.file.trial)
    bests = search.bests(run.history.records)

    def merit(metrics: Mapping[str, float]) -> Merit:
        signed = [o.signed(metrics.get(o.metric, math.nan)) for o in search.objectives]
        missed = search.violations(metrics.get, bests).values()
        return (*signed, *(-max(0.0, violation) for violation in missed))

    with ExitStack() as stack:
        stack.enter_context(Console(stderr=True).status(f"soup of {len(found)} trials"))
        folders = [stack.enter_context(fetched(checkpoint)) for _, checkpoint in found]
        soup = build_soup(trial, folders, merit)
    used = [found[index][0] for index in soup.used]
    those = ", ".join(record.trial_id for record in used)
    gains = {"ID": ID_ACC, "mean OOD": OOD_MEAN_ACC}
    against = ", ".join(
        f"{soup.metrics[key] - best.metrics[key]:+.1f} {label}"
        for label, key in gains.items()
        if key in soup.metrics
    )
    aims = " and ".join(objective.metric for objective in search.objectives)
    chosen = (
        f"The mean of {those}: the best trial, and those of the {len(found)} best with kept "
        f"weights that do not make {aims} of the mean worse. Validation accuracy against "
        f"{best.trial_id}: {against}."
    )
    origin = {
        "run": search.name,
        "soup": "greedy",
        "trials": [record.trial_id for record in used],
        "method": ", ".join(dict.fromkeys(search.method(record) or "?" for record in used)),
        "chosen": chosen,
        "looks_at_ood": search.sees_ood,
    }
    title = f"{search.name}, greedy soup"
    return Source(title, lambda: (soup.weights, soup.class_names), trial, origin, soup.metrics)


def ingredients(run: RunFolder, top: int) -> list[tuple[TrialRecord, Store]]:
    """The best finished trials that meet the constraints and whose weights were kept.

    The best one is first. Those that cannot be averaged with it are left out: of another model,
    other classes, or a method that trains other parts.

    Raises:
        ConfigError: there are too few.
    """
    search, records, checkpoints = run.search, run.history.records, run.checkpoints
    if top < 2:
        raise ConfigError("a soup needs 2 trials", key="--top", value=top)
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
    if len(found) < 2:
        raise ConfigError(
            f"a soup needs 2 finished trials that meet the constraints, whose weights were "
            f"kept and that can be averaged, and there are {len(found)}",
            hint=f"set search.checkpoints.keep_top = {top} before a search, or for further trials",
            source=run.folder,
        )
    return found[:top]
