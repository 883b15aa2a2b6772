"""`auto`: what it chooses, what it refuses, and its steps, each of which is done once."""

import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from tests.test_own_images import write_shop
from tests.trainers.tiny_models import random_model
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import instant_options
from tests.tuning.execution.slot import BREAK, METRICS
from tests.tuning.run_folders import edit_journal
from trainers.config import with_overrides
from trainers.data.dataset import ImageDataset
from trainers.errors import ConfigError
from trainers.overrides import merge
from tuning import auto as module
from tuning.auto import answers, fitting, sizes
from tuning.cli import app, run_command
from tuning.config.recorded import FREE, differences
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config
from tuning.log.paths import JOURNAL_FILE
from tuning.planning.plan import CONFIRM_SEEDS, Plan
from tuning.results.estimates import results_of
from tuning.run import load_run
from tuning.weights.sources import why_chosen
from tuning.zero_shot import Row


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def plan_of(steps=900, gpus=0, **budget):
    """A step takes 1 s, an evaluation 5 s, the last one 9 s; two trials at once, of three CPUs."""
    trial = {"steps": steps, "eval": {"every": steps // 3, "line": "off"}}
    resources = {"cpus_per_worker": 3, "gpus_per_worker": gpus}
    values = {"trial": trial, "search": {"resources": resources, "budget": budget or {"hours": 1}}}
    file = SearchFile.model_validate(values)
    return Plan(file, 2, setup_s=60, start_s=2, step_s=1, save_s=0, rung_s=5, eval_s=9)


def model_s(trials):
    """Means of the weights of the trials, of FT and of two trainings of `confirm` for each seed,
    also by five other rules, and the tests on twice as many images."""
    trainings = trials + 1 + 2 * CONFIRM_SEEDS
    firsts = sum(number < trainings for number in (2, 3, 5, 8, 12, 20, 32)) + 1
    greedy, line = trainings - 2, 5
    of_rules = 5 * (firsts - 1 + line)
    tests = (2 + 4 * 2 / 5) * 2
    return (firsts + greedy + line + of_rules + tests) * 5


def full(steps, last=9):
    return 2 + steps + 2 * 5 + last


def test_as_many_trials_as_fit_beside_confirm_and_the_reference():
    # Two trainings per seed, two at once; the test images are twice those of validation.
    confirm = 60 + CONFIRM_SEEDS * full(900, last=27) + model_s(7)
    rounds = 60 + 4 * full(900)  # plain fine-tuning and seven trials
    found = fitting(plan_of(), (confirm + rounds) / 3600 + 0.001, spent=0.0005)
    assert found.file.search.budget.trials == 7
    assert found.file.trial == plan_of().file.trial
    left = found.file.search.budget.hours
    assert left == pytest.approx(rounds / 3600, rel=0.01)


def test_gpu_hours_are_those_of_all_gpus():
    trials = fitting(plan_of(gpus=1, gpu_hours=9), 9.0).file.search.budget
    confirm = [2 * CONFIRM_SEEDS * full(900, last=27) + model_s(number) for number in range(41)]
    prices = [of + (number + 1) * full(900) for number, of in enumerate(confirm)]
    number = sum(price <= 9 * 3600 for price in prices) - 1
    assert 6 < trials.trials == number < 40
    left = 9 - confirm[number] / 3600
    assert (trials.hours, trials.gpu_hours) == (None, pytest.approx(left, rel=0.01))


def test_trials_are_shorter_before_they_are_too_few():
    needed = [
        2 * 60 + CONFIRM_SEEDS * full(steps, last=27) + model_s(6) + 4 * full(steps)
        for steps in (900, 450, 225)
    ]
    for steps, seconds in zip((900, 450, 225), needed, strict=True):
        found = fitting(plan_of(), (seconds + 1) / 3600)
        assert found.file.trial.steps == steps
        assert found.file.trial.eval.every == steps // 3
        assert found.file.search.budget.trials >= module.LEAST_TRIALS
    with pytest.raises(ConfigError, match="6 trials of 225 steps and confirm need") as caught:
        fitting(plan_of(), (needed[-1] - 1) / 3600)
    assert caught.value.key == "--hours"


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [(40, 8, 60), (350, 64, 60), (20_000, 256, 783), (10**6, 256, 5001)],
)
def test_ten_epochs_in_batches_of_at_most_a_quarter(images, batch_size, steps):
    file = SearchFile()
    chosen = sizes(file, images)
    with_overrides(file.trial, {k.removeprefix("trial."): v for k, v in chosen.items()}, "test")
    assert list(chosen.values()) == [batch_size, steps, steps // 3]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"source": None, "id_domain": "real"}, "need a folder of images"),
        ({"source": "nowhere", "hours": 1}, "no such folder"),
        ({}, "give one of --hours"),
        ({"hours": 1, "gpu_hours": 1}, "give one of --hours"),
        ({"hours": -1}, "search.budget.hours"),
        ({"hours": 1, "id_domain": "real"}, "did you mean|no such domain"),
        ({"hours": 1, "id_domain": "photo", "ood": ["sketsch"]}, "no such domain.*sketch"),
        ({"hours": 1, "model": "vit_b99"}, "vit_b99: no such file or ready conf"),
        ({"hours": 1, "name": "a/b"}, "search.name"),
        ({"gpu_hours": 1}, "this machine has no GPU"),
        ({"gpu_hours": 1, "model": "quickstart"}, "trials take no GPU"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path, options, problem):
    for domain in ("photo", "sketch"):
        (tmp_path / "shop" / domain / "cat").mkdir(parents=True)
    with pytest.raises(ConfigError, match=problem):
        answers(**{"source": "shop", "id_domain": "photo", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def change_own(**sections):
    """Change the user's own file."""
    own = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("tiny.yaml").write_text(yaml.safe_dump(merge(own, sections)))


SHOP = ("shop", "--id", "studio", "--ood", "street,sketch", "--model", "tiny.yaml", "--hours", "2")


@pytest.fixture
def shop(whole_root, tmp_path, monkeypatch):
    """A folder of images, and a model for which short trials are enough."""
    write_shop(whole_root, tmp_path / "shop")
    base = {"trial": {"eval": {"line": "off"}}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"extends": "quickstart", **base}))
    monkeypatch.setattr(module, "MOST_TRIALS", module.LEAST_TRIALS)
    monkeypatch.setattr(module, "LEAST_STEPS", 6)
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "CONFIRM_SEEDS", 2)


def invoke(*words):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["auto", *words])


