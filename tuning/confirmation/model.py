"""The model of a search, built from all that was trained: chosen, journalled, then tested once.

Candidates are built and evaluated where trials run, from weights in the checkpoint root, so that a
killed call begins again and finds the same.

    <checkpoint root>/confirm/sums/<trial>/     sum of the ends of its trainings with fresh seeds
    <checkpoint root>/confirm/model/<number>/   the model; `--again` builds the next one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from trainers.checkpoints.format import Header, whole_header
from trainers.checkpoints.storage import END, newest_checkpoint
from trainers.config import TrialConfig
from trainers.data.store import Store, open_store, url_of
from trainers.errors import ConfigError, listed, storage_failures
from trainers.evaluation.metrics import metric_names
from trainers.ray_trainer import location
from trainers.weights.means import (
    Recipe,
    add_ends,
    evaluation_config,
    greedy_soup,
    make_and_test,
    mean_of_ends,
)
from tuning.execution.trial_hardware import call_where_trials_run
from tuning.runs.confirmation import (
    CONFIRM_FOLDER,
    FT,
    REFERENCE,
    SPLIT,
    TESTED,
    confirm_history,
    key_of,
    predictions_path,
    results_of,
    training_name,
)
from tuning.runs.model import (
    Candidate,
    Goal,
    Model,
    choose,
    chosen_event,
    goal_of,
    model_folder,
    models_of,
)
from tuning.runs.ranking import finished_trials, misses, ranked
from tuning.runs.records import ZERO_SHOT, TrialRecord
from tuning.runs.run_folder import RunFolder, config_of, trial_path
from tuning.session import Session
from tuning.views.checkpoints import kept_checkpoint, kept_trials, remove_folder
from tuning.views.formatting import show_phase

SUMS: Final = "sums"
LEAST_SEEDS: Final = 2
"""Of a mean."""
T = TypeVar("T")


def needs_model(run: RunFolder, again: bool) -> bool:
    """Whether a call of `confirm` builds a model, or tests one that was chosen."""
    if len(run.search.objectives) > 1:
        return False
    models = models_of(run.folder)
    return again or not models or not models[-1].test


class ModelBuilder:
    """Builds the model of a search within a session of `confirm`.

    Raises:
        StorageFailed: from each method: weights cannot be read or written.
    """

    def __init__(self, session: Session, run: RunFolder) -> None:
        self._session, self._run = session, run
        self._search, self._records = run.search, run.history.records
        self._by_name = {record.trial_id: record for record in self._records} | {FT: REFERENCE}
        self._notes: list[str] = []

    def test_chosen(self) -> bool:
        """Test a model that an earlier call has chosen; without its weights another one is built.

        Do this before anything else is trained: more seeds would change a mean.

        Returns:
            Whether there was one.
        """
        models = models_of(self._run.folder)
        recipe = self._recipe(models[-1].chosen) if models and not models[-1].test else None
        if recipe is not None:
            self._test(models[-1], recipe)
        return recipe is not None

    def add_up(self) -> None:
        """Replace the ends of all trainings that have finished by their sums, one for each trial.

        The ends of a trial are added once none of its trainings goes on.
        """
        history = confirm_history(self._run.folder)
        open_keys = {key_of(record)[0] for record in history.records if not record.is_final}
        ends: dict[str, list[tuple[int, str]]] = {}
        for (trial_id, seed), record in results_of(history).items():
            folder = self._session.checkpoints.at(trial_path(record.trial_id)).at(END)
            if seed is not None and trial_id not in open_keys and newest_checkpoint(folder):
                ends.setdefault(trial_id, []).append((seed, location(folder)))
        for trial_id, found in ends.items():
            self._call(add_ends, location(self._sum(trial_id)), sorted(found))  # by their seeds

    def build(self) -> None:
        """Choose a model, note the choice in the journal, and test it."""
        goal = goal_of(self._search, self._records)
        if goal is None:
            return
        models = models_of(self._run.folder)
        self._notes = []
        candidates = self._singles()
        if goal.metrics <= set(metric_names(self._run.file.trial.data)):
            show_phase(self._session.console, "Model", "evaluating means of weights")
            candidates += self._soup(goal) + self._means(goal)
        else:
            read = listed(sorted(goal.metrics))
            self._notes.append(f"no means of weights: only a training reports all of {read}")
        chosen = choose(goal, candidates)
        finished = len(finished_trials(self._records))
        model = Model(len(models) + 1, chosen, finished, tuple(self._notes))
        recipe = self._recipe(chosen)
        assert recipe is not None  # its weights were found a moment ago
        self._session.journal.model(chosen_event(model, goal, candidates))
        self._test(model, recipe)

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return call_where_trials_run(
            function,
            *arguments,
            resources=self._run.file.search.resources,
            call=self._session.watch.call,
            here=self._session.is_own_ray,
        )

    def _test(self, model: Model, recipe: Recipe) -> None:
        show_phase(self._session.console, "Model", f"testing {model.made_of()}")
        folder = model_folder(self._run, model.number)
        target, metrics = location(folder), model.chosen.metrics
        found, predictions = self._call(make_and_test, recipe, target, metrics, SPLIT)
        path = predictions_path(self._run.folder, model.training)
        with open_store(path.parent).write(path.name) as file:
            file.write(predictions)
        event = {"event": TESTED, "number": model.number, "metrics": found}
        self._session.journal.model(event)
        for number in range(1, model.number):
            remove_folder(model_folder(self._run, number).url)

    def _singles(self) -> list[Candidate]:
        """All single sets of kept weights: trials, best first, then references and zero-shot."""
        search, found = self._search, []
        references = [r for r in self._records if r.kind == "reference"]
        finished = [r for r in self._records if r.outcome == "finished"]
        expected = kept_trials(search, finished, self._run.file.search.checkpoints.keep_top)
        for record in [*ranked(search, self._records), *references]:
            if record.outcome != "finished":
                continue
            if self._kept(record.trial_id) is not None:
                training = self._training(record)
                found.append(Candidate("single", record.trial_id, record.metrics, (training,)))
            elif record.trial_id in expected:
                self._notes.append(f"the weights of {record.trial_id} are gone")
        return [*found, Candidate("single", ZERO_SHOT, search.zero_shot)]

    def _soup(self, goal: Goal) -> list[Candidate]:
        """The greedy soup of the kept trials that met the constraints, if it has two or more."""
        found = self._ingredients()
        if len(found) < 2:
            return []
        best, _ = found[0]
        config, _ = self._kind(best)
        folders = [folder for _, folder in found]
        soup = self._call(greedy_soup, config, folders, best.metrics, goal.merit)
        trainings = tuple(self._training(found[index][0]) for index in soup.used)
        return [Candidate("soup", "soup", soup.metrics, trainings)] if len(trainings) > 1 else []

    def _ingredients(self) -> list[tuple[TrialRecord, str]]:
        """The kept trials that can be averaged with the best one, best first, and their folders."""
        missed = misses(self._search, self._records)
        found: list[tuple[TrialRecord, str]] = []
        kinds: list[object] = []
        for record in ranked(self._search, self._records):
            folder = self._kept(record.trial_id)
            if record.outcome == "finished" and folder is not None and not missed[record.trial_id]:
                config, header = self._kind(record)
                kinds.append((config, header.class_names, header.shapes))
                if kinds[-1] == kinds[0]:
                    found.append((record, location(folder)))
        return found

    def _means(self, goal: Goal) -> list[Candidate]:
        """Of each trial that was confirmed, and FT, the mean of the ends of its fresh seeds."""
        found = []
        results = results_of(confirm_history(self._run.folder))
        trained: dict[str, list[int]] = {}
        for trial_id, seed in results:
            if seed is not None and trial_id in self._by_name:
                trained.setdefault(trial_id, []).append(seed)
        for trial_id, seeds in trained.items():
            header = self._sum_header(trial_id)
            summed = [int(report["seed"]) for report in header.reports] if header else []
            if lost := sorted({*seeds} - {*summed}):
                self._notes.append(f"the ends of {trial_id} with seeds {listed(lost)} are gone")
            if header is None or len(summed) < LEAST_SEEDS:
                continue
            config = self._config_of_mean(trial_id, header)
            mean = self._call(mean_of_ends, config, location(self._sum(trial_id)), goal.merit)
            one = {**self._training(self._by_name[trial_id]), "point": None}
            trainings = tuple(
                {**one, "name": training_name((trial_id, seed)), "seed": seed} for seed in summed
            )
            found.append(Candidate("seeds", trial_id, mean.metrics, trainings, mean.point))
        return found

    def _recipe(self, chosen: Candidate) -> Recipe | None:
        """How a candidate is made of stored weights; None if not all of them are there."""
        names = [training["name"] for training in chosen.trainings]
        if chosen.kind == "seeds":
            header = self._sum_header(chosen.name)
            seeds = [int(report["seed"]) for report in header.reports] if header else []
            if header is None or seeds != [training["seed"] for training in chosen.trainings]:
                return None
            config = self._config_of_mean(chosen.name, header)
            return Recipe(config, (location(self._sum(chosen.name)),), len(seeds), chosen.point)
        if not names:
            return Recipe(evaluation_config(self._run.file.trial, trains_text=False))
        folders = [self._kept(name) for name in names]
        if any(folder is None for folder in folders):
            return None
        config, _ = self._kind(self._by_name[names[0]])
        return Recipe(config, tuple(location(f) for f in folders if f is not None), len(names))

    def _kept(self, trial_id: str) -> Store | None:
        with storage_failures(self._run.checkpoint_root, "cannot be read"):
            return kept_checkpoint(self._run.checkpoints, trial_id)

    def _kind(self, record: TrialRecord) -> tuple[TrialConfig, Header]:
        """What an evaluation of a trial's kept weights depends on, and their header."""
        checkpoint = self._kept(record.trial_id)
        if checkpoint is None:
            raise ConfigError("the weights are gone", source=record.trial_id)
        header = whole_header(checkpoint)
        config = config_of(self._run.file, record)
        return evaluation_config(config, trains_text=_trains_text(header)), header

    def _config_of_mean(self, trial_id: str, header: Header) -> TrialConfig:
        config = self._run.file.trial_config(self._by_name[trial_id].params)
        return evaluation_config(config, trains_text=_trains_text(header))

    def _sum(self, trial_id: str) -> Store:
        """The folder of the sum of a trial's ends."""
        return open_store(url_of(self._run.checkpoint_root, CONFIRM_FOLDER, SUMS, trial_id))

    def _sum_header(self, trial_id: str) -> Header | None:
        """What is known of the sum of a trial's ends; None without one."""
        folder = self._sum(trial_id)
        with storage_failures(folder.url, "cannot be read"):
            newest = newest_checkpoint(folder)
            return None if newest is None else whole_header(folder.at(newest))

    def _training(self, record: TrialRecord) -> Mapping[str, Any]:
        """What the origin of a model says of one of its trainings."""
        is_reference = record.kind == "reference"
        params = dict(self._search.reference_params if is_reference else record.params)
        return {
            "name": record.trial_id,
            "method": self._search.method(record),
            "seed": params.pop("seed", self._run.file.trial.seed),
            "params": params,
            "point": record.metrics.get("line/a"),
        }


def _trains_text(header: Header) -> bool:
    return any(name.startswith("text.") for name in header.shapes)
