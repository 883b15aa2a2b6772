"""Mistakes in a configuration: each one line with file, key and value, before anything starts."""

import json

import pytest
import yaml

from search_spaces import Float
from tests.tuning.run_folders import search_file
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.evaluation.line import LineGoal
from trainers.overrides import nest
from tuning.config.objectives import Objective
from tuning.config.schema import SearchFile
from tuning.config.validation import check_search, check_settings, load_config, load_trial

BOTH = [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]
LR = {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}
ONE_NUMBER = {
    "name": None,
    "parameters": {
        "optim.lr": LR,
        "precision": {"type": "categorical", "choices": ["fp32", "bf16"]},
    },
}
PARAMETERS = "search.space.parameters"


def batch_sizes(**distribution):
    return {"name": None, "parameters": {"optim.lr": LR, "optim.batch_size": distribution}}


@pytest.fixture
def good(images_root):
    return {
        "trial": {"data": {"root": str(images_root)}, "steps": 6, "eval": {"every": 3}},
        "search": {"scheduler": {"name": "asha", "grace_steps": 3}},
    }


@pytest.fixture
def path(good, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(good))
    return path


def lipsum(**settings):
    return {"name": "lipsum_ft", **settings}


def numbers(schema, key=""):
    """The keys of a JSON Schema whose values are numbers, and their schemas."""
    if isinstance(schema, list):
        for part in schema:
            yield from numbers(part, key)
    elif isinstance(schema, dict):
        if schema.get("type") in ("number", "integer"):
            yield key, schema
        for name, part in schema.items():
            inner = {"properties", "$defs"} & {name}
            for own, one in part.items() if inner else [(key, part)]:
                yield from numbers(one, own)


def test_every_number_has_limits():
    found = list(numbers(SearchFile.model_json_schema()))
    checked_otherwise = {"crop_area", "width", "target", "low", "high", "step", "choices"}
    checked_otherwise |= {"bounds"}  # of constraints, which are checked where they are written
    assert len(found) > 60
    for limit in ("Minimum", "Maximum"):
        names = {limit.lower(), f"exclusive{limit}"}
        assert {key for key, one in found if not names & one.keys()} == checked_otherwise


