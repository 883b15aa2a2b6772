"""README and docs/: commands are parsed or run, configurations are loaded, Python is run.

What else a shell block contains, or a Python block that cannot run here, stands below a comment
`<!-- not run: reason -->`. `python -m tests.test_docs` writes the outputs of the notebook.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from plotly.graph_objects import Figure
from typer.main import get_command
from typer.testing import CliRunner

import tuning
from cluster.cli import app
from docs import build
from tests.trainers.curves import curve, short
from tests.tuning.run_folders import search_file, trial, write_run
from trainers.errors import ConfigError
from trainers.methods.registry import METHODS
from tuning.config.validation import load_config
from tuning.results.estimates import Confirmation
from tuning.run import load_run
from tuning.search import SearchResult

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
OTHERS = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = ROOT / "docs" / "decisions.md"
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n\n?)?"
    r"^(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
RANDOM_ID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Of an element with a figure."""
LOADING = re.compile(r"<div[^>]*> *<script.*?Plotly\.newPlot")
"""How Plotly loads its script, which differs between its versions."""
COMMANDS = get_command(app).commands
INSTANT = {"config"}
MAKE = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    is_run: bool

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("fence")) + 1
        yield Block(page, line, found["language"], found["code"], found["reason"] is None)


BLOCKS = [block for page in PAGES for block in blocks(page)]


def in_language(language):
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=str)


@pytest.fixture(scope="session")
def runs(images_root, tmp_path_factory):
    """A folder with the runs that the documentation names."""
    folder = tmp_path_factory.mktemp("documented")
    records = [trial(0, 85.0, 62.0), trial(1, 86.0, 61.5)]
    for name in ("quickstart", "my_search", "small_search", "NAME"):
        write_run(folder / "runs" / name, search_file(images_root), records)
    return folder


