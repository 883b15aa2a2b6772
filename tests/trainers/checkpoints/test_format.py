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
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainers.checkpoints.format import (
    SINCE,
    STATE,
    WEIGHTS,
    Checkpoint,
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    saved_shapes,
    saved_step,
)
from trainers.errors import ConfigError

SIZE = 30_000  # below what torch spreads over threads, which a busy machine is slow at


REPORTS = [{"step": step, "id_val/acc": 53.1 + step / 3} for step in (2, 4)]
CLASSES = ("ant", "bee", "cat")


def at(step: int) -> Checkpoint:
    """A checkpoint in which every number, of weights and of state, is the step."""
    weights = {"head": torch.full((SIZE,), float(step))}
    training = {"optimizer": {"exp_avg": torch.full((2 * SIZE,), float(step))}, "size": step}
    training[SINCE] = {"step": step, "seconds": 0.0, "sums": None}
    return Checkpoint(weights, training, Progress(step, 0.1 * step), REPORTS)


def save(folder: Path, step: int) -> None:
    save_checkpoint(folder, at(step), CLASSES)


def load(folder: Path) -> int:
    """The step of the checkpoint, having seen that all of it is of that step."""
    found = load_checkpoint(folder, CLASSES)
    step = found.progress.step
    assert found.reports == REPORTS
    assert found.progress == Progress(step, 0.1 * step)
    assert found.training["size"] == step
    for values in (found.weights["head"], found.training["optimizer"]["exp_avg"]):
        assert torch.all(values == step)
    assert saved_step(folder) == step
    return step


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
    other = at(20)
    other.progress.seconds += 1e-9
    save_checkpoint(tmp_path / "other", other, CLASSES)
    shutil.copy(tmp_path / "one" / WEIGHTS, tmp_path / "other" / WEIGHTS)
    with pytest.raises(ConfigError, match="two different checkpoints"):
        load(tmp_path / "other")


@pytest.mark.parametrize("classes", [("bee", "ant", "cat"), ("ant", "bee"), ("ant", "bee", "dog")])
def test_a_checkpoint_of_other_classes_or_another_order_is_refused(
    classes: tuple[str, ...], tmp_path: Path
) -> None:
    save(tmp_path, 20)
    with pytest.raises(ConfigError, match="trained on other classes, or in another order") as said:
        load_checkpoint(tmp_path, classes)
    assert str(said.value).startswith(f"{tmp_path}: ")


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


def test_weights_are_read_alone_and_name_their_classes(tmp_path: Path) -> None:
    save(tmp_path / "both", 20)
    (tmp_path / "both" / STATE).unlink()
    save_weights(tmp_path / "alone", at(20).weights, Progress(20), CLASSES)
    for folder in (tmp_path / "both", tmp_path / "alone"):
        weights, class_names = load_weights(folder)
        assert class_names == CLASSES
        assert torch.equal(weights["head"], torch.full((SIZE,), 20.0))
        assert saved_shapes(folder) == ({"head": (SIZE,)}, CLASSES)
        assert saved_step(folder) == 20


def test_weights_that_are_torn_missing_or_nameless_are_told(tmp_path: Path) -> None:
    save(tmp_path, 20)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1])
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="missing or damaged"):
            load_weights(folder)
        with pytest.raises(ConfigError, match="missing or damaged"):
            saved_shapes(folder)
    save_file({"head": torch.zeros(3, 2)}, tmp_path / WEIGHTS, {"progress": "{}"})
    with pytest.raises(ConfigError, match="of an earlier version, it does not name its classes"):
        load_weights(tmp_path)


def _save_until_call(folder: Path, number: int, connection: Connection) -> None:
    """Save step 2 over step 1, and die at the given call of any function along the way."""
    checkpoint, calls = at(2), itertools.count()

    def die(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call") and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.setprofile(die)
    save_checkpoint(folder, checkpoint, CLASSES)
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
