"""What is said of a model, and which one is chosen."""

from dataclasses import replace

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import write_predictions, write_results
from tests.tuning.frozen_runs import FROZEN
from tests.tuning.result_tables import printed
from tuning.config.objectives import Objective, parse_constraint
from tuning.log.paths import predictions_path
from tuning.log.records import Chosen, Model
from tuning.results.goal import Goal
from tuning.results.model import findings, model_goal, model_in_words
from tuning.run import load_run
from tuning.views.confirmation_table import model_table
from tuning.views.result_table import fit_table


def measured(id_acc, ood_acc):
    return {"id_test/acc": id_acc, "ood_test/mean_acc": ood_acc, "ood_test/sketch/acc": ood_acc}


@pytest.fixture
def confirmation(tmp_path):
    """Two seeds of FT: six and five of ten ID images are right, four and three OOD ones."""
    folder = tmp_path / "domainnet-vit-b32"
    search = fakes.Search(folder, ood_domains=("sketch",))
    results = {("zero-shot", None): measured(20.0, 30.0)}
    results |= {("ft", 0): measured(60.0, 40.0), ("ft", 1): measured(50.0, 30.0)}
    write_results(folder, results)
    for seed, (of_id, of_ood) in enumerate([(6, 4), (5, 3)]):
        right = {"real": np.arange(10) < of_id, "sketch": np.arange(10) < of_ood}
        write_predictions(folder, ("ft", seed), {"predicted": right, "zero_shot": right})
    return search.run().settings


def built(*names, **more):
    kind = "single" if len(names) == 1 else "greedy"
    trainings = tuple({"name": name, "seed": 0} for name in names)
    chosen = Chosen(kind, {}, trainings)
    return Model(1, chosen, 2, test=measured(70.0, 50.0), **more)


def in_words(confirmation, models, records=()):
    """Sentences on models of a confirmation, and these trials of its search."""
    run = confirmation.run
    history = replace(run.history, records=tuple(records))
    confirmed = replace(run.confirmed, models=tuple(models))
    return model_in_words(replace(run, history=history, confirmation=confirmed)).lines


def test_a_model_is_compared_with_the_mean_of_plain_fine_tunings(confirmation):
    """Also if it is one of them."""
    for name in ("trial-003", "ft-seed-1"):
        *_, found = findings(confirmation, built(name))
        assert found.label == "than plain fine-tuning on average"
        assert found.values["id_test/acc"].mean == pytest.approx(15)


def test_a_model_is_shown_in_sentences_and_beside_others(confirmation, screen):
    records = [fakes.trial(number) for number in range(3)]
    soup, lost = built("trial-003", "ft-seed-1000"), ("the weights of trial-001 are gone",)
    models = [soup, built("trial-003", notes=lost)]
    table = printed(fit_table(model_table(confirmation, models), 100, "mine"), 100)
    screen("model", "\n".join([*in_words(confirmation, models, records), table]))


def test_a_model_is_told_without_settings():
    found = load_run(FROZEN / "half_confirmed").conclusion
    head, _, settings = "\n".join(found.lines).partition("\nSettings, ")
    *_, readings = settings.splitlines()
    assert found.of_model == [*head.splitlines(), readings]
    assert head.startswith("The model is the mean weights of 2 trainings (1 of trial-001, ")


def test_each_figure_of_a_model_states_what_its_interval_covers(confirmation):
    """Its predictions are stored: of ten images of each domain, all are right."""
    folder, right = confirmation.run.folder, dict.fromkeys(("real", "sketch"), np.ones(10))
    path = predictions_path(folder, "model-1")
    write_predictions(folder, ("model", 1), {"predicted": right, "zero_shot": right})
    predictions_path(folder, "model-seed-1").rename(path)
    _, own, to_zero_shot, to_ft = in_words(confirmation, [built("trial-003")])
    assert own.startswith("Its test accuracy (± for new images), in percent: ID 70.0 ± ")
    assert to_zero_shot.startswith("Points more than zero-shot (± for new images): ID +50.0 ± ")
    on_average = "than plain fine-tuning on average (± for new seeds and new images): ID +15.0 ± "
    assert to_ft.startswith(f"Points more {on_average}")


def test_constraints_come_before_the_objective(tmp_path):
    bound = parse_constraint("id_val/acc >= best - 1", ["id_val/acc"])
    search = fakes.Search(tmp_path, constraints=(bound,))
    goal = model_goal(search.run([fakes.trial(0, 80.0, 10.0), fakes.trial(1, 70.0, 60.0)]))
    metrics = {"id_val/acc": 78.9, "val/mean_acc": 90.0}
    meets = {"id_val/acc": 79.0, "val/mean_acc": 10.0}
    assert goal.merit(meets) > goal.merit(metrics) > goal.merit({})
    two = (Objective("id_val/acc"), Objective("id_val/nll", "min"))
    assert model_goal(fakes.Search(tmp_path, objectives=two).run()) is None
    low = Goal(two[1:])
    assert low.merit({"id_val/nll": 1.0}) > low.merit({"id_val/nll": 2.0})
