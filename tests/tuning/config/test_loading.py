"""How `extends:`, the file and `--set` are merged."""

import re
from importlib.metadata import version

import pytest
import yaml

from search_spaces import Categorical, Float
from trainers.data.suite import Suite
from trainers.errors import ConfigError
from trainers.overrides import merge
from tuning.config.validation import load_config
from tuning.log.folder import write_config

LR = "optim.lr"
RANGE = {"low": 1e-6, "high": 1e-4}


def write(folder, name, /, **values):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def loaded(path, *overrides):
    return load_config(path, overrides, check=False)


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
        ({"a": {"name": "x", "c": 1}}, {"a": {"d": 2}}, {"a": {"name": "x", "c": 1, "d": 2}}),
        ({"a": {"name": "x", "c": 1}}, {"a": {"name": "x"}}, {"a": {"name": "x", "c": 1}}),
        ({"a": {"name": "x", "c": 1}}, {"a": {"name": "y"}}, {"a": {"name": "y"}}),
        ({"a": {"c": 1}}, {"a": {"name": "x", "d": 2}}, {"a": {"name": "x", "d": 2}}),
        ({"a": RANGE}, {"a": {"type": "int"}}, {"a": {"type": "int"}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"steps": 9}, {"epochs": 2}, {"epochs": 2}),
        ({"epochs": 2}, {"steps": 9}, {"steps": 9}),
        ({"epochs": 2}, {"steps": 9, "epochs": 1}, {"steps": 9, "epochs": 1}),
        ({"search": {"name": "x", "a": 1}}, {"search": {"name": "y"}},
         {"search": {"name": "y", "a": 1}}),
        ({"sampler": {"name": "x", "seed": 1}}, {"sampler": {"name": "y"}},
         {"sampler": {"name": "y", "seed": 1}}),
    ],
)  # fmt: skip
def test_another_name_or_type_replaces_else_mappings_merge(base, over, merged):
    assert merge(base, over) == merged


def test_a_file_overrides_what_it_extends(tmp_path):
    write(tmp_path, "base", trial={"steps": 7, "optim": {"lr": 1e-3}, "eval": {"every": 2}})
    child = write(tmp_path, "deep/child", extends="../base.yaml", trial={"optim": {"eps": 1e-6}})
    grandchild = write(tmp_path, "grandchild", extends="deep/child.yaml", trial={"steps": 9})
    trial = loaded(grandchild).trial
    assert (trial.steps, trial.optim.lr, trial.optim.eps, trial.eval.every) == (9, 1e-3, 1e-6, 2)
    assert loaded(child).trial.steps == 7
    assert loaded(child, "trial.steps=8", "trial.optim={eps: 1e-5}").trial.optim.lr == 1e-3
    own = write(tmp_path, "own", extends="domainnet_vit_b16", search={"budget": {"trials": 3}})
    assert loaded(own).search.budget.trials == 3
    assert loaded(own).trial == loaded("domainnet_vit_b16").trial


@pytest.mark.parametrize(
    ("keys", "section", "value"),
    [
        (["search.scheduler.name=none"], "search.scheduler.reduction_factor", 3),
        (["trial.method.name=ft"], "trial.method", {"name": "ft"}),
        (["trial.model.pretrained=metaclip"], "trial.model.name", "ViT-B-16-quickgelu"),
        (["trial.model.pretrained=x", "trial.model.name=ViT-B-32"], "trial.model.pretrained", "x"),
        (["search.objective=[{metric: id_val/acc}]", "search.objective.metric=id_val/nll"],
         "search.objective", [{"metric": "id_val/nll", "mode": "min"}]),
    ],
)  # fmt: skip
def test_overrides_of_a_section_with_a_name(keys, section, value):
    found = loaded("domainnet_vit_b16", *keys).model_dump(mode="json")
    for key in section.split("."):
        found = found[key]
    assert found == value


def test_overrides_reach_down_to_the_parameters(tmp_path):
    path = write(tmp_path, "own", search={"space": {"parameters": {LR: RANGE}}})

    def parameter(change, key=LR):
        file = loaded(path, f"search.space.parameters={{{key}: {change}}}")
        return file.spaces[None].parameters[key]

    assert parameter("{low: 1e-5}") == Float(low=1e-5, high=1e-4, log=True)
    assert parameter("{type: categorical, choices: [1, 2]}") == Categorical(choices=(1, 2))
    assert parameter("{low: 0.1}", "method.reg_weight") == Float(low=0.1, high=100, log=True)
    for key in ("search.space.parameters", "search.prior.center"):
        with pytest.raises(ConfigError, match=rf"--set .*write '{key}={{optim.lr: ...}}'"):
            loaded(path, f"{key}.optim.lr.low=1e-4")


