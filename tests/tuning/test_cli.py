"""The command as a user types it: its words, its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from tuning.cli import app

COMMANDS = {"search", "train", "ui"}


def lipsum_tune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tuning", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_commands_are_those_that_users_know() -> None:
    assert set(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "no-such.yaml"), "no-such.yaml: no such file"),
        (("search", "quickstart", "--set", "trial.optim.lrr=1"), "did you mean 'lr'"),
        (("train", "quickstart", "--set", "trial.data.root=/nowhere"), "no such folder"),
        (("search", "quickstart", "--set", "search.objective.metric=acc"), "never reported"),
        (("ui", "nowhere"), "run a search first"),
    ],
)
def test_a_mistake_is_one_clear_line_and_status_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = lipsum_tune(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing was started, nothing was made


def test_train_runs_one_trial_with_no_ray_and_keeps_its_checkpoint(
    pictures_root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "one.yaml"
    trial = {
        "data": {"root": str(pictures_root)},
        "optim": {"lr": 1e-4, "batch_size": 8},
        "steps": 2,
    }
    config.write_text(yaml.safe_dump({"trial": trial}))
    done = lipsum_tune("train", str(config), "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    assert (tmp_path / "out" / "student.safetensors").is_file()
