import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.images import CLASSES
from tests.trainers.curves import assert_near, changed, curve, short, untimed
from tests.trainers.loop.short_memory import limit_images
from trainers import fine_tune as loop
from trainers.checkpoints.format import PREDICTIONS
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError, MicroBatchTooLarge
from trainers.fine_tune import fine_tune
from trainers.loop import setup
from trainers.loop.training import start


def configured(trial, method, **overrides):
    """Adam's eps is above rounding: see `test_training`."""
    return short(trial, method, **{"optim__eps": 1e-3, **overrides})


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ({"name": "lipsum_ft", "text_count": 16}, None),
        ({"name": "flyp"}, None),
        ({"name": "lp_ft", "probe_fraction": 0.5, "probe_lr": 1e-2}, None),
        ({"name": "carot", "teacher_updates": 3}, 3),
    ],
)
def test_two_workers_have_the_curve_of_one_in_parts_too(method, parts, trial, two_workers):
    """All methods are in the contract, at night."""
    alone = configured(trial, method, steps=2, eval__line="auto")
    first, second = two_workers(curve, changed(alone, optim__micro_batch_size=parts))
    assert first == second
    assert_near(first, curve(alone))


def saved_predictions(config, folder):
    *_, last = fine_tune(config)
    last.save(folder)
    return pq.read_table(io.BytesIO(last.evaluated.predictions))


def test_two_workers_keep_the_predictions_of_all_images(trial, two_workers, tmp_path):
    config = configured(trial, "ft")
    one, other = two_workers(saved_predictions, config, tmp_path / "two")
    assert one.equals(other)
    assert pq.read_table(tmp_path / "two" / PREDICTIONS).equals(one)
    alone = saved_predictions(config, tmp_path / "alone")
    exact = ["domain", "image", "label", "zero_shot"]
    assert one.select(exact).equals(alone.select(exact))
    for name in ("confidence", "zero_shot_confidence"):
        assert np.allclose(one[name], alone[name], atol=1e-4)


@pytest.mark.parametrize(
    ("rank", "visible", "device"), [("1", 2, "cuda:1"), ("1", 1, "cuda:0"), (None, 2, "cuda:0")]
)
def test_a_process_of_torchrun_takes_the_gpu_of_its_rank(rank, visible, device, trial, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    asked, current = [], []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.setattr(setup, "load_zero_shot", lambda *given: asked.extend(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(trial)
    assert asked[-1] == torch.device(device)
    assert current == [torch.device(device).index]


@pytest.mark.parametrize(("processes", "loaders"), [(1, 12), (4, 3), (16, 1)])
def test_processes_of_torchrun_share_the_cores_for_loaders(processes, loaders, trial, monkeypatch):
    """Each has one thread of PyTorch."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(12))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert trial.data.loader_processes(on_gpu=True) == loaders


def test_a_batch_that_workers_cannot_share_evenly_is_refused(trial, two_workers):
    with pytest.raises(ConfigError, match="2 workers cannot share it evenly") as caught:
        two_workers(curve, configured(trial, "flyp", optim__batch_size=7))
    assert (caught.value.key, caught.value.hint) == ("optim.batch_size", "6 or 8")


def test_gradients_of_all_workers_together_are_clipped(trial, two_workers):
    settings = {"optim__clip_grad_norm": 0.5, "optim__eps": 1.0, "optim__lr": 0.5}
    clipped = curve(configured(trial, "ft", **settings))
    assert_near(two_workers(curve, configured(trial, "ft", **settings))[0], clipped)
    unclipped = curve(configured(trial, "ft", optim__eps=1.0, optim__lr=0.5))
    assert abs(unclipped[0]["id_val/nll"] - clipped[0]["id_val/nll"]) > 1e-2


def test_a_worker_may_have_fewer_or_no_images_of_a_domain(
    trial, two_workers, images_root, tmp_path
):
    """In batches of two: of five images the first worker has two batches and the second one; of
    one it has one and the second none. The first of two reports is on a sample."""
    for domain in trial.data.domains:
        (tmp_path / domain).symlink_to(images_root / domain)
    for domain, size in (("sketch", 1), ("painting", 5)):
        rows = pq.read_table(part_path(images_root, domain, "val")).to_pylist()[:size]
        images = [LabelledImage(row["image"]["bytes"], "x", row["label"]) for row in rows]
        (tmp_path / domain).unlink()
        write_images(part_path(tmp_path, domain, "val"), images, CLASSES)
    changes = {
        "data__root": str(tmp_path),
        "data__ood_domains": ["sketch", "painting"],
        "eval__batch_size": 2,
        "eval__every": 1,
        "eval__rung_images": 3,
        "eval__line_images": 3,
        "eval__line": [0.5],
        "steps": 2,
    }
    config = configured(trial, "ft", **changes)
    first, second = two_workers(curve, config)
    assert first == second
    assert [report["eval/images"] for report in first] == [3 + 1 + 3, 24 + 1 + 5]
    assert_near(first, curve(config))


def test_want_of_memory_ends_the_attempt_with_the_size_for_the_next(trial, two_workers):
    """No worker can take a step again while another waits for it."""
    found = two_workers(_size_after_short_memory, configured(trial, "ft"))
    assert found == [2, 2]


def _size_after_short_memory(config):
    """Of a run whose workers can have three of their four images at once."""
    loop.start = limit_images(3, "student")
    try:
        curve(config)
    except MicroBatchTooLarge as error:
        return error.micro_batch_size
    finally:
        loop.start = start


def test_another_number_of_workers_goes_on(trial, two_workers, tmp_path):
    config = configured(trial, "ft", steps=4, eval__every=2)
    undisturbed = fine_tune(config)
    next(undisturbed).save(tmp_path)
    expected = [untimed(report) for report in undisturbed]
    for found in two_workers(curve, config, tmp_path):
        assert_near(found[1:], expected)