def steps_of(done):
    """The commands that were printed as steps."""
    return re.findall(r"^\d \S+ +lipsum-tune (\S+)", done.output, re.MULTILINE)


@pytest.fixture
def instant(shop, monkeypatch):
    """With trials of no time, a plan by hand, and an export that leaves a file."""

    def options(**given):
        return instant_options(SearchFile(), **{**given, "console": Console(stderr=True)})

    def export(run, output):
        output.mkdir()
        about = {"chosen": why_chosen(load_run(run))}
        (output / "classes.json").write_text(json.dumps(about))

    tiny = yaml.safe_load(Path("tiny.yaml").read_text())
    tiny["trial"]["model"] = {"name": random_model(Path.cwd(), "clip").name}
    of_its_context = {"method.text_length": {"high": 12}}
    tiny["search"] = {"space": {"parameters": of_its_context}}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    for where in ("tuning.search", "tuning.confirmation.confirm"):
        monkeypatch.setattr(f"{where}.SearchOptions", options)
    by_hand = plan_of()
    monkeypatch.setattr(module, "plan_search", lambda file, **_: replace(by_hand, file=file))
    monkeypatch.setattr(module, "export_weights", export)
    with without_ray(mlflow=False):
        yield


@pytest.mark.usefixtures("instant")
def test_a_call_that_is_stopped_in_any_step_goes_on_there(monkeypatch):
    calls = Counter()

    def counted(name, of):
        def call(*arguments, **options):
            calls[name] += 1
            return of(*arguments, **options)

        return call

    guessed = dict.fromkeys(METRICS[:3], 12.5)
    monkeypatch.setattr("tuning.session.zero_shot_metrics", lambda *_, **__: guessed)
    later = ("plan_search", "search_or_resume", "confirm", "export_weights")
    for name in later:
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    seen = []
    for name in later:
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            stopped = invoke(*SHOP)
        assert (stopped.exit_code, "the same command goes on" in stopped.stderr) == (130, True)
        seen.append(steps_of(stopped))
        is_named = "studio: zero-shot 12.5 ±" in stopped.stderr
        assert is_named == ("as by guessing" in stopped.output) == (name == "confirm")
    done = invoke(*SHOP)
    assert done.exit_code == 0, done.exception
    said = done.stdout
    assert "Result      trial-005 against untuned FT, on the test splits" in said
    assert "difference to" not in said  # the table of settings is on the page
    assert re.search(r"Took +\S+ of the 2 of --hours", said)
    model = Path("runs", "shop", "export")
    assert shlex.quote(str(model.absolute() / "predict.py")) in said.replace("\n", "")
    planned = ["prepare", "zero-shot", "plan"]
    rest = ["prepare", "search", "confirm", "export"]
    assert seen == [planned, [*planned, "search"], rest[:3], rest]
    assert steps_of(done) == rest
    # `confirm` reads the results that it has; all others did their part once.
    assert calls == {"plan_search": 1, "search_or_resume": 1, "confirm": 2, "export_weights": 1}
    run = Path("runs", "shop")
    left = {path: path.read_bytes() for path in run.rglob("*") if path.name == JOURNAL_FILE}
    assert len(left) == 2
    assert invoke(*SHOP).exit_code == 0
    assert all(path.read_bytes() == content for path, content in left.items())
    records = load_run(run).history.records
    assert [record.outcome for record in records if record.kind == "trial"] == ["finished"] * 6
    assert len({seed for _, seed in results_of(load_run(run).confirmed)} - {None}) == 2
    other = invoke(*SHOP[:-1], "3")
    assert "this name is taken by another command" in str(other.exception)
    file = load_config(run.with_suffix(".yaml"))
    assert not differences(load_run(run).file, file, free=FREE)


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("instant")
def test_a_trial_that_became_better_is_confirmed_and_exported_with_again():
    assert invoke(*SHOP).exit_code == 0
    run = Path("runs", "shop")
    first = (run / "export" / "classes.json").read_text()
    more = CliRunner().invoke(app, ["resume", str(run), "--trials", "+1"])
    assert more.exit_code == 0, more.exception
    refused = invoke(*SHOP)
    assert "trial-006 is another choice than" in str(refused.exception)
    assert refused.exception.hint.startswith("--again")
    done = invoke(*SHOP, "--again")
    assert done.exit_code == 0, done.exception
    assert steps_of(done) == ["prepare", "search", "confirm", "export"]
    assert (run / "export" / "classes.json").read_text() != first
    assert "then for trial-006, chosen when test accuracies were known" in done.output


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize(
    # The rule for 1.07 million parameters, by hand: 1e-5 * (86.2 / 1.07 * 5000 / 225) ** 0.5.
    ("own", "rate"),
    [({}, 4.2e-4), ({"lr": 1e-4}, 1e-4)],
)
def test_shorter_trials_have_the_first_learning_rate_of_their_steps(own, rate, monkeypatch):
    tiny = yaml.safe_load(Path("tiny.yaml").read_text())
    tiny["trial"] |= {"model": {"name": "tiny-clip"}, "optim": own}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(module, "LEAST_STEPS", 900)
    monkeypatch.setattr(module, "_check_hours", lambda *_: None)
    monkeypatch.setattr(module, "search_or_resume", stop)
    short = 2 * 60 + CONFIRM_SEEDS * full(225, last=27) + 4 * full(225) + model_s(6)
    said = invoke(*SHOP[:-1], str((short + 600) / 3600)).output
    assert "Steps       225 in place of" in said
    written = yaml.safe_load(Path("runs/shop.yaml").read_text())["trial"]
    assert written["steps"] == 225
    assert load_config("runs/shop.yaml", check=False).trial.optim.lr == rate
    reason = "Rate        optim.lr = 0.00042, the first learning rate of this model in 225 steps"
    assert (reason in said) == (not own)


