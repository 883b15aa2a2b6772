"""The configurations that come with the package."""

import math
import re
from pathlib import Path

import pytest

from search_spaces import METHODS, Float
from trainers.data.dataset import ImageDataset
from tuning.config.loading import find_config, ready_configs
from tuning.config.schema import AshaConfig
from tuning.config.validation import load_config

PAPER = [
    f"{data}_{model}"
    for data in ("domainnet", "imagenet")
    for model in ("vit_b16", "vit_b32", "vit_l14")
]

OWN = ["vit_b16", "vit_b32", "vit_l14"]
AUTHORS = {
    "wise_ft": (3e-5, 0.1, 1.0),
    "flyp": (1e-5, 0.1, None),
    "star_ft": (1e-5, 0.1, None),
    "carot": (1e-5, 0.1, None),
    "r_adapter": (5e-4, 0.0, 1.0),
}
"""Learning rate, weight decay and clipping of the methods' authors on ImageNet with ViT-B/16."""
RECIPES = [f"imagenet_vit_b16_{method}" for method in AUTHORS]


def test_the_ready_configurations_by_name():
    assert ready_configs() == sorted([*PAPER, *RECIPES, *OWN, "methods", "quickstart"])


@pytest.mark.parametrize("name", OWN)
def test_own_images_are_shown_as_open_clip_shows_them(name, images_root):
    file = load_config(name, check=False)
    assert (file.trial.data.crop_area, file.trial.data.crop_pct) == ((0.9, 1.0), 1.0)
    assert ImageDataset(images_root, "real", "val").crop_pct == 1.0
    paper = load_config(f"domainnet_{name}", check=False)
    assert file.trial.model == paper.trial.model
    assert file.search.resources == paper.search.resources
    assert file.search_space() == paper.search_space()


@pytest.mark.parametrize("name", [*PAPER, *RECIPES, *OWN, "methods", "quickstart"])
def test_headers_have_command_cost_and_expectation(name):
    header = re.split(r"^(?!#)", find_config(name).read_text(), maxsplit=1, flags=re.M)[0]
    assert f"lipsum-tune search {name}" in header
    for word in ("Cost:", "Prior:", "Expected:"):
        assert word in header
    if name in PAPER + RECIPES:
        for command in ("zero-shot", "confirm runs/", f"search {name}:runlocal", "prepare"):
            assert command.replace("zero-shot", f"zero-shot {name}") in header.lower()
        assert "not\n# " in header or "not measured" in header or "has not run" in header


@pytest.mark.parametrize("name", PAPER)
def test_paper_configurations_have_the_papers_setting(name):
    file = load_config(name, check=False)
    data, _, model = name.partition("_")
    trial, search = file.trial, file.search
    short = model.replace("vit_", "").upper()
    assert trial.model.name == f"ViT-{short[0]}-{short[1:]}-quickgelu"
    assert trial.model.pretrained == "openai"
    assert trial.data.suite == data
    assert trial.data.root == str(Path("data", data).absolute())
    assert trial.steps == {"domainnet": 5_000, "imagenet": 50_000}[data]
    assert trial.optim.model_dump() == {
        "lr": 1e-5, "head_lr_factor": 1.0, "batch_size": 256, "warmup_fraction": 0.1,
        "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8,
        "clip_grad_norm": None, "micro_batch_size": None,
    }  # fmt: skip
    assert (trial.data.crop_area, trial.data.crop_pct) == ((0.08, 1.0), 0.875)
    assert trial.precision == "auto"
    assert search.name == name
    lr = file.search_space().parameters["optim.lr"]
    assert isinstance(lr, Float)
    assert lr.log
    assert (lr.low * lr.high) ** 0.5 == pytest.approx(1e-5)
    assert file.search_space().initial_points[0]["optim.lr"] == 1e-5
    assert isinstance(search.scheduler, AshaConfig)
    assert trial.eval.rung_weights == "averaged"
    first_step = search.scheduler.first_step(trial.steps, trial.eval.every)
    assert first_step == {"domainnet": 3_000, "imagenet": 30_000}[data]
    assert search.resources.gpus_per_worker == 1
    assert trial.optim.batch_size % search.resources.workers == 0
    assert search.resources.cpus_per_worker >= trial.data.workers


@pytest.mark.parametrize(("steps", "first"), [(120, 80), (40, 40), (240, 160)])
def test_the_quickstart_may_be_shortened(steps, first):
    file = load_config("quickstart", [f"trial.steps={steps}"])
    assert isinstance(file.search.scheduler, AshaConfig)
    assert file.search.scheduler.first_step(steps, file.trial.eval.every) == first


@pytest.mark.parametrize("method", AUTHORS)
def test_recipes_have_the_authors_settings(method):
    file = load_config(f"imagenet_vit_b16_{method}", check=False)
    lr, weight_decay, clipping = AUTHORS[method]
    trial, optim, space = file.trial, file.trial.optim, file.search_space()
    assert (trial.model.name, trial.data.suite) == ("ViT-B-16-quickgelu", "imagenet")
    assert trial.method.name == file.search.space.name == method
    data = trial.data
    assert (data.crop_area, data.flip, data.crop_pct) == ((0.9, 1.0), False, 1.0)
    assert (optim.batch_size, trial.steps) == (512, 10 * math.ceil(1_281_167 / 512))
    assert round(optim.warmup_fraction * trial.steps) == 500
    assert (optim.weight_decay, optim.clip_grad_norm) == (weight_decay, clipping)
    assert optim.head_lr_factor == (0.01 if method == "wise_ft" else 1)
    assert space.initial_points[0]["optim.lr"] == lr
    searched = space.parameters["optim.lr"]
    assert isinstance(searched, Float)
    assert (searched.low * searched.high) ** 0.5 == pytest.approx(lr)
    assert isinstance(file.search.scheduler, AshaConfig)
    assert file.search.scheduler.first_step(trial.steps, trial.eval.every) == 15_018


@pytest.mark.parametrize("name", [*PAPER, *RECIPES])
def test_runlocal_passes_all_checks_and_fits_a_laptop(name):
    file = load_config(f"{name}:runlocal")
    assert file.trial.model.name == "tiny-clip"
    assert file.trial.data.root == "openmoji"
    assert file.trial.data.suite is None
    assert file.trial.steps <= 20
    assert file.search.budget.trials == 2
    assert file.search.resources.model_dump(exclude_defaults=True) == {}  # one CPU, no GPU
    assert file.objectives == load_config(name, check=False).objectives
    method = name.removeprefix("imagenet_vit_b16_") if name in RECIPES else "lipsum_ft"
    assert file.trial.method.name == file.search.space.name == method


def test_methods_get_equal_trials_and_small_model_ranges():
    file = load_config("methods")
    quickstart = load_config("quickstart")
    branches = file.search_space().branches
    assert branches.keys() == METHODS.keys()
    assert file.search.budget.trials % len(branches) == 0
    assert file.search.references == ()
    assert file.trial.model_copy(update={"eval": quickstart.trial.eval}) == quickstart.trial
    for method, branch in branches.items():
        center = branch.initial_points[0]
        authors = file.trial_config({"method.name": method}).method.model_dump()
        for key, value in center.items():
            assert key in ("optim.lr", "method.ema_decay") or value == authors[key[7:]]
        lr = branch.parameters["optim.lr"]
        assert isinstance(lr, Float)
        if method != "r_adapter":
            assert lr == quickstart.search_space().parameters["optim.lr"]
            assert center["optim.lr"] == quickstart.trial.optim.lr
