"""Model soups of the best trials of a search (see `trainers.weights.soups`).

A soup is evaluated on the validation splits, like its trials, and kept in the run folder as
`soups/<recipe>/`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray
from rich.console import Console

from trainers.checkpoints.format import WEIGHTS
from trainers.config import TrialConfig
from trainers.data.data_root import resolve_root
from trainers.data.storage import Store
from trainers.errors import ConfigError, did_you_mean, storage_failures
from trainers.evaluation.metrics import ID_ACC
from trainers.folders import appearing
from trainers.ray_trainer import task_device
from trainers.weights.soups import Recipe, Soup, build_soup, check_ingredients
from tuning.checkpoints.files import fetched, kept_checkpoint
from tuning.execution.ray_session import concurrent_trials, ray_session
from tuning.execution.ray_watch import watched_ray
from tuning.runs.environment import check_same_inputs
from tuning.runs.errors import root_cause
from tuning.runs.ranking import misses, ranked
from tuning.runs.records import SearchRecord, TrialRecord
from tuning.runs.run_folder import LoadedRun, config_of, load_run
from tuning.views.mlflow.client import tracking_uri
from tuning.views.mlflow.results import log_result
from tuning.weights.sources import SOUP_FILE, SOUPS_FOLDER, measured


@dataclass(frozen=True)
class Ingredient:
    """A finished trial whose weights were kept."""

    record: TrialRecord
    checkpoint: Store


@dataclass(frozen=True)
class FinishedSoup:
    """A soup and its ingredients."""

    search: SearchRecord
    recipe: Recipe
    ingredients: tuple[Ingredient, ...]
    """All candidates, the highest ID accuracy first."""
    soup: Soup
    folder: Path

    @property
    def used(self) -> tuple[TrialRecord, ...]:
        """The trials that are averaged."""
        return tuple(self.ingredients[index].record for index in self.soup.used)


def make_soup(
    folder: Path,
    *,
    recipe: Recipe = "greedy",
    top: int = 5,
    method: str | None = None,
    address: str | None = None,
) -> FinishedSoup:
    """Average at most `top` of a search's best trials, as a Ray task on the hardware of its trials.

    Raises:
        ConfigError: fewer than two ingredients, some that cannot be averaged, or data that have
            changed since the search.
    """
    run = load_run(folder)
    found = ingredients(run, top, method)
    resources = run.file.search.resources
    resolve_root(run.file.trial.data.root, progress=True)
    check_same_inputs(run.folder, run.file.trial)
    destination = run.folder / SOUPS_FOLDER / recipe
    with (
        appearing(destination) as unfinished,  # first: it may not be possible to write there
        ray_session(address),
        watched_ray(),
        Console(stderr=True).status(f"{recipe} soup of {len(found)} trials"),
    ):
        concurrent_trials(resources.model_copy(update={"workers": 1}))  # or it would never start
        remote = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
        config = config_of(run.file, found[0].record)
        checkpoints = [ingredient.checkpoint for ingredient in found]
        try:
            soup, weights = ray.get(remote(_build).remote(config, checkpoints, recipe))
        except ConfigError as error:  # Ray adds a page about its origin
            raise root_cause(error) from None
        finished = FinishedSoup(run.search, recipe, found, soup, destination)
        weights.tofile(unfinished / WEIGHTS)
        text = json.dumps(_about(finished), indent=2) + "\n"
        (unfinished / SOUP_FILE).write_text(text, encoding="utf-8")
        shutil.rmtree(destination, ignore_errors=True)
    uri = tracking_uri(run.file.search.tracking.uri, run.folder.parent)
    log_result(
        uri,
        run.file.search.tracking.experiment,
        run.search,
        f"{recipe} soup",
        tags={
            "kind": "soup",
            "soup": recipe,
            "trials": ", ".join(record.trial_id for record in finished.used),
            "of_trials": ", ".join(i.record.trial_id for i in finished.ingredients),
            "looks_at_ood": str(run.search.sees_ood).lower(),
        },
        metrics=finished.soup.metrics,
        step=run.search.total_steps,
    )
    return finished


def ingredients(run: LoadedRun, top: int, method: str | None = None) -> tuple[Ingredient, ...]:
    """The best finished trials that meet the constraints and whose weights were kept.

    The highest ID accuracy is first.

    Raises:
        ConfigError: fewer than two, or some that cannot be averaged.
    """
    search, records, checkpoints = run.search, run.history.records, run.checkpoints
    methods = search.methods(records)
    if method is not None and method not in methods:
        problem = "no trial has this method" + did_you_mean(method, methods)
        raise ConfigError(problem, key="--method", value=method)
    if top < 2:
        raise ConfigError("a soup needs at least two trials", key="--top", value=top)
    # A method's trials are measured by the `best` of the method, as by `by_method`.
    missed = misses(search, [r for r in records if method in (None, search.method(r))])
    found = [
        Ingredient(record, checkpoint)
        for record in ranked(search, records)
        if record.outcome == "finished" and record.last(ID_ACC) is not None
        if method in (None, search.method(record)) and not missed[record.trial_id]
        if (checkpoint := kept_checkpoint(checkpoints, record.trial_id)) is not None
    ][:top]
    if len(found) < 2:
        raise ConfigError(
            f"a soup needs two finished trials{f' of {method}' if method else ''} that meet the "
            f"constraints and whose weights were kept, and there are {len(found)}",
            hint=f"set search.checkpoints.keep_top = {top} before a search, or for further trials",
            source=run.folder,
        )
    models = {config_of(run.file, ingredient.record).model for ingredient in found}
    if len(models) > 1:
        names = sorted(f"{model.name}/{model.pretrained}" for model in models)
        raise ConfigError(f"no soup of different models: {', '.join(names)}", source=run.folder)
    with storage_failures(checkpoints.url, "cannot be read"):
        check_ingredients([ingredient.checkpoint for ingredient in found])
    return tuple(sorted(found, key=lambda i: (-(i.record.last(ID_ACC) or 0.0), i.record.number)))


def _build(
    config: TrialConfig, checkpoints: Sequence[Store], recipe: Recipe
) -> tuple[Soup, NDArray[np.uint8]]:
    """The soup and its weights file, from a worker that may not see the run folder."""
    with ExitStack() as stack:
        folders = [stack.enter_context(fetched(checkpoint)) for checkpoint in checkpoints]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / recipe
        soup = build_soup(config, folders, recipe, folder, device=task_device())
        return soup, np.fromfile(folder / WEIGHTS, np.uint8)


def _about(finished: FinishedSoup) -> dict[str, object]:
    """The content of `soup.json`."""
    search, used, among = finished.search, finished.used, len(finished.ingredients)
    chosen = f"The mean of {len(used)} of the {among} best trials of the search"
    chosen += "" if finished.recipe == "uniform" else f", those that do not lower its {ID_ACC}"
    return {
        "run": search.name,
        "soup": finished.recipe,
        "trials": [record.trial_id for record in used],
        "of_trials": [i.record.trial_id for i in finished.ingredients],
        "method": ", ".join(dict.fromkeys(search.method(record) or "?" for record in used)),
        "chosen": f"{chosen}. {search.selection}",
        "looks_at_ood": search.sees_ood,
        "metrics": measured(finished.soup.metrics),
    }
