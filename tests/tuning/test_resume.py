"""Which changes a resume accepts."""

import json
import re
import shutil
from contextlib import closing
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from rich.console import Console
from typer.testing import CliRunner

from tests.trainers import tiny_models
from tests.tuning import fakes
from tests.tuning.execution.inline_tuner import without_ray
from tests.tuning.execution.instant import (
    instant_file,
    instant_options,
    resume_instantly,
    run_instantly,
)
from tests.tuning.run_folders import LR, search_file, swap_classes, trial, write_run
from trainers.errors import ConfigError
from trainers.models.config import HUB, LOCAL_DIR, ModelConfig
from tuning import search as run_search
from tuning.cli import app
from tuning.config.schema import SamplerConfig
from tuning.config.validation import load_config
from tuning.confirmation.confirm import confirm
from tuning.log.environment import check_same_inputs, environment
from tuning.log.folder import create_run_folder, write_config
from tuning.log.history import JournalReader, read_history
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE, JOURNAL_FILE
from tuning.log.resume import earlier_run
from tuning.run import load_run
from tuning.search import resume_search, search_or_resume


@pytest.fixture
def run(images_root, tmp_path):
    records = [fakes.reference(), *(trial(n, 85.0 - n, 62.0) for n in range(3))]
    return write_run(tmp_path / "run", search_file(images_root), records)


@pytest.fixture
def went_on(monkeypatch):
    """The configurations with which searches would continue, which takes Ray."""
    files = []
    monkeypatch.setattr(run_search, "continue_search", lambda folder, file, *_: files.append(file))
    return files


@pytest.mark.parametrize(
    "override",
    [
        "search.budget.trials=4",
        "search.budget.hours=1.5",
        "search.resources.workers=2",
        "search.tracking.experiment=other",
        "search.checkpoints.keep_top=5",
        "search.sampler={name: random, seed: 7}",
        "search.scheduler={name: asha, grace_steps: 40}",
        "trial.data.workers=2",
    ],
)
def test_what_no_trial_measures_may_change(override, run, went_on):
    expected = load_config(run / CONFIG_FILE, [override])
    assert expected != load_run(run).file
    resume_search(run, [override])
    assert went_on == [expected]


@pytest.mark.parametrize(("trials", "number"), [("+5", 25), (30, 30), ("30", 30), ("5", 5)])
def test_trials_are_a_number_or_in_addition_to_the_budget(trials, number, run, went_on):
    resume_search(run, trials=trials)  # three of twenty have begun
    assert went_on[0].search.budget.trials == number
    for wrong in ("five", "+٣", "+-1", "1.5"):
        with pytest.raises(ConfigError, match="write a number, or"):
            resume_search(run, trials=wrong)


def test_more_trials_than_a_user_has_ended_are_counted_from_these(run, went_on):
    with closing(Journal(run)) as journal:
        journal.controlled({"end": True}, "1.json")
        journal.session_ended("finished")
    resume_search(run, trials="+5", sampler="random")
    assert went_on[0].search.budget.trials == 8
    assert went_on[0].search.sampler == SamplerConfig(name="random")


@pytest.fixture
def quick_run(images_root, tmp_path):
    """Three trials of instant searches, all of them finished."""
    with without_ray(mlflow=False):
        yield run_instantly(instant_file(images_root, tmp_path)).run.folder


def test_a_resume_with_nothing_to_do_says_so_before_ray_starts(quick_run, monkeypatch):
    monkeypatch.setattr(run_search, "continue_search", lambda *_: pytest.fail("started Ray"))
    history = load_run(quick_run).history
    used = history.seconds / 3600
    for options, problem in {
        (): r"search.budget.trials = 3: all 3 trials have ended \(--trials \+8",
        ("--trials", "2"): "search.budget.trials = 2: all 3 trials have ended",
        ("--set", f"search.budget.hours={used / 2}"): r"hours = \S+: used up \(--hours \+",
    }.items():
        done = CliRunner().invoke(app, ["resume", str(quick_run), *options])
        assert isinstance(done.exception, ConfigError)
        assert re.search(problem, str(done.exception))
    again = search_or_resume(load_run(quick_run).file)  # a job's command has done its work
    assert (again.outcome, len(again.run.records)) == ("finished", 3)


