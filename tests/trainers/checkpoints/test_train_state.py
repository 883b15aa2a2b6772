import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainers.curves import assert_near, curve, saved_between, short
from tests.trainers.methods.contract import untimed
from trainers.checkpoints.format import STATE, WEIGHTS
from trainers.config import with_overrides
from trainers.fine_tune import fine_tune


@pytest.fixture(params=["flyp", "ema"])
def method(request):
    """One with a scalar among its weights, and one that evaluates other weights than it trains."""
    fields = {"ema": {"ema_decay": 0.5}}
    return {"name": request.param, **fields.get(request.param, {})}


def configured(trial, method, parallel, steps=4):
    """Two reports; Adam's eps is above rounding."""
    every, at_rungs = steps // 2, "averaged"
    config = short(trial, method, steps=steps, eval__every=every, eval__rung_weights=at_rungs)
    return with_overrides(config, {"optim.eps": 1e-3, "parallel": parallel}, "test")


def test_a_sharded_run_resumes_bit_for_bit_from_a_plain_checkpoint(
    trial, two_workers, method, tmp_path
):
    """On one worker and on two, whichever of them wrote the checkpoint."""
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    shards, replicas = (configured(trial, method, parallel, 6) for parallel in ("fsdp", "ddp"))
    undisturbed = two_workers(_saved_at_first_report, shards, sharded)
    assert undisturbed[0] == undisturbed[1]
    whole = _saved_at_first_report(replicas, alone)
    assert_near(undisturbed[0], whole)

    assert_same_files(sharded, alone)

    resumed = two_workers(curve, shards, sharded)
    assert resumed == undisturbed
    assert_near(curve(replicas, resume_from=sharded), whole)
    taken_over = two_workers(curve, shards, alone)
    assert taken_over[0] == taken_over[1]
    assert_near(taken_over[0], whole)


def _saved_at_first_report(config, folder):
    """The curve of a run whose first report was saved."""
    found = []
    for report in fine_tune(config):
        if report.step < config.steps:
            report.save(folder)
        found.append(untimed(report))
    return found


def assert_same_files(found, wanted):
    """The same names and shapes, and values up to rounding."""
    weights, expected = load_file(found / WEIGHTS), load_file(wanted / WEIGHTS)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert weights[name].shape == value.shape, name
        assert torch.allclose(weights[name], value, atol=1e-5), name
    state, other = (torch.load(folder / STATE, weights_only=True) for folder in (found, wanted))
    assert state.keys() == other.keys()
    assert_alike({**state["optimizer"]["state"]}, {**other["optimizer"]["state"]})
    for key in ("average", "rung_average", "trained", "deployed"):
        assert_alike(state[key], other[key])


def assert_alike(found, wanted):
    """Nested mappings of the same keys to tensors of the same numbers, on the CPU."""
    if wanted is None:
        assert found is None
    elif isinstance(wanted, Tensor):
        assert type(found) is Tensor
        assert torch.allclose(found.flatten(), wanted.flatten(), atol=1e-5)
    else:
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_alike(found[key], wanted[key])


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def test_two_workers_resume_between_two_reports(trial, two_workers, parallel, tmp_path):
    config = configured(trial, {"name": "ema", "ema_decay": 0.5}, parallel)
    undisturbed, _ = two_workers(saved_between, config, tmp_path, [False, True], 3)
    assert two_workers(curve, config, tmp_path) == [undisturbed, undisturbed]
    assert_near(curve(config, resume_from=tmp_path), undisturbed)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_saved_while_it_repeats_a_report_keeps_its_sums(
    trial, two_workers, parallel, tmp_path
):
    """Also if one worker took the place of the two in between."""
    config = configured(trial, {"name": "ft"}, parallel)
    first, again, alone = (tmp_path / name for name in ("first", "again", "alone"))
    undisturbed, _ = two_workers(saved_between, config, first, [False, True], 3)
    two_workers(_saved_as_repeated, config, first, again)
    assert two_workers(curve, config, again) == [undisturbed, undisturbed]
    _saved_as_repeated(config, first, alone)
    assert_near(two_workers(curve, config, alone)[0], undisturbed)


def _saved_as_repeated(config, folder, target):
    """Resume a run, and save it again at its first report."""
    resumed = fine_tune(config, resume_from=folder)
    next(resumed).save(target)
    resumed.close()


def test_one_worker_is_never_sharded(trial, tmp_path):
    config = configured(trial, {"name": "ft"}, "fsdp")
    found = _saved_at_first_report(config, tmp_path)
    assert found == curve(configured(trial, {"name": "ft"}, "ddp"))
    assert curve(config, resume_from=tmp_path) == found