@pytest.mark.parametrize(
    ("given", "value", "key", "words"),
    [
        # The trial: unknown keys, types, ranges, and what its data and model do not have.
        ("trial.optim.lrr", 1, "", r"unknown key \(did you mean 'lr'\?\)"),
        ("trial.optim.lr", "fast", "", "valid number"),
        ("trial.optim.lr", float("nan"), "", "finite|greater"),
        ("trial.method", {"name": "lipsum"}, "trial.method.name", "did you mean 'lipsum_ft'"),
        ("trial.method", {"name": "ft", "reg_weight": 1}, "trial.method.reg_weight", "unknown key"),
        ("trial.method", {"text_count": 9}, "trial.method.name", "missing"),
        ("trial.method", lipsum(text_length=31), "method.text_length", "31"),
        ("trial.method", lipsum(text_source="file"), "trial.method", "texts_file"),
        ("trial.method", lipsum(text_source="file", texts_file="/nowhere"), "trial.method",
         "No such file"),
        ("trial", {"method": {"name": "r_adapter"}, "activation_checkpointing": True}, "trial",
         "'r_adapter'"),
        ("trial", {"method": {"name": "ema"}, "eval": {"ema": 0.9}}, "trial", "'ema' has a moving"),
        ("trial.data.workers", -1, "trial.data.workers", "expected auto, or a"),
        ("trial.optim.betas", [0.9, 2], "trial.optim.betas.1", "less than 1"),
        ("trial.optim.batch_size", True, "trial.optim", "batch_size = True: expected a number"),
        ("trial.eval.line", [True], "trial.eval", r"line = \[True\]: expected a num"),
        ("trial.eval.line", "on", "trial.eval.line", "expected auto, off, a number above 0"),
        ("trial.eval.line", 0, "trial.eval.line", "expected auto, off, a number above 0"),
        ("search.prior.width", {"optim.lr": True}, "search.prior", "expected a number"),
        ("trial.data.root", "/no/such\0folder", None, "the character NUL"),
        ("trial.data.root", "/no/such/folder", None, "no such folder"),
        ("trial.data.ood_domains", ["skech"], None, r"did you mean 'sketch'"),
        ("trial.data.ood_domains", ["real"], "trial.data", "'real' is named twice"),
        ("trial.data.ood_domains", ["real/"], "trial.data", "'real/' is not the name of a folder"),
        ("trial.data.id_domain", "real/../real", "trial.data", "is not the name of a folder"),
        ("trial.data.crop_area", [0.5, 0.2], "", "least <= greatest"),
        ("trial.model.name", "tiny-klip", None, "did you mean 'tiny-clip'"),
        ("trial.eval.line", [0.5, 1, 0.5], "", "0.5 is named twice"),
        ("trial.eval.wise_alphas", [0.5], "trial.eval", "wise_alphas: removed in 0.3; `line"),
        (
            "trial.eval.line_goal",
            {"objectives": [["id_val/acuracy", "max"]]},
            "trial",
            r"eval.line_goal = 'id_val/acuracy': is no metric of the validation splits \(did",
        ),
        # What is optimised.
        ("search.objective.metric", "val/acc", "", "did you mean .val/mean_acc."),
        ("search.objective.metric", "ood_val/acc", "", "did you mean .ood_val/mean_acc."),
        ("search.objective.metric", "ood_val/mean", "", "did you mean .ood_val/mean_acc."),
        ("search.objective.metric", "id_val", "", "did you mean .id_val/acc."),
        ("search.objective.metric", "id_test/acc", "", "never reported"),
        ("search.objective.metric", "line/0.5/id_val/acc", "", "trial.eval.line"),
        ("search.objective", [{"metric": "id_vl/acc"}], "search.objective.metric", "'id_val/acc'"),
        ("search.objective.mode", "up", "search.objective.0.mode", "known: max, min"),
        ("search.objective", [], "", "at least 1 item"),
        ("search.objective", [*BOTH, BOTH[0]], "", "given twice"),
        ("search.objective.metric", "cost/seconds", "search.objective.mode", "more or less"),
        ("search.objective", [{"metric": "train/loss"}], "search.objective.mode", "max or min"),
        ("search.constraints", "id_val/acc >= 101", "", "between 0 and 100"),
        ("search.constraints", ["id_val/ac >= 50"], "", "'id_val/ac'"),
        ("search.constraints", ["id_test/acc >= 50"], "", "'id_test/acc'"),
        # The search space.
        ("search.space", {"name": None}, PARAMETERS, "empty"),
        ("search.space", "lipsum_ft", "", "lipsum_ft"),
        ("search.space.name", "lipsumft", "", "did you mean 'lipsum_ft'"),
        (PARAMETERS, {"optim.lrr": LR}, "optim.lrr", "did you mean 'lr'"),
        (PARAMETERS, {"optim.lr": {**LR, "low": 2}}, f"{PARAMETERS}.optim.lr", "low=2"),
        (PARAMETERS, {"optim.lr": {"low": 2}}, f"{PARAMETERS}.optim.lr", "low=2"),
        (PARAMETERS, {"optim.lr": {**LR, "type": "fload"}}, f"{PARAMETERS}.optim.lr",
         "float, int or categorical"),
        (PARAMETERS, {"optim.lr": 3}, f"{PARAMETERS}.optim.lr", "float, int or categorical"),
        (PARAMETERS, {"optim.lr": {"lwo": 2}}, f"{PARAMETERS}.optim.lr.lwo", "mean 'low'"),
        (PARAMETERS, {"optim.lr": {"low": "fast"}}, f"{PARAMETERS}.optim.lr.low", "number"),
        (PARAMETERS, {"optim.lr": {"choices": [1.0]}}, f"{PARAMETERS}.optim.lr", "'choices'"),
        (PARAMETERS, {"method.reg_wight": {"low": 1}}, f"{PARAMETERS}.method.reg_wight",
         "needs a `type` .*did you mean 'method.reg_weight'"),
        (PARAMETERS, {"method.text_length": {"high": 31}}, f"{PARAMETERS}.method.text_length.high",
         "at most 30"),
        (PARAMETERS, {"steps": {"type": "int", "low": 2, "high": 6}}, f"{PARAMETERS}.steps",
         "cannot be searched"),
        (PARAMETERS, {"optim.betas": {"type": "categorical", "choices": ["x"]}},
         f"{PARAMETERS}.optim.betas.choices", "valid tuple"),
        ("search.space.initial_points", [{"optim.lr": 1e-5}], "", "lacks method.reg_weight"),
        # Budgets, resources and the rest.
        ("search.budget.trials", 0, "", "greater than or equal to 1"),
        ("search.budget.gpu_hours", 2, "", r"no GPU .*search\.budget\.hours"),
        ("search.budget.target", 0.7, "", "in percent"),
        ("search.budget.target", 101, "", "from 1 to 100"),
        ("search.constraints", "id_val/acc >= 0.6", "", "in percent: 60"),
        ("search.references", ["ft", "ft"], "", "given twice"),
        ("search.checkpoints.storage", "here", "", "absolute path"),
        ("search.checkpoints.storage", "s3://me:hunter2@b/x", "", r"a secret .*write \$\{NAME\}"),
        ("search.warm_start.use", "obs", "", "known: auto, observations, points"),
        ("search.scheduler.grace_steps", 7, "", "more than trial.steps = 6 .*null"),
        ("search", {"objective": BOTH, "budget": {"target": 80}}, "search.budget.target", "single"),
        ("search", {"objective": BOTH, "sampler": {"name": "cma_es"}}, "search.sampler.name",
         "single objective"),
        ("search", {"sampler": {"name": "cma_es"}, "space": ONE_NUMBER}, "search.sampler.name",
         "two numeric parameters"),
        ("search.sampler.name", "tpf", "", "did you mean 'tpe'"),
        ("search.objective", {"metric": "id_val/nll", "mode": "max"}, "search.objective.mode",
         "less of id_val/nll is better"),
        ("search.sampler.metric", "val/mean_nl", "", "did you mean 'val/mean_nll'"),
        ("search.sampler.metric", "ood_val/mean_energy_gap", "", "more or less of it is better"),
        ("search.sampler.metric", "train/lr", "", "acc, class_acc, nll, ece, ece_scaled"),
        ("search", {"objective": BOTH, "sampler": {"metric": "id_val/nll"}},
         "search.sampler.metric", "several objectives"),
        ("search.name", "a/b", "", "pattern"),
        ("search.resources.workers", 3, "trial.optim.batch_size", "3 workers"),
        ("search", {"resources": {"workers": 2}, "space": batch_sizes(type="int", low=16, high=64)},
         "search.space.parameters.optim.batch_size", "= 17: not divisible by 2 workers"),
        ("search", {"resources": {"workers": 4},
                    "space": batch_sizes(type="categorical", choices=["64", 64, 90])},
         "search.space.parameters.optim.batch_size", "= 90: not divisible by 4 workers"),
        ("serch", {}, "", "did you mean 'search'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_key(good, tmp_path, given, value, key, words):
    """`key` is empty if it is the key that was given, and None if the error does not name one."""
    values = nest({given: value}, good)
    if given == "trial.method":  # the default space is that of lipsum_ft with random texts
        values["search"]["space"] = {"name": None, "parameters": {"optim.lr": LR}}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    if key is not None:
        assert (key or given) in f"{caught.value.key} {caught.value}"
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key", "source"),
    [
        ("trial.stepz=5", "trial.stepz", "--set"),
        ("trial.steps=many", "trial.steps", "--set"),
        ("trial.optim={lr: -1}", "trial.optim.lr", "--set"),
        ("trial.steps.more=1", "trial.steps", "{path} with --set trial.steps.more"),
        ("search.sampler.metric=val/akk", "search.sampler.metric", "--set"),
        ("search.resources.workers=7", "trial.optim.batch_size",
         "{path} with --set search.resources.workers"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_override_is_not_the_files(path, override, key, source):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert (caught.value.key, caught.value.source) == (key, source.format(path=path))
    assert str(caught.value).startswith(f"{caught.value.source}: {key} = ")


def test_several_mistakes_have_one_line_each(good, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(nest({"trial.steps": 0, "trial.seed": -1}, good)))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.key in ("trial.steps", "trial.seed")
    lines = str(caught.value).splitlines()
    assert [line.split(" = ")[0] for line in sorted(lines)] == [
        f"{path}: trial.seed",
        f"{path}: trial.steps",
    ]


def test_a_reference_has_the_other_settings_of_the_base_trial(path):
    file = load_config(path)
    assert file.reference_config("ft").method.name == "ft"
    assert file.reference_config("ft").optim == file.trial.optim


def test_an_objective_or_a_list_of_them(path):
    one = load_config(path, ["search.objective={metric: id_val/nll, mode: min}"])
    assert one.objectives == (Objective("id_val/nll", "min"),)
    both = load_config(path, ["search.objective=[{metric: id_val/acc}, {metric: val/mean_acc}]"])
    assert both.objectives == (Objective("id_val/acc"), Objective("val/mean_acc"))
    keys = ["search.objective.metric=id_val/energy_gap", "search.objective.mode=min"]
    assert load_config(path, keys).objectives == (Objective("id_val/energy_gap", "min"),)


def test_the_mode_is_by_default_the_direction_of_the_metric(path):
    for metric, mode in (("id_val/nll", "min"), ("id_val/class_acc", "max")):
        file = load_config(path, [f"search.objective.metric={metric}"])
        assert file.objectives == (Objective(metric, mode),)


def test_one_constraint_or_earlier_run_needs_no_list(path):
    file = load_config(
        path, ["search.constraints=id_val/acc >= 50", "search.warm_start.runs=runs/earlier"]
    )
    assert [c.text for c in file.constraints()] == ["id_val/acc >= 50"]
    assert file.search.warm_start.runs == ("runs/earlier",)


def test_a_changed_field_keeps_the_rest_of_a_parameter(path):
    ready = load_config(path).search_space()
    file = load_config(
        path, [f"{PARAMETERS}.optim.lr.low=1e-5", f"{PARAMETERS}.optim.lr.high=1e-4"]
    )
    assert file.search_space().parameters == {
        **ready.parameters,
        "optim.lr": Float(low=1e-5, high=1e-4, log=True),
    }
    recorded = file.model_dump(mode="json")
    assert recorded["search"]["space"]["parameters"] == {"optim.lr": {"low": 1e-5, "high": 1e-4}}
    assert SearchFile.model_validate(recorded) == file


def test_the_space_is_resolved_once_and_again_for_a_copy(path):
    file = load_config(path, check=False)
    assert file.search_space() is file.search_space()
    other = file.search.model_copy(update={"space": file.search.space.model_copy(
        update={"name": "ft"})})  # fmt: skip
    assert list(file.model_copy(update={"search": other}).search_space().parameters) == ["optim.lr"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/name",
        "postgresql://:hunter2@host/name",
        "postgresql+psycopg2://me:$hunter2@host:5432/name",
        "postgresql://me:hun$ter2@host/name",
        "postgresql://me:hunter2${PASSWORD}@host/name",
    ],
)
def test_a_plain_password_is_refused_and_not_shown(url, path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"search.study_storage={url}"])
    assert caught.value.key == "search.study_storage"
    assert "${NAME}" in str(caught.value.hint)
    for part in ("hunter2", "ter2", "hun", "postgresql"):
        assert part not in str(caught.value)


SECRETS = {
    "trial.data.root": "s3://bucket/x?token=hunter2",
    "trial.model.pretrained": "https://host/w?code=hunter2",
    "trial.method.api_key": "hunter2",
    "search.checkpoints.storage": "abfs://box@host/x#sig=hunter2",
    "search.tracking.uri": "//me:hunter2@host/name",
    "search.tracking.experiment": "Server=host;Password=hunter2;Database=name",
    "search.study_storage": "host=h password=hunter2",
    "search.storage": "https://hunter2@host/x",
    "search.constraints": ["id_val/acc >= best", "https://me:hunter2@host/x"],
    "nonsense": {"a": "AccountName=a;AccountKey=hunter2"},
}


@pytest.mark.parametrize("is_in_file", [True, False])
@pytest.mark.parametrize("key", SECRETS)
def test_a_literal_secret_is_refused_in_any_value(key, is_in_file, good, tmp_path):
    path, value = tmp_path / "mine.yaml", SECRETS[key]
    path.write_text(yaml.safe_dump(nest({key: value}, good) if is_in_file else good))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [] if is_in_file else [f"{key}={json.dumps(value)}"], check=False)
    assert str(caught.value.key).startswith(key)
    assert "${NAME}" in str(caught.value.hint)
    assert str(caught.value).startswith(str(path) if is_in_file else "--set: ")
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)


def test_names_of_classes_are_no_secrets(good, tmp_path):
    names = {"token": "game token", "password": "a secret = {}"}
    suite = {"name": "mine", "id_domain": "real", "class_names": names, "templates": ["pass={}"]}
    method = {"name": "lipsum_ft", "text_key": "caption"}
    keys = nest({"trial.data.suite": suite, "trial.method": method}, good)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.yaml", check=False)
    assert (caught.value.key, caught.value.problem) == ("trial.method.text_key", "unknown key")


def test_a_secret_of_a_configuration_made_in_python_is_refused(path):
    file = load_config(path)
    search = file.search.model_copy(update={"storage": "https://hunter2@host/x"})
    with pytest.raises(ConfigError, match="a secret does not belong") as caught:
        check_settings(file.model_copy(update={"search": search}))
    assert caught.value.key == "search.storage"


@pytest.mark.parametrize(
    "override", ["https://me:hunter2@host", "search.name=[https://a:hunter2@b"]
)
def test_a_secret_in_a_broken_override_is_not_shown(override, path):
    with pytest.raises(ConfigError, match=r"^--set ") as caught:
        load_config(path, [override])
    assert "hunter2" not in str(caught.value)


def test_a_long_value_is_shortened(path):
    with pytest.raises(ConfigError, match=r"trial.steps = 'xxx.*xxx\.\.\.: ") as caught:
        load_config(path, [f"trial.steps={'x' * 100_000}"])
    assert len(str(caught.value)) < 1000
    assert caught.value.value == "x" * 100_000


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@host/name",
        "postgresql://me:${PASSWORD}@host:5432/name?sslmode=require",
        "postgresql://host/name?user=me&password=${PASSWORD}",
    ],
)
def test_a_url_without_a_plain_password_is_accepted(url, path):
    assert load_config(path, [f"search.study_storage={url}"]).search.study_storage == url


