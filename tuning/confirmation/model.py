"""The model of a search, built from all that was trained: chosen, journalled, then tested once.

Candidates are built and evaluated where trials run, from weights in the checkpoint root, so that a
killed call begins again and finds the same. The model is in

    <checkpoint root>/confirm/model/<number>/   of which `--again` builds the next one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainers.checkpoints.format import whole_header
from trainers.data.store import Store, open_store
from trainers.errors import listed, storage_failures
from trainers.evaluation.metrics import MetricKey, metric_names
from trainers.ray_trainer import location
from trainers.weights import means
from tuning.checkpoints import kept_checkpoint, kept_trials, remove_folder
from tuning.log.folder import config_of
from tuning.log.paths import predictions_path
from tuning.log.records import METHOD_KEY, TESTED, ByRule, Chosen, Model, TrialRecord
from tuning.results.estimates import SPLIT, results_of
from tuning.results.goal import Goal
from tuning.results.model import (
    chosen_event,
    goals_by_rule,
    made_of,
    model_folder,
    model_goal,
)
from tuning.results.ranking import finished_trials
from tuning.results.rules import ID_VAL
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
        self._limits = run.file.search.checkpoints
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
        recipes = self._recipes(models[-1])
        what = "and not tested it" if recipes else "whose weights are gone: another one is built"
        show_phase(self._session.console, "Model", f"an earlier call has chosen one {what}")
        if recipes is not None:
            self._test(models[-1], recipes)
        return recipes is not None

    def build(self) -> None:
        """Choose a model, note the choice in the journal, and test it."""
        goal = model_goal(self._run)
        if goal is None:
            return
        stored = {name: self._stored(name) for name in self._names(goal)}
        criteria = [means.Criterion(goal.merit, goal.nll_in)]
        rules: list[tuple[str, str]] = []
        built: list[means.Built] = []
        if not goal.metrics <= {*metric_names(self._run.file.trial.data)}:
            read = listed(sorted(goal.metrics))
            self._notes.append(f"no mean of weights: only a training reports all of {read}")
        elif stored:
            for rule, of_rule in goals_by_rule(goal).items():
                rules.append(rule)
                criteria.append(means.Criterion(of_rule.merit, of_rule.nll_in, ends_alone=True))
            what = f"evaluating means of the weights of {len(stored)} trainings"
            show_phase(self._session.console, "Model", what)
            built = self._session.call(means.build, [*stored.values()], criteria, alone=True)
        pools = [one.candidates for one in built] or [
            tuple(
                means.Candidate("single", False, (one,), metrics=one.metrics)
                for one in stored.values()
            )
        ]
        zero_shot = means.Candidate("single", False, (), metrics=self._run.goal.zero_shot)
        names = {one.folder: name for name, one in stored.items()}
        chosen, *of_rules = (
            self._chosen(criterion.best([zero_shot, *pool]), names)
            for criterion, pool in zip(criteria, pools, strict=True)
        )
        model = Model(
            number=len(self._models) + 1,
            chosen=chosen,
            finished=len(finished_trials(self._searched.values())),
            notes=tuple(self._notes),
            by_rule=tuple(
                ByRule(rule, one, left_out)
                for (rule, left_out), one in zip(rules, of_rules, strict=True)
            ),
        )
        compared = [
            (c.kind, c.of_ends, c.line, len(c.trainings), *goal.merit(c.metrics))
            for c in (zero_shot, *pools[0])
        ]
        evaluations = sum(one.evaluations for one in built)
        self._session.journal.model(chosen_event(model, compared, evaluations))
        recipes = self._recipes(model)
        assert recipes is not None  # its weights were read a moment ago
        self._test(model, recipes)

    def _test(self, model: Model, recipes: Sequence[means.Recipe]) -> None:
        """Test a model, and what rules have chosen beside it; all in one reading."""
        show_phase(self._session.console, "Model", f"testing {made_of(model)}")
        folder = model_folder(self._run, model.number)
        recipe, *others = recipes
        tested = self._measured(recipe, model.chosen, location(folder), model.training)
        by_rule: list[dict[str, float]] = []
        for one, recipe in zip(model.by_rule, others, strict=True):
            training = model.training_of(one)
            if one.left_out:  # it is no model to use, so its weights are not stored
                data = recipe.config.data.model_copy(update={"ood_domains": (one.left_out,)})
                config = recipe.config.model_copy(update={"data": data})
                found = self._measured(replace(recipe, config=config), one.chosen, None, training)
                own = str(MetricKey(SPLIT, one.left_out, ""))
                found = {name: value for name, value in found.items() if name.startswith(own)}
            else:
                folder = model_folder(self._run, model.number, one.rule)
                found = self._measured(recipe, one.chosen, location(folder), training)
            by_rule.append(found)
        event = {"event": TESTED, "number": model.number, "metrics": tested, "by_rule": by_rule}
        self._session.journal.model(event)
        for number in range(1, model.number):
            for rule in ("", ID_VAL):
                remove_folder(model_folder(self._run, number, rule).url)

    def _measured(
        self, recipe: means.Recipe, chosen: Chosen, target: str | None, training: str
    ) -> dict[str, float]:
        """The metrics of the test splits. Predictions are stored under the name of a training."""
        found, predictions = self._session.call(
            means.make_and_test, recipe, target, chosen.metrics, SPLIT, alone=True
        )
        path = predictions_path(self._run.folder, training)
        with open_store(path.parent).write(path.name) as file:
            file.write(predictions)
        return found

    def _names(self, goal: Goal) -> list[str]:
        """The trainings whose weights are kept, those of the search first."""
        names: list[str] = []
        for records in (self._searched, self._confirmed):
            expected = kept_trials(goal, records.values(), self._limits.most_kept)
            kept = [name for name in records if self._kept(name) is not None]
            gone = [name for name in expected if name not in kept]
            if gone:
                self._notes.append(f"the weights of {listed(gone)} are gone")
            names += kept
        return names

    def _stored(self, name: str) -> means.Stored:
        """The weights of a training, which are there, and what was measured of them."""
        record = self._record(name)
        checkpoint = self._kept(name)
        assert checkpoint is not None
        shapes = whole_header(checkpoint).shapes
        trains_text = any(weight.startswith("text.") for weight in shapes)
        config = config_of(self._run.file, record)
        goal = model_goal(self._run) or self._run.goal
        validation = {*metric_names(config.data), *goal.metrics}
        return means.Stored(
            folder=location(checkpoint),
            config=means.evaluation_config(config, trains_text=trains_text),
            method=self._run.method(record),
            metrics={n: value for n, value in record.metrics.items() if n in validation},
            point=record.metrics.get("line/a", 1.0),
        )

    def _chosen(self, one: means.Candidate, names: Mapping[str, str]) -> Chosen:
        """What the journal has of a candidate. The names of trainings are by folder."""
        trainings = tuple(self._training(names[stored.folder], one) for stored in one.trainings)
        return Chosen(one.kind, one.metrics, trainings, one.of_ends, one.line)

    def _recipes(self, model: Model) -> list[means.Recipe] | None:
        """How a model, and what rules have chosen beside it, are made of stored weights.

        None if not all of them are there.
        """
        recipes: list[means.Recipe] = []
        for chosen in (model.chosen, *(one.chosen for one in model.by_rule)):
            names = [training["name"] for training in chosen.trainings]
            if any(self._kept(name) is None for name in names):
                return None
            stored = tuple(self._stored(name) for name in names)
            config = means.evaluation_config(self._run.file.trial, trains_text=False)
            zero_shot = means.Recipe(config)
            one = means.Candidate(chosen.kind, chosen.of_ends, stored, chosen.line)
            recipes.append(one.recipe if stored else zero_shot)
        return recipes

    def _record(self, name: str) -> TrialRecord:
        """A finished training, of the search or of `confirm`."""
        return self._searched.get(name) or self._confirmed[name]

    def _kept(self, name: str) -> Store | None:
        """The weights of a training, of the search or of `confirm`."""
        of_search = name in self._searched
        checkpoints = self._run.checkpoints if of_search else self._session.checkpoints
        with storage_failures(self._run.checkpoint_root, "cannot be read"):
            return kept_checkpoint(checkpoints, name)

    def _training(self, name: str, chosen: means.Candidate) -> Mapping[str, Any]:
        """What the origin of a model says of one of its trainings."""
        record = self._record(name)
        params = {**self._run.file.reference_params, **record.params}
        params.pop(METHOD_KEY, None)
        point = record.metrics.get("line/a")
        return {
            "name": name,
            "method": self._run.method(record),
            "seed": params.pop("seed", self._run.file.trial.seed),
            "params": params,
            "point": 1.0 if point is not None and chosen.of_ends else point,
        }