def test_hours_that_are_used_up_are_raised_by_what_is_printed(quick_run, monkeypatch):
    went_on = []
    monkeypatch.setattr(run_search, "continue_search", lambda *given: went_on.append(given[1]))
    words = ["--trials", "+8", "--set", "search.budget.hours=1e-9"]
    refused = CliRunner().invoke(app, ["resume", str(quick_run), *words]).exception
    option = refused.hint.split()[0]
    done = CliRunner().invoke(app, ["resume", str(quick_run), option, "+1", "--trials", "+8"])
    assert "Resume      small: 11 trials" in done.stdout
    (file,) = went_on
    assert file.search.budget.trials == 11
    used = load_run(quick_run).history.seconds / 3600
    assert file.search.budget.hours == pytest.approx(1 + used, rel=1e-4)


@pytest.mark.parametrize(
    ("override", "was"),
    [
        ("trial.optim.lr=0.5", "1e-05"),
        ("trial.steps=480", "240"),
        ("search.objective={metric: id_val/acc}", "[{'metric': 'val/mean_acc', 'mode': 'max'}]"),
        ("search.constraints=id_val/nll <= 1", "[]"),
        ("search.name=other", "'search'"),
        ("search.references=[]", "['ft']"),
        ("search.warm_start.top=9", "4"),
        ("search.study_storage=sqlite:///a", "None"),
        (f"search.space.parameters={{{LR}: {{low: 1.0e-5}}}}", "1e-06"),
        ("search.space.initial_points=[]", "[{'optim.lr': 1e-05, 'method.reg_weight': 1.0}]"),
        ("search.prior.points=7", "3"),
        ("search.checkpoints.storage=s3://mine", "None"),
    ],
)
def test_what_trials_measure_never_changes_and_the_error_says_what_to_do(
    override, was, run, went_on
):
    before = (run / CONFIG_FILE).read_text()
    with pytest.raises(ConfigError) as caught:
        resume_search(run, [override])
    assert str(caught.value.key).startswith(f"--set {override.partition('=')[0]}")
    assert f"it was {was} in this search" in caught.value.problem
    hint = "would not be found" if "checkpoints" in override else "search.warm_start.runs"
    assert hint in str(caught.value.hint)
    assert went_on == []
    assert (run / CONFIG_FILE).read_text() == before


def test_a_resume_says_that_a_sampler_was_an_object_of_python(images_root, tmp_path, capsys):
    file = instant_file(images_root, tmp_path)
    with without_ray(mlflow=False):
        run = run_instantly(file, sampler=RandomSampler(seed=0), pruner=NopPruner()).run.folder
        resume_instantly(run, "search.budget.trials=4", console=Console(stderr=True, width=200))
    shown = capsys.readouterr().err
    assert "the sampler was an object, RandomSampler, and is now that of the configurat" in shown
    assert "the pruner was an object, NopPruner, and is now" in shown


@pytest.fixture
def copy(images_root, tmp_path):
    return Path(shutil.copytree(images_root, tmp_path / "copy"))


def test_data_that_were_moved_are_read_where_they_are_now(copy, tmp_path, went_on):
    run = write_run(tmp_path / "run", search_file(copy), [trial(0, 85.0, 62.0)])
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"copy"):
        resume_search(run)
    resume_search(run, [f"trial.data.root={moved}"])
    assert went_on == [search_file(moved)]


@pytest.mark.parametrize("moved", [False, True])
def test_data_that_have_changed_are_refused_with_the_domain_and_split(moved, copy, run, went_on):
    elsewhere = [f"trial.data.root={copy}"]
    if not moved:
        write_config(run, load_config(run / CONFIG_FILE, elsewhere))
    swap_classes(copy, "sketch", "val")
    with pytest.raises(ConfigError) as caught:
        resume_search(run, elsewhere if moved else [])
    assert (caught.value.key, caught.value.value) == ("trial.data.root", str(copy))
    assert "'sketch/val' changed" in caught.value.problem
    assert went_on == []


