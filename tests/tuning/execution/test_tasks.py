"""The loop over Ray tasks: how many run at a time, in which order, and what an error leaves."""

import pytest

from tuning.execution import tasks
from tuning.execution.tasks import run_tasks


class FakeRay:
    """Ends the oldest of the running tasks, whose references are numbers."""

    def __init__(self):
        self.running = []
        self.most = 0

    def submit(self, item):
        self.running.append(item)
        self.most = max(self.most, len(self.running))
        return item

    def wait(self, references, num_returns, timeout=0):
        assert references == self.running
        ended, self.running = self.running[:num_returns], self.running[num_returns:]
        return ended, self.running


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(tasks, "ray", fake)
    return fake


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (20, 7)])
def test_at_most_so_many_tasks_run_at_a_time(ray, at_once, most):
    ended = []
    run_tasks(range(7), ray.submit, lambda *pair: ended.append(pair), at_once=at_once)
    assert ended == [(i, i) for i in range(7)]
    assert ray.most == most


def test_an_error_ends_the_loop_after_the_running_tasks(ray):
    def fail(item, reference):
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        run_tasks(range(7), ray.submit, fail, at_once=3)
    assert ray.running == []
    assert ray.most == 3
