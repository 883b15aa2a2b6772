from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from trainers.checkpoint import (
    STATE,
    WEIGHTS,
    Progress,
    load_checkpoint,
    save_checkpoint,
    saved_step,
)
from trainers.errors import ConfigError
from trainers.student import Student

SIZE = 30_000  # below what torch spreads over threads, which a busy machine is slow at


METRICS = {"id_val/acc": 53.125}
CLASSES = ("ant", "bee", "cat")


class Model(nn.Module):
    """All of a `Student` that checkpoints look at."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.zeros(SIZE))


def run_at(step: int) -> tuple[Student, torch.optim.Optimizer, Progress]:
    """A run in which every number, of weights and of state, is the step."""
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.head.grad = torch.zeros(SIZE)
    optimizer.step()
    with torch.no_grad():
        model.head.fill_(step)
        optimizer.state[model.head]["exp_avg"].fill_(step)
        optimizer.state[model.head]["exp_avg_sq"].fill_(step)
    return cast(Student, model), optimizer, Progress(step, 0.1 * step)


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder, *run_at(step), METRICS, CLASSES)


def load(folder: Path) -> int:
    """The step of the checkpoint, having seen that all of it is of that step."""
    model, optimizer, _ = run_at(-1)
    progress, metrics = load_checkpoint(folder, model, optimizer, CLASSES)
    assert metrics == METRICS
    assert progress == Progress(progress.step, 0.1 * progress.step)
    state = optimizer.state[model.head]
    for values in (model.head, state["exp_avg"], state["exp_avg_sq"]):
        assert torch.all(values == progress.step)
    assert saved_step(folder) == progress.step
    return progress.step


def test_a_checkpoint_is_replaced_and_nothing_else_of_its_folder_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for step in (3, 6, 2):
        save(tmp_path, step)
        assert load(tmp_path) == step
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", WEIGHTS, STATE}


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "early", 20)
    save(tmp_path / "late", 40)
    shutil.copy(tmp_path / "early" / WEIGHTS, tmp_path / "late" / WEIGHTS)
    with pytest.raises(ConfigError, match=r"safetensors \(step 20\) and .*\(step 40\)"):
        load(tmp_path / "late")


def test_two_runs_at_the_same_step_are_told_apart(tmp_path: Path) -> None:
    save(tmp_path / "one", 20)
    model, optimizer, progress = run_at(20)
    progress.seconds += 1e-9
    save_checkpoint(tmp_path / "other", model, optimizer, progress, METRICS, CLASSES)
    shutil.copy(tmp_path / "one" / WEIGHTS, tmp_path / "other" / WEIGHTS)
    with pytest.raises(ConfigError, match="two different checkpoints"):
        load(tmp_path / "other")


@pytest.mark.parametrize("classes", [("bee", "ant", "cat"), ("ant", "bee"), ("ant", "bee", "dog")])
def test_a_checkpoint_of_other_classes_or_another_order_is_refused(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    save(tmp_path, 20)
    model, optimizer, _ = run_at(-1)
    with pytest.raises(ConfigError, match="trained on other classes, or in another order") as said:
        load_checkpoint(tmp_path, model, optimizer, classes)
    assert str(said.value).startswith(f"{tmp_path}: ")
    assert torch.all(cast(Model, model).head == -1)  # nothing of it was taken


def test_a_checkpoint_from_before_it_knew_its_classes_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 20)
    state = torch.load(tmp_path / STATE, weights_only=True)
    del state["classes"]
    torch.save(state, tmp_path / STATE)
    assert load(tmp_path) == 20


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    save(tmp_path, 20)
    (tmp_path / STATE).unlink()
    with pytest.raises(ConfigError, match="training cannot go on from weights alone"):
        load(tmp_path)
    assert saved_step(tmp_path) == 20


@pytest.mark.parametrize("size", [0, 5, 300, 4 * SIZE])
def test_torn_weights_are_seen(tmp_path: Path, size: int) -> None:
    save(tmp_path, 20)
    os.truncate(tmp_path / WEIGHTS, size)
    assert saved_step(tmp_path) is None
    with pytest.raises(ConfigError, match="missing or damaged"):
        load(tmp_path)


def _save_until_call(folder: Path, number: int, connection: Connection) -> None:
    """Save step 2 over step 1, and die at the given call of any function along the way."""
    run, calls = run_at(2), itertools.count()

    def die(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call") and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.setprofile(die)
    save_checkpoint(folder, *run, METRICS, CLASSES)
    sys.setprofile(None)
    connection.send(next(calls))


def _save_for_ever(folder: Path, connection: Connection) -> None:
    torch.set_num_threads(1)
    for step in itertools.count(1):
        save(folder, step)
        connection.send(step)


def _child(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("forkserver")  # one that has imported torch already
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def _count_calls(folder: Path) -> int:
    """Of all functions, in a whole save."""
    save(folder, 1)
    process, connection = _child(_save_until_call, folder, -1)
    num_calls: int = connection.recv()
    process.join()
    return num_calls


def test_a_kill_at_any_call_of_a_save_leaves_one_whole_checkpoint(tmp_path: Path) -> None:
    num_calls = _count_calls(tmp_path / "whole")
    # Spread over the save, and close together at its end, where the files are renamed.
    numbers = {*range(0, num_calls, num_calls // 20), *range(num_calls - 60, num_calls - 1, 3)}
    found = []
    for number in sorted(numbers):
        folder = tmp_path / str(number)
        save(folder, 1)
        process, _ = _child(_save_until_call, folder, number)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found.append((number, load(folder)))
        save(folder, 3)
        assert load(folder) == 3
        assert {path.name for path in folder.iterdir()} == {WEIGHTS, STATE}
    steps = [step for _, step in found]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_a_kill_between_the_two_renames_is_survived_twice(tmp_path: Path) -> None:
    save(tmp_path / "old", 1)
    save(tmp_path / "new", 2)
    (tmp_path / "new" / STATE).replace(tmp_path / "old" / STATE)
    (tmp_path / "new" / WEIGHTS).replace(tmp_path / "old" / f"{WEIGHTS}.new")
    assert load(tmp_path / "old") == 2
    # The next save is killed as well, when it has written its state.
    process, _ = _child(_save_until_call, tmp_path / "old", _count_calls(tmp_path / "whole") - 100)
    process.join()
    assert (tmp_path / "old" / f"{STATE}.new").exists()
    assert load(tmp_path / "old") == 2


def test_kills_while_saving_again_and_again_leave_the_last_checkpoint_or_the_next(
    tmp_path: Path,
) -> None:
    for kill in range(20):
        process, connection = _child(_save_for_ever, tmp_path)
        for _ in range(1 + kill % 4):
            done = connection.recv()
        for _ in range(kill * 2000):  # spread the kills over the save that goes on meanwhile
            pass
        process.kill()
        process.join()
        while connection.poll():
            try:
                done = connection.recv()
            except EOFError:
                break
        assert load(tmp_path) in (done, done + 1)
