"""Bad input: one clear error that names the file, the key and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from search_spaces import Categorical, Float
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.overrides import nest
from tuning.algorithms.objectives import Objective
from tuning.config.validation import load_config, load_trial

BOTH = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
LR = {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}
ONE_NUMBER = {
    "name": None,
    "parameters": {
        "optim.lr": LR,
        "precision": {"type": "categorical", "choices": ["fp32", "bf16"]},
    },
}


@pytest.fixture
def good(images_root: Path) -> dict[str, Any]:
    return {
        "trial": {"data": {"root": str(images_root)}, "steps": 6, "eval": {"every": 3}},
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
        ("trial.method", {"name": "lipsum_ft", "text_source": "file"},
         r"trial.method: text_source = 'file' takes the texts of texts_file"),
        ("trial.method", {"name": "lipsum_ft", "text_source": "file", "texts_file": "/nowhere"},
         r"trial.method: texts_file = '/nowhere': .*No such file"),
        ("trial", {"method": {"text_count": 9}}, r"the key 'trial.method.name' is missing"),
        ("trial", {"method": {"name": "tpgm"}, "parallel": "fsdp"},
         r"\.yaml: trial: parallel = 'fsdp': method.name = 'tpgm'"),
        ("trial.eval.wise_alphas", [0.5, 1, 0.5], r"trial.eval.wise_alphas = .*: 0.5 is named tw"),
        ("search.objective.metric", "val/acc", r"'val/acc' is never reported \(did you mean"),
        ("search.objective.mode", "up", r"search.objective.0.mode = 'up'"),
        ("search.objective", [], r"search.objective = \[\]: .*at least 1 item"),
        ("search.objective", [{"metric": "id_vl/acc"}], r"'id_vl/acc' is .*mean 'id_val/acc'"),
        ("search.objective", {"metric": "id_test/acc"}, r"'id_test/acc' is never reported"),
        ("search.objective", [*BOTH, BOTH[0]], r"search.objective: a metric is named twice"),
        ("search.constraints", "id_val/acc >= 101",
         r"search.constraints: 'id_val/acc >= 101' cannot be met: .* between 0 and 100"),
        ("search.constraints", ["id_val/acc >= 60", "id_val/acc <= 50"], r"exclude each other"),
        ("search.constraints", ["id_val/ac >= 50"], r"no trial reports 'id_val/ac'"),
        ("search.constraints", ["id_test/acc >= 50"], r"no trial reports 'id_test/acc'"),
        ("search.constraints", ["id_val/acc => 50"], r"write it as `METRIC >= BOUND`"),
        ("search.constraints", ["id_val/acc >= zero_shot.acc"], r"no trial reports 'acc'"),
        ("search.space", {"name": None}, r"search.space.parameters = \{\}: the space is empty"),
        ("search.space", "lipsum_ft", r"search.space = 'lipsum_ft'"),
        ("search.space.name", "lipsumft", r"search.space.name = 'lipsumft'.*'lipsum_ft'"),
        ("search.space.parameters", {"optim.lrr": {"type": "float", "low": 1, "high": 2}},
         r"optim.lrr"),
        ("search.space.parameters", {"optim.lr": {"type": "float", "low": 2, "high": 1}}, r"low"),
        ("search.space.parameters", {"optim.lr": {"type": "fload", "low": 1, "high": 2}},
         r"optim.lr = .*fload.*`type` is not one of float, int, categorical"),
        ("search.space.parameters", {"method.reg_wight": {"low": 1}},
         r"parameters.method.reg_wight = .* needs a `type` .*did you mean 'method.reg_weight'"),
        ("search.space.parameters", {"optim.lr": {"choices": [1.0]}},
         r"search.space.parameters.optim.lr.choices = \[1.0\]: .* no such field"),
        ("search.space.parameters", {"optim.lr": {"low": "fast"}},
         r"search.space.parameters.optim.lr.low = 'fast'"),
        ("search.space.initial_points", [{"optim.lr": 1e-5}], r"point 1 lacks method.reg_weight"),
        ("search.space.parameters",
         {"method.text_length": {"type": "int", "low": 2, "high": 31}}, r"text_length = 31"),
        ("search.budget.trials", 0, r"search.budget.trials = 0"),
        ("search.budget.hours", 0, r"search.budget.hours = 0"),
        ("search.budget.patience", 0, r"search.budget.patience = 0"),
        ("search.budget.gpu_hours", 2, r"gpu_hours = 2: trials take no GPU .*search.budget.hours"),
        ("search.checkpoints.disk_gb", 0, r"search.checkpoints.disk_gb = 0"),
        ("search.checkpoints.keep_top", -1, r"search.checkpoints.keep_top = -1"),
        ("search.checkpoints.storage", "here",
         r"search.checkpoints.storage = 'here': neither an absolute path nor a URL"),
        ("search.checkpoints.storage", "s3://me:hunter2@b/x",
         r"s3://b/x: credentials do not"),
        ("search.warm_start.use", "obs", r"search.warm_start.use = 'obs' is not one of its values"),
        ("search.scheduler.grace_steps", 7, r"grace_steps = 7: more than trial.steps = 6"),
        ("search.scheduler", {"name": "asha"}, r"search.scheduler.grace_steps' is missing"),
        ("search", {"objective": BOTH, "budget": {"target": 80}},
         r"search.budget.target = 80: a target needs a single objective"),
        ("search", {"objective": BOTH, "sampler": {"name": "cma_es"}}, r"one objective only"),
        ("search", {"sampler": {"name": "cma_es"}, "space": ONE_NUMBER},
         r"search.sampler.name = 'cma_es': it needs two parameters or more that are numbers"),
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


@pytest.fixture
def path(good: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(good))
    return path


def test_what_is_optimised_is_one_objective_or_a_list_of_them(path: Path) -> None:
    one = load_config(path, ["search.objective={metric: id_val/nll, mode: min}"])
    assert one.objectives == (Objective("id_val/nll", "min"),)
    both = load_config(path, ["search.objective=[{metric: id_val/acc}, {metric: val/mean_acc}]"])
    assert both.objectives == (Objective("id_val/acc"), Objective("val/mean_acc"))
    assert load_config(path, ["search.objective.mode=min"]).objectives[0].mode == "min"


def test_one_constraint_or_earlier_run_needs_no_list(path: Path) -> None:
    file = load_config(
        path, ["search.constraints=id_val/acc >= 50", "search.warm_start.runs=runs/earlier"]
    )
    assert [c.text for c in file.constraints()] == ["id_val/acc >= 50"]
    assert file.search.warm_start.runs == ("runs/earlier",)


def test_a_field_of_a_ready_parameter_is_changed_and_the_rest_of_it_stays(path: Path) -> None:
    ready = load_config(path).search_space()
    file = load_config(
        path,
        ["search.space.parameters.optim.lr.low=1e-5", "search.space.parameters.optim.lr.high=1e-4"],
    )
    assert file.search.space.parameters.keys() == {"optim.lr"}
    assert file.search_space().parameters == {
        **ready.parameters,
        "optim.lr": Float(low=1e-5, high=1e-4, log=True),
    }
    assert file.search_space().initial_points == ready.initial_points


def test_a_parameter_with_a_type_takes_the_place_of_the_ready_one(path: Path) -> None:
    whole = "search.space.parameters.optim.lr={type: categorical, choices: [1.0e-5, 1.0e-4]}"
    of_lr = load_config(path, [whole]).search_space().parameters["optim.lr"]
    assert of_lr == Categorical(choices=(1e-5, 1e-4))
    then = "search.space.parameters.optim.lr.choices=[1.0e-5]"
    of_lr = load_config(path, [whole, then]).search_space().parameters["optim.lr"]
    assert of_lr == Categorical(choices=(1e-5,))


def test_ready_points_stay_where_they_fit_with_the_trials_own_values_for_added_parameters(
    path: Path,
) -> None:
    (ready,) = load_config(path).search_space().initial_points
    added = "search.space.parameters.optim.weight_decay={type: float, low: 0, high: 0.1}"
    more = load_config(path, [added, "trial.optim.weight_decay=0.05"]).search_space()
    assert more.initial_points == [{**ready, "optim.weight_decay": 0.05}]
    narrower = ["search.space.parameters.optim.lr.low=2e-5"]  # the ready point has 1e-5
    assert load_config(path, narrower).search_space().initial_points == []
    given = "search.space.initial_points=[{optim.lr: 1e-5}]"
    with pytest.raises(ConfigError, match="point 1 lacks"):
        load_config(path, [given])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"search": "x"}, "search = 'x'"),
        ({"search": {"space": "lipsum_ft"}}, "search.space = 'lipsum_ft'"),
        ({"search": {"space": {"parameters": [1]}}}, r"search.space.parameters = \[1\]"),
        ({"search": {"space": {"parameters": {"optim.lr": 3}}}}, r"parameters.optim.lr = 3"),
    ],
)
def test_an_override_of_a_parameter_does_not_hide_a_mistake_in_the_file(
    section: dict[str, Any], said: str, good: dict[str, Any], path: Path
) -> None:
    path.write_text(yaml.safe_dump(good | section))
    with pytest.raises(ConfigError, match=said):
        load_config(path, ["search.space.parameters.optim.lr.low=1e-6"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/name",
        "postgresql://:hunter2@host/name",
        "postgresql+psycopg2://me:$hunter2@host:5432/name",
        "postgresql://me:hun$ter2@host/name",
        "postgresql://me:hun/ter2@host/name",
        "postgresql://me:hunter2${PASSWORD}@host/name",
        "postgresql://host/name?user=me&password=hunter2",
    ],
)
def test_a_password_in_plain_text_is_refused_and_not_shown(url: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.study_storage: .* \$\{NAME\}") as caught:
        load_config(path, [f"search.study_storage={url}"])
    for part in ("hunter2", "ter2", "hun", "postgresql"):
        assert part not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///study.db",
        "postgresql://host:5432/name",
        "postgresql://me@host/name",
        "postgresql://me:${PASSWORD}@host:5432/name?sslmode=require",
        "postgresql://host/name?user=me&password=${PASSWORD}",
    ],
)
def test_a_database_with_no_password_or_one_of_the_environment_is_taken(
    url: str, path: Path
) -> None:
    assert load_config(path, [f"search.study_storage={url}"]).search.study_storage == url


def test_an_override_that_is_no_yaml_is_one_line(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["search.budget.trials=["])
    assert str(caught.value).startswith("--set 'search.budget.trials=[': line 1, column 2: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_configuration_can_be_read_where_it_cannot_run(path: Path) -> None:
    elsewhere = ["trial.data.root=/no/such/folder"]
    assert load_config(path, elsewhere, check=False).trial.data.root == "/no/such/folder"
    with pytest.raises(ConfigError, match="no such folder"):
        load_config(path, elsewhere)


def test_a_single_training_does_not_care_what_would_be_searched(path: Path) -> None:
    keys = ["trial.method.name=r_adapter", "trial.steps=2"]  # neither space nor scheduler fits
    assert load_trial(path, [*keys, "search.foo=1"]).method.name == "r_adapter"
    with pytest.raises(ConfigError, match=r"good\.yaml: .*no domain 'skech'"):
        load_trial(path, ["trial.data.ood_domains=[skech]"])
    with pytest.raises(ConfigError, match=r"unknown key 'trial\.optim\.lrr'.*mean 'lr'"):
        load_trial(path, ["trial.optim.lrr=1"])
    with pytest.raises(ConfigError, match=r"unknown key 'serch'.*mean 'search'"):
        load_trial(path, ["serch.name=x"])
