import multiprocessing
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import CLASSES
from tests.trainers.curves import changed, configured, curve, untimed
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import TrainingDiverged
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.images import load_split, open_images
from trainers.loop.measure import measure_zero_shot
from trainers.loop.setup import set_up
from trainers.loop.timing import Clock, peak_memory
from trainers.loop.training import start


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_decides_the_order_of_the_images(workers, trial):
    def order(seed):
        training = start(changed(trial, seed=seed, data__workers=workers))
        train = open_images(training.setup.config.data, "real", "train")
        return [int(label) for _, labels in training_batches(training, train) for label in labels]

    first = order(1)
    assert order(1) == first
    assert order(2) != first != order(0)


def test_another_process_resumes_to_the_last_bit(trial, tmp_path):
    """In the middle of an epoch, with a text encoder and averages, and without Ray."""
    config = changed(configured(trial, "carot"), eval__every=1, eval__ema=0.5, eval__line=0.5)
    config = changed(config, data__ood_domains=[], steps=2)
    undisturbed = fine_tune(config)
    next(undisturbed).save(tmp_path)
    (last,) = undisturbed
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as process:
        *_, resumed = process.apply(curve, (config, tmp_path))
    assert resumed == untimed(last)


def test_rungs_evaluate_a_sample_and_the_last_step_all_images(trial):
    whole, sampled = (list(fine_tune(changed(trial, eval__rung_images=n))) for n in (0, 10))
    assert [report.metrics["eval/images"] for report in whole] == [5 * 24] * 2
    assert [report.metrics["eval/images"] for report in sampled] == [5 * 10, 5 * 24]
    rungs = [untimed(reports[0]) for reports in (whole, sampled)]
    assert rungs[0]["ood_val/sketch/nll"] != rungs[1]["ood_val/sketch/nll"]
    assert rungs[0]["train/loss"] == rungs[1]["train/loss"]
    assert untimed(whole[1]) == untimed(sampled[1])


def test_memory_is_that_of_the_process(trial, monkeypatch):
    """On macOS, the system counts it in bytes. Linux counts each thread's pages apart and adds them
    up now and then, so that its peak is not exact and may even shrink a little.
    """
    *_, last = fine_tune(changed(trial, steps=1))
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert last.metrics["cost/memory_gb"] == pytest.approx(int(peak) * 1024e-9, rel=0.2)
    of_linux = peak_memory()
    assert of_linux == pytest.approx(int(peak) * 1024, rel=0.01)
    monkeypatch.setattr("sys.platform", "darwin")
    assert peak_memory() == pytest.approx(of_linux / 1024, rel=0.01)


@pytest.mark.parametrize("gpus", [0.5, 1.0])
def test_a_second_of_half_a_gpu_is_half_a_gpu_second(gpus, trial):
    cost = Clock(start(trial), gpus).cost()
    assert cost["cost/gpu_seconds"] == gpus * cost["cost/seconds"] > 0


def test_the_training_curve_goes_on_between_reports(trial):
    """Its points are what a run that is evaluated there reports."""
    progress = []
    config = changed(trial, steps=24, eval__every=24, data__ood_domains=["sketch"])
    (seldom,) = fine_tune(config, on_progress=progress.append)
    often = list(fine_tune(changed(config, eval__every=10)))
    expected = {name: [r.metrics[name] for r in often] for name in ("train/loss", "train/lr")}
    assert seldom.train_curve["step"] == [report.step for report in often] == [10, 20, 24]
    for name, values in expected.items():
        assert seldom.train_curve[name] == pytest.approx(values, rel=1e-5)
    so_far = [{name: points[:n] for name, points in seldom.train_curve.items()} for n in (1, 2)]
    assert progress == so_far
    last = seldom.metrics  # so a loss is one figure in MLflow, tables and terminal
    for name in ("train/loss", "train/lr", "train/images_per_s"):
        assert last[name] == pytest.approx(seldom.train_curve[name][-1], rel=1e-5)
    loss = last["train/task_loss"] + config.method.reg_weight * last["train/reg"]
    assert last["train/loss"] == pytest.approx(loss, rel=1e-5)


def test_throughput_leaves_out_what_happens_at_a_report(trial, monkeypatch):
    now = 0.0

    def a_millisecond_later():
        nonlocal now
        now += 0.001
        return now

    monkeypatch.setattr("time.perf_counter", a_millisecond_later)
    rates = []
    for report in fine_tune(trial):
        rates.append(report.metrics["train/images_per_s"])
        now += 1000  # a checkpoint is written, and the search decides
    assert len(rates) == 2
    assert min(rates) > 100


def test_the_points_of_a_training_curve_are_limited(trial, monkeypatch):
    monkeypatch.setattr("trainers.loop.timing.CHECK_EVERY", 1)
    monkeypatch.setattr("trainers.loop.timing.CURVE_POINTS", 4)
    (report,) = fine_tune(changed(trial, steps=10, eval__every=10))
    assert report.train_curve["step"] == [3, 6, 9, 10]


def test_a_domain_may_have_the_classes_in_another_order(trial, images_root, tmp_path):
    """Every figure stays as it is."""
    for domain in set(trial.data.domains) - {"sketch"}:
        (tmp_path / domain).symlink_to(images_root / domain)
    last = len(CLASSES) - 1
    images = [
        LabelledImage(row["image"]["bytes"], "x", last - row["label"])
        for row in pq.read_table(part_path(images_root, "sketch", "val")).to_pylist()
    ]
    write_images(part_path(tmp_path, "sketch", "val"), images, CLASSES[::-1])
    turned = changed(trial, data__root=str(tmp_path))
    found, expected = (
        measure_zero_shot(set_up(config), load_split(config, "val")) for config in (turned, trial)
    )
    assert found == pytest.approx(expected)


def test_a_loss_that_is_no_number_ends_the_run_with_its_step(trial):
    with pytest.raises(TrainingDiverged, match="step 10"):
        list(fine_tune(changed(trial, steps=12, optim__lr=1e3, eval__every=12)))
