"""The search space of a configuration, also of one that compares several methods."""

import re

import pytest
from pydantic import ValidationError

from search_spaces import SPACES, Float, Int, SearchSpace
from tests.trainers.tiny_models import random_model
from trainers.errors import ConfigError
from trainers.methods.base import Method
from trainers.methods.registry import METHODS as KNOWN_METHODS
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.config.search_space import SpaceConfig
from tuning.config.validation import load_config

BOTH = ["ft", "lipsum_ft"]
TINY_LR = {"type": "float", "low": 1e-5, "high": 2e-3, "log": True}
PLUGIN = """
from typing import Literal
from trainers.methods import register_method
from trainers.methods.base import Method

@register_method("mine", search_space={"parameters": {
    "optim.weight_decay": {"type": "float", "lowest": 1e-5, "high": 1e-2}}})
class Mine(Method):
    name: Literal["mine"] = "mine"
"""


def space(changes=None, **keys):
    """That of a search over both methods, with keys of `search.space`, and others, dotted."""
    values = {"trial": {}, "search": {"space": {"methods": BOTH, **keys}}}
    return SearchFile.model_validate(nest(changes or {}, values)).spaces


def test_all_becomes_the_list_of_methods():
    file = SearchFile.model_validate({"search": {"space": {"methods": "all"}}})
    assert file.search.space.methods == tuple(SPACES)
    assert SearchFile.model_validate(file.model_dump(mode="json")) == file


def test_parameters_apply_to_methods_that_have_them():
    found = space(parameters={"optim.lr": TINY_LR, "method.text_length": {"high": 12}})
    for method in BOTH:
        assert found[method].parameters["optim.lr"] == Float.model_validate(TINY_LR)
    length = found["lipsum_ft"].parameters["method.text_length"]
    assert length == Int(low=2, high=12, log=True)
    assert found["ft"].parameters.keys() == {"optim.lr"}


def test_a_new_parameter_is_added_to_all_methods():
    decay = {"type": "float", "low": 0, "high": 0.1}
    found = space({"trial.optim.weight_decay": 0.05}, parameters={"optim.weight_decay": decay})
    for method in BOTH:
        added = found[method].parameters.keys() - SPACES[method].parameters.keys()
        assert added == {"optim.weight_decay"}
        assert found[method].initial_points[0]["optim.weight_decay"] == 0.05


def test_by_method_wins_over_parameters_for_all():
    count = {"type": "int", "low": 8, "high": 256}
    own = {"parameters": {"optim.lr": {"low": 1e-5}, "method.text_count": count}}
    found = space(
        {"trial.method": {"name": "ft"}},
        parameters={"optim.lr": {"high": 1e-4}},
        by_method={"lipsum_ft": own, "kd": {"center": {"not.compared": 1}}},
    )
    assert found["ft"].parameters["optim.lr"] == Float(low=1e-6, high=1e-4, log=True)
    of_lipsum = found["lipsum_ft"]
    assert of_lipsum.parameters["optim.lr"] == Float(low=1e-5, high=1e-4, log=True)
    # The base trial is another method's, so the value is the method's own default.
    assert of_lipsum.initial_points[0]["method.text_count"] == 80


@pytest.mark.parametrize("rates", [[], [3e-5, 4e-5]])
def test_given_points_are_those_of_their_methods(rates):
    points = [{"method.name": "ft", "optim.lr": rate} for rate in rates]
    file = SearchFile.model_validate(
        {"search": {"space": {"methods": BOTH, "initial_points": points}}}
    )
    assert file.spaces["ft"].initial_points == [{"optim.lr": rate} for rate in rates]
    assert file.spaces["lipsum_ft"].initial_points == []


def test_a_method_without_a_search_space_is_not_compared(monkeypatch):
    monkeypatch.setitem(KNOWN_METHODS, "mine", Method)
    with pytest.raises(ValidationError, match="'mine' was registered without a search space"):
        SpaceConfig(methods=("mine",))


def test_the_space_is_that_of_the_method_if_it_has_one(tmp_path):
    def keys(*overrides):
        return load_config("quickstart", overrides, check=False).spaces[None].parameters.keys()

    assert keys("trial.method.name=kd") == {"method.reg_weight", "optim.lr"}
    assert keys("trial.method.name=kd", "search.space.name=null") == {"optim.lr"}
    (tmp_path / "alone.py").write_text(re.sub(", search_space.*}}", "", PLUGIN, flags=re.DOTALL))
    assert keys(f"plugins=[{tmp_path}/alone.py]", "trial.method.name=mine") == {"optim.lr"}


