"""A process that hangs ends, and says where."""

import subprocess
import sys

from tests.trainers.curves import changed
from trainers.loop.measure import holding
from trainers.loop.training import start

HANGS = """
import threading
from trainers.hang import alive, ends_if_it_hangs, pause

def loss():
    threading.Event().wait()

with ends_if_it_hangs(1.0):
    alive()
    pause()
    threading.Event().wait(1.5)  # such as a compilation
    alive()
    loss()
"""


def test_a_hang_ends_the_process_and_leaves_its_stack(tmp_path):
    program = tmp_path / "hangs.py"
    program.write_text(HANGS)
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f'"{program}", line 6 in loss' in ended.stderr


def test_each_batch_of_prompts_is_a_sign_of_life(trial, monkeypatch):
    """A head of 80,000 prompts takes longer than `hang_after_s` on a CPU."""
    signs = []
    monkeypatch.setattr("trainers.loop.measure.alive", lambda: signs.append("alive"))
    monkeypatch.setattr("trainers.models.text_head.TEXTS_A_BATCH", 1)
    training = start(changed(trial, method={"name": "flyp"}))
    with holding(training.setup, training.student, training.student.weights):
        assert len(signs) == len(training.setup.class_names)