def test_a_model_that_has_changed_is_refused_with_its_file(images_root, tmp_path, went_on, caplog):
    name = tiny_models.random_model(tmp_path, "clip").name
    model = tmp_path / "clip" / "open_clip_config.json"
    file = search_file(images_root, trial__model={"name": name})
    run = write_run(tmp_path / "run", file, [trial(0, 85.0, 62.0)])
    (run / "environment.json").write_text(json.dumps(environment(file.trial)))
    resume_search(run)
    model.write_text(model.read_text().replace('"layers": 2', '"layers": 3'))
    for go_on in (resume_search, confirm):
        with pytest.raises(ConfigError, match=f"'{model}' changed since") as caught:
            go_on(run)
        assert caught.value.key == "trial.model.name"
    assert [r.name for r in caplog.records if r.name.startswith("tuning")] == []
    (run / "environment.json").unlink()
    resume_search(run)
    assert f"{run} does not record its data" in caplog.text
    assert len(went_on) == 2


def test_a_model_of_the_hub_that_has_changed_is_refused(images_root, tmp_path, monkeypatch):
    name = tiny_models.random_model(tmp_path, "clip").name.removeprefix(LOCAL_DIR)
    monkeypatch.setattr("trainers.models.clip.check_model", lambda model: None)  # fetches it
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, file: f"{name}/{file}"
    )
    config = search_file(images_root).trial
    config = config.model_copy(update={"model": ModelConfig(name=f"{HUB}ours/clip")})
    (tmp_path / "environment.json").write_text(json.dumps(environment(config)))
    check_same_inputs(tmp_path, config)
    (Path(name) / "open_clip_model.safetensors").write_bytes(b"pushed")
    with pytest.raises(ConfigError, match=r"'hf-hub:ours/clip/.*safetensors' changed"):
        check_same_inputs(tmp_path, config)


