"""What imports cost. Their direction is held by `lint-imports` of `make lint`."""

import subprocess
import sys
from pathlib import Path

from tests.tuning import fakes
from tests.tuning.run_folders import search_file, write_run

ROOT = Path(__file__).parent.parent


def test_the_import_of_mlflow_leaves_no_environment_variables():
    code = (
        "import os; before = dict(os.environ); import tuning.views.mlflow.writer;"
        "print(sorted(k for k in os.environ.keys() - before.keys() if k.startswith('MLFLOW')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


HEAVY = {"torch", "open_clip", "timm", "mlflow", "matplotlib", "ray"}
COMMANDS = """
import contextlib, io, sys
from cluster.cli import main
for words in {commands}:
    sys.argv = ["lipsum-tune", *words]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main()
    print(*words, *({heavy} & sys.modules.keys()), sep="|")
"""


def test_commands_that_only_read_import_nothing_heavy(images_root, tmp_path):
    run = write_run(tmp_path / "run", search_file(images_root), fakes.finished_search())
    commands = [
        ["--help"],
        ["--version"],
        ["config", "--schema"],
        ["config"],
        ["config", "quickstart"],
        ["report"],
        ["report", str(run), str(run)],
        ["report", str(run), "--json"],
        ["report", "no-such-run"],
        ["control", str(run), "--end"],
        ["list"],
        ["search", "--help"],
        ["search", "quickstart", "--no-such-option"],
        ["no-such-command"],
        ["search", "no-such-file.yaml"],
        ["plan", "quickstart", "--set", "trial.optim.lrr=1"],
        ["train", "quickstart", "--set", "trial.optim.lrr=1"],
        ["zero-shot", "quickstart", "--set", "search.nothing=1"],
        ["resume", str(run), "--set", "trial.optim.lrr=1"],
        ["confirm", str(tmp_path)],
    ]
    code = COMMANDS.format(commands=commands, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["|".join(words) for words in commands], done.stderr
