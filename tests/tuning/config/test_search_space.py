"""The search space of a configuration that compares several methods."""

import pytest
import yaml
from pydantic import ValidationError

from search_spaces import METHODS, SPACES, Float, Int, SearchSpace
from tests.trainers.tiny_models import random_model
from trainers.errors import ConfigError
from trainers.methods.ft import PlainFineTuning
from trainers.methods.registry import METHODS as KNOWN_METHODS
from trainers.methods.registry import SEARCH_SPACES
from trainers.overrides import nest
from tuning.config.schema import SearchFile
from tuning.config.search_space import SpaceConfig
from tuning.config.validation import load_config

BOTH = ["ft", "lipsum_ft"]
TINY_LR = {"type": "float", "low": 1e-5, "high": 2e-3, "log": True}
PLUGIN = """
from typing import Literal
from trainers.methods import register_method
from trainers.methods.ft import PlainFineTuning

@register_method("mine", search_space={"parameters": {
    "optim.lr": {"type": "float", "lowest": 1e-5, "high": 1e-2}}})
class Mine(PlainFineTuning):
    name: Literal["mine"] = "mine"
"""


def space(changes=None, **keys):
    """That of a search over both methods, with keys of `search.space`, and others, dotted."""
    values = {"trial": {}, "search": {"space": {"methods": BOTH, **keys}}}
    return SearchFile.model_validate(nest(changes or {}, values)).search_space()


def canonical(*methods):
    """The parameters of the ready spaces of those methods."""
    return SearchSpace(branches={method: SPACES[method] for method in methods}).canonical()


def test_all_becomes_the_list_of_methods():
    file = SearchFile.model_validate({"search": {"space": {"methods": "all"}}})
    assert file.search.space.methods == tuple(METHODS)
    assert file.search.space.name is None
    assert SearchFile.model_validate(file.model_dump(mode="json")) == file


def test_parameters_apply_to_methods_that_have_them():
    found = space(parameters={"optim.lr": TINY_LR, "method.text_length": {"high": 12}})
    for method in BOTH:
        assert found.branches[method].parameters["optim.lr"] == Float.model_validate(TINY_LR)
    assert found.branches["lipsum_ft"].parameters["method.text_length"] == Int(
        low=2, high=12, log=True
    )
    assert found.branches["ft"].parameters.keys() == {"optim.lr"}


def test_a_new_parameter_is_added_to_all_methods():
    decay = {"type": "float", "low": 0, "high": 0.1}
    found = space({"trial.optim.weight_decay": 0.05}, parameters={"optim.weight_decay": decay})
    for method in BOTH:
        branch = found.branches[method]
        assert branch.parameters.keys() - SPACES[method].parameters.keys() == {"optim.weight_decay"}
        assert branch.initial_points[0]["optim.weight_decay"] == 0.05


def test_by_method_wins_over_parameters_for_all():
    count = {"type": "int", "low": 8, "high": 256}
    found = space(
        {"trial.method": {"name": "ft"}},
        parameters={"optim.lr": {"high": 1e-4}},
        by_method={
            "lipsum_ft": {"parameters": {"optim.lr": {"low": 1e-5}, "method.text_count": count}}
        },
    )
    assert found.branches["ft"].parameters["optim.lr"] == Float(low=1e-6, high=1e-4, log=True)
    of_lipsum = found.branches["lipsum_ft"]
    assert of_lipsum.parameters["optim.lr"] == Float(low=1e-5, high=1e-4, log=True)
    # The base trial is another method's, so the value is the method's own default.
    assert of_lipsum.initial_points[0]["method.text_count"] == 80


def test_a_method_may_have_another_space_and_points():
    point = {"optim.lr": 3e-5}
    found = space(
        by_method={
            "lipsum_ft": {"name": "lipsum_ft_text_count"},
            "ft": {"initial_points": [point]},
        }
    )
    ready = SPACES["lipsum_ft_text_count"]
    assert found.branches["lipsum_ft"].parameters == ready.parameters
    assert found.branches["ft"].initial_points == [point]