@pytest.mark.usefixtures("instant")
def test_too_many_failures_in_a_row_are_no_mistake_of_the_user(capsys):
    change_own(search={"budget": {"failures": 2}})
    Path("runs").mkdir()
    Path("runs", BREAK).write_text("OutOfMemoryError: too big")
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: app(["auto", *SHOP], standalone_mode=False))
    assert caught.value.code == 75
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"runs/shop: 2 trials failed in a row .*; the same command goes on$", error)
    Path("runs", BREAK).unlink()
    assert invoke(*SHOP).exit_code == 0


@pytest.mark.usefixtures("instant")
def test_the_hours_of_earlier_calls_are_counted(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(module, "export_weights", stop)
        assert invoke(*SHOP).exit_code == 130
    run = Path("runs", "shop")

    def stretch(events):
        """Sessions of an hour each."""
        events = list(events)
        for event in events[1:]:
            event["time"] = events[0]["time"] + 3600 * (event is events[-1])
        return events

    for folder in (run, run / "confirm"):
        edit_journal(folder, stretch)
    assert re.search(r"Took +2(\.0)? of the 2 of --hours", invoke(*SHOP).stdout)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("own", "steps", "every"),
    [
        ({"steps": 50}, lambda images: 50, 120),
        ({"epochs": 2, "optim": {"batch_size": 8}}, lambda images: round(images / 4), 120),
        ({"steps": 50, "eval": {"every": 9}}, lambda images: 50, 9),
    ],
)
def test_a_length_of_the_users_own_stays(own, steps, every, monkeypatch):
    monkeypatch.setattr(module, "_zero_shot", lambda *_: ([], 0.0))
    planned = []
    monkeypatch.setattr(module, "plan_search", lambda file, **_: planned.append(file) or stop())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change_own(trial=own, search={"resources": {"gpus_per_worker": 1}})
    assert invoke(*SHOP).exit_code == 130
    (file,) = planned
    assert file.search.resources.gpus_per_worker == 0
    images = len(ImageDataset("prepared/shop", "studio", "train"))
    assert (file.trial.steps, file.trial.eval.every) == (steps(images), every)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(("own", "line"), [({}, "off"), ({"line": 0.5}, 0.5)])
