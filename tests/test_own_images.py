"""docs/own_images.md: its commands, run in order on a folder of images, with the search for CPUs.

With RAY_ADDRESS of this test process, so that Ray does not start for each command.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import CLASSES
from tests.test_docs import ROOT, blocks, commands, write_files
from trainers.data.dataset import ImageDataset
from tuning.results.estimates import results_of
from tuning.run import load_run

pytestmark = pytest.mark.nightly

PAGE = ROOT / "docs" / "own_images.md"
SHORTER = ("search.budget.trials=3", "trial.steps=12", "trial.eval.every=6")
"""All that is changed on the page: with its own numbers the search takes minutes."""
DOMAINS = {"studio": "real", "street": "clipart", "sketch": "sketch"}
RUN = Path("runs/small_search")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def printed(whole_root, ray_head, folder):
    """Standard output of the commands of the page, which were run in `folder`."""
    write_shop(whole_root, folder / "shop")
    write_files(PAGE, folder)
    printed, words_of_shop = {}, {"shop", "small_search", "small_search.yaml"}
    environment = {"RAY_ADDRESS": ray_head.address, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    on_page = [block for block in blocks(PAGE) if block.language == "sh"]
    for words in (words for block in on_page for words in commands(block.code)):
        words = [word.replace("my_search", "small_search") for word in words]
        if words[1] == "auto" or not words_of_shop & set(words):  # tests/tuning/test_auto.py
            continue
        if words[1] in printed and "--check-duplicates" not in words:
            continue
        changes = [f"--set={key}" for key in SHORTER if "small_search.yaml" in words]
        done = subprocess.run(
            [sys.executable, "-m", "tuning", *words[1:], *changes],
            cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        printed[words[1]] = printed.get(words[1], "") + done.stdout
    expected = ["prepare", "zero-shot", "plan", "search", "report", "confirm", "export"]
    assert list(printed) == expected
    return printed


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def write_shop(whole_root, shop):
    """Write `<domain>/<class>/*.jpg`, without splits."""
    for domain, drawn in DOMAINS.items():
        for split in sorted(path.name for path in (whole_root / drawn).iterdir()):
            images = ImageDataset(whole_root, drawn, split)
            for index in range(len(images)):
                name = images.class_names[int(images.labels[index])]
                file = shop / domain / name.replace("clock", "wall_clock") / f"{split}{index}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                images.decode(index).save(file, quality=95)


def test_every_image_is_in_a_split_and_the_printed_suite_is_the_pages(printed):
    for domain in DOMAINS:
        splits = ["test", "train", "val"] if domain == "studio" else ["test", "val"]
        made, count = Path("data/shop", domain), len(list(Path("shop", domain).rglob("*.jpg")))
        assert sorted(path.name for path in made.iterdir() if path.is_dir()) == splits
        assert sum(len(ImageDataset("data/shop", domain, split)) for split in splits) == count > 0
    (suite,) = re.findall(r"trial.data.suite: (.*)", printed["prepare"])
    configured = yaml.safe_load(Path("small_search.yaml").read_text())["trial"]["data"]["suite"]
    assert yaml.safe_load(suite) == configured


def test_cost_and_trials_are_shown(printed):
    assert all(domain in printed["zero-shot"] for domain in DOMAINS)
    for cost in ("CPU-hours", "all trials in full", "confirm"):
        assert cost in printed["plan"]
    for command in ("search", "report"):
        assert all(f"trial-00{n}" in printed[command] for n in range(3)), command
    assert "lipsum-tune export small_search" in printed["search"]
    assert "trial-002" in (RUN / "report" / "index.html").read_text()


def test_five_seeds_are_confirmed_on_the_test_splits(printed):
    found = results_of(load_run(RUN).confirmed)
    trained = {trial_id for trial_id, seed in found if seed is not None}
    (chosen,) = trained - {"ft"}
    assert chosen in printed["confirm"]
    assert len({seed for _, seed in found} - {None}) == 5
    assert len(found) == 2 * 5 + 1  # and the zero-shot model
    for result in found.values():
        assert all(f"ood_test/{domain}/acc" in result.metrics for domain in ("street", "sketch"))


@pytest.mark.usefixtures("printed")
def test_the_exported_model_is_loaded_as_on_the_page():
    (load,) = (block.code for block in blocks(PAGE) if block.language == "python")
    loaded = {}
    exec(load, loaded)
    assert loaded["model"].visual.image_size == (48, 48)
    about = json.loads(Path("model", "classes.json").read_text())
    assert about["classes"] == sorted("wall_clock" if name == "clock" else name for name in CLASSES)