def test_a_configuration_can_be_read_without_its_data(path):
    elsewhere = ["trial.data.root=/no/such/folder"]
    assert load_config(path, elsewhere, check=False).trial.data.root == "/no/such/folder"


def test_load_trial_ignores_the_search(path):
    keys = ["trial.method.name=r_adapter", "trial.steps=2"]  # neither space nor scheduler fits
    assert load_trial(path, [*keys, "search.foo=1"]).method.name == "r_adapter"
    with pytest.raises(ConfigError, match=r"good\.yaml with --set \S+: .*no domain 'skech'"):
        load_trial(path, ["trial.data.ood_domains=[skech]"])
    for override, key in {"trial.optim.lrr=1": "trial.optim.lrr", "serch.name=x": "serch"}.items():
        with pytest.raises(ConfigError, match="did you mean") as caught:
            load_trial(path, [override])
        assert caught.value.key == key


def test_the_line_can_be_off_in_yaml(path):
    assert load_trial(path, ["trial.eval.line=auto"]).eval.line == "auto"
    assert load_trial(path, ["trial.eval.line=off"]).eval.line == "off"
    own = path.with_name("own.yaml")
    own.write_text(f"extends: {path}\ntrial:\n  eval: {{ line: off }}\n")
    assert load_trial(own).eval.line == "off"


