"""The command as a user types it: its words, its exit status."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from cluster.cli import app as whole
from tests.disks import make_read_only, small_disk
from tests.images import write_photo_and_sketch
from tests.tuning import fakes
from tests.tuning.run_folders import search_file, trial, write_run
from trainers.checkpoints.format import saved_step
from trainers.errors import ConfigError, StorageFailed
from tuning import resume
from tuning import search as run_search
from tuning.cli import app, main, run_command
from tuning.config.loading import find_config, ready_configs
from tuning.config.validation import load_config
from tuning.runs.journal import Journal
from tuning.runs.run_folder import CONFIG_FILE, load_run, write_config
from tuning.search import SearchResult
from tuning.views.callback import write_results


def lipsum_tune(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "tuning", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})


def searched(root, folder, **changes):
    """`search` with the file `mine.yaml`."""
    file = search_file(root, search__storage=str(folder / "runs"), **changes)
    (folder / "mine.yaml").write_text(yaml.safe_dump(file.model_dump(mode="json")))
    return invoke("search", folder / "mine.yaml")


@pytest.fixture
def run(images_root, tmp_path):
    """A finished search: a reference, three trials that ended in three ways."""
    pruned = trial(1, 84.0, 61.0, lr=2e-4)
    records = [
        fakes.reference(),
        trial(0, 85.0, 62.0),
        replace(pruned, outcome="pruned", curve=pruned.curve[:2]),
        trial(2, 80.0, 50.0, outcome="failed", error="OutOfMemoryError: too big", curve=()),
    ]
    return write_run(tmp_path / "runs" / "mine", search_file(images_root), records)


def test_every_help_states_what_and_has_an_example():
    for name, command in get_command(whole).commands.items():
        if command.hidden:
            continue
        first, *rest = str(command.help).splitlines()
        assert first.endswith("."), name
        assert any(line.startswith(f"Example: lipsum-tune {name}") for line in rest), name


def test_version_is_that_of_the_package():
    shown = invoke("--version")
    assert (shown.exit_code, shown.output) == (0, f"lipsum-tune {version('lipsum-tune')}\n")


def test_schema_accepts_the_ready_configurations():
    schema = json.loads(invoke("schema").output)
    optim = schema["$defs"]["OptimConfig"]["properties"]
    assert optim["lr"]["description"] == "Peak learning rate."
    keys = schema["properties"].keys()
    assert keys == {"extends", "plugins", "trial", "search"}
    for name in ready_configs():
        jsonschema.validate(yaml.safe_load(find_config(name).read_text()), schema)
    few = {"objective": {"metric": "val/mean_acc"}, "constraints": "id_val/acc >= best - 0.5"}
    jsonschema.validate({"search": few | {"space": {"methods": "all"}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"trial": {"stepz": 5}}, schema)


def test_config_prints_what_load_config_reads(tmp_path):
    done = invoke("config", "quickstart", "--set", "trial.steps=7")
    (tmp_path / "printed.yaml").write_text(done.output)
    expected = load_config("quickstart", ["trial.steps=7"], check=False)
    assert load_config(tmp_path / "printed.yaml", check=False) == expected


def test_status_as_json_has_null_where_a_trial_diverged(images_root, tmp_path):
    bad = fakes.trial(0, outcome="pruned", curve=(fakes.report(40, 80.0, math.nan),))
    run = write_run(tmp_path / "mine", search_file(images_root), [bad])
    shown = invoke("status", run, "--json").output
    found = json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["name"], found["state"]) == ("mine", "finished")
    (shown_trial,) = found["trials"]
    assert (shown_trial["trial_id"], shown_trial["outcome"]) == ("trial-000", "pruned")
    metrics = shown_trial["metrics"]
    assert (metrics["id_val/acc"], metrics["val/mean_acc"]) == (80.0, None)


def test_list_shows_runs_and_ready_configurations(run, images_root):
    write_run(run.with_name("other"), search_file(images_root), outcome=None)
    (run.with_name("damaged")).mkdir()
    (run.with_name("damaged") / CONFIG_FILE).write_text("search: 3")
    relative = search_file(images_root, search__constraints=["id_val/acc >= zero_shot.id_val/acc"])
    write_run(run.with_name("relative"), relative, zero_shot={})
    shown = invoke("list", run.parent).output
    rows = {words[0]: words[1:] for line in shown.splitlines() if len(words := line.split()) > 3}
    assert rows["mine"][:4] == ["finished", "3/20", "73.5", "val/mean_acc"]
    assert rows["other"][:2] == ["killed", "0/20"]
    assert rows["damaged"][:2] == ["unreadable:", "ConfigError"]
    assert rows["relative"][:2] == ["unreadable:", "ConfigError"]
    assert {"quickstart", "imagenet_vit_b16"} <= rows.keys()


def test_a_run_is_found_by_its_name(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert "trial-000" in invoke("status", "mine").output
    assert load_run("mine").folder == run
    error = invoke("status", "mime").exception
    assert isinstance(error, ConfigError)
    assert error.hint == "did you mean 'mine'?"
    monkeypatch.chdir(run)
    error = invoke("status", "mine").exception
    assert isinstance(error, ConfigError)
    assert error.hint == f"there are no runs in {run}/runs"


def test_ui_refuses_a_port_in_use(run, monkeypatch):
    (run.parent / "mlflow.db").touch()
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke("ui", run, "--port", port)
    assert isinstance(done.exception, ConfigError)
    assert (done.exception.key, done.exception.value) == ("--port", port)


def test_ui_refuses_a_port_that_does_not_exist(run):
    for port in (-1, 99999):
        done = invoke("ui", run, "--port", port)
        assert (done.exit_code, "equal to" in done.stderr) == (2, True)


@pytest.mark.parametrize("of_all", [False, True])
@pytest.mark.parametrize("configured", [False, True])
def test_ui_without_a_database_names_the_server(
    configured, of_all, images_root, tmp_path, monkeypatch
):
    uri = "http://ann:pa55@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere" if configured else uri)
    named = uri.replace("pa55", "${PASSWORD}")
    file = search_file(images_root, search__tracking__uri=named if configured else None)
    run = write_run(tmp_path / "mine", file)
    error = invoke("ui", tmp_path if of_all else run).exception
    assert isinstance(error, ConfigError)
    assert error.hint == "searches are recorded at http://***@host:5000"


def test_ui_says_first_what_it_starts(tmp_path, monkeypatch):
    def start(command, **_):
        options = dict(pairwise(command))
        assert options["--registry-store-uri"] == options["--backend-store-uri"]
        print("MLflow's own lines")
        raise SystemExit

    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    first, second = invoke("ui", tmp_path, "--port", "0").output.splitlines()
    assert first == f"Starting    MLflow for {tmp_path}"
    assert second == "MLflow's own lines"


@pytest.mark.usefixtures("went_on")
def test_brackets_in_a_path_are_printed(images_root, tmp_path):
    run = write_run(tmp_path / "runs" / "[bold]x[/red]", search_file(images_root))
    done = invoke("resume", run)
    assert f"{run}/report/index.html\n" in done.output


def test_debug_shows_the_traceback_before_the_line(tmp_path):
    done = lipsum_tune("--debug", "status", "nowhere", cwd=tmp_path)
    first, *_, last = done.stderr.splitlines()
    assert (done.returncode, first) == (2, "Traceback (most recent call last):")
    assert last.startswith("lipsum-tune: nowhere: not a run folder")


def test_train_runs_one_trial_without_ray(images_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "one.yaml"
    trial = {"data": {"root": str(images_root)}, "optim": {"batch_size": 8}, "steps": 2}
    config.write_text(yaml.safe_dump({"trial": trial}))
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("started Ray"))
    done = invoke("train", config, "--output", "out")
    assert done.exit_code == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert (tmp_path / "out" / "student.safetensors").is_file()
    assert yaml.safe_load((tmp_path / "out" / "trial.yaml").read_text())["steps"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.yaml", "out"]
    again = invoke("train", config, "--output", tmp_path / "out")
    assert again.output == ""
    assert f"{tmp_path}/out: exists already: choose another --output" in str(again.exception)


def test_a_training_on_a_full_disk_keeps_its_last_checkpoint(images_root, tmp_path, monkeypatch):
    saved = iter([torch.save])

    def save(*args):
        next(saved, full)(*args)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    settings = [f"trial.data.root={images_root}", "trial.steps=2", "trial.eval.every=1"]
    settings += ["trial.optim.batch_size=8", "trial.method.text_length=4"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(
        app, ["train", "quickstart", *overrides, "--output", str(tmp_path / "out")]
    )
    assert isinstance(done.exception, StorageFailed)
    assert saved_step(tmp_path / "out") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("went_on")
def test_a_search_says_first_what_confirm_will_lack(images_root, tmp_path):
    data = shutil.copytree(images_root, tmp_path / "images")
    shutil.rmtree(data / "sketch" / "test")
    said = searched(data, tmp_path).stderr
    assert "no test split, which `confirm` needs: sketch (" in said


def test_ctrl_c_outside_of_the_trials_says_how_to_go_on(run, images_root, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    for module in (run_search, resume):
        monkeypatch.setattr(module, "continue_search", interrupt)
    for done in (
        searched(images_root, tmp_path),
        invoke("resume", run),
        invoke("resume", run, "--trials", "+1"),
    ):
        assert done.exit_code == 130
        assert done.stderr.startswith("warning: stopped; ")
        assert "`lipsum-tune resume RUN` continues one" in done.stderr


@pytest.mark.usefixtures("went_on")
@pytest.mark.parametrize(
    "used",
    [
        {},
        {"constraints": ["ood_val/mean_acc >= best - 2"]},
        {"sampler": {"metric": "val/mean_nll"}},
        {"objective": {"metric": "val/mean_nll", "mode": "min"}},
        {"objective": [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]},
    ],
)
def test_a_search_says_first_where_it_uses_ood_data(used, images_root, tmp_path):
    changes = {"objective": {"metric": "id_val/acc"}} | used
    said = searched(
        images_root, tmp_path, **{f"search__{key}": value for key, value in changes.items()}
    ).output
    assert said.count("uses OOD validation data") == len(used)
    if "objective" in used:  # its hint is an override that avoids that
        _, override = shlex.split(said.partition("data (")[2].partition(" avoids")[0])
        told = load_config(tmp_path / "mine.yaml", [override], check=False)
        assert [(o.metric, o.mode) for o in told.objectives] == [("id_val/acc", "max")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "no-such.yaml"), "no-such.yaml: no such file"),
        (("search", "quickstart", "--set", "trial.optim.lrr=1"), "did you mean 'lr'"),
        (("train", "quickstart", "--set", "trial.data.root=/nowhere"), "no such folder"),
        (("search", "quickstart", "--set", "search.objective.metric=acc"), "never reported"),
        (("ui", "nowhere"), "run a search first"),
        *(
            ((command, "nowhere", *more), "nowhere: not a run folder")
            for command, *more in (
                ["resume"],
                ["resume", "--trials", "+3"],
                ["status"],
                ["confirm"],
                ["export", "--output", "out"],
                ["export", "--output", "out", "--soup", "greedy"],
            )
        ),
        (("export", "RUN", "--output", "out"), "the weights of trial-000 (finished)"),
        (("export", "RUN"), "give --output FOLDER, --register NAME or both"),
        (("export", "RUN", "--output", "out", "--soup", "greedy"), "keep_top = 5"),
        (("soup", "RUN", "--name", "greedy"), "`soup` is now `export`"),
        (("plan", "no-such.yaml"), "no-such.yaml: no such file"),
        (("resume", "RUN", "--set", "trial.steps"), "write it as key=value"),
        (("resume", "RUN", "--set", "trial.seed=9"), "start a new search"),
        (("resume", "RUN", "--trials", "+x"), "write a number, or +8"),
        (("extend", "RUN", "--trials", "8"), "`extend` is now `resume`"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    said: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is started, and nothing made."""
    monkeypatch.chdir(run.parent)
    words = [str(run) if word == "RUN" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["lipsum-tune", *words])
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    shown = capsys.readouterr()
    lines = shown.out.splitlines()  # printed before what takes seconds to import
    assert all(line.startswith(("Search  ", "Resume  ", "Checking  ")) for line in lines)
    assert shown.err.startswith("lipsum-tune: ")
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert sorted(run.parent.rglob("*")) == before