@pytest.mark.parametrize("use", ["parameters: {}", "methods: [ft, mine]"])
def test_a_wrong_space_of_a_plugin_is_named_with_its_file(use, tmp_path):
    plugin = tmp_path / "wrong_space.py"
    plugin.write_text(PLUGIN)
    overrides = [f"plugins=[{plugin}]", "trial.method.name=mine", f"search.space={{{use}}}"]
    with pytest.raises(ConfigError, match=r"wrong_space\.py: .*parameters\.optim"):
        assert load_config("quickstart", overrides, check=False).spaces
    assert load_config("quickstart", check=False).spaces


def test_methods_of_other_configurations_are_unknown(tmp_path):
    def methods(*overrides):
        file = load_config("quickstart", overrides, check=False)
        assert file.spaces
        return file.search.space.methods

    (tmp_path / "others.py").write_text(PLUGIN.replace("lowest", "low"))
    plugins = f"plugins=[{tmp_path / 'others.py'}]"
    for override in ("trial.method.name=mine", "search.space.methods=[ft, mine]"):
        assert methods(override, plugins) is not None
        with pytest.raises(ConfigError, match="under `plugins`"):
            methods(override)


def test_a_method_that_does_not_fit_the_model_is_named(path, tmp_path):
    name = random_model(tmp_path, "resnet").name
    model = [f"trial.model={{name: '{name}'}}", "search.budget.trials=3"]
    with pytest.raises(ConfigError, match="'r_adapter'") as caught:
        load_config(path, ["search.space.methods=[ft, r_adapter, kd]", *model])
    assert caught.value.key == "search.space.methods"
    load_config(path, ["search.space.methods=[ft, kd]", *model])
    with pytest.raises(ConfigError, match="RN501") as caught:  # no method's fault
        load_config(path, ["trial.model.name=RN501"])
    assert caught.value.key != "search.space.methods"


@pytest.mark.parametrize("points", [{}, {"initial_points": []}, {"initial_points": [1e-5]}])
def test_a_space_object_stands_in_place_of_a_named_space(points):
    given = {name: [{"optim.lr": rate} for rate in rates] for name, rates in points.items()}
    space = SearchSpace(parameters={"optim.lr": Float(low=1e-6, high=1e-3, log=True)}, **given)
    file = SearchFile.model_validate({"search": {"space": space}})
    found = file.spaces[None]
    if points:
        assert found == space
    else:  # those of the prior
        assert found.parameters == space.parameters
        assert len(found.initial_points) == 4
    # The run folder keeps it as text.
    assert SearchFile.model_validate(file.model_dump(mode="json")).spaces == file.spaces


def test_only_changed_fields_of_a_parameter_are_recorded(path):
    keys = ["search.space.parameters={optim.lr: {low: 1e-5, high: 1e-4}}"]
    file = load_config(path, [*keys, "trial.method.name=lipsum_ft"])
    changed = {"optim.lr": Float(low=1e-5, high=1e-4, log=True)}
    assert file.spaces[None].parameters == {**SPACES["lipsum_ft"].parameters, **changed}
    recorded = file.model_dump(mode="json")
    assert recorded["search"]["space"]["parameters"] == {"optim.lr": {"low": 1e-5, "high": 1e-4}}
    assert SearchFile.model_validate(recorded) == file


def test_the_order_of_methods_is_no_part_of_the_fingerprint():
    def fingerprint(*methods):
        file = SearchFile.model_validate({"search": {"space": {"methods": methods}}})
        return file.fingerprints()["search.space"]

    assert fingerprint("ft", "kd") == fingerprint("kd", "ft") != fingerprint("ft", "l2_sp")


def test_the_space_is_resolved_once_and_again_for_a_copy(path):
    file = load_config(path, check=False)
    assert file.spaces is file.spaces
    space = file.search.space.model_copy(update={"methods": ("ft",)})
    search = file.search.model_copy(update={"space": space})
    assert list(file.model_copy(update={"search": search}).spaces) == ["ft"]
