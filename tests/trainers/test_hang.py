"""A process that hangs ends, and says where."""

import subprocess
import sys
import tempfile

from tests.trainers.curves import changed
from trainers.hang import take_stacks
from trainers.loop.evaluate_run import holding
from trainers.loop.state import start

HANGS = """
import threading
from trainers.hang import alive, ends_if_it_hangs, pause

def loss():
    threading.Event().wait()

with ends_if_it_hangs(0.5, "slot-1", 0):
    alive()
    pause()
    threading.Event().wait(1)  # such as a compilation
    alive()
    loss()
"""


def test_a_hang_ends_the_process_and_leaves_its_stack(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = tmp_path / "ray_trainer.py"  # only threads that train are shown
    program.write_text(HANGS)
    assert subprocess.run([sys.executable, program], check=False).returncode == 1
    stacks = take_stacks("slot-1")
    assert f'"{program}", line 6 in loss' in stacks
    assert take_stacks("slot-1") == ""
    assert list(tmp_path.iterdir()) == [program]


def test_each_batch_of_prompts_is_a_sign_of_life(trial, monkeypatch):
    """A head of 80,000 prompts takes longer than `hang_after_s` on a CPU."""
    signs = []
    monkeypatch.setattr("trainers.loop.evaluate_run.alive", lambda: signs.append("alive"))
    monkeypatch.setattr("trainers.models.text_head.TEXTS_A_BATCH", 1)
    run = start(changed(trial, method={"name": "flyp"}))
    with holding(run, run.weights):
        assert len(signs) == len(run.class_names)