def make_huge(path):
    path.touch()
    os.truncate(path, (64 << 20) + 1)
    return path


TEXTS = ("--set", "trial.method.text_source=file", "--set", "trial.method.texts_file={}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "quickstart", *TEXTS), "texts_file = '{}': "),
        (("prepare", "folders", "in", "out", "--class-names", "{}"), "--class-names = '{}': "),
        (("zero-shot", "quickstart", "--expect", "{}"), "--expect = '{}': "),
    ],
)
def test_a_text_file_without_end_is_refused(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.png").touch()
    huge = make_huge(tmp_path / "huge.txt")
    for file, problem in ((str(huge), "larger than 64 MiB"), ("/dev/null", "not a regular file")):
        error = invoke(*(word.format(file) for word in arguments)).exception
        assert isinstance(error, ConfigError)
        assert f"{said.format(file)}{problem}" in str(error)
        assert len(str(error).splitlines()) == 1


def test_a_configuration_without_end_is_refused(tmp_path):
    file, above = make_huge(tmp_path / "huge.yaml"), tmp_path / "above.yaml"
    above.write_text("extends: huge.yaml")
    for path in (file, above):
        error = invoke("search", path).exception
        assert isinstance(error, ConfigError)
        assert str(error).endswith(f"{file}: larger than 64 MiB")


LONG = "a very long name of a class " * 6


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("cafe\u0301", "caf\u00e9"), r"'cafe\u0301' and 'caf\xe9'"),
        (("R&B", "R&amp;B"), "'R&B' and 'R&amp;B'"),
    ],
)
def test_classes_that_a_tokenizer_cannot_tell_apart_are_refused(names, shown, tmp_path):
    root = write_photo_and_sketch(tmp_path / "data", names)
    data = {"root": str(root), "id_domain": "photo", "ood_domains": ["sketch"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trial": {"data": data}}))
    for command in ("zero-shot", "search"):
        error = invoke(command, tmp_path / "mine.yaml").exception
        assert isinstance(error, ConfigError), command
        assert f"the classes {shown} are both called" in str(error)
        assert "Unicode form (NFC or NFD) and HTML entities" in str(error)
        assert len(str(error).splitlines()) == 1


def test_classes_with_the_same_tokens_are_refused(tmp_path):
    root = write_photo_and_sketch(tmp_path / "data", [f"{LONG}one", f"{LONG}two"])
    data = {"root": str(root), "id_domain": "photo", "ood_domains": ["sketch"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trial": {"data": data}}))
    error = invoke("zero-shot", tmp_path / "mine.yaml").exception
    assert isinstance(error, ConfigError)
    assert f"'{LONG}one' and '{LONG}two' the same tokens" in str(error)


@pytest.mark.parametrize("command", ["search", "zero-shot", "config"])
def test_a_plugin_that_ends_the_process_is_a_mistake(command: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    done = lipsum_tune(command, "quickstart", "--set", "plugins=[script.py]", cwd=tmp_path)
    assert done.returncode == 2
    assert "ends the process when it is imported (SystemExit: 0)" in done.stderr
    assert f"plugins = '{tmp_path}/script.py'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_installed_plugin_that_ends_the_process_is_a_mistake(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit('no \\n GPU')\n")
    installed = tmp_path / "script-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: script\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[lipsum_tune.methods]\nscript = script\n")
    done = lipsum_tune("config", "quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "entry point 'script' of lipsum_tune.methods: ends the process" in done.stderr
    assert "(SystemExit: no )" in done.stderr


def test_ctrl_c_in_a_plugin_is_no_mistake(tmp_path):
    (tmp_path / "script.py").write_text("raise KeyboardInterrupt\n")
    done = lipsum_tune("config", "quickstart", "--set", "plugins=[script.py]", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


TOO_LONG = "x" * 300
UNFORESEEN = " (--debug shows the traceback)"


@pytest.mark.parametrize(
    ("arguments", "file", "status", "said"),
    [
        ("config FILE", "trial: {steps: 3} # \x1b[0m", 2, "unacceptable character #x001b"),
        ("config quickstart --set trial.data.root=\x1b", "", 2, "unacceptable character #x001b"),
        ("config FILE", 'trial: {data: {root: "\\ud800"}}', 2, "or half of a surrogate pair"),
        ("config FILE", "trial: {steps: !!timestamp xx}", 2, "not of the type of its tag"),
        ("config FILE", "trial: {steps: !!bool xx}", 2, "not of the type of its tag"),
        (f"config quickstart --set trial{'.a' * 5000}=3", "", 70, "RecursionError: "),
        (f"config {TOO_LONG}", "", 70, "OSError: [Errno 36] File name too long"),
        (f"status {TOO_LONG}", "", 70, "OSError: [Errno 36] File name too long"),
        (f"search FILE --set search.warm_start.runs={TOO_LONG}", "", 70, "File name too long"),
        ("status RUN", "journal.jsonl", 2, "line 27 is damaged"),
        ("report RUN", "journal.jsonl", 2, "line 27 is damaged"),
        (
            "prepare domainnet mine ../out",
            "lists",
            2,
            "line 1 is not `real/<class>/<file> <label>`",
        ),
    ],
)
def test_odd_input_is_one_line(arguments, file, status, said, run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    if file == "journal.jsonl":
        with (run / file).open("a") as journal:
            journal.write('{"event": "zero_shot", "time": 1, "metrics": {"id_val/acc": "abc"}}\n')
    elif file == "lists":
        for split in ("train", "test"):
            (run / f"real_{split}.txt").write_text(f"real/tiger/a.jpg {'9' * 5000}\n")
    else:
        Path("mine.yaml").write_text(file or "{}")
    named = {"RUN": str(run), "FILE": "mine.yaml"}
    words = [named.get(word, word) for word in arguments.split(" ")]
    monkeypatch.setattr(sys, "argv", ["lipsum-tune", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    shown = capsys.readouterr().err
    assert shown.startswith("lipsum-tune: ")
    assert said in shown
    assert len(shown.splitlines()) == 1
    assert len(shown) < 700
    assert (caught.value.code, shown.endswith(f"{UNFORESEEN}\n")) == (status, status == 70)


def test_a_report_without_the_number_of_images_is_written(run):
    (run / "environment.json").write_text('{"val_images": 5}')
    assert invoke("report", run).exit_code == 0


def test_an_unforeseen_error_is_short_and_holds_no_secret(capsys):
    def fail():
        raise RuntimeError(f"https://me:hunter2@host {'x' * 10_000}\nmore")

    with pytest.raises(SystemExit) as caught:
        run_command(fail)
    shown = capsys.readouterr().err
    assert shown == f"lipsum-tune: RuntimeError: https://***@host {'x' * 183}...{UNFORESEEN}\n"
    assert caught.value.code == 70


def test_ctrl_c_is_status_130_and_prints_nothing(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(interrupt)
    assert (caught.value.code, capsys.readouterr().err) == (130, "")


def test_a_closed_pipe_ends_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tuning", "config", "quickstart"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""


def test_status_shows_the_leaderboard_and_writes_nothing(run):
    before = sorted(run.rglob("*"))
    shown = invoke("status", run)
    assert shown.exit_code == 0, shown.output
    for text in ("trial-000", "85.0", "trial-001", "pruned", "trial-002", "zero-shot", "too big"):
        assert text in shown.output
    assert shown.output.splitlines()[-1] == "State       finished"
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("outcome", "state"), [("stopped", "stopped"), (None, "killed; resume it")]
)
def test_status_says_how_a_search_was_left(outcome, state, images_root, tmp_path):
    run = write_run(tmp_path / "run", search_file(images_root), outcome=outcome)
    driver = Journal(run)
    assert "State       running" in invoke("status", run).output
    driver.close()
    assert f"State       {state}" in invoke("status", run).output


def test_status_before_the_zero_shot_model_is_evaluated(images_root, tmp_path):
    run = write_run(tmp_path / "mine", search_file(images_root), zero_shot=None, outcome=None)
    with closing(Journal(run)):
        shown, as_json = invoke("status", run), invoke("status", run, "--json")
    assert (shown.exit_code, as_json.exit_code) == (0, 0)
    assert shown.output == "State       running, evaluating the zero-shot model\n"
    found = json.loads(as_json.output)
    assert (found["name"], found["state"], found["zero_shot"]) == ("mine", "running", {})
    assert invoke("status", run).exception.hint == "resume it"


@pytest.mark.parametrize("is_closed", [True, False])  # a driver still writes to MLflow
def test_report_at_the_end_of_a_search_shows_its_end(is_closed, run, monkeypatch):
    last = trial(3, 86.0, 63.0)
    driver = Journal(run)
    driver.session_started({})
    driver.trial_started(last)
    states = []

    def write_later(search, records, *arguments, **more):
        if not states:  # the search ends after its state was read
            driver.trial_ended(replace(last, outcome="failed"))
            driver.session_ended("finished")
            if is_closed:
                driver.close()
        states.append(records[-1].outcome)
        return write_results(search, records, *arguments, **more)

    monkeypatch.setattr("tuning.confirmation.report.write_results", write_later)
    shown = invoke("report", run)
    driver.close()
    assert shown.exit_code == 0, shown.output
    assert states == ["running", "failed"]
    rows = pq.read_table(run / "trials.parquet").to_pylist()
    assert {row["trial_id"]: row["outcome"] for row in rows}["trial-003"] == "failed"
    assert ("MLflow" in shown.output) == is_closed


@pytest.fixture
def went_on(monkeypatch):
    """The configurations with which a search goes on; it ends at once, as with no budget left."""
    files = []

    def end_at_once(folder, file, *_):
        files.append(file)
        write_config(folder, file)
        return SearchResult(folder, file, load_run(folder).history, "finished", "uri")

    monkeypatch.setattr(resume, "continue_search", end_at_once)
    monkeypatch.setattr(run_search, "continue_search", end_at_once)
    return files


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (["trial.steps=40"], ""),
        (["trial.eval.every=500"],
         "trial.eval.every = 500: more than trial.steps = 120, so nothing is reported before the "
         "last step"),
    ],
)  # fmt: skip
def test_a_search_with_fewer_steps_than_its_file_begins(
    settings, warning, tmp_path, went_on, caplog
):
    overrides = [word for setting in settings for word in ("--set", setting)]
    done = invoke(
        "search", "quickstart", "--set", f"search.storage={tmp_path}", "--set",
        "trial.optim.batch_size=2", *overrides,
    )  # fmt: skip
    assert went_on, done.exception
    assert caplog.messages == ([warning] if warning else [])


def test_a_search_in_which_no_trial_finished_has_nothing_to_confirm(
    images_root, tmp_path, monkeypatch
):
    """The time was used up when only plain fine-tuning had finished."""
    records = [fakes.reference(), trial(0, 85.0, 62.0, outcome="stopped")]
    folder = write_run(tmp_path / "run", search_file(images_root), records)
    loaded = load_run(folder)
    budget = "search.budget.hours"
    ended = SearchResult(folder, loaded.file, loaded.history, "finished", "uri", budget)
    monkeypatch.setattr(run_search, "run_search", lambda *_, **__: ended)
    done = invoke("search", folder / CONFIG_FILE, "--name", "7")
    assert isinstance(done.exception, ConfigError)
    assert "no trial has finished; resume it with a larger budget" in str(done.exception)
    assert "Next" not in done.output


def test_resume_adds_trials(run, went_on):
    there = load_run(run).file.search.budget.trials
    ended = invoke("resume", run, "--trials", "+4")
    assert [file.search.budget.trials for file in went_on] == [there + 4]
    assert load_run(run).file == went_on[0]
    assert ended.exit_code == 1  # one of the trials that are there failed
    invoke("resume", run, "--trials", "9", "--set", "search.sampler.name=random")
    assert went_on[1].search.budget.trials == 9
    assert went_on[1].search.sampler.name == "random"


def test_a_search_with_nothing_left_ends_in_order(run, went_on):
    done = invoke("resume", run, "--set", "search.budget.trials=2")
    assert [file.search.budget.trials for file in went_on] == [2]
    assert done.output.startswith("Resume      search: 2 trials of 240 steps, ")
    assert f"Report      {run / 'report' / 'index.html'}" in done.output
    assert f"Next        lipsum-tune confirm {run} " in done.output
    assert f"            lipsum-tune export {run} --output model " in done.output
    assert yaml.safe_load((run / CONFIG_FILE).read_text())["search"]["budget"]["trials"] == 2


@pytest.mark.nightly
@pytest.mark.parametrize("command", [("report",), ("resume", "--trials", "+3"), ("resume",)])
def test_a_run_folder_that_cannot_be_written_is_one_line(
    command: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        shutil.move(run, disk / "mine")
        make_read_only(disk)
        done = lipsum_tune(command[0], str(disk / "mine"), *command[1:], cwd=tmp_path)
    assert done.returncode == 75
    assert "Read-only file system" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
