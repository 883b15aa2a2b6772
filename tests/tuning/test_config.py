"""Bad input: one clear error that names the file, the key and the value."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.config import TrialConfig
from trainers.dotted import nest
from trainers.errors import ConfigError
from tuning.config import load_config


@pytest.fixture
def good(pictures_root: Path) -> dict[str, Any]:
    return {
        "trial": {"data": {"root": str(pictures_root)}, "steps": 6, "eval": {"every": 3}},
        "search": {"scheduler": {"name": "asha", "grace_steps": 3}},
    }


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trial.optim.lrr", 1, r"unknown key 'trial.optim.lrr' = 1 \(did you mean 'lr'\?\)"),
        ("trial.optim.lr", "fast", r"trial.optim.lr = 'fast'"),
        ("trial.optim.lr", -1, r"trial.optim.lr = -1: .*greater than 0"),
        ("trial.optim.lr", float("nan"), r"trial.optim.lr = nan"),
        ("trial.method", {"name": "lipsum"}, r"trial.method.name = 'lipsum'.*mean 'lipsum_ft'"),
        ("trial.method", {"name": "ft", "reg_weight": 1}, r"trial.method.reg_weight"),
        ("trial.data.root", "/no/such/folder", r"data.root = '/no/such/folder': no such folder"),
        ("trial.data.ood_domains", ["skech"], r"no domain 'skech' \(did you mean 'sketch'\?\)"),
        ("trial.data.ood_domains", ["real"], r"'real' is named twice"),
        ("trial.data.crop_area", [0.5, 0.2], r"trial.data.crop_area = .*least <= greatest"),
        ("trial.model.name", "tiny-klip", r"model.name = 'tiny-klip'.*did you mean 'tiny-clip'"),
        ("trial.method", {"name": "lipsum_ft", "text_length": 31}, r"text_length"),
        ("search.objective.metric", "val/acc", r"'val/acc' is never reported \(did you mean"),
        ("search.objective.mode", "up", r"search.objective.mode = 'up'"),
        ("search.space.name", "lipsumft", r"search.space.name = 'lipsumft'.*'lipsum_ft'"),
        ("search.space.parameters", {"optim.lrr": {"type": "float", "low": 1, "high": 2}},
         r"optim.lrr"),
        ("search.space.parameters", {"optim.lr": {"type": "float", "low": 2, "high": 1}}, r"low"),
        ("search.space.parameters", {"optim.lr": {"type": "fload", "low": 1, "high": 2}},
         r"optim.lr.*fload"),
        ("search.space.parameters",
         {"method.text_length": {"type": "int", "low": 2, "high": 31}}, r"text_length = 31"),
        ("search.budget.trials", 0, r"search.budget.trials = 0"),
        ("search.scheduler.grace_steps", 7, r"grace_steps = 7: more than trial.steps = 6"),
        ("search.scheduler", {"name": "asha"}, r"search.scheduler.grace_steps' is missing"),
        ("search.sampler.name", "tpf", r"search.sampler.name = 'tpf'.*did you mean 'tpe'"),
        ("search.name", "a/b", r"search.name = 'a/b'"),
        ("search.resources.workers", 3, r"batch_size = 256: not divisible by .*workers = 3"),
        ("serch", {}, r"unknown key 'serch' = \{\} \(did you mean 'search'\?\)"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_one_line_that_names_it(
    good: dict[str, Any], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    values = good
    if key == "search.space.parameters" or key != "trial.method":
        values = nest({key: value}, good)
    else:
        values = nest({}, good)
        values["trial"]["method"] = value
    # A method of fixed settings cannot be searched with the space of another.
    if key == "trial.method":
        values["search"]["space"] = {
            "name": None,
            "parameters": {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3}},
        }
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_several_mistakes_are_told_at_once(good: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(nest({"trial.steps": 0, "trial.seed": -1}, good)))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_no_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("trial: [1,")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quickstar")


def test_overrides_reach_the_configuration_and_are_checked(
    good: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(good))
    file = load_config(path, ["trial.optim.lr=2e-4", "search.budget.trials=3"])
    assert file.trial.optim.lr == 2e-4
    assert file.search.budget.trials == 3
    with pytest.raises(ConfigError, match=r"unknown key 'trial\.optim\.lrr'"):
        load_config(path, ["trial.optim.lrr=2e-4"])
    with pytest.raises(ConfigError, match="write it as key=value"):
        load_config(path, ["trial.optim.lr"])


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("trial: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(path)


def test_every_ready_configuration_is_valid_and_says_how_it_is_run() -> None:
    files = list(Path(str(resources.files("search_spaces"))).glob("configs/*.yaml"))
    assert files
    for file in files:
        assert load_config(file.stem).trial.steps > 0
        assert file.read_text().startswith("# ")
        assert f"lipsum-tune search {file.stem}" in file.read_text()


def test_a_proposal_is_laid_over_the_base_trial(good: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(good))
    file = load_config(path)
    changed = file.trial_config({"method.reg_weight": 0.25, "optim.lr": 1e-3})
    expected = TrialConfig.model_validate(
        nest({"method.reg_weight": 0.25, "optim.lr": 1e-3}, file.trial.model_dump(mode="json"))
    )
    assert changed == expected
    assert file.reference_config("ft").method.name == "ft"
    assert file.reference_config("ft").optim == file.trial.optim
