"""A method from a file outside of the package: trained and resumed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.curves import curve, short
from trainers.checkpoints.format import WEIGHTS
from trainers.fine_tune import fine_tune
from trainers.models.clip import load_clip

PLUGIN = str(Path(__file__).with_name("lora.py"))


@pytest.fixture
def lora(trial):
    """Three steps of LoRA, and a checkpoint after the second."""
    return short(trial, {"name": "lora", "rank": 3}, plugins=[PLUGIN], optim__lr=1e-2)


def test_a_plugin_trains_what_it_inserts_and_nothing_else(lora):
    (report,) = fine_tune(lora)
    student = report.run.student
    assert len(student.trained) == 1 + 2 * 2 * 5  # the head, U and V of two layers of five blocks
    before = load_clip(lora.model).state_dict()
    plain = student.plain_state()
    moved = {n for n, v in plain.items() if n != "head" and not torch.equal(v, before[n])}
    assert moved == {
        f"visual.transformer.resblocks.{block}.mlp.{layer}.weight"
        for block in range(5)
        for layer in ("c_fc", "c_proj")
    }
    for name in moved:
        change = (plain[name] - before[name]).double()
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3, name


def test_a_plugins_checkpoint_resumes_to_the_last_bit(lora, tmp_path):
    saves = iter([False, True, False])
    for report in fine_tune(lora, save_now=saves.__next__):
        report.save(tmp_path / str(report.step))
    assert curve(lora, tmp_path / "2") == curve(lora)
    (resumed,) = fine_tune(lora, resume_from=tmp_path / "2")
    resumed.save(tmp_path / "resumed")
    found, wanted = (load_file(tmp_path / name / WEIGHTS) for name in ("resumed", "3"))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
