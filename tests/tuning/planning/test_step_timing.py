"""Which steps of a probe are timed, against a loader played step by step."""

from __future__ import annotations

import pytest
import torch

from tuning.planning import step_timing as intervals
from tuning.planning.step_timing import StepWatch, overrides, untimed_steps


def test_a_probe_is_longer_where_processes_decode_ahead() -> None:
    assert overrides(0) == {"steps": 20, "eval.every": 5}
    assert (untimed_steps(3), overrides(3)) == (12, {"steps": 4 * 29, "eval.every": 29})


def step_ends(ready: int, step_s: float, decode_s: float, steps: int) -> list[float]:
    """When each step ends after a report at 0, if so many batches are ready then.

    The next one is begun when one is taken, and one comes out every `decode_s`.
    """
    ends, decoded = [0.0], [0.0] * ready
    for step in range(steps):
        begin = max(ends[-1], decoded[step])
        decoded.append(max(decoded[-1], begin) + decode_s)
        ends.append(begin + step_s)
    return ends[1:]


@pytest.mark.parametrize(
    ("decode_s", "least", "most"),
    [(0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (4 / 3, 1.0, 4 / 3), (2.0, 1.8, 2.0), (4.0, 3.9, 4.0)],
)
def test_the_speed_of_decoding_is_seen_behind_the_batches_that_are_ready(
    monkeypatch: pytest.MonkeyPatch, decode_s: float, least: float, most: float
) -> None:
    """A step takes 1 s of the GPU; 4 processes have 8 batches ready."""
    watch = StepWatch(4, torch.device("cpu"), began=100.0)
    steps = overrides(4)["eval.every"]
    for began in (100.0, 900.0):  # an interval, and another one
        watch.restart(began)
        ends = [began + end for end in step_ends(8, 1.0, decode_s, steps)]
        for end in ends:
            monkeypatch.setattr(intervals.time, "perf_counter", lambda end=end: end)
            watch()
        assert least - 1e-9 <= watch.step_s(ends[-1]) <= most + 1e-9


def test_where_the_trial_itself_decodes_every_step_is_timed() -> None:
    watch = StepWatch(0, torch.device("cpu"), began=10.0)
    for _ in range(5):
        watch()
    assert watch.step_s(20.0) == 2.0
