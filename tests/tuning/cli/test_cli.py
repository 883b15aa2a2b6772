"""The command as a user types it: its words, its exit status."""

import errno
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import jsonschema
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from cluster.cli import app as whole
from tests.conftest import CLASSES
from tests.images import write_photo_and_sketch
from tests.tuning import fakes
from tests.tuning.run_folders import edit_journal, search_file, trial, write_run
from trainers.checkpoints.format import saved_step
from trainers.data.dataset import ImageDataset
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError, StorageFailed
from trainers.overrides import LR_KEY
from tuning import search as run_search
from tuning.cli import app, run_command
from tuning.cli.runs import point_of
from tuning.config.loading import find_config, ready_configs
from tuning.config.validation import load_config
from tuning.log.folder import write_config
from tuning.log.journal import Journal
from tuning.log.paths import CONFIG_FILE
from tuning.log.resume import earlier_run
from tuning.run import load_run
from tuning.search import SearchResult


def invoke(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})


def searched(root, folder, **changes):
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


def test_every_command_explains_itself_at_h_and_by_an_example():
    assert "--help" in CliRunner().invoke(whole, ["-h"]).output
    for name, command in get_command(whole).commands.items():
        short, long = (CliRunner().invoke(whole, [name, word]).output for word in ("-h", "--help"))
        assert short == long
        first, *rest = str(command.help).splitlines()
        assert first.endswith("."), name
        assert any(line.startswith(f"Example: lipsum-tune {name}") for line in rest), name


def test_schema_accepts_the_ready_configurations():
    schema = json.loads(invoke("config", "--schema").output)
    optim = schema["$defs"]["OptimConfig"]["properties"]
    assert optim["lr"]["description"] == "Peak learning rate."
    keys = schema["properties"].keys()
    assert keys == {"version", "extends", "plugins", "trial", "search"}
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
    done = invoke("config", "quickstart", "--set", "search.objective.metric=val/mean_ac")
    said = str(done.exception)
    assert said.startswith("--set: search.objective.metric = 'val/mean_ac': ")
    assert "did you mean 'val/mean_acc'" in said
    listed = {line.split(" ")[0] for line in invoke("config").output.splitlines()}
    assert {*ready_configs()} <= listed