def test_a_trial_chooses_its_point_by_objective_and_constraints(images_root):
    changes = {
        "trial__eval__line": "auto",
        "search__objective": {"metric": "ood_val/mean_acc"},
        "search__constraints": [
            "id_val/acc >= zero_shot.id_val/acc - 1",
            "id_val/nll <= best + 0.1",
        ],
    }
    file = search_file(images_root, **changes)
    goal = LineGoal(
        objectives=(("ood_val/mean_acc", "max"),),
        bounds=(
            ("id_val/acc", "max", "zero_shot.id_val/acc", -1.0),
            ("id_val/nll", "min", "best", 0.1),
        ),
    )
    for trial in (file.trial_config({"optim.lr": 1e-4}), file.reference_config("ft")):
        assert TrialConfig.model_validate_json(trial.model_dump_json()).eval.line_goal == goal
    off = search_file(images_root, **changes | {"trial__eval__line": "off"})
    assert off.reference_config("ft").eval.line_goal is None
    # A loss of the training has no value on the line.
    loss = changes | {"search__objective": {"metric": "train/loss", "mode": "min"}}
    with pytest.raises(ConfigError, match="'train/loss': is no metric of the validation splits"):
        check_search(search_file(images_root, **loss))
    own = changes | {"trial__eval__line_goal": {"objectives": [["id_val/acc", "max"]]}}
    with pytest.raises(ConfigError, match=r"trial\.eval\.line_goal: a search has objective"):
        check_search(search_file(images_root, **own))
