"""`--json`: documents alone on the standard output, and a client that needs nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.doctor import Node
from tests.test_public_surface import EXPECTED
from tests.tuning import fakes
from tests.tuning.confirmation.written import confirmed, write_results
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_file, instant_options
from tests.tuning.execution.slot import EVERY, STEPS
from tests.tuning.planning.test_plan import make_plan
from tests.tuning.planning.test_plan import search_file as planned_file
from tests.tuning.run_folders import search_file, trial, write_run
from tuning.cli.documents import Events, of_cards, of_plan, of_run, of_zero_shot, plain
from tuning.planning.cards import CardPlan
from tuning.runs.run_folder import load_run
from tuning.zero_shot.evaluate import Row
from tuning.zero_shot.ranking import Ranked


def documents_of(text):
    """One for each line; NaN is no JSON."""
    refuse = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    return [json.loads(line, **refuse) for line in text.splitlines()]


def keys_of(value, path):
    """Dotted keys. `*` is the name of a metric or parameter, `[]` an element of a list."""
    if isinstance(value, list) and value:
        for each in value:
            yield from keys_of(each, f"{path}[]")
    elif isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from keys_of(each, f"{path}.{'*' if {*key} & {*'./'} else key}")
    else:
        yield path


@pytest.fixture
def run(images_root, tmp_path):
    """A finished search of two trials, of which `confirm` has trained one again."""
    records = [fakes.reference(), trial(0, 85.0, 62.0), trial(1, 80.0, 60.0)]
    folder = write_run(tmp_path / "mine", search_file(images_root), records)
    confirmed(folder, ft=(72.0, 60.0), trial_000=(74.0, 62.0))
    write_results(folder, {("trial-000", 1002): "full"})
    return folder


def test_no_key_changes_unnoticed(run):
    rows = [Row("real", 100, 9, 80.0, 0.5, 3.0)]
    found = [
        (
            "on",
            of_cards(
                planned_file(),
                [CardPlan("L4", None, 0, "bf16", 1.0, 0, 0.0, make_plan(planned_file()))],
            ),
        ),
        ("plan", of_plan(make_plan(planned_file()))),
        ("doctor", {"nodes": [Node("10.0.0.1", {"CPUs": "4"}, ("no answer",))]}),
        ("zero-shot", of_zero_shot("val", [Ranked("quickstart", rows)])),
        ("run", of_run(load_run(run))),
    ]
    events = Events(lambda document: found.append(("search", document)))
    events.search_started(load_run(run).search)
    events.trial_ended(trial(0, 85.0, 62.0))
    keys = {key for name, document in found for key in keys_of(plain(document), name)}
    assert sorted(keys) == EXPECTED["json"]


def test_a_run_is_the_same_document_for_all_commands(run):
    (shown,) = documents_of(CliRunner().invoke(app, ["report", str(run), "--json"]).stdout)
    assert shown == plain(of_run(load_run(run)))
    assert shown["conclusion"]["won"] == "trial-000"
    assert shown["conclusion"]["next"] == [["lipsum-tune", "export", str(run), "--output", "model"]]
    ft, one = shown["confirmation"]["models"]
    assert one["metrics"]["id_test/acc"]["mean"] == 62.0
    assert one["against_ft"]["id_test/acc"] == {
        "mean": 2.0, "sd": 0.0, "low": 2.0, "high": 2.0, "covers_images": False,
    }  # fmt: skip
    assert ft["against_ft"] == {}
    assert shown["confirmation"]["readings"] == [["trial-000"]]


def test_search_and_confirm_print_nothing_but_documents(images_root, whole_root, tmp_path):
    file = instant_file(images_root, tmp_path, trial__data__root=str(whole_root))
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(file.model_dump(mode="json")))
    options = {"side_effect": lambda **given: instant_options(file, **given)}

    def call(*words):
        done = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.stderr
        assert done.stderr
        return documents_of(done.stdout)

    with (
        without_ray(mlflow=False),
        patch("tuning.search.SearchOptions", **options),
        patch("tuning.confirmation.confirm.SearchOptions", **options),
        patch("tuning.confirmation.confirm.complete_files", return_value=[]),
    ):
        begun, *events, ended = call("search", config)
        (again,) = call("confirm", begun["folder"], "--rule", "objective", "--seeds", 2)
    of_one = ["trial_started", *["trial_reported"] * (STEPS // EVERY), "trial_ended"]
    assert [e["event"] for e in events if e["trial"]["trial_id"] == "trial-000"] == of_one
    assert (ended["event"], ended["run"]["state"]) == ("search_ended", "finished")
    best = ended["run"]["conclusion"]["won"]
    assert again["confirmation"]["readings"] == [[best]]
    assert again["trials"] == ended["run"]["trials"]


@pytest.mark.ray
@pytest.mark.nightly
def test_a_client_goes_from_plan_to_export_by_json_alone(whole_root, tmp_path, local_ray):
    """Real trainings of two steps. The client knows the first command, and then does what is next
    until a model is exported."""
    settings = {
        "trial.data.root": whole_root, "trial.steps": 2, "trial.eval.every": 2,
        "trial.optim.batch_size": 8, "trial.method.text_count": 16,
        "search.scheduler": "{name: none}", "search.budget.trials": 2, "search.name": "mine",
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    calls = []

    def call(*words):
        calls.append(words[0])
        command = [sys.executable, "-c", "from cluster.cli import main; main()", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        return documents_of(done.stdout) if words[-1] == "--json" else done.stdout

    (nodes,) = call("doctor", "quickstart", *overrides, "--json")
    assert not any(node["faults"] for node in nodes["nodes"])
    (zero_shot,) = call("zero-shot", "quickstart", *overrides, "--json")
    assert zero_shot["models"][0]["acc"] > 0
    (planned,) = call("plan", "quickstart", *overrides, "--json")
    assert planned["prices"][0]["hours"] < 1
    *_, ended = call("search", "quickstart", *overrides, "--json")
    run = ended["run"]
    while (words := run["conclusion"]["next"][0][1:])[0] != "export":
        if words[0] == "resume":  # no trial is better than the reference: export that
            words = run["conclusion"]["next"][-1][1:]
            break
        (run,) = call(*words, "--seeds", "2", "--json")
    call(*words)
    assert calls[-1] == "export"
    assert len(calls) <= 12
    about = json.loads((tmp_path / "model" / "classes.json").read_text())
    assert about["trial"] == run["conclusion"]["won"]
    if run["confirmation"]:
        assert about["chosen"] == " ".join(run["conclusion"]["lines"])
    assert Path(tmp_path / "model" / "open_clip_model.safetensors").is_file()