def test_no_first_points_for_all_and_some_for_one():
    own = {"ft": {"initial_points": [{"optim.lr": 3e-5}]}}
    found = space(initial_points=[], by_method=own)
    assert [len(branch.initial_points) for branch in found.branches.values()] == [1, 0]


@pytest.fixture
def path(images_root, tmp_path):
    path = tmp_path / "methods.yaml"
    values = {
        "trial": {"data": {"root": str(images_root)}, "steps": 6, "eval": {"every": 3}},
        "search": {"space": {"methods": BOTH}},
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("methods=[ft, lipsumft]", "methods", r"did you mean 'lipsum_ft'"),
        ("methods=[ft, ft]", "methods", "'ft' is given twice"),
        ("methods=[all, ft]", "methods", "`all` cannot be combined"),
        ("name=ft", "name", "ready space of each method"),
        ("by_method.lipsumft.parameters.optim.lr.low=1e-5", "by_method", "'lipsum_ft'"),
        ("by_method.ft.name=fft", "by_method.ft.name", "unknown search space"),
        ("parameters.method.name={type: categorical, choices: [ft, kd]}", "parameters",
         r"write search.space.methods: \['ft', 'kd'\]"),
        ("by_method.ft.parameters.method.name={type: categorical, choices: [ft]}",
         "by_method.ft.parameters", "write search.space.methods"),
        ("initial_points=[{optim.lr: 1.0e-5}]", "initial_points", "by_method.<method>"),
        ("parameters.optim.lrr.low=1", "parameters.optim.lrr", "needs a `type` .*'optim.lr'"),
        ("parameters.method.reg_wight.low=1", "parameters.method.reg_wight", "'method.reg_weight'"),
        ("by_method.ft.parameters.optim.lr.low=1", "by_method.ft.parameters.optim.lr", "low=1.0"),
        ("by_method.ft.initial_points=[{}]", "by_method.ft.initial_points", "lacks optim.lr"),
        ("by_method.ft.parameters.method.reg_weight={type: float, low: 0, high: 1}",
         "by_method.ft.parameters.method.reg_weight", "'ft' has no 'reg_weight'"),
        ("by_method.ft.parameters.method.reg_weight.low=1",
         "by_method.ft.parameters.method.reg_weight", r"needs a `type`$"),
        ("by_method.lipsum_ft.parameters.method.reg_wight.low=1",
         "by_method.lipsum_ft.parameters.method.reg_wight", r"did you mean 'method.reg_weight'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_space_has_its_key(override, key, words, path):
    # `name` goes into the file, since with --set it replaces the methods.
    values = yaml.safe_load(path.read_text())
    if override == "name=ft":
        path.write_text(yaml.safe_dump(nest({"search.space.name": "ft"}, values)))
    overrides = [] if override == "name=ft" else [f"search.space.{override}"]
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path, overrides)
    assert caught.value.key == f"search.space.{key}"
    given = override.partition("=")[0]
    is_within = f"{key}.".startswith(f"{given}.")  # else the file may be wrong
    with_set = "--set" if is_within else f"{path} with --set search.space.{given}"
    assert caught.value.source == (with_set if overrides else str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_methods_search_space_may_be_wrong_or_missing(monkeypatch):
    monkeypatch.setitem(KNOWN_METHODS, "mine", PlainFineTuning)
    with pytest.raises(ValidationError, match="'mine' was registered without a search space"):
        SpaceConfig(methods=("mine",))
    wrong = {"method.strength": {"type": "float", "low": 1.0, "high": 0.1}}
    monkeypatch.setitem(SEARCH_SPACES, "mine", {"parameters": wrong})
    SpaceConfig()
    with pytest.raises(ValidationError, match=r"'mine': parameters.method.strength: .*low=1.0"):
        SpaceConfig(methods=("mine",))


@pytest.mark.parametrize("use", ["name=mine", "methods=[ft, mine]"])
def test_a_plugin_with_a_wrong_space_can_be_corrected(use, tmp_path):
    plugin = tmp_path / "wrong_space.py"
    plugin.write_text(PLUGIN)
    overrides = [f"plugins=[{plugin}]", "trial.method.name=mine", f"search.space.{use}"]

    def lowest():
        space = load_config("quickstart", overrides, check=False).search_space()
        parameter = next(reversed(space.parts().values())).parameters["optim.lr"]
        assert isinstance(parameter, Float)
        return parameter.low

    with pytest.raises(ConfigError, match=r"wrong_space\.py: .*'mine': parameters\.optim\.lr: "):
        lowest()
    assert "mine" not in KNOWN_METHODS
    load_config("quickstart", check=False).search_space()
    plugin.write_text(PLUGIN.replace("lowest", "low"))
    assert lowest() == 1e-5


def test_the_other_methods_of_a_plugin_with_a_wrong_space_are_unknown_too(tmp_path):
    plugin = tmp_path / "half_wrong.py"
    right = PLUGIN.replace("lowest", "low").replace('"mine"', '"right"').replace("Mine", "Right")
    plugin.write_text(PLUGIN + right)

    def methods(*overrides):
        return load_config("quickstart", overrides, check=False).search.space.methods

    every = methods("search.space.methods=all")
    with pytest.raises(ConfigError, match="parameters"):
        methods("search.space.methods=[ft, mine]", f"plugins=[{plugin}]")
    assert methods("search.space.methods=all") == every


def test_methods_of_other_configurations_are_unknown(tmp_path):
    def methods(*overrides):
        file = load_config("quickstart", overrides, check=False)
        file.search_space()
        return file.search.space.methods

    every = methods("search.space.methods=all")
    (tmp_path / "others.py").write_text(PLUGIN.replace("lowest", "low"))
    plugins = f"plugins=[{tmp_path / 'others.py'}]"
    assert methods("search.space.methods=all", plugins) == (*every, "mine")
    assert methods("search.space.methods=all") == every
    for override in ("trial.method.name=mine", "search.space.methods=[ft, mine]"):
        assert methods(override, plugins) is not None
        with pytest.raises(ConfigError, match="under `plugins`"):
            methods(override)


def test_by_method_needs_methods(path):
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", ["search.space.by_method.ft.name=ft"])
    assert caught.value.key == "search.space.by_method"


def test_entries_of_methods_not_compared_have_no_effect(path):
    values = nest({"search.space.by_method": {
        "lipsum_ft": {"parameters": {"optim.lr": {"low": 1e-5}}}, "ft": {"initial_points": []},
    }}, yaml.safe_load(path.read_text()))  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    only = SearchSpace(branches={"ft": SearchSpace(parameters=SPACES["ft"].parameters)})
    assert load_config(path, ["search.space.methods=ft"]).search_space() == only
    child = path.with_name("child.yaml")
    child.write_text(
        yaml.safe_dump({"extends": str(path), "search": {"space": {"methods": ["ft"]}}})
    )
    assert load_config(child).search_space() == only


def test_a_space_of_another_method_is_an_error(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["search.space.name=lipsum_ft", "trial.method.name=r_adapter"])
    assert caught.value.key == "search.space.parameters.method.reg_weight"
    assert caught.value.hint == "write search.space.name = 'r_adapter'"
    fitting = ["search.space.name=r_adapter", "trial.method.name=r_adapter"]
    found = load_config(path, fitting).search_space()
    assert found.canonical() == SPACES["r_adapter"].canonical()
    assert found.initial_points[0] == SPACES["r_adapter"].initial_points[0]


@pytest.mark.parametrize("several", [True, False])
def test_settings_without_effect_are_not_searched(several, path):
    section = "search.space.by_method.lipsum_ft" if several else "search.space"
    length = f"{section}.parameters.method.text_length"
    keys = [
        "trial.method={name: lipsum_ft, text_source: isotropic}",
        *([] if several else ["search.space.name=lipsum_ft"]),
    ]
    with pytest.raises(ConfigError, match=r"choices: \[8\]") as caught:
        load_config(path, keys)
    assert caught.value.key == length
    fixed = load_config(path, [*keys, f"{length}={{type: categorical, choices: [8]}}"])
    (part,) = [p for name, p in fixed.search_space().parts().items() if name != "ft"]
    assert {point["method.text_length"] for point in part.initial_points} == {8}
    source = f"{section}.parameters.method.text_source"
    load_config(path, [*keys, f"{source}={{type: categorical, choices: [random, isotropic]}}"])


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


def test_every_method_gets_a_trial(path, caplog):
    with pytest.raises(ConfigError, match="fewer than the 2 of") as caught:
        load_config(path, ["search.budget.trials=1"])
    assert caught.value.key == "search.budget.trials"
    load_config(path, ["search.budget.trials=4"])
    caplog.clear()  # of the warning that the images are few, which comes once in a process
    load_config(path, ["search.budget.trials=4"])
    assert not caplog.records
    load_config(path, ["search.budget.trials=5"])
    assert "search.budget.trials = 5: not a multiple of the 2" in caplog.text


def test_cma_es_needs_two_numbers_for_every_method(path):
    with pytest.raises(ConfigError, match=r"'cma_es'.* for 'ft'"):
        load_config(path, ["search.sampler.name=cma_es"])


def test_methods_replace_a_ready_space_and_back(path):
    lr = "search.space.parameters.optim.lr.low=1e-5"
    methods = "search.space.methods=[ft, lipsum_ft]"
    over = load_config("quickstart", [methods], check=False)
    assert over.search_space().canonical() == canonical(*BOTH)
    both = load_config("quickstart", [methods, lr], check=False).search_space()
    assert both.branches["ft"].parameters["optim.lr"] == Float(low=1e-5, high=1e-3, log=True)
    values = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump(nest({"search.space.parameters": {"optim.lr": TINY_LR}}, values))
    )
    fewer = load_config(path, ["search.space.methods=[ft]"])  # the same kind: the range stays
    assert fewer.search_space().branches["ft"].parameters["optim.lr"] == Float(**TINY_LR)
    alone = load_config(path, ["search.space.name=lipsum_ft"])
    assert alone.search_space().canonical() == SPACES["lipsum_ft"].canonical()


def test_parameters_of_one_method_can_be_overridden(path):
    key = "search.space.by_method.lipsum_ft.parameters.method.reg_weight"
    whole = load_config(path, [f"{key}={{type: float, low: 0, high: 2}}", f"{key}.high=3.0"])
    of_weight = whole.search_space().branches["lipsum_ft"].parameters["method.reg_weight"]
    assert of_weight == Float(low=0, high=3)
    values = {"extends": str(path), "search": {"space": {"by_method": {"lipsum_ft": {
        "parameters": {"method.reg_weight": {"low": 0.1}}}}}}}  # fmt: skip
    child = path.with_name("child.yaml")
    child.write_text(yaml.safe_dump(values))
    kept = load_config(child, [f"{key}.high=10.0"]).search_space().branches["lipsum_ft"]
    assert kept.parameters["method.reg_weight"] == Float(low=0.1, high=10, log=True)
    other = load_config(child, ["search.space.by_method.lipsum_ft.name=ft"])
    (of_lipsum,) = [b for m, b in other.search_space().branches.items() if m == "lipsum_ft"]
    assert of_lipsum.canonical() == SPACES["ft"].canonical()  # nothing of the one before


def test_a_space_object_stands_in_place_of_a_named_space():
    space = SearchSpace(
        parameters={"optim.lr": Float(low=1e-6, high=1e-3, log=True)},
        initial_points=[{"optim.lr": 1e-5}],
    )
    file = SearchFile.model_validate({"search": {"space": space}})
    assert file.search_space() == space
    # The run folder keeps it as text.
    assert SearchFile.model_validate(file.model_dump(mode="json")).search_space() == space


@pytest.mark.parametrize("points", [{}, {"initial_points": []}])
def test_an_empty_list_of_a_space_object_means_no_points(points):
    space = SearchSpace(parameters={"optim.lr": Float(low=1e-6, high=1e-3, log=True)}, **points)
    file = SearchFile.model_validate({"search": {"space": space}})
    assert bool(file.search_space().initial_points) == (points == {})  # else those of the prior
