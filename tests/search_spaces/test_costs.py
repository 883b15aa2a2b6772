"""Costs in ready configurations and docs/own_images.md are what `plan --on` predicts."""

import re
from pathlib import Path

import pytest

from tuning.config.loading import find_config, ready_configs
from tuning.config.validation import load_config
from tuning.planning.cards import plan_on

CARD = "A100-80GB"
FIGURES = re.compile(
    r"([\d.,]+) GPU-hours a trial, ([\d.,]+) the search: ([\d.]+) s and ([\d.]+) GB a step, "
    r"(\d+) images at once, (\d+) CPU cores?"
)
ON_CPUS = {"quickstart", "methods", "domainnet_vit_b16_runlocal"}
ON_GPUS = sorted({*ready_configs()} - ON_CPUS)
PAGE = Path(__file__).parents[2] / "docs/own_images.md"
ROUNDED = 0.06
"""Relative error of two digits."""


def number(text):
    return float(text.replace(",", ""))


@pytest.mark.nightly  # half a minute of CPU time together
@pytest.mark.parametrize("name", ON_GPUS)
def test_a_header_has_the_predicted_cost(name):
    header = re.sub(r"\n# +", " ", find_config(name).read_text())
    assert f"lipsum-tune plan {name} --on {CARD}" in header
    stated = FIGURES.findall(header)
    in_float32 = load_config(name, check=False).trial.precision == "fp32"
    for changes, figures in zip(
        [[], ["trial.precision=auto"]][: 1 + in_float32], stated, strict=True
    ):
        _, (found,) = plan_on(load_config(name, changes, check=False), [CARD])
        hours = found.gpu_hours
        at_once = (found.micro_batch, found.cores)
        predicted = (hours["trial"], hours["search"], found.step_s, found.step.peak_bytes / 1e9)
        assert [*map(number, figures)] == pytest.approx([*predicted, *at_once], rel=ROUNDED)


@pytest.mark.nightly
def test_the_table_for_your_own_images_is_predicted():
    lines = [re.split(r" *\| *", line)[1:-1] for line in PAGE.read_text().splitlines()]
    first = next(n for n, line in enumerate(lines) if line[1:2] == ["memory, GB"])
    cards = lines[first][2:]
    for name, memory, *hours in lines[first + 2 : first + 5]:
        _, plans = plan_on(load_config(name.strip("`"), check=False), cards)
        assert number(memory) == pytest.approx(plans[0].step.peak_bytes / 1e9, rel=ROUNDED)
        predicted = [found.gpu_hours["trial"] for found in plans]
        assert [*map(number, hours)] == pytest.approx(predicted, rel=ROUNDED)
