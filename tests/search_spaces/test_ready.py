"""The spaces and configurations that come with the package."""

import math
import re
from pathlib import Path

import pytest

from search_spaces import SPACES
from tests.test_docs import COMMANDS
from trainers.config import first_learning_rate
from trainers.models.clip import load_clip
from tuning.config.loading import find_config, ready_configs
from tuning.config.schema import SearchFile
from tuning.config.validation import load_config

SIZES = ("b16", "b32", "l14")
PAPER = [f"{data}_vit_{size}" for data in ("domainnet", "imagenet") for size in SIZES]
OWN = [f"vit_{size}" for size in SIZES]
RUNLOCAL = "domainnet_vit_b16_runlocal"
AUTHORS = {  # learning rate, weight decay and clipping on ImageNet with ViT-B/16
    "wise_ft": (3e-5, 0.1, 1.0), "flyp": (1e-5, 0.1, None), "star_ft": (1e-5, 0.1, None),
    "carot": (1e-5, 0.1, None), "r_adapter": (5e-4, 0.0, 1.0),
}  # fmt: skip
RECIPES = [f"imagenet_vit_b16_{method}" for method in AUTHORS]
ALL = sorted([*PAPER, *RECIPES, *OWN, RUNLOCAL, "methods", "quickstart"])

# The values of each method's authors, as far as their paper or code was read.
WEIGHT, LR = "method.reg_weight", "optim.lr"
LIPSUM = {WEIGHT: 1.0, "method.text_length": 8, LR: 1e-5}
CENTERS = {
    "ft": {LR: 1e-5},
    "wise_ft": {"method.alpha": 0.5},
    "tpgm": {"method.projection_lr": 1e-2},
    "l2_sp": {WEIGHT: 0.01},
    "lipsum_ft": LIPSUM,
    "flyp": {LR: 1e-5},
    "star_ft": {WEIGHT: 0.5, LR: 1e-5},
    "carot": {"method.orthogonality_weight": 0.2, "method.distillation_weight": 1.5},
    "r_adapter": {
        "method.drop_rate": 0.2, "method.alpha": 0.5, LR: 5e-4, "method.ema_decay": 0.999,
    },
}  # fmt: skip


def middle(parameter):
    """The centre of a wide range on a log scale."""
    assert parameter.log
    return pytest.approx((parameter.low * parameter.high) ** 0.5)


@pytest.mark.parametrize("name", SPACES)
def test_a_search_begins_at_what_the_authors_use_in_a_wide_range(name):
    values = {"trial": {"method": {"name": name}}}
    file = SearchFile.model_validate(values)
    center, lr = file.spaces[None].initial_points[0], SPACES[name].parameters[LR]
    assert CENTERS.get(name, {}).items() <= center.items()
    assert lr.log
    assert math.log10(lr.high / lr.low) >= 2
    assert 0.1 < lr.unit(float(center[LR])) < 0.9


def test_every_ready_configuration_is_tested():
    assert ready_configs() == ALL


@pytest.mark.parametrize("name", ALL)
def test_the_commands_of_headers_are_valid(name):
    lines = re.findall(
        r"^# .*? {3,}lipsum-tune (.+?)(?: {2,}|$)", find_config(name).read_text(), re.M
    )
    assert any(line.startswith(f"search {name}") for line in lines)
    for command, *words in map(str.split, lines):
        COMMANDS[command].make_context(command, words).close()


@pytest.mark.parametrize("name", PAPER)
def test_paper_configurations_have_the_papers_setting(name):
    file = load_config(name, check=False)
    data, _, size = name.partition("_vit_")
    trial, search = file.trial, file.search
    assert trial.model.name == f"ViT-{size[0].upper()}-{size[1:]}-quickgelu"
    assert trial.model.pretrained == "openai"
    assert (trial.data.suite, trial.data.root) == (data, str(Path("data", data).absolute()))
    assert trial.steps == {"domainnet": 5_000, "imagenet": 50_000}[data]
    optim = trial.optim
    assert (optim.lr, optim.batch_size, optim.weight_decay) == (1e-5, 256, 0.0)
    assert (trial.data.crop_area, trial.data.crop_law) == ((0.08, 1.0), "tensorflow")
    width = {"B/32": 512, "B/16": 512, "L/14": 768}[f"{size[0].upper()}/{size[1:]}"]
    views = trial.steps * trial.optim.batch_size * width * 2  # bytes, which all trials share
    assert views < trial.zero_shot_cache_gb * 1e9
    assert middle(file.spaces[None].parameters[LR]) == 1e-5
    assert search.resources.cpus_per_worker == trial.data.workers


@pytest.mark.parametrize("method", AUTHORS)
def test_recipes_have_the_authors_settings(method):
    file = load_config(f"imagenet_vit_b16_{method}", check=False)
    trial, optim, space = file.trial, file.trial.optim, file.spaces[None]
    assert (trial.model.name, trial.data.suite) == ("ViT-B-16-quickgelu", "imagenet")
    assert trial.method.name == method
    assert space.parameters.keys() == SPACES[method].parameters.keys()
    data = trial.data
    assert (data.crop_area, data.flip, data.crop_pct) == ((0.9, 1.0), False, 1.0)
    assert data.crop_law == "torchvision"
    assert trial.precision == ("fp16" if method in ("carot", "r_adapter") else "fp32")
    assert (optim.batch_size, trial.steps) == (512, 10 * math.ceil(1_281_167 / 512))
    assert round(optim.warmup_fraction * trial.steps) == 500
    lr = space.initial_points[0][LR]
    assert (lr, optim.weight_decay, optim.clip_grad_norm) == AUTHORS[method]
    assert optim.head_lr_factor == 0.01
    assert middle(space.parameters[LR]) == lr


@pytest.mark.parametrize("name", ALL)
def test_trials_are_trained_in_full_and_those_of_papers_report_their_end(name):
    file, is_paper = load_config(name, check=False), name in (*PAPER, *RECIPES, RUNLOCAL)
    assert file.search.scheduler.name == "none"
    assert file.trial.eval.line == ("off" if is_paper else "auto")


@pytest.mark.parametrize("name", ["quickstart", RUNLOCAL])
def test_a_model_without_published_settings_begins_by_the_rule(name):
    trial = load_config(name).trial
    parameters = sum(weight.numel() for weight in load_clip(trial.model).visual.parameters())
    assert trial.optim.lr == first_learning_rate(parameters, trial.steps)


def test_methods_get_equal_trials_and_small_model_ranges():
    file, quickstart = load_config("methods"), load_config("quickstart")
    assert file.spaces.keys() == SPACES.keys()
    assert file.search.budget.trials % len(file.spaces) == 0
    assert file.search.references == ()
    assert file.trial == quickstart.trial
    for method, space in file.spaces.items():
        center, lr = space.initial_points[0], space.parameters[LR]
        authors = file.trial_config({"method.name": method}).method.model_dump()
        for key, value in center.items():
            assert key in (LR, "method.ema_decay") or value == authors[key[7:]]
        if method not in ("lora", "r_adapter"):
            assert lr == quickstart.spaces[None].parameters[LR]
            assert center[LR] == quickstart.trial.optim.lr