def commands(code):
    """The words of each command, without comments, redirections and all before `&&`."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_of_a_language_that_is_tested(page):
    assert {block.language for block in blocks(page)} <= {"sh", "yaml", "python", "text", "math"}
    outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
    assert "```" not in outside
    assert not re.search(r"^\n    \S", outside, re.MULTILINE), "an indented block"


@in_language("sh")
def test_commands(block, runs, monkeypatch):
    monkeypatch.chdir(runs)
    write_files(block.page, runs)
    for words in commands(block.code):
        match words:
            case [program, name, *arguments] if Path(program).name == "lipsum-tune":
                COMMANDS[name].make_context(name, [*arguments]).close()
                if name in INSTANT:
                    done = CliRunner().invoke(app, [name, *arguments])
                    assert done.exit_code == 0, done.output
            case ["make", target]:
                assert target in MAKE
            case ["source", ".venv/bin/activate"]:
                pass
            case _:
                assert not block.is_run, f"not tested: {shlex.join(words)}"


def test_contributing_names_what_exists():
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    tracked = [f"/{path}" for path in listed if (ROOT / path).exists()]
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 50
    assert [name for name in named if not any(f"/{name}" in path for path in tracked)] == []


def test_each_decision_names_the_commit_where_it_ran():
    rows = [line for line in DECISIONS.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 40
    for row in rows[1:]:
        *cells, where = row.strip("| ").split(" | ")
        assert len(cells) == 3, row
        assert re.match(r"[0-9a-f]{8}, \S", where), row


@pytest.mark.parametrize("page", sorted({*PAGES} - {DECISIONS}), ids=lambda p: p.name)
def test_commands_within_the_text(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for name, rest in re.findall(r"`lipsum-tune ([a-z][a-z-]*)([^`]*)`", text):
        options = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
        assert {*re.findall(r"--[a-z-]+", rest)} <= {*options, "--help"}, name
    for module, rest in re.findall(r"python -m (tests\.[\w.]+)([^`\n]*)", text):
        place = ROOT / module.replace(".", "/")
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        source = file.read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", rest)), module
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= MAKE


def write_files(page, folder):
    """Write the blocks of a page whose first line is `# name.py`, or another name."""
    for block in blocks(page):
        if named := re.match(r"# (\w+\.\w+)\n", block.code):
            (folder / named[1]).write_text(block.code, encoding="utf-8")


@in_language("yaml")
def test_configurations(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(block.page, tmp_path)
    Path("documented.yaml").write_text(block.code, encoding="utf-8")
    assert load_config("documented.yaml", check=False).spaces


def executed_notebook(folder):
    """The notebook of docs/ with the outputs that it has beside the stored quickstart."""
    shutil.copytree(ROOT / "tests" / "benchmarks" / "quickstart", folder / "runs" / "quickstart")
    notebook, names = json.loads(NOTEBOOK.read_text(encoding="utf-8")), {}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with chdir(folder):
        for number, cell in enumerate(code, 1):
            cell["execution_count"], cell["outputs"] = number, []
            *statements, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(statements, []), "notebook", "exec"), names)
            shown = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
            if isinstance(shown, Figure):  # GitHub shows none of Plotly
                continue
            show = getattr(shown, "_repr_html_", None)
            data = (
                {"text/html": RANDOM_ID.sub("figure", show())}
                if show
                else {"text/plain": repr(shown)}
            )
            output = {"output_type": "execute_result", "execution_count": number}
            cell["outputs"] = [{**output, "data": data, "metadata": {}}]
    return notebook


def test_the_notebook_has_the_outputs_of_today(tmp_path):
    """`python -m tests.test_docs` writes them."""
    stored = json.dumps(json.loads(NOTEBOOK.read_text(encoding="utf-8")), indent=1)
    today = json.dumps(executed_notebook(tmp_path), indent=1)
    assert LOADING.sub("", today) == LOADING.sub("", stored)


def test_the_notebook_names_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"[\s\"'<(]/(home|root|tmp|work|Users)/|localhost|127\.0\.0\.1", text)
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


@in_language("python")
def test_python(block, runs, monkeypatch):
    """Run the block as a script, with results of finished calls in place of what takes minutes."""
    monkeypatch.chdir(runs)
    tree = ast.parse(block.code)
    if not block.is_run:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(alias.name) for alias in node.names)
        return
    run = load_run("runs/my_search")
    results = {
        "run_search": SearchResult(run, "finished", "uri"),
        "confirm": Confirmation(run, (), (), {}, {}),
        "export_weights": None,
    }
    for name, result in results.items():
        call = create_autospec(getattr(tuning, name), return_value=result)
        monkeypatch.setattr(tuning, name, call)
    exec(compile(tree, str(block), "exec"), {"__name__": "__main__"})


def test_the_documented_mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_search.yaml").write_text("trial: {optim: {lrr: 1}}", encoding="utf-8")
    with pytest.raises(ConfigError) as found:
        load_config("my_search.yaml")
    page = blocks(ROOT / "docs" / "configuration.md")
    assert [block.code for block in page if block.language == "text"] == [f"{found.value}\n"]


def test_the_documented_method_trains(trial, tmp_path):
    from trainers.fine_tune import fine_tune

    write_files(ROOT / "docs" / "adding_a_method.md", tmp_path)
    plugin = str(tmp_path / "feature_l2.py")
    config = short(trial, {"name": "feature_l2"}, plugins=[plugin])
    (report,) = fine_tune(config)
    moved = report.metrics["train/reg"]
    assert 0 < moved < 4  # the squared distance of two points on a sphere of radius 1


def test_the_documented_loss_without_smoothing_is_that_of_ft(trial, tmp_path):
    write_files(ROOT / "docs" / "adding_a_method.md", tmp_path)
    plugins = [str(tmp_path / "smoothed.py")]
    config = short(trial, {"name": "smoothed", "smoothing": 0.0}, plugins=plugins)
    assert curve(config) == curve(short(trial, "ft"))


def test_the_reference_has_every_key_and_every_space():
    keys, spaces = build.configuration(), build.spaces()
    assert "| `lr` | number > 0, <= 1000 | `1e-05` | Peak learning rate. |" in keys
    assert all(f"## `{section}`" in keys for section in ("search.budget", "trial.method[kd]"))
    assert "| `lipsum_ft` | `method.reg_weight` |" in spaces
    assert all(f"## {name}\n" in build.equations() for name in METHODS)


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in OTHERS)], ids=lambda p: p.name)
def test_links_lead_to_files_of_the_repository(page):
    """Not to those that `make docs` writes, which GitHub does not have."""
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", BLOCK.sub("", page.read_text("utf-8")))
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    files = {ROOT / file for file in tracked}
    assert [link for link in links if (page.parent / link).resolve() not in files] == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        executed = executed_notebook(Path(folder))
    NOTEBOOK.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