def test_no_point_of_the_line_is_chosen_on_few_images(own, line, monkeypatch):
    monkeypatch.setattr(module, "_zero_shot", stop)
    Path("tiny.yaml").write_text(yaml.safe_dump({"extends": "quickstart", "trial": {"eval": own}}))
    said = invoke(*SHOP).output
    images = len(ImageDataset("prepared/shop", "street", "val"))
    assert (f"street {images}" in said) == (not own)
    assert load_config("runs/shop.yaml", check=False).trial.eval.line == line


@pytest.mark.usefixtures("shop")
def test_a_suite_file_and_an_objective_of_the_users_own_stay(monkeypatch):
    monkeypatch.setattr(module, "_zero_shot", stop)
    suite = {"id_domain": "other", "class_names": "verbatim", "templates": ["a {}."]}
    Path("shop.yaml").write_text(yaml.safe_dump(suite))
    objective = {"metric": "id_val/class_acc"}
    change_own(trial={"data": {"suite": "shop.yaml"}}, search={"objective": objective})
    shutil.move("shop/studio", "studio")
    assert invoke("studio", *SHOP[-4:]).exit_code == 130
    file = load_config("runs/studio.yaml", check=False)
    assert file.trial.data.domains == ("studio",)
    prompts = file.trial.data.rules.prompts(["wall_clock"])
    assert (prompts.names, prompts.templates) == (("wall_clock",), ("a {}.",))
    assert [each.metric for each in file.objectives] == ["id_val/class_acc"]


def test_weights_are_named_and_fetched_before_images_are_prepared(shop, monkeypatch):
    def offline(model):
        raise ConfigError("it cannot be loaded: no network", key="model.name", value=model.name)

    monkeypatch.setattr(module, "check_model", offline)
    refused = invoke("shop", "--id", "studio", "--hours", "2")
    # CLIP ViT-B/32 has 151.28 million weights of four bytes.
    line = "Weights     ViT-B-32-quickgelu, openai: 605 MB, downloaded once; `--model quickstart`"
    assert line in refused.stdout
    assert steps_of(refused) == []
    assert not Path("prepared").exists()


@pytest.mark.usefixtures("instant")
def test_hopeless_hours_are_refused_before_they_are_spent(monkeypatch):
    monkeypatch.setattr(module, "plan_search", stop)
    refused = invoke(*SHOP[:-1], "0.00001")
    assert re.search("6 trials of 3 steps and confirm need more than", str(refused.exception))
    assert steps_of(refused)[-1] == "plan"


def test_hours_are_hopeless_if_the_images_alone_take_longer(monkeypatch):
    monkeypatch.setattr(module, "CONFIRM_SEEDS", 2)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 7)
    file = plan_of(steps=1200).file
    rows = [Row("real", 100, 5, 50.0, 1.0, 1.0), Row("sketch", 60, 5, 50.0, 1.0, 1.0)]
    # Two at once: six trials and plain fine-tuning, and four trainings of `confirm`.
    images = (4 + 2) * (2 * 300 * file.trial.optim.batch_size + 160)
    needs = images * 0.01 / 3600
    module._check_hours(file, needs + 0.01, 0.01, rows)
    with pytest.raises(ConfigError, match=f"need more than {needs:.2g} hours"):
        module._check_hours(file, needs - 0.01, 0.01, rows)


@pytest.mark.usefixtures("instant")
def test_of_two_calls_at_once_the_later_one_is_refused(monkeypatch):
    refused = []

    def plan(file, **_):
        refused.append(invoke(*SHOP))
        return replace(plan_of(), file=file)

    monkeypatch.setattr(module, "plan_search", plan)
    monkeypatch.setattr(module, "search_or_resume", stop)
    lock = Path("runs", "shop.lock")
    lock.parent.mkdir(0o755)
    lock.touch(0o644)  # as an earlier version left it
    assert invoke(*SHOP).exit_code == 130
    (later,) = refused
    assert "another `lipsum-tune auto` of this name runs" in str(later.exception)
    assert steps_of(later) == []
    # Whoever may open a lock can hold it.
    assert lock.stat().st_mode & 0o777 == 0o600


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.usefixtures("local_ray", "shop")
def test_a_folder_of_images_becomes_a_model():
    done = invoke(*SHOP)
    assert done.exit_code == 0, done.exception
    model = Path("runs", "shop", "export")
    assert (model / "open_clip_config.json").is_file()
    assert f"Model       {model.absolute()}" in done.output
    assert Path("runs", "shop", "report", "index.html").is_file()