def test_report_without_a_run_lists_all(run, images_root, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    write_run(run.with_name("other"), search_file(images_root), outcome=None)
    (run.with_name("damaged")).mkdir()
    (run.with_name("damaged") / CONFIG_FILE).write_text("search: 3")
    relative = search_file(images_root, search__constraints=["id_val/acc >= zero_shot.id_val/acc"])
    write_run(run.with_name("relative"), relative, zero_shot={})
    rows = {
        words[0]: words[1:]
        for line in invoke("report").output.splitlines()
        if (words := line.split())
    }
    assert rows["mine"][:4] == ["finished", "3/20", "73.5", "val/mean_acc"]
    assert rows["other"][:2] == ["killed", "0/20"]
    assert rows["damaged"][0] == "unreadable:"
    assert rows["relative"][0] == "unreadable:"


def test_report_shows_searches_side_by_side(run, images_root):
    other = search_file(images_root, trial__optim__batch_size=4, search__budget__trials=7)
    better = write_run(run.with_name("better"), other, [trial(4, 88.0, 60.0, lr=3e-4)])
    before = sorted(run.parent.rglob("*"))
    rows = {
        tuple(line.split("  ")[0].split()): line.split()
        for line in invoke("report", run, better).output.splitlines()
    }
    assert rows[("trials",)] == ["trials", "3/20", "1/7"]
    assert rows[("value",)] == ["value", "73.5", "74"]
    assert rows["ID,", "best"][2:] == ["85.0", "88.0"]
    assert rows["OOD,", "best"][2:] == ["62.0", "60.0"]
    assert rows[("trial.optim.batch_size",)][1:] == ["8", "4"]
    assert ("trial.steps",) not in rows
    assert sorted(run.parent.rglob("*")) == before
    suite = {"id_domain": "real", "ood_domains": [*reversed(fakes.DOMAINS)]}
    reordered = search_file(images_root, trial__data__suite=suite)
    of_same = write_run(run.with_name("reordered"), reordered, [trial(4, 88.0, 60.0)])
    assert "cannot be compared" not in invoke("report", run, of_same).output
    suite = {"id_domain": "real", "ood_domains": ["sketch"], "templates": ["a {}."]}
    elsewhere = search_file(images_root, trial__data__suite=suite)
    of_others = write_run(run.with_name("elsewhere"), elsewhere, [trial(4, 88.0, 60.0)])
    shown = invoke("report", run, of_others).output
    assert shown.startswith("These runs have different domains")
    assert "suite.templates" not in shown


@pytest.fixture
def running(images_root, tmp_path):
    """A search with one running trial, whose journal is locked."""
    file = search_file(images_root, search__budget__trials=2)
    run = write_run(tmp_path / "run", file, [trial(0, 85.0, 62.0)], outcome=None)
    with closing(Journal(run)) as driver:
        driver.session_started({})
        driver.trial_started(trial(1, 0, 0, curve=(), outcome="running"))
        yield run


def test_control_writes_orders_with_whole_points(running):
    words = ("--stop", "1", "--enqueue", "lr=3e-4", "--end")
    done = invoke("control", running, *words)
    assert done.stderr.startswith("warning: all 2 trials have begun: the point is")
    sent = [json.loads(path.read_text()) for path in sorted((running / "control").iterdir())]
    point = {"optim.lr": 3e-4, "method.reg_weight": 1.0}
    assert sent == [{"stop": "trial-001"}, {"enqueue": point}, {"end": True}]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stop 0", "--stop = '0': no running trial (running: trial-001)"),
        ("--end --enqueue lr=1", "optim.lr=1 is outside 1e-06 .. 0.01"),
        ("--enqueue lrr=1e-4", "--enqueue lrr = '1e-4': not searched (did you mean 'lr'?)"),
        ("--enqueue lr=fast", "optim.lr='fast' is not a finite number"),
        ("", "give --stop TRIAL, --enqueue POINT or --end"),
    ],
)
def test_control_refuses_what_is_wrong_and_writes_nothing(words, said, running):
    assert said in str(invoke("control", running, *words.split()).exception)
    assert not (running / "control").exists()


def test_control_enqueues_a_point_of_one_of_several_methods():
    space = load_config("quickstart", ["search.space={methods: [ft, l2_sp]}"], check=False)
    found = point_of("method=ft,lr=1e-5", space.spaces)
    assert found == {"method.name": "ft", "optim.lr": 1e-5}
    with pytest.raises(ConfigError, match="known: ft, l2_sp"):
        point_of("lr=1e-5", space.spaces)


