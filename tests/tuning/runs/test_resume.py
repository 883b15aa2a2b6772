"""Which changes a resume and an extension accept."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.trainers import tiny_models
from tests.tuning import fakes
from tests.tuning.run_folders import LR, search_file, swap_classes, trial, write_run
from trainers.errors import ConfigError
from trainers.overrides import nest
from tuning import search as run_search
from tuning.config.schema import SamplerConfig
from tuning.config.validation import load_config
from tuning.confirmation.confirm import confirm
from tuning.runs import resume
from tuning.runs.environment import check_same_inputs, environment
from tuning.runs.journal import JOURNAL_FILE, Journal, read_history
from tuning.runs.resume import earlier_run, extend_search, resume_search, search_or_resume
from tuning.runs.run_folder import CONFIG_FILE, create_run_folder, load_run, write_config
from tuning.weights.soup import make_soup

NARROWER = f"search.space.parameters.{LR}.low=1e-5"


@pytest.fixture
def run(images_root, tmp_path):
    records = [fakes.reference(), *(trial(n, 85.0 - n, 62.0) for n in range(3))]
    return write_run(tmp_path / "run", search_file(images_root), records)


@pytest.fixture
def went_on(monkeypatch):
    """The configurations with which searches would continue, which takes Ray."""
    files = []
    monkeypatch.setattr(resume, "continue_search", lambda folder, file, options: files.append(file))
    return files


def go_on(run, overrides, extend):
    (extend_search if extend else resume_search)(run, overrides)


def edit(run, **changes):
    """Change search.yaml by hand."""
    values = yaml.safe_load((run / CONFIG_FILE).read_text())
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    (run / CONFIG_FILE).write_text(yaml.safe_dump(nest(dotted, values), sort_keys=False))


def test_a_copy_does_not_go_on_while_the_original_exists(run, went_on):
    copy = Path(shutil.copytree(run, run.with_name("copy")))
    for go_on in (resume_search, extend_search, confirm, make_soup):
        with pytest.raises(ConfigError, match=f"a copy of {run}"):
            go_on(copy)
    assert went_on == []
    run.rename(run.with_name("original"))
    resume_search(copy)
    assert len(went_on) == 1


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize(
    "override",
    [
        "search.budget.trials=30",
        "search.budget.trials=2",  # fewer than it has: it ends at once
        "search.budget.hours=1.5",
        "search.resources.workers=2",
        "search.resources.max_concurrent=1",
        "search.tracking.experiment=other",
        "search.checkpoints.disk_gb=5",
        "trial.data.workers=2",
    ],
)
def test_budgets_resources_tracking_and_reading_may_change_and_are_kept(
    override, extend, run, went_on
):
    expected = load_config(run / CONFIG_FILE, [override])
    assert expected != load_run(run).file
    go_on(run, [override], extend)
    assert went_on == [expected]


@pytest.mark.parametrize(
    "override",
    [
        NARROWER,
        "search.space.initial_points=[]",
        "search.sampler.name=random",
        "search.sampler.seed=7",
        "search.scheduler={name: asha, grace_steps: 40}",
    ],
)
def test_space_sampler_and_scheduler_may_change_when_a_search_is_extended(override, run, went_on):
    with pytest.raises(ConfigError) as caught:
        resume_search(run, [override])
    assert "lipsum-tune extend" in str(caught.value.hint)
    assert went_on == []
    extend_search(run, [override])
    assert went_on == [load_config(run / CONFIG_FILE, [override])]


def test_a_sampler_from_python_is_checked(run, went_on):
    with pytest.raises(ConfigError, match="is never reported") as caught:
        extend_search(run, sampler=SamplerConfig(metric="val/accuracy"))
    assert (caught.value.key, caught.value.value) == ("search.sampler.metric", "val/accuracy")
    assert went_on == []


def test_an_extension_adds_to_the_trials_that_there_are(run, went_on):
    extend_search(run, ["search.budget.trials=3"], trials=5)
    assert went_on[0].search.budget.trials == 25  # twenty were configured


def test_checkpoints_are_not_looked_for_elsewhere(run, went_on):
    with pytest.raises(ConfigError) as caught:
        resume_search(run, ["search.checkpoints.storage=s3://mine"])
    assert caught.value.hint == "its checkpoints would not be found"
    assert went_on == []


@pytest.mark.parametrize("extend", [False, True])
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
    ],
)
def test_what_trials_measure_never_changes_and_the_error_says_what_to_do(
    override, was, extend, run, went_on
):
    before = (run / CONFIG_FILE).read_text()
    with pytest.raises(ConfigError) as caught:
        go_on(run, [override], extend)
    assert caught.value.key == f"--set {override.partition('=')[0]}"
    assert f"it was {was} in this search" in caught.value.problem
    assert "search.warm_start.runs" in str(caught.value.hint)
    assert went_on == []
    assert (run / CONFIG_FILE).read_text() == before


@pytest.fixture
def copy(images_root, tmp_path):
    """Data that a test may change."""
    return Path(shutil.copytree(images_root, tmp_path / "copy"))


@pytest.mark.parametrize("extend", [False, True])
def test_data_that_were_moved_are_read_where_they_are_now(extend, copy, tmp_path, went_on):
    run = write_run(tmp_path / "run", search_file(copy), [trial(0, 85.0, 62.0)])
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"copy"):
        go_on(run, [], extend)
    go_on(run, [f"trial.data.root={moved}"], extend)
    (first,) = went_on
    assert first == search_file(moved)
    assert first.trial_config({LR: 1e-3}).data.root == str(moved)
    assert first.reference_config("ft").data.root == str(moved)


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_data_that_have_changed_are_refused_with_the_domain_and_split(
    extend, moved, copy, run, went_on
):
    elsewhere = [f"trial.data.root={copy}"]
    if not moved:
        write_config(run, load_config(run / CONFIG_FILE, elsewhere))
    before = (run / CONFIG_FILE).read_text()
    swap_classes(copy, "sketch", "val")
    with pytest.raises(ConfigError) as caught:
        go_on(run, elsewhere if moved else [], extend)
    assert (caught.value.key, caught.value.value) == ("trial.data.root", str(copy))
    assert "'sketch/val' changed" in caught.value.problem
    assert went_on == []
    assert (run / CONFIG_FILE).read_text() == before


def test_a_model_that_has_changed_is_refused_with_its_file(images_root, tmp_path, went_on):
    model = tiny_models.write_config(tmp_path, "clip")
    file = search_file(images_root, trial__model={"name": str(model), "pretrained": "random"})
    run = write_run(tmp_path / "run", file, [trial(0, 85.0, 62.0)])
    (run / "environment.json").write_text(json.dumps(environment(file.trial)))
    resume_search(run)
    model.write_text(model.read_text().replace('"layers": 2', '"layers": 3'))
    for go_on in (resume_search, extend_search, confirm):
        with pytest.raises(ConfigError, match=f"'{model}' changed since") as caught:
            go_on(run)
        assert caught.value.key == "trial.model.name"
    assert len(went_on) == 1


@pytest.mark.parametrize(
    ("file_name", "plugin", "changed"),
    [
        ("changed_file.py", "{folder}/changed_file.py", "{folder}/changed_file.py"),
        ("changed_module.py", "changed_module", "changed_module"),
        ("changed_package/method.py", "changed_package", "changed_package/method.py"),
    ],
)
def test_a_plugin_that_has_changed_is_refused_with_its_file(
    file_name, plugin, changed, images_root, tmp_path, monkeypatch
):
    path = tmp_path / file_name
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text("WEIGHT = 1\n")
    plugin, changed = (text.format(folder=tmp_path) for text in (plugin, changed))
    monkeypatch.syspath_prepend(tmp_path)
    config = search_file(images_root, trial__plugins=[plugin]).trial
    (tmp_path / "environment.json").write_text(json.dumps(environment(config)))
    check_same_inputs(tmp_path, config)
    path.write_text("WEIGHT = 1000\n")
    with pytest.raises(ConfigError, match=f"'{changed}' changed since") as caught:
        check_same_inputs(tmp_path, config)
    assert caught.value.key == "trial.plugins"


def test_a_run_that_does_not_say_what_data_it_saw_goes_on_and_that_is_told(run, went_on, caplog):
    resume_search(run)
    assert caplog.messages == []
    for left in ("{}", None):
        if left is None:
            (run / "environment.json").unlink()
        else:
            (run / "environment.json").write_text(left)
        resume_search(run)
        (told,) = caplog.messages
        assert told.startswith(f"{run} does not record its data")
        caplog.clear()
    assert len(went_on) == 3


@pytest.mark.parametrize(
    ("section", "key", "edited", "original"),
    [
        ("trial", "trial.seed", 1, 0),
        (
            "search.objective",
            "search.objective",
            [{"metric": "id_val/acc"}],
            [{"metric": "val/mean_acc"}],
        ),
        ("search.constraints", "search.constraints", ["id_val/acc>=9"], []),
    ],
)
def test_a_search_yaml_that_was_edited_is_refused(section, key, edited, original, run, went_on):
    edit(run, **{key: edited})
    for extend in (False, True):
        with pytest.raises(ConfigError, match=rf"search\.yaml: {section} differs"):
            go_on(run, [], extend)
    edit(run, **{key: original})
    resume_search(run)
    assert len(went_on) == 1


def test_an_edited_space_is_for_extend(run, went_on):
    parameters = yaml.safe_load((run / CONFIG_FILE).read_text())["search"]["space"]["parameters"]
    edit(run, search__space__parameters={**parameters, LR: {**parameters[LR], "high": 1e-3}})
    with pytest.raises(ConfigError, match=r"search\.space differs.*`lipsum-tune extend`"):
        resume_search(run)
    extend_search(run)
    assert len(went_on) == 1


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

    def refuse(_):
        raise ConfigError("no driver")

    monkeypatch.setattr(run_search, "create_run_folder", create)
    if not is_taken:
        monkeypatch.setattr(run_search, "check_drivers", refuse)
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
    images_root, tmp_path, went_on
):
    first = named(images_root, tmp_path)
    other = named(images_root, tmp_path, trial__optim__weight_decay=0.3)
    assert earlier_run(first, tmp_path) is None
    write_run(tmp_path / "mine", first, [trial(0, 85.0, 62.0)])
    assert earlier_run(other, tmp_path) is None  # a new one, and not that
    write_run(tmp_path / "mine-2", other, [trial(0, 85.0, 62.0)])
    assert earlier_run(first, tmp_path) == tmp_path / "mine"
    assert earlier_run(other, tmp_path) == tmp_path / "mine-2"
    more = named(images_root, tmp_path, search__budget__trials=77)
    assert earlier_run(more, tmp_path) == tmp_path / "mine"
    config = write_run(tmp_path / "mine-3", first, [trial(0, 85.0, 62.0)]) / CONFIG_FILE
    config.write_text("trial: {key_of_another_version: 1}")
    assert earlier_run(more, tmp_path) == tmp_path / "mine"
    search_or_resume(more)
    assert [file.search.budget.trials for file in went_on] == [77]


def test_a_run_that_was_killed_before_it_began_begins(images_root, tmp_path, went_on):
    file = named(images_root, tmp_path)
    write_run(tmp_path / "mine", file, []).joinpath(JOURNAL_FILE).unlink()
    search_or_resume(file)
    assert went_on == [file]


def test_earlier_runs_are_found_from_another_folder(images_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = named(images_root, tmp_path, search__warm_start__runs=["before"])
    write_run(tmp_path / "runs" / "before", named(images_root, tmp_path), [trial(0, 85.0, 62.0)])
    write_run(tmp_path / "mine", file, [trial(0, 85.0, 62.0)])
    write_config(tmp_path / "mine", file)
    kept = load_run(tmp_path / "mine").file.search.warm_start.runs
    assert kept == (str(tmp_path / "runs" / "before"),)
    assert earlier_run(file, tmp_path) == tmp_path / "mine"
