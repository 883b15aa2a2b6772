"""The recipe in the header of `imagenet_vit_b16`, from `prepare` to `export`, with few images.

All 1,000 classes are there, the image tower is that of ViT-B/16 with random weights, and the text
tower is small. With RAY_ADDRESS of this test process, so that Ray does not start for each command.
"""

import importlib.util
import io
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.test_docs import ROOT
from tests.trainers.tiny_models import random_model
from trainers.checkpoints.format import PREDICTIONS
from trainers.data.dataset import ImageDataset
from trainers.data.published import wordnet_ids
from trainers.data.suite import load_suite
from tuning.checkpoints.files import kept_checkpoint
from tuning.config.loading import find_config
from tuning.runs.confirmation import confirm_history, results_of
from tuning.runs.run_folder import load_run

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]  # 6 CPU-minutes, 6 GB

NAME = "imagenet_vit_b16"
VIT_B16 = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
HELD_OUT = 4
"""Classes of which one training image becomes val; the other classes have one image."""
SHIFTS = {
    "imagenetv2-matched-frequency": ("3", "11", "999"),
    "imagenet-r": wordnet_ids("imagenet_r")[:3],
    "imagenet-a": wordnet_ids("imagenet_a")[:3],
    "sketch": wordnet_ids()[:3],
}
"""Folders of the header, with the classes that have two images: one becomes val, one test."""


def write_trees(root):
    rng = np.random.default_rng(0)

    def put(path):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(root / path)

    for label, class_ in enumerate(wordnet_ids()):
        for number in range(1 + (label < HELD_OUT)):
            put(f"imagenet/train/{class_}/{number}.jpeg")
    for class_ in wordnet_ids()[:HELD_OUT]:
        put(f"imagenet/val/{class_}/0.jpeg")
    for shift, classes in SHIFTS.items():
        for class_ in classes:
            put(f"{shift}/{class_}/0.jpeg")
            put(f"{shift}/{class_}/1.jpeg")


def smaller(model):
    """What is changed of the ready configuration."""
    suite = load_suite("imagenet").model_dump(mode="json")
    suite["templates"] = ["a photo of a {}.", "a sketch of a {}."]
    return {
        "extends": NAME,
        "trial": {
            "model": {"name": model.name, "pretrained": None},
            "data": {"suite": suite, "workers": 0},
            "optim": {"batch_size": 2},
            "steps": 2,
            "eval": {"every": 2},
        },
        "search": {
            "budget": {"trials": 1},
            "references": [],
            "resources": {"cpus_per_worker": 2, "gpus_per_worker": 0},
        },
    }


@pytest.fixture(scope="module")
def folder(ray_head, tmp_path_factory):
    """Where the commands of the header have run, and `export` after them."""
    folder = tmp_path_factory.mktemp("recipe")
    write_trees(folder / "sources")
    model = random_model(folder, "quick-gelu", embed_dim=512, vision_cfg=VIT_B16)
    (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(smaller(model)))
    header = find_config(NAME).read_text()
    # `plan --on`, the last one, predicts what this recipe costs with its own model.
    lines = re.findall(r"^#.*? lipsum-tune ((?!plan ).*)", header, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        *5 * ["prepare"],
        "zero-shot",
        "search",
        "confirm",
    ]
    environment = {"RAY_ADDRESS": ray_head.address, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    for line in (*lines, f"export {NAME} --trial trial-000 --output model"):
        line = line.replace("/path/to", str(folder / "sources")).replace(" --expect published", "")
        words = line.split()
        if words[0] in ("zero-shot", "search"):
            words[1] += ".yaml"
        if words[0] == "confirm":
            words += ["--seeds", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "tuning", *words],
            cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    return folder


def test_every_image_is_prepared_and_all_classes_train(folder):
    train = ImageDataset(folder / "data" / "imagenet", "imagenet", "train")
    assert sorted(train.labels) == list(range(1000))
    assert train.class_names == wordnet_ids()
    for split in ("val", "test"):
        images = ImageDataset(folder / "data" / "imagenet", "imagenet", split)
        assert images.labels.tolist() == list(range(HELD_OUT))


def test_trial_and_fresh_seeds_are_measured_on_all_shifts(folder):
    run = load_run(folder / "runs" / NAME)
    (record,) = run.history.records
    assert (record.outcome, record.metrics["step"]) == ("finished", 2)
    assert record.metrics["eval/images"] == HELD_OUT + 3 * len(SHIFTS)
    found = results_of(confirm_history(run.folder))
    assert len(found) == 2 * 2 + 1
    for result in found.values():
        assert sum(key.startswith("ood_test/") for key in result.metrics) >= len(SHIFTS)


def test_the_exported_model_predicts_what_the_trial_did(folder):
    spec = importlib.util.spec_from_file_location("predict", folder / "model" / "predict.py")
    predict = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict)
    images = ImageDataset(folder / "data" / "imagenet", "imagenet", "val")
    exported = predict.Classifier(folder / "model").probabilities(
        images.decode(row) for row in range(len(images))
    )
    checkpoint = kept_checkpoint(load_run(folder / "runs" / NAME).checkpoints, "trial-000")
    table = pq.read_table(io.BytesIO(checkpoint.read_bytes(PREDICTIONS))).to_pylist()
    of_trial = [row for row in table if row["domain"] == "imagenet"]
    assert exported.argmax(dim=-1).tolist() == [row["predicted"] for row in of_trial]
    confidence = [row["confidence"] for row in of_trial]
    assert exported.amax(dim=-1).tolist() == pytest.approx(confidence, rel=1e-4)