def test_a_run_is_found_by_its_name(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert "trial-000" in invoke("report", "mine", "--json").output
    assert load_run("mine").folder == run
    error = invoke("report", "mime").exception
    assert error.hint == "did you mean 'mine'?"
    monkeypatch.chdir(run)
    error = invoke("report", "mine", "--json").exception
    assert error.hint == f"there are no runs in {run}/runs"


def test_ui_refuses_a_port_in_use(run, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started"))
    (run.parent / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = invoke("ui", run, "--port", port)
    assert (done.exception.key, done.exception.value) == ("--port", port)


POSTGRES = "postgresql+psycopg://optuna:${SECRET}@127.0.0.1/optuna"


@pytest.mark.parametrize("study", [None, POSTGRES], ids=["file", "database"])
def test_ui_links_what_it_does_not_serve(study, images_root, tmp_path, monkeypatch):
    """MLflow of a server is a link without its password, Optuna's dashboard a command."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pa55@host:5000")
    monkeypatch.setenv("DISPLAY", ":0")
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = write_run(tmp_path / "mine", search_file(images_root, search__study_storage=study))
    page = (run / "report" / "index.html").as_uri()
    done = invoke("ui", tmp_path)
    storage = f'"{study}"' if study else f"{run}/optuna.journal"
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()] == [
        ["Report", page],
        ["MLflow", "http://***@host:5000"],
        ["Dashboard", f"optuna-dashboard --host 127.0.0.1 {storage}"],
    ]
    assert (done.exit_code, opened) == (0, [page])


def test_debug_shows_the_traceback_before_the_line(tmp_path):
    command = [sys.executable, "-m", "tuning", "--debug", "report", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
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
    done = invoke("train", "quickstart", *overrides, "--output", tmp_path / "out")
    assert isinstance(done.exception, StorageFailed)
    assert saved_step(tmp_path / "out") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("went_on")
def test_a_search_says_first_what_confirm_will_lack_and_what_it_searches(images_root, tmp_path):
    data = shutil.copytree(images_root, tmp_path / "images")
    shutil.rmtree(data / "sketch" / "test")
    rows = [LabelledImage(b"not decoded", "a.png", label) for label in (*range(3), *range(5, 8))]
    write_images(part_path(data, "sketch", "val"), rows, CLASSES)
    row = "real/train,sketch/val,{0}.png,{0}.png\n"
    (data / "duplicates.csv").write_text("header\n" + "".join(map(row.format, range(2))))
    done = searched(data, tmp_path, trial__eval__line="auto")
    assert f"! sketch: no images of 2 of 8 classes: {CLASSES[3]}, {CLASSES[4]}\n" in done.stderr
    assert "! real/train and sketch/val: 2 images are byte for byte the same" in done.stderr
    assert "no test split, which `confirm` needs: sketch (" in done.stderr
    few = re.search(r"fewer than 100 validation images .* by: real (\d+), .*sketch 6 ", done.stderr)
    assert int(few[1]) == len(ImageDataset(data, "real", "val"))
    assert re.search(r"Space +.*reg_weight 0.01 to 100 \(log\)", done.stdout)


@pytest.mark.parametrize(
    ("optim", "parameters", "lr", "ends"),
    [
        # The rule for 1.07 million parameters, by hand: 1e-5 * (86.2 / 1.07 * 5000 / 60) ** 0.5.
        ({}, {}, 8.2e-4, (8.2e-5, 8.2e-3)),
        ({"lr": 3e-4}, {}, 3e-4, (3e-5, 3e-3)),
        ({}, {LR_KEY: {"low": 1e-6, "high": 1e-2}}, 8.2e-4, (1e-6, 1e-2)),
        ({"lr": 3e-4}, {LR_KEY: {"low": 1e-6, "high": 1e-2}}, 3e-4, (1e-6, 1e-2)),
    ],
)
@pytest.mark.parametrize("compared", [[], ["ft", "lipsum_ft", "lora"]])
def test_the_learning_rate_and_its_range_follow_the_rule_where_none_is_given(
    optim, parameters, lr, ends, compared, went_on, images_root, tmp_path
):
    trial = {"model": {"name": "tiny-clip"}, "method": {"name": "lipsum_ft"}, "optim": optim}
    trial |= {"data": {"root": str(images_root), "ood_domains": ["sketch"]}, "steps": 60}
    space = {"methods": compared, "parameters": parameters}
    search = {"name": "mine", "storage": str(tmp_path / "runs"), "space": space}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"trial": trial, "search": search}))
    done = invoke("search", file)
    (found,) = went_on
    assert found.trial.optim.lr == lr
    part = found.spaces["lipsum_ft" if compared else None]
    assert (part.parameters[LR_KEY].low, part.parameters[LR_KEY].high) == ends
    assert part.initial_points[0][LR_KEY] == lr
    if compared and not parameters:  # what starts at zero has a range of its own
        assert found.spaces["lora"].parameters[LR_KEY].high == 1e-2
    rule = "" if optim else ", the first learning rate of this model in 60 steps"
    decade = "" if parameters else "; searched a decade to both sides"
    line = f"Rate        optim.lr = {lr:g}{rule}{decade}\n"
    assert (line in done.stdout) == bool(rule or decade)
    # The values are recorded, and a later session has the same ones.
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    write_config(run, found)
    assert load_config(run / CONFIG_FILE).spaces == found.spaces
    assert earlier_run(load_config(file), run.parent) == run


def test_ctrl_c_outside_of_the_trials_says_how_to_go_on(run, images_root, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_search, "continue_search", interrupt)
    for done, how in (
        (searched(images_root, tmp_path), "`lipsum-tune resume RUN` continues one"),
        (invoke("resume", run), f"`lipsum-tune resume {run}` continues it"),
    ):
        assert done.exit_code == 130
        assert done.stderr.startswith("warning: stopped; ")
        assert how in done.stderr


@pytest.mark.usefixtures("went_on")
@pytest.mark.parametrize(
    "used",
    [
        {},
        {"constraints": ["ood_val/mean_acc >= best - 2"]},
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


MISTAKES = [
    ("search no-such.yaml", "no-such.yaml: no such file"),
    ("plan quickstart --on ,", "--on = ',': names no GPU, such as L4"),
    ("plan quickstart --images 5", "--images: is for --on"),
    ("search bomb.yaml", "aliases repeat more than 10,000 values"),
    ("auto mine", "give one of --hours"),
    ("train quickstart --set trial.data.root=/nowhere", "no such folder"),
    ("config quickstart --set trial.data.root=\x1b", "unacceptable character #x001b"),
    ("config quickstart --set plugins=[ends.py]", "ends.py': cannot be imported: SystemExit"),
    ("prepare folders . out --class-names none.txt", "--class-names = 'none.txt': No such file"),
    ("prepare foldrs . out", "layout = 'foldrs'"),
    ("prepare folders . out --splits a=b", "splits"),
    ("prepare domainnet . out", "line 1 is not `real/<class>/<file> <label>`"),
    ("ui nowhere", "run a search first"),
    *(
        (f"{command} nowhere {more}".strip(), "nowhere: not a run folder")
        for command, more in (
            ("resume", ""),
            ("resume", "--trials +3"),
            ("report", ""),
            ("control", "--end"),
            ("confirm", ""),
            ("export", "--output out"),
        )
    ),
    ("report damaged", " is damaged"),
    ("report mine mine/report", "report: not a run folder"),
    ("confirm mine --seeds 1000000000", "--seeds = 1000000000: must be 2, for an interval, to"),
    ("export mine --output out", "the weights of trial-000 (finished)"),
    ("export mine", "give --output FOLDER, --register NAME or both"),
    ("export mine --output out --alpha 1", "--alpha = 1"),
    ("resume mine --set trial.steps", "write it as key=value"),
    ("resume mine --set trial.seed=9", "start a new search"),
    ("resume mine --trials +x", "write a number, or +8"),
    ("control mine --end", "it has finished (`lipsum-tune resume mine` continues it)"),
]
LONG = "x" * 300
FLIPPED = "journal.jsonl: line 13 is damaged"


@pytest.fixture
def folder(run, images_root, monkeypatch):
    """The current folder, with a run and odd files."""
    folder = run.parent
    monkeypatch.chdir(folder)
    for name in ("real_train.txt", "real_test.txt"):
        (folder / name).write_text(f"real/tiger/a.jpg {'9' * 5000}\n")
    (folder / "ends.py").write_text("import sys\nsys.exit(0)\n")
    levels = ["a: &a [x,x,x,x,x,x,x,x,x]\n"]
    for key, below in zip("bcdef", "abcde", strict=True):
        levels.append(f"{key}: &{key} [{','.join(9 * [f'*{below}'])}]\n")
    (folder / "bomb.yaml").write_text("".join(levels))
    damaged = write_run(folder / "damaged", search_file(images_root), outcome=None)
    wrong = {"event": "zero_shot", "time": 1, "metrics": {"id_val/acc": "abc"}}
    edit_journal(damaged, lambda events: [*events, wrong])
    journal = shutil.copytree(run, folder / "flipped") / "journal.jsonl"
    report = b'"trial": "trial-000", "report": {"step": 40'
    assert report in journal.read_bytes()
    journal.write_bytes(journal.read_bytes().replace(report, report[:-2] + b"50"))
    return folder


def ended(capsys, command):
    """Status, output and the one line of an error of what `main` does with a command."""
    with pytest.raises(SystemExit) as caught:
        run_command(command)
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) <= 1
    assert len(shown.err) < 2000
    return caught.value.code, shown.out, shown.err


def test_a_report_goes_on_past_a_damaged_line_and_names_it(folder, caplog):
    shown = invoke("report", folder / "flipped")
    assert shown.exit_code == 0
    assert caplog.messages == [f"{folder / 'flipped'}: {FLIPPED}"]
    assert FLIPPED in (folder / "flipped" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        *((words, 2, said) for words, said in MISTAKES),
        (f"report {LONG}", 2, "File name too long"),
        ("report mine .", 2, "not a run folder"),
        (f"config {LONG}", 2, "File name too long"),
        (f"config quickstart --set trial{'.a' * 5000}=3", 2, "nested too deeply"),
        ("prepare folders images ~nosuch/x", 2, "~ and the name of no user"),
        ("config quickstart --set trial.batch_size=32", 2, "mean 'trial.optim.batch_size'?"),
        (f"resume mine --trials +{'9' * 5000}", 2, "write a number, or +8"),
        ("resume flipped --trials +8", 2, f"{FLIPPED}; such a run can be read and exported"),
    ],
)
def test_a_mistake_is_one_line_with_its_status(words, status, said, folder, monkeypatch, capsys):
    """Nothing is started, and nothing made."""
    monkeypatch.setattr(sys, "argv", ["lipsum-tune", *words.split(" ")])
    before = sorted(folder.rglob("*"))
    code, printed, error = ended(capsys, app)
    # What is printed before what takes seconds to import.
    assert all(line.startswith(("Search  ", "Resume  ", "Check")) for line in printed.splitlines())
    assert code == status
    assert error.startswith("lipsum-tune: ")
    assert said in error
    assert error.endswith(" (--debug shows the traceback)\n") == (status == 70)
    left = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert left == {*before}


def test_an_unforeseen_error_is_short_and_holds_no_secret(capsys):
    def fail():
        raise RuntimeError(f"https://me:hunter2@host {'x' * 10_000}\nmore")

    status, _, error = ended(capsys, fail)
    expected = f"RuntimeError: https://***@host {'x' * 183}... (--debug shows the traceback)\n"
    assert (status, error) == (70, f"lipsum-tune: {expected}")


def test_ctrl_c_is_status_130_and_prints_nothing(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert ended(capsys, interrupt) == (130, "", "")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("cafe\u0301", "caf\u00e9"), r"'cafe\u0301' and 'caf\xe9'"),
        ((f"{LONG} one", f"{LONG} two"), f"'{LONG} one' and '{LONG} two'"),
    ],
)
def test_classes_with_the_same_tokens_are_refused(names, shown, tmp_path):
    root = write_photo_and_sketch(tmp_path / "data", names)
    data = {"root": str(root), "id_domain": "photo", "ood_domains": ["sketch"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"trial": {"data": data}}))
    error = invoke("zero-shot", tmp_path / "mine.yaml").exception
    assert isinstance(error, ConfigError)
    assert f"{shown} the same tokens" in str(error)


def test_report_shows_the_leaderboard_and_how_the_search_was_left(run):
    shown = invoke("report", run)
    assert shown.exit_code == 0, shown.output
    assert "trial-002, OutOfMemoryError: too big" in shown.output
    assert "State       finished\n" in shown.output
    rows = pq.read_table(run / "trials.parquet").to_pylist()
    assert {row["trial_id"]: row["outcome"] for row in rows}["trial-001"] == "pruned"


def test_report_of_a_running_search_writes_nothing(images_root, tmp_path):
    run = write_run(
        tmp_path / "run", search_file(images_root), [trial(0, 85.0, 62.0)], outcome=None
    )
    before = sorted(run.rglob("*"))
    with closing(Journal(run)):
        shown = invoke("report", run)
    assert "State       running\n" in shown.output
    assert sorted(run.rglob("*")) == before
    assert "State       killed; `lipsum-tune resume " in invoke("report", run).output


def test_the_run_of_a_job_goes_on_with_submit(images_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "lipsum-tune" / "runs" / "mine"
    run = write_run(folder, search_file(images_root), [trial(0, 85.0, 62.0)], outcome=None)
    shown = invoke("report", run).output
    assert "State       killed; the same `lipsum-tune submit` continues it\n" in shown


def test_report_before_the_zero_shot_model_is_evaluated(images_root, tmp_path):
    run = write_run(tmp_path / "mine", search_file(images_root), zero_shot=None, outcome=None)
    with closing(Journal(run)):
        shown, as_json = invoke("report", run), invoke("report", run, "--json")
    assert (shown.exit_code, as_json.exit_code) == (0, 0)
    assert shown.output == "State       running, evaluating the zero-shot model\n"
    found = json.loads(as_json.output)
    assert (found["name"], found["state"], found["zero_shot"]) == ("mine", "running", {})
    assert invoke("report", run).exception.hint == "resume it"


@pytest.fixture
def went_on(monkeypatch):
    """The configurations with which a search goes on; it ends at once, as with no budget left."""
    files = []

    def end_at_once(folder, file, *_, **__):
        files.append(file)
        write_config(folder, file)
        return SearchResult(load_run(folder), "finished", "uri")

    monkeypatch.setattr(run_search, "continue_search", end_at_once)
    return files


def test_a_search_in_which_no_trial_finished_has_nothing_to_confirm(
    images_root, tmp_path, monkeypatch
):
    """The time was used up when only plain fine-tuning had finished."""
    records = [fakes.reference(), trial(0, 85.0, 62.0, outcome="stopped")]
    folder = write_run(tmp_path / "run", search_file(images_root), records)
    loaded = load_run(folder)
    budget = "search.budget.hours"
    ended = SearchResult(loaded, "finished", "uri", budget)
    monkeypatch.setattr(run_search, "run_search", lambda *_, **__: ended)
    done = invoke("search", folder / CONFIG_FILE, "--name", "7")
    assert "no trial has finished" in str(done.exception)
    assert "lipsum-tune resume" in done.exception.hint
    assert "Next" not in done.output


@pytest.mark.usefixtures("went_on")
def test_a_failed_trial_is_status_1_unless_allowed_beside_a_finished_one(images_root, tmp_path):
    """By the exit status clusters decide whether to retry a search."""
    failed = trial(1, 80.0, 50.0, outcome="failed", error="OutOfMemoryError: too big", curve=())

    def status(name, records, *options):
        file = search_file(images_root, search__storage=str(tmp_path), search__name=name)
        run = write_run(tmp_path / name, file, [fakes.reference(), *records])
        return invoke("search", run / CONFIG_FILE, "--resume", *options).exit_code

    both = [trial(0, 85.0, 62.0), failed]
    assert status("failed", both) == 1
    assert status("allowed", both, "--allow-failed-trials") == 0
    assert status("none", [failed], "--allow-failed-trials") == 1


def test_a_search_that_ends_says_what_is_next(run, went_on):
    done = invoke("resume", run, "--set", "search.budget.trials=9")
    assert [file.search.budget.trials for file in went_on] == [9]
    assert done.output.startswith("Resume      search: 9 trials of 240 steps, ")
    assert f"Report      {run / 'report' / 'index.html'}" in done.output
    assert f"Next        lipsum-tune confirm {run} " in done.output
    assert f"            lipsum-tune export {run} --output model " in done.output
    assert yaml.safe_load((run / CONFIG_FILE).read_text())["search"]["budget"]["trials"] == 9