def test_a_search_is_named_after_its_own_file(tmp_path):
    assert loaded(write(tmp_path, "own", extends="domainnet_vit_b16")).search.name == "own"
    assert loaded(write(tmp_path, "_my search!", extends="own.yaml")).search.name == "my-search-"
    assert loaded(write(tmp_path, "\u732b", extends="own.yaml")).search.name == "search"
    called = write(tmp_path, "c", extends="domainnet_vit_b16", search={"name": "x", "budget": {}})
    assert loaded(called).search.name == "x"
    with pytest.raises(ConfigError, match=r"wrong\.yaml: search = 3"):
        loaded(write(tmp_path, "wrong", extends="domainnet_vit_b16", search=3))


def test_only_extends_is_relative_to_the_file(tmp_path, monkeypatch):
    write(tmp_path, "deep/base", trial={"data": {"suite": "mine.yaml"}}, plugins=["mine.py"])
    (tmp_path / "mine.py").write_text("")
    write(tmp_path, "mine", id_domain="photo")
    monkeypatch.chdir(tmp_path)
    trial = loaded(write(tmp_path, "deep/own", extends="base.yaml")).trial
    assert trial.data.suite == Suite(id_domain="photo")
    assert trial.plugins == (str(tmp_path / "mine.py"),)


def test_circular_or_wrong_extends_is_an_error(tmp_path):
    write(tmp_path, "two", extends="one.yaml")
    secret = tmp_path / "shadow"
    secret.write_text("root: hunter2")
    for base, words in {
        "two.yaml": "one.yaml -> two.yaml -> one.yaml",
        "one.yaml": "one.yaml -> one.yaml",
        "domainnet_vit_b61": "did you mean 'domainnet_vit_b16'",
        3: "expected the name",
        str(secret): "not a .yaml file",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            loaded(write(tmp_path, "one", extends=base))
        assert caught.value.key == "extends"
        assert caught.value.source.endswith(".yaml")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("mine", "mine.yaml"), ("main.yaml", "mine.yaml"), ("long path/quickstar", "quickstart"),
     ("domainnet_vit_b16:runlocal", "domainnet_vit_b16_runlocal")],
)  # fmt: skip
def test_a_file_of_a_similar_name_is_suggested(word, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "mine").parent)
    with pytest.raises(ConfigError, match="no such file or ready configuration") as caught:
        loaded(word)
    assert caught.value.hint == f"did you mean {hint!r}?"


def test_the_recorded_configuration_needs_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = {"name": "mine", "id_domain": "photo", "class_names": {f"c{n}": "a" for n in range(99)}}
    write(tmp_path, "suite", **suite)
    own = {"data": {"suite": "suite.yaml"}}
    objective = {"objective": {"metric": "id_val/acc"}}
    file = loaded(write(tmp_path, "own", extends="vit_b16", trial=own, search=objective))
    run = tmp_path / "run"
    run.mkdir()
    write_config(run, file)
    (tmp_path / "suite.yaml").unlink()
    recorded = yaml.safe_load((run / "search.yaml").read_text())
    assert [*recorded] == ["version", "trial", "search"]
    assert recorded["version"] == version("lipsum-tune")
    assert loaded(run / "search.yaml") == file
    later = write(tmp_path, "later", **recorded | {"version": "9.1.0", "news": 1})
    with pytest.raises(ConfigError, match=r"later\.yaml \(of lipsum-tune 9\.1\.0\): news = 1"):
        loaded(later)
    assert file.trial.data.domains == ("photo",)
    shown = file.summary()["trial"]["data"]["suite"]
    assert re.fullmatch(r"mine \([0-9a-f]{12}\)", shown)
    named = loaded("domainnet_vit_b16").summary()
    assert named["trial"]["data"]["suite"] == "domainnet"


def test_plugins_move_to_the_trial(tmp_path):
    path = write(tmp_path, "mine", plugins=["json"], trial={"plugins": ["math"]})
    assert loaded(path).trial.plugins == ("json", "math")
    assert "plugins" not in loaded(path).model_dump()
    with pytest.raises(ConfigError, match="no_such_module") as caught:
        loaded(write(tmp_path, "wrong", plugins=["no_such_module"]))
    assert caught.value.source == str(tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trial: [1,", "line 1, column"),
        ("trial: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- 1", "expected the sections"),
        ("trial: {steps: 1}\nsearch: {}\ntrial: {steps: 2}", "'trial' is given twice"),
        ("trial: {seed: 2024-13-45}", "month must be in 1..12"),
        ('trial: "\\0"', "the character NUL"),
        ("trial: &a {eval: *a}", "line 1, column 8: found unconstructable recursive"),
        ("trial: " + "[" * 3_000 + "]" * 3_000, "nested"),
    ],
    ids=range(8),
)
def test_bad_yaml_is_one_line(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        loaded(path)
    assert caught.value.source == str(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
