"""Reading and checking configurations: what is accepted, secrets, a trial alone, the line."""

import json
import logging

import pytest
import yaml

from tests.tuning.run_folders import search_file
from trainers.config import TrialConfig
from trainers.errors import ConfigError
from trainers.evaluation.line import LineGoal
from trainers.overrides import nest
from tuning.config.objectives import Objective
from tuning.config.schema import SearchFile
from tuning.config.validation import check_search, check_settings, load_config, load_trial


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
    checked_otherwise = {"crop_area", "low", "high", "step", "choices"}
    checked_otherwise |= {"bounds"}  # of constraints, which are checked where they are written
    assert len(found) > 60
    for limit in ("Minimum", "Maximum"):
        names = {limit.lower(), f"exclusive{limit}"}
        assert {key for key, one in found if not names & one.keys()} == checked_otherwise


def test_several_mistakes_have_one_line_each(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["trial.steps=0", "trial.seed=-1"])
    lines = sorted(str(caught.value).splitlines())
    assert [line.split(" = ")[0] for line in lines] == ["--set: trial.seed", "--set: trial.steps"]


def test_a_reference_has_the_other_settings_of_the_base_trial(path):
    file = load_config(path)
    assert file.reference_config("ft").method.name == "ft"
    assert file.reference_config("ft").optim == file.trial.optim


@pytest.mark.parametrize(
    ("key", "objectives"),
    [
        ("objective={metric: id_val/nll, mode: min}", [("id_val/nll", "min")]),
        ("objective.metric=id_val/nll", [("id_val/nll", "min")]),
        ("objective.metric=id_val/class_acc", [("id_val/class_acc", "max")]),
        ("objective=[{metric: id_val/acc}, {metric: val/mean_acc}]",
         [("id_val/acc", "max"), ("val/mean_acc", "max")]),
    ],
)  # fmt: skip
def test_one_objective_or_several_with_the_direction_of_the_metric(key, objectives, path):
    found = load_config(path, [f"search.{key}"]).objectives
    assert found == tuple(Objective(*objective) for objective in objectives)


def test_early_stopping_without_an_evaluation_before_the_end_is_told(path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(path, ["trial.eval.every=6"])
        assert caplog.messages == []
        load_config(path, ["trial.eval.every=6", "search.scheduler.name=asha"])
    assert "trial.eval.every = 6: not below trial.steps = 6" in caplog.text


SECRETS = {
    "trial.data.root": "s3://bucket/x?token=hunter2",
    "trial.model.pretrained": "https://host/w?code=hunter2",
    "trial.method.api_key": "hunter2",
    "search.checkpoints.storage": "abfs://box@host/x#sig=hunter2",
    "search.tracking.uri": "//me:hunter2@host/name",
    "search.tracking.experiment": "Server=host;Password=hunter2;Database=name",
    "search.study_storage": "postgresql://me:hunter2${PASSWORD}@host/name",
    "search.storage": "https://hunter2@host/x",
    "search.constraints": ["id_val/acc >= best", "https://me:hunter2@host/x"],
    "nonsense": {"a": "AccountName=a;AccountKey=hunter2"},
}


@pytest.mark.parametrize("entrance", ["file", "--set"])
@pytest.mark.parametrize("key", SECRETS)
def test_a_literal_secret_is_refused_in_any_value(key, entrance, good, path):
    keys = [f"{key}={json.dumps(SECRETS[key])}"]
    if entrance == "file":
        keys.clear()
        path.write_text(yaml.safe_dump(nest({key: SECRETS[key]}, good)))
    with pytest.raises(ConfigError) as caught:
        load_config(path, keys, check=False)
    assert str(caught.value.key).startswith(key)
    assert "${NAME}" in str(caught.value.hint)
    assert str(caught.value).startswith(str(path) if entrance == "file" else "--set: ")
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)


def test_names_of_classes_are_no_secrets(path):
    names = {"token": "game token", "password": "a secret = {}"}
    suite = {"name": "mine", "id_domain": "real", "class_names": names, "templates": ["pass={}"]}
    load_config(path, [f"trial.data.suite={json.dumps(suite)}"], check=False)
    with pytest.raises(ConfigError, match="unknown key"):  # nor is a key for texts
        load_config(path, ["trial.method={name: lipsum_ft, text_key: caption}"], check=False)


def test_a_secret_of_a_configuration_made_in_python_is_refused(path):
    file = load_config(path)
    search = file.search.model_copy(update={"storage": "https://hunter2@host/x"})
    with pytest.raises(ConfigError, match="a secret does not belong") as caught:
        check_settings(file.model_copy(update={"search": search}))
    assert caught.value.key == "search.storage"


@pytest.mark.parametrize("key", ["https://me:hunter2@host", "search.name=[https://a:hunter2@b"])
def test_a_secret_in_a_broken_override_is_not_shown(key, path):
    with pytest.raises(ConfigError, match=r"^--set ") as caught:
        load_config(path, [key])
    assert "hunter2" not in str(caught.value)


def test_a_long_value_is_shortened(path):
    with pytest.raises(ConfigError, match=r"trial.steps = 'xxx.*xxx\.\.\.: ") as caught:
        load_config(path, [f"trial.steps={'x' * 100_000}"])
    assert len(str(caught.value)) < 1000
    assert caught.value.value == "x" * 100_000


@pytest.mark.parametrize("about", ["user=me&password=${PASSWORD}", "sslmode=require"])
def test_urls_without_a_password_and_data_elsewhere_can_be_read(about, path):
    url = f"postgresql://me:${{PASSWORD}}@host:5432/name?{about}"
    keys = [f"search.study_storage={url}", "trial.data.root=/no/such/folder"]
    assert load_config(path, keys, check=False).search.study_storage == url


def test_load_trial_ignores_the_search(path):
    keys = ["trial.method.name=r_adapter", "search.space.name=ft", "search.foo=1"]
    keys.append("trial.optim.batch_size=8")
    assert load_trial(path, keys).method.name == "r_adapter"
    with pytest.raises(ConfigError, match=r"good\.yaml with --set \S+: .*no domain 'skech'"):
        load_trial(path, ["trial.data.ood_domains=[skech]"])
    for override, key in {"trial.optim.lrr=1": "trial.optim.lrr", "serch.name=x": "serch"}.items():
        with pytest.raises(ConfigError, match="did you mean") as caught:
            load_trial(path, [override])
        assert caught.value.key == key


def test_the_line_can_be_off_in_yaml(path):
    for value in ("auto", "off"):
        assert load_trial(path, [f"trial.eval.line={value}"]).eval.line == value


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


SIZES = 'search.space.parameters={"optim.batch_size": {type: int, low: 16, high: 32}}'


def test_epochs_with_a_searched_batch_size_are_refused(path):
    """The steps of 2 epochs of 48 images in batches of 32 would be 1.5 in those of 24."""
    with pytest.raises(ConfigError, match=r"optim\.batch_size is searched, .* are not") as caught:
        load_config(path, [SIZES, "trial.epochs=2", "trial.optim.batch_size=32"])
    assert caught.value.key == "trial.epochs"
    assert caught.value.hint == "write trial.steps: 3, or search no optim.batch_size"


def test_a_recorded_search_of_the_batch_size_is_read_again(path):
    """Its `epochs: null` is none."""
    file = load_config(path, [SIZES])
    recorded = file.model_dump(mode="json")
    assert "epochs" in recorded["trial"]
    assert check_settings(SearchFile.model_validate(recorded)) == file
