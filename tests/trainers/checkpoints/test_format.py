import os

import pytest
import torch
from safetensors.torch import save_file

from trainers.checkpoints.format import (
    STATE,
    WEIGHTS,
    Header,
    Progress,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    saved_step,
    whole_header,
)
from trainers.errors import ConfigError

SIZE = 3_000
REPORTS = [{"step": step, "id_val/acc": 53.1 + step / 3} for step in (2, 4)]
CLASSES = ("ant", "bee", "cat")


def save(folder, step):
    """A checkpoint in which every number, of weights and of state, is the step."""
    weights = {"head": torch.full((SIZE,), float(step))}
    optimizer = {"exp_avg": torch.full((2 * SIZE,), float(step))}
    training = {"optimizer": optimizer, "size": step, "trained": None}
    header = Header(Progress(step, 0.1 * step), CLASSES, REPORTS)
    save_checkpoint(folder, weights, training, header)


def load(folder):
    """The step of the checkpoint, after a check that all of it is of that step."""
    weights, training, header = load_checkpoint(folder, CLASSES)
    step = header.step
    assert header.reports == REPORTS
    assert header.progress == Progress(step, 0.1 * step)
    assert training["size"] == step
    for values in (weights["head"], training["optimizer"]["exp_avg"]):
        assert torch.all(values == step)
    assert saved_step(folder) == step
    return step


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    for step in (3, 6, 2):
        save(tmp_path, step)
        assert load(tmp_path) == step
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, STATE}


@pytest.mark.parametrize("classes", [("bee", "ant", "cat"), ("ant", "bee"), ("ant", "bee", "dog")])
def test_a_checkpoint_of_other_classes_is_refused(classes, tmp_path):
    save(tmp_path, 20)
    with pytest.raises(ConfigError, match="trained on other classes") as error:
        load_checkpoint(tmp_path, classes)
    assert error.value.source == str(tmp_path)


def test_weights_are_read_without_a_state_but_training_does_not_continue(tmp_path):
    save(tmp_path, 4)
    (tmp_path / STATE).unlink()
    weights, class_names = load_weights(tmp_path)
    assert class_names == CLASSES
    assert torch.equal(weights["head"], torch.full((SIZE,), 4.0))
    header = whole_header(tmp_path)
    assert (header.shapes, header.class_names) == ({"head": (SIZE,)}, CLASSES)
    assert saved_step(tmp_path) == 4
    assert header.metrics == {"id_val/acc": REPORTS[1]["id_val/acc"]}
    with pytest.raises(ConfigError, match=STATE):
        load(tmp_path)


@pytest.mark.parametrize("read", [load_weights, whole_header, load])
@pytest.mark.parametrize("size", [0, 5, 8, 300, 4 * SIZE, None])
def test_incomplete_or_missing_weights_are_refused(tmp_path, size, read):
    save(tmp_path, 20)
    if size is None:
        (tmp_path / WEIGHTS).unlink()
    else:
        os.truncate(tmp_path / WEIGHTS, size)
    with pytest.raises(ConfigError, match="missing or damaged") as error:
        read(tmp_path)
    assert error.value.source == str(tmp_path / WEIGHTS)


def test_weights_without_class_names_are_refused(tmp_path):
    save_file({"head": torch.zeros(3, 2)}, tmp_path / WEIGHTS, {"progress": "{}"})
    with pytest.raises(ConfigError, match="missing or damaged"):
        load_weights(tmp_path)


@pytest.mark.parametrize("damage", ["text", "cut", "other"])
def test_a_damaged_or_replaced_state_is_refused(damage, tmp_path):
    save(tmp_path, 20)
    path = tmp_path / STATE
    if damage == "other":
        torch.save({"optimizer": {}}, path)  # as of an earlier version
    else:
        path.write_bytes({"text": b"hello\n", "cut": path.read_bytes()[: 4 * SIZE]}[damage])
    with pytest.raises(ConfigError, match="damaged, or not a training state") as error:
        load(tmp_path)
    assert error.value.source == str(path)
