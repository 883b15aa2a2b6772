"""Mistakes in what is typed."""

from __future__ import annotations

import sys

import pytest

from cluster.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such.yaml"], "no-such.yaml: no such file"),
        (["quickstart", "--set", "trial.stepps=1"], "did you mean 'steps'"),
        (["--set", "trial.steps=1"], "of which configuration?"),
        (["--address", "http://127.0.0.1:8265"], "doctor takes HOST:PORT of the head itself (6379"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_anything_starts(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["lipsum-tune", "doctor", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
