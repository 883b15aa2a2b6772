"""The model of a search, built from all that was trained: chosen, journalled, then tested once.

Candidates are built and evaluated where trials run, from weights in the checkpoint root, so that a
killed call begins again and finds the same. The model is in

    <checkpoint root>/confirm/model/<number>/   of which `--again` builds the next one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.checkpoints.format import whole_header
from trainers.config import TrialConfig
from trainers.data.store import Store, open_store
from trainers.errors import listed, storage_failures
from trainers.evaluation.metrics import metric_names
from trainers.ray_trainer import location
from trainers.weights.means import Recipe, evaluation_config, greedy_soup, make_and_test
from tuning.checkpoints import kept_checkpoint, kept_trials, remove_folder
from tuning.log.folder import config_of
from tuning.log.paths import predictions_path
from tuning.log.records import METHOD_KEY, TESTED, ZERO_SHOT, Candidate, Model, TrialRecord
from tuning.results.estimates import SPLIT, results_of
from tuning.results.goal import Goal
from tuning.results.model import choose, chosen_event, made_of, model_folder, model_goal
from tuning.results.ranking import finished_trials
from tuning.run import Run
from tuning.session import Session
from tuning.views.formatting import show_phase


def needs_model(run: Run, models: Sequence[Model], again: bool) -> bool:
    """Whether a call of `confirm` builds a model, or tests one that was chosen.

    Args:
        models: that were chosen so far.
    """
    if len(run.goal.objectives) > 1:
        return False
    return again or not models or not models[-1].test


class ModelBuilder:
    """Builds the model of a search within a session of `confirm`, from what was trained so far.

    Raises:
        StorageFailed: from each method: weights cannot be read or written.
    """

    def __init__(self, session: Session, run: Run) -> None:
        self._session = session
        self._run = run
        self._keep_top = run.file.search.checkpoints.keep_top
        self._searched = {r.trial_id: r for r in run.records if r.outcome == "finished"}
        confirmed = session.journal.history()
        self._models = confirmed.models
        results = results_of(confirmed)
        trained = [record for (_, seed), record in results.items() if seed is not None]
        self._confirmed = {record.trial_id: record for record in trained}
        self._notes: list[str] = []

    def test_chosen(self) -> bool:
        """Test a model that a killed call has chosen, unless its weights are gone.

        Returns:
            Whether one was tested.
        """
        models = self._models
        if not models or models[-1].test:
            return False
        recipe = self._recipe(models[-1].chosen)
        what = "and not tested it" if recipe else "whose weights are gone: another one is built"
        show_phase(self._session.console, "Model", f"an earlier call has chosen one {what}")
        if recipe is not None:
            self._test(models[-1], recipe)
        return recipe is not None

    def build(self) -> None:
        """Choose a model, note the choice in the journal, and test it."""
        goal = model_goal(self._run)
        if goal is None:
            return
        candidates = self._singles(goal)
        if goal.metrics <= set(metric_names(self._run.file.trial.data)):
            show_phase(self._session.console, "Model", "evaluating means of weights")
            candidates += self._soup(goal, candidates)
        else:
            read = listed(sorted(goal.metrics))
            self._notes.append(f"no mean of weights: only a training reports all of {read}")
        candidates.append(Candidate("single", ZERO_SHOT, self._run.goal.zero_shot))
        chosen = choose(goal, candidates)
        number = len(self._models) + 1
        finished = len(finished_trials(self._searched.values()))
        model = Model(number, chosen, finished, tuple(self._notes))
        recipe = self._recipe(chosen)
        assert recipe is not None  # its weights were found a moment ago
        self._session.journal.model(chosen_event(model, goal, candidates))
        self._test(model, recipe)

    def _test(self, model: Model, recipe: Recipe) -> None:
        show_phase(self._session.console, "Model", f"testing {made_of(model)}")
        folder = model_folder(self._run, model.number)
        target, metrics = location(folder), model.chosen.metrics
        found, predictions = self._session.call(make_and_test, recipe, target, metrics, SPLIT)
        path = predictions_path(self._run.folder, model.training)
        with open_store(path.parent).write(path.name) as file:
            file.write(predictions)
        event = {"event": TESTED, "number": model.number, "metrics": found}
        self._session.journal.model(event)
        for number in range(1, model.number):
            remove_folder(model_folder(self._run, number).url)

    def _singles(self, goal: Goal) -> list[Candidate]:
        """All single sets of kept weights, those of the search first."""
        validation = {*metric_names(self._run.file.trial.data), *goal.metrics}
        found = []
        for records in (self._searched, self._confirmed):
            expected = kept_trials(goal, records.values(), self._keep_top)
            for name, record in records.items():
                if self._kept(name) is not None:
                    known = {n: v for n, v in record.metrics.items() if n in validation}
                    found.append(Candidate("single", name, known, (self._training(record),)))
                elif name in expected:
                    self._notes.append(f"the weights of {name} are gone")
        return found

    def _soup(self, goal: Goal, singles: list[Candidate]) -> list[Candidate]:
        """The greedy soup of the weights that meet the constraints, if it has two or more.

        Weights that cannot be averaged with the best ones are left out.
        """
        ordered = sorted(singles, key=lambda one: goal.merit(one.metrics), reverse=True)
        meeting = [one for one in ordered if not goal.missed(one.metrics)]
        kinds = [self._kind(one.name) for one in meeting]
        used = [one for one, kind in zip(meeting, kinds, strict=True) if kind == kinds[0]]
        if len(used) < 2:
            return []
        config, *_ = kinds[0]
        folders = [location(folder) for one in used if (folder := self._kept(one.name))]
        soup = self._session.call(greedy_soup, config, folders, used[0].metrics, goal.merit)
        trainings = tuple(used[index].trainings[0] for index in soup.used)
        return [Candidate("soup", "soup", soup.metrics, trainings)] if len(trainings) > 1 else []

    def _recipe(self, chosen: Candidate) -> Recipe | None:
        """How a candidate is made of stored weights; None if not all of them are there."""
        names = [training["name"] for training in chosen.trainings]
        if not names:
            return Recipe(evaluation_config(self._run.file.trial, trains_text=False))
        folders = [folder for name in names if (folder := self._kept(name))]
        if len(folders) < len(names):
            return None
        config, *_ = self._kind(names[0])
        return Recipe(config, tuple((location(folder), 1 / len(folders)) for folder in folders))

    def _kept(self, name: str) -> Store | None:
        """The weights of a training, of the search or of `confirm`."""
        of_search = name in self._searched
        checkpoints = self._run.checkpoints if of_search else self._session.checkpoints
        with storage_failures(self._run.checkpoint_root, "cannot be read"):
            return kept_checkpoint(checkpoints, name)

    def _kind(self, name: str) -> tuple[TrialConfig, object, object]:
        """What must be equal of weights that are averaged: configuration, classes and shapes."""
        checkpoint = self._kept(name)
        assert checkpoint is not None  # they were found a moment ago
        header = whole_header(checkpoint)
        trains_text = any(name.startswith("text.") for name in header.shapes)
        config = config_of(self._run.file, self._searched.get(name) or self._confirmed[name])
        config = evaluation_config(config, trains_text=trains_text)
        return config, header.class_names, header.shapes

    def _training(self, record: TrialRecord) -> Mapping[str, Any]:
        """What the origin of a model says of one of its trainings."""
        params = {**self._run.file.reference_params, **record.params}
        params.pop(METHOD_KEY, None)
        return {
            "name": record.trial_id,
            "method": self._run.method(record),
            "seed": params.pop("seed", self._run.file.trial.seed),
            "params": params,
            "point": record.metrics.get("line/a"),
        }
