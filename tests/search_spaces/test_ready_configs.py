"""The configurations that come with the package, and the two mechanisms that keep them short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from search_spaces import METHODS, Categorical, Float
from trainers.data.suite import Suite, load_suite
from trainers.errors import ConfigError
from trainers.fine_tune import fine_tune
from tuning.config.early_stopping import AshaConfig
from tuning.config.loading import find_config, ready_configs
from tuning.config.schema import SearchFile
from tuning.config.validation import check_search, load_config
from tuning.runs.run_folder import search_record, write_config

PAPER = [
    f"{data}_{model}"
    for data in ("domainnet", "imagenet")
    for model in ("vit_b16", "vit_b32", "vit_l14")
]


def test_the_ready_configurations_are_those_that_users_know() -> None:
    assert ready_configs() == sorted([*PAPER, "methods", "quickstart"])


@pytest.mark.parametrize("name", [*PAPER, "methods", "quickstart"])
def test_every_header_says_how_it_is_run_what_it_costs_and_what_comes_out(name: str) -> None:
    header = re.split(r"^(?!#)", find_config(name).read_text(), maxsplit=1, flags=re.M)[0]
    assert f"lipsum-tune search {name}" in header
    for word in ("Cost:", "Expected:"):
        assert word in header
    if name in PAPER:
        for command in ("zero-shot", "confirm runs/", f"search {name}:runlocal", "prepare"):
            assert command.replace("zero-shot", f"zero-shot {name}") in header.lower()
        assert "not\n# " in header or "not measured" in header or "has not run" in header


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_setting_is_what_its_files_say(name: str) -> None:
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
        "lr": 1e-5, "batch_size": 256, "warmup_fraction": 0.1, "weight_decay": 0.0,
        "betas": (0.9, 0.999), "eps": 1e-8, "clip_grad_norm": None, "micro_batch_size": None,
    }  # fmt: skip
    assert trial.data.crop_area == (0.08, 1.0)
    assert trial.precision == "auto"
    assert search.name == name
    lr = file.search_space().parameters["optim.lr"]
    assert isinstance(lr, Float)
    assert lr.log
    assert (lr.low * lr.high) ** 0.5 == pytest.approx(1e-5)
    assert file.search_space().initial_points[0]["optim.lr"] == 1e-5
    assert isinstance(search.scheduler, AshaConfig)
    assert search.scheduler.grace_steps >= trial.steps / 2
    assert search.scheduler.grace_steps % trial.eval.every == 0
    assert search.resources.gpus_per_worker == 1
    assert trial.optim.batch_size % search.resources.workers == 0
    assert search.resources.cpus_per_worker >= trial.data.workers


@pytest.mark.parametrize("name", PAPER)
def test_runlocal_passes_every_check_and_takes_no_more_than_a_laptop(name: str) -> None:
    file = load_config(f"{name}:runlocal")
    assert file.trial.model.name == "tiny-clip"
    assert file.trial.data.root == "openmoji"
    assert file.trial.data.suite is None
    assert file.trial.steps <= 20
    assert file.search.budget.trials == 2
    assert file.search.resources.model_dump(exclude_defaults=True) == {}  # one CPU, no GPU
    assert file.objectives == load_config(name, check=False).objectives
    assert file.search.space.name == "lipsum_ft"


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("imagenet")])
def test_the_cache_holds_imagenet_in_full_size(name: str) -> None:
    everything = 147.9 + 6.7 + 1.3 + 2.2 + 0.7 + 7.6  # GB: train and val, V2, -R, -A, -Sketch
    assert load_config(name, check=False).trial.data.cache_gb > everything


def test_a_runlocal_trial_runs(images_root: Path) -> None:
    here = [f"trial.data.root={images_root}", "trial.steps=2", "trial.optim.batch_size=8"]
    file = load_config("imagenet_vit_l14:runlocal", [*here, "search.scheduler.grace_steps=1"])
    (report,) = fine_tune(file.trial)
    assert report.step == 2
    assert 0 <= report.metrics["val/mean_acc"] <= 100


def test_the_comparison_of_methods_gives_each_as_many_trials_and_ranges_that_suit_the_model() -> (
    None
):
    file = load_config("methods")
    quickstart = load_config("quickstart")
    branches = file.search_space().branches
    assert branches.keys() == METHODS.keys()
    assert file.search.budget.trials % len(branches) == 0
    assert file.search.references == ()
    assert file.trial.model_copy(update={"eval": quickstart.trial.eval}) == quickstart.trial
    for method, branch in branches.items():
        (point,) = branch.initial_points
        (ready,) = METHODS[method].initial_points
        same = {key for key in ready if point[key] == ready[key]}
        assert ready.keys() - same <= {"optim.lr", "method.ema_decay"}
        lr = branch.parameters["optim.lr"]
        assert isinstance(lr, Float)
        if method != "r_adapter":
            assert lr == quickstart.search_space().parameters["optim.lr"]
            assert point["optim.lr"] == quickstart.trial.optim.lr


def write(folder: Path, name: str, /, **values: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def loaded(path: Path | str) -> SearchFile:
    return load_config(path, check=False)


def test_a_file_says_only_what_differs_from_what_it_extends(tmp_path: Path) -> None:
    write(tmp_path, "base", trial={"steps": 7, "optim": {"lr": 1e-3}, "eval": {"every": 2}})
    child = write(tmp_path, "deep/child", extends="../base.yaml", trial={"optim": {"eps": 1e-6}})
    grandchild = write(tmp_path, "grandchild", extends="deep/child.yaml", trial={"steps": 9})
    trial = loaded(grandchild).trial
    assert (trial.steps, trial.optim.lr, trial.optim.eps, trial.eval.every) == (9, 1e-3, 1e-6, 2)
    assert loaded(child).trial.steps == 7
    own = write(tmp_path, "own", extends="domainnet_vit_b16", search={"budget": {"trials": 3}})
    assert loaded(own).search.budget.trials == 3
    assert loaded(own).trial == loaded("domainnet_vit_b16").trial


def test_another_kind_of_model_or_scheduler_starts_afresh(tmp_path: Path) -> None:
    path = write(
        tmp_path, "own", extends="domainnet_vit_b16",
        trial={"model": {"name": "tiny-clip"}}, search={"scheduler": {"name": "none"}},
    )  # fmt: skip
    assert loaded(path).trial.model.pretrained is None
    assert loaded(path).search.scheduler.name == "none"


def test_the_same_kind_said_again_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path, "base", trial={"method": {"reg_weight": 0.3}})  # lipsum_ft, by default
    child = write(tmp_path, "child", extends="base.yaml", trial={"method": {"name": "lipsum_ft"}})
    assert loaded(child).trial.method.model_dump()["reg_weight"] == 0.3
    again = load_config(tmp_path / "base.yaml", ["trial.method.name=lipsum_ft"], check=False)
    assert again.trial == loaded(child).trial


@pytest.mark.parametrize("given", [{"type": "categorical"}, {}], ids=["typed", "choices alone"])
def test_a_parameter_of_another_type_has_nothing_of_what_is_extended(
    given: dict[str, Any], tmp_path: Path
) -> None:
    write(
        tmp_path, "base",
        search={"space": {"parameters": {
            "optim.lr": {"low": 1e-6, "high": 1e-4},
            "optim.eps": {"type": "categorical", "choices": [1e-8, 1e-6]},
        }}},
    )  # fmt: skip
    key = "optim.lr" if given else "optim.eps"
    parameters = {key: given | {"choices": [1e-5, 3e-5]}}
    path = write(tmp_path, "own", extends="base.yaml", search={"space": {"parameters": parameters}})
    assert loaded(path).search_space().parameters[key] == Categorical(choices=(1e-5, 3e-5))
    wider = {"optim.lr": {"high": 1e-3}}
    path = write(tmp_path, "wider", extends="base.yaml", search={"space": {"parameters": wider}})
    assert loaded(path).search_space().parameters["optim.lr"] == Float(
        low=1e-6, high=1e-3, log=True
    )


def test_a_search_is_called_as_its_file_and_not_as_what_that_extends(tmp_path: Path) -> None:
    def name(path: Path | str) -> str:
        return loaded(path).search.name

    assert name(write(tmp_path, "own", extends="domainnet_vit_b16")) == "own"
    assert name(write(tmp_path, "_my search!", extends="own.yaml")) == "my-search-"
    assert name(write(tmp_path, "\u732b", extends="own.yaml")) == "search"
    called = write(tmp_path, "c", extends="domainnet_vit_b16", search={"name": "x", "budget": {}})
    assert name(called) == "x"
    assert name(f"{called}:runlocal") == "runlocal"
    assert name("domainnet_vit_b32") == "domainnet_vit_b32"
    wrong = write(tmp_path, "wrong", extends="domainnet_vit_b16", search=3)
    with pytest.raises(ConfigError, match=r"wrong\.yaml: search = 3"):
        loaded(wrong)


def test_another_kind_starts_afresh_on_the_command_line_and_in_variants_too(tmp_path: Path) -> None:
    def over(*keys: str) -> SearchFile:
        return load_config("domainnet_vit_b16", keys, check=False)

    assert over("search.scheduler.name=none").search.scheduler.name == "none"
    assert over("trial.model.name=tiny-clip").trial.model.pretrained is None
    assert over("trial.model.name=ViT-B-16-quickgelu").trial.model.pretrained == "openai"
    assert over("trial.model.pretrained=metaclip").trial.model.name == "ViT-B-16-quickgelu"
    for keys in (
        ("trial.model.name=ViT-B-32", "trial.model.pretrained=laion2b_s34b_b79k"),
        ("trial.model.pretrained=laion2b_s34b_b79k", "trial.model.name=ViT-B-32"),
    ):
        assert over(*keys).trial.model.pretrained == "laion2b_s34b_b79k"
    median = over("search.scheduler.name=median", "search.scheduler.grace_steps=7").search.scheduler
    assert median.model_dump() == {"name": "median", "grace_steps": 7, "min_trials": 4}
    weighted = write(tmp_path, "weighted", trial={"method": {"reg_weight": 0.3}})
    assert load_config(weighted, ["trial.method.name=ft"], check=False).trial.method.name == "ft"
    variant = {"search.scheduler.name": "none", "trial.method.name": "ft"}
    path = write(tmp_path, "v", extends="domainnet_vit_b16", variants={"plain": variant})
    assert loaded(f"{path}:plain").search.scheduler.name == "none"
    assert loaded(f"{path}:plain").trial.method.name == "ft"


def test_a_parameter_of_another_type_starts_afresh_on_the_command_line_too() -> None:
    lr = "search.space.parameters.optim.lr"
    for keys in (
        [f"{lr}.type=categorical", f"{lr}.choices=[1.0e-5]"],
        [f"{lr}.choices=[1.0e-5]", f"{lr}.type=categorical"],
    ):
        file = load_config("domainnet_vit_b16", keys, check=False)
        assert file.search_space().parameters["optim.lr"] == Categorical(choices=(1e-5,))


def test_keys_of_a_suite_are_laid_over_a_packaged_one_or_a_file(tmp_path: Path) -> None:
    def suite(source: Path | str, *keys: str) -> Suite:
        found = load_config(source, keys, check=False).trial.data.suite
        assert isinstance(found, Suite)
        return found

    templates = "trial.data.suite.templates=simple_imagenet"
    packaged = load_suite("domainnet")
    expected = packaged.model_copy(update={"templates": "simple_imagenet"})
    assert suite("domainnet_vit_b16", templates) == expected
    path = write(
        tmp_path, "own", extends="domainnet_vit_b16",
        trial={"data": {"suite": {"templates": "simple_imagenet"}}},
    )  # fmt: skip
    assert suite(path) == expected
    other = {"id_domain": "photo"}
    path = write(tmp_path, "other", extends="own.yaml", trial={"data": {"suite": "mine.yaml"}})
    write(tmp_path, "mine", id_domain="photo", class_names={"a": "an a"})
    assert suite(path, templates) == Suite(
        id_domain="photo", class_names={"a": "an a"}, templates="simple_imagenet"
    )
    path = write(tmp_path, "whole", extends="domainnet_vit_b16", trial={"data": {"suite": other}})
    assert suite(path) == Suite(id_domain="photo")  # another suite, and not a part of DomainNet's
    wrong = write(tmp_path, "wrong", trial={"data": {"suite": "domainet"}})
    with pytest.raises(ConfigError, match=r"wrong\.yaml: no suite .*did you mean 'domainnet'"):
        load_config(wrong, [templates], check=False)


def test_the_path_of_a_suite_in_a_variant_is_of_its_files_folder(tmp_path: Path) -> None:
    write(tmp_path, "deep/mine", id_domain="photo")
    forms: dict[str, Any] = {
        "key": {"trial.data.suite": "mine.yaml"},
        "section": {"trial.data": {"suite": "mine.yaml"}},
        "whole": {"trial": {"data": {"suite": "mine.yaml"}}},
    }
    write(tmp_path, "deep/base", variants=forms)
    path = write(tmp_path, "own", extends="deep/base.yaml")
    for form in forms:
        assert loaded(f"{path}:{form}").trial.data.suite == Suite(id_domain="photo")


def test_files_that_extend_each_other_or_nothing_are_one_error(tmp_path: Path) -> None:
    one = write(tmp_path, "one", extends="two.yaml")
    write(tmp_path, "two", extends="one.yaml")
    with pytest.raises(ConfigError, match=r"one\.yaml -> two\.yaml -> one\.yaml"):
        loaded(one)
    itself = write(tmp_path, "itself", extends="itself.yaml")
    with pytest.raises(ConfigError, match="comes back to itself"):
        loaded(itself)
    wrong = write(tmp_path, "wrong", extends="domainnet_vit_b61")
    with pytest.raises(ConfigError, match=r"wrong\.yaml: extends = .*mean 'domainnet_vit_b16'"):
        loaded(wrong)
    with pytest.raises(ConfigError, match=r"extends = 3: expected"):
        loaded(write(tmp_path, "number", extends=3))


def test_a_variant_is_laid_over_the_file_and_overrides_over_that(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "mine",
        trial={"steps": 100},
        variants={
            "short": {
                "trial.steps": 10,
                "search.space.parameters.optim.lr": {"low": 1e-5, "high": 1e-4},
                "search.space.parameters.method.reg_weight.high": 10.0,
            }
        },
    )
    assert loaded(path).trial.steps == 100
    short = loaded(f"{path}:short")
    assert short.trial.steps == 10
    parameters = short.search_space().parameters
    assert parameters["optim.lr"] == Float(low=1e-5, high=1e-4, log=True)
    assert parameters["method.reg_weight"] == Float(low=0.01, high=10.0, log=True)
    assert load_config(f"{path}:short", ["trial.steps=3"], check=False).trial.steps == 3
    inherits = write(tmp_path, "inherits", extends="mine.yaml")
    assert loaded(f"{inherits}:short").trial.steps == 10


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("domainnet_vit_b16:runlokal", r"no variant 'runlokal' \(did you mean 'runlocal'\?\)"),
        ("quickstart:runlocal", r"quickstart\.yaml: it has no variants"),
        ("quickstar:runlocal", r"quickstar: no such file, nor .*did you mean 'quickstart'"),
    ],
)
def test_a_variant_that_is_not_there_is_one_line(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        loaded(source)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_variant_is_told_under_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", variants={"bad": {"trial.optim.lrr": 1}, "worse": 3})
    with pytest.raises(ConfigError, match=r"mine\.yaml:bad: unknown key 'trial\.optim\.lrr'"):
        loaded(f"{path}:bad")
    with pytest.raises(ConfigError, match=r"variants\.worse = 3: expected dotted keys"):
        loaded(f"{path}:worse")


def test_what_is_kept_of_a_run_is_whole_and_needs_no_other_file(tmp_path: Path) -> None:
    suite = {"name": "mine", "id_domain": "photo", "class_names": {"a": "an a"}}
    write(tmp_path, "suites/mine", **suite)
    path = write(
        tmp_path, "own", extends="domainnet_vit_b16",
        trial={"data": {"suite": "suites/mine.yaml"}}, variants={"x": {"trial.steps": 5}},
    )  # fmt: skip
    file = loaded(f"{path}:x")
    assert isinstance(file.trial.data.suite, Suite)
    run = tmp_path / "run"
    run.mkdir()
    write_config(run, file)
    (tmp_path / "suites" / "mine.yaml").unlink()
    kept = yaml.safe_load((run / "search.yaml").read_text())
    assert kept.keys() == {"trial", "search"}
    assert loaded(run / "search.yaml") == file
    assert file.trial.data.domains == ("photo",)


def test_of_a_suite_of_the_users_own_the_record_has_name_and_digest(tmp_path: Path) -> None:
    suite = {
        "name": "mine",
        "id_domain": "photo",
        "class_names": {f"c{i}": f"a {i}" for i in range(99)},
    }
    path = write(
        tmp_path, "own", trial={"data": {"suite": suite}},
        search={"objective": {"metric": "id_val/acc"}},
    )  # fmt: skip
    file = loaded(path)
    config: Any = search_record(file, tmp_path, {"id_val/acc": 1.0}).config
    assert re.fullmatch(r"mine \([0-9a-f]{12}\)", config["trial"]["data"]["suite"])
    named: Any = search_record(loaded("domainnet_vit_b16"), tmp_path, {"id_val/acc": 1.0}).config
    assert named["trial"]["data"]["suite"] == "domainnet"


def test_a_mistake_in_a_suite_names_the_configuration_and_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, "own", trial={"data": {"suite": {"id_domain": "a", "template": "x"}}})
    with pytest.raises(ConfigError, match=r"own\.yaml: trial\.data\.suite: unknown key 'template'"):
        loaded(path)
    path = write(tmp_path, "own", trial={"data": {"suite": "imagnet"}})
    with pytest.raises(ConfigError, match=r"own\.yaml: no suite is called 'imagnet'.*'imagenet'"):
        loaded(path)


def test_ready_configurations_say_at_once_that_their_data_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_config("domainnet_vit_b16", [f"trial.data.root={tmp_path / 'none'}"])
    check_search(load_config("quickstart"))