@pytest.mark.parametrize("plugin", ["changed.py", "changed_module", "changed_package"])
def test_a_plugin_that_has_changed_is_refused_with_its_file(
    plugin, images_root, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changed_package").mkdir()
    (tmp_path / "changed_package" / "__init__.py").touch()
    file = {"changed_package": "changed_package/method.py"}.get(plugin, plugin)
    path = (tmp_path / file).with_suffix(".py")
    path.write_text("WEIGHT = 1\n")
    named = str(path) if plugin.endswith(".py") else plugin
    config = search_file(images_root, trial__plugins=[named]).trial
    (tmp_path / "environment.json").write_text(json.dumps(environment(config)))
    check_same_inputs(tmp_path, config)
    path.write_text("WEIGHT = 1000\n")
    changed = str(path) if plugin.endswith(".py") else file
    with pytest.raises(ConfigError, match=f"'{changed}' changed since") as caught:
        check_same_inputs(tmp_path, config)
    assert caught.value.key == "trial.plugins"


@pytest.mark.parametrize(
    ("path", "edited"),
    [
        (("trial", "seed"), 1),
        (("search", "objective"), [{"metric": "id_val/acc"}]),
        (("search", "constraints"), ["id_val/acc>=9"]),
        (("search", "space", "parameters", LR, "high"), 1e-3),
    ],
)
def test_a_search_yaml_that_was_edited_is_refused(path, edited, run, went_on):
    *sections, last = path
    values = yaml.safe_load((run / CONFIG_FILE).read_text())
    reduce(getitem, sections, values)[last] = edited
    (run / CONFIG_FILE).write_text(yaml.safe_dump(values, sort_keys=False))
    changed = ".".join(path[:2])
    with pytest.raises(ConfigError, match=rf"search\.yaml: {changed} differs"):
        resume_search(run)
    assert went_on == []


def test_the_loser_of_two_resumes_at_once_writes_nothing(run):
    winner = Journal(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"another process is running this search"):
        resume_search(run, ["search.budget.trials=30"])
    winner.close()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_new_run_folder_that_another_process_runs_is_not_removed(
    is_taken, images_root, tmp_path, monkeypatch
):
    """Another process finds the folder before the one that has created it runs the search."""
    others = []

    def create(file, storage):
        folder = create_run_folder(file, storage)
        assert earlier_run(file, storage) == folder
        if is_taken:
            others.append(Journal(folder))
            others[0].session_started(file.fingerprints())
        return folder

    def refuse(*_):
        raise ConfigError("no driver")

    monkeypatch.setattr(run_search, "create_run_folder", create)
    if not is_taken:
        monkeypatch.setattr(run_search, "tracking_uri", refuse)
    reason = "another process is running this search" if is_taken else "no driver"
    with pytest.raises(ConfigError, match=reason):
        search_or_resume(named(images_root, tmp_path))
    assert (tmp_path / "mine").exists() == is_taken
    for other in others:
        other.close()
        assert read_history(tmp_path / "mine").fingerprints


def named(root, storage, **changes):
    return search_file(root, search__name="mine", search__storage=str(storage), **changes)


def test_the_same_command_again_finds_the_run_of_its_name_and_configuration(
    images_root, tmp_path, went_on, caplog
):
    first = named(images_root, tmp_path)
    other = named(images_root, tmp_path, search__sampler__seed=3)
    assert earlier_run(first, tmp_path) is None
    run = write_run(tmp_path / "mine", first, [trial(0, 85.0, 62.0)])
    assert earlier_run(other, tmp_path) is None  # a new one, and not that
    write_run(tmp_path / "mine-2", other, [trial(0, 85.0, 62.0)])
    assert earlier_run(other, tmp_path) == tmp_path / "mine-2"
    config = write_run(tmp_path / "mine-3", first, [trial(0, 85.0, 62.0)]) / CONFIG_FILE
    config.write_text(config.read_text().replace("trial:", "trial:\n  of_later: 1", 1))
    more = named(images_root, tmp_path, search__budget__trials=77)
    assert earlier_run(more, tmp_path) == earlier_run(first, tmp_path) == run
    assert "mine-3 is not continued, since it differs in trial.of_later" in caplog.text
    assert "mine-2 is not continued, since it differs in search.sampler.seed" in caplog.text
    search_or_resume(more)
    assert [file.search.budget.trials for file in went_on] == [77]
    (run / JOURNAL_FILE).unlink()  # it was killed before it began, and begins
    search_or_resume(first)
    assert went_on[1:] == [first]


def test_earlier_runs_are_found_from_another_folder(images_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = named(images_root, tmp_path, search__warm_start__runs=["before"])
    write_run(tmp_path / "runs" / "before", named(images_root, tmp_path), [trial(0, 85.0, 62.0)])
    write_run(tmp_path / "mine", file, [trial(0, 85.0, 62.0)])
    write_config(tmp_path / "mine", file)
    kept = load_run(tmp_path / "mine").file.search.warm_start.runs
    assert kept == (str(tmp_path / "runs" / "before"),)
    assert earlier_run(file, tmp_path) == tmp_path / "mine"


def test_a_session_reads_its_journal_once(images_root, tmp_path, monkeypatch):
    """What was read when it was opened serves changes, budgets, studies, records and views."""
    file, read = instant_file(images_root, tmp_path), []
    begin = JournalReader.__init__

    def noted(reader, folder, *args, **options):
        read.append(folder)
        begin(reader, folder, *args, **options)

    monkeypatch.setattr(JournalReader, "__init__", noted)
    monkeypatch.setattr(run_search, "SearchOptions", partial(instant_options, file))
    with without_ray(mlflow=False):
        folder = run_instantly(file).run.folder
        assert read.count(folder) == 1
        assert len(resume_search(folder, trials="+1").run.records) == 4
        assert read.count(folder) == 2
    assert len(load_run(folder).records) == 4


def test_hours_in_python_are_those_of_the_command(run, went_on):
    resume_search(run, ["search.resources.gpus_per_worker=1"], hours="+1", gpu_hours=3)
    budget = went_on[0].search.budget
    assert (budget.hours, budget.gpu_hours) == (pytest.approx(1, abs=0.1), 3)
