"""How `extends:`, the file, a variant and `--set` are merged."""

import re
from pathlib import Path

import pytest
import yaml

from search_spaces import Categorical, Float
from trainers.data.suite import Suite, load_suite
from trainers.errors import ConfigError
from tuning.config.validation import load_config
from tuning.runs.run_folder import search_record, write_config


def write(folder, name, /, **values):
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def loaded(path):
    return load_config(path, check=False)


def test_a_file_overrides_what_it_extends(tmp_path):
    write(tmp_path, "base", trial={"steps": 7, "optim": {"lr": 1e-3}, "eval": {"every": 2}})
    child = write(tmp_path, "deep/child", extends="../base.yaml", trial={"optim": {"eps": 1e-6}})
    grandchild = write(tmp_path, "grandchild", extends="deep/child.yaml", trial={"steps": 9})
    trial = loaded(grandchild).trial
    assert (trial.steps, trial.optim.lr, trial.optim.eps, trial.eval.every) == (9, 1e-3, 1e-6, 2)
    assert loaded(child).trial.steps == 7
    own = write(tmp_path, "own", extends="domainnet_vit_b16", search={"budget": {"trials": 3}})
    assert loaded(own).search.budget.trials == 3
    assert loaded(own).trial == loaded("domainnet_vit_b16").trial


def test_the_same_name_keeps_a_section(tmp_path):
    write(tmp_path, "base", trial={"method": {"reg_weight": 0.3}})  # lipsum_ft, by default
    child = write(tmp_path, "child", extends="base.yaml", trial={"method": {"name": "lipsum_ft"}})
    assert loaded(child).trial.method.model_dump()["reg_weight"] == 0.3
    again = load_config(tmp_path / "base.yaml", ["trial.method.name=lipsum_ft"], check=False)
    assert again.trial == loaded(child).trial


@pytest.mark.parametrize("given", [{"type": "categorical"}, {}], ids=["typed", "choices alone"])
def test_another_type_replaces_a_parameter(given, tmp_path):
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


def test_a_search_is_named_after_its_own_file(tmp_path):
    def name(path):
        return loaded(path).search.name

    assert name(write(tmp_path, "own", extends="domainnet_vit_b16")) == "own"
    assert name(write(tmp_path, "_my search!", extends="own.yaml")) == "my-search-"
    assert name(write(tmp_path, "\u732b", extends="own.yaml")) == "search"
    called = write(tmp_path, "c", extends="domainnet_vit_b16", search={"name": "x", "budget": {}})
    assert name(called) == "x"
    assert name(f"{called}:runlocal") == "x-runlocal"
    assert name("imagenet_vit_l14:runlocal") == "imagenet_vit_l14-runlocal"
    variants = {"fast": {"search.name": "faster"}}
    assert name(f"{write(tmp_path, 'v', variants=variants)}:fast") == "faster"
    assert name("domainnet_vit_b32") == "domainnet_vit_b32"
    wrong = write(tmp_path, "wrong", extends="domainnet_vit_b16", search=3)
    with pytest.raises(ConfigError, match=r"wrong\.yaml: search = 3"):
        loaded(wrong)


def test_another_name_in_overrides_and_variants(tmp_path):
    def over(*keys):
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
    assert median.model_dump(exclude_defaults=True) == {"grace_steps": 7}
    weighted = write(tmp_path, "weighted", trial={"method": {"reg_weight": 0.3}})
    assert load_config(weighted, ["trial.method.name=ft"], check=False).trial.method.name == "ft"
    variant = {"search.scheduler.name": "none", "trial.method.name": "ft"}
    path = write(tmp_path, "v", extends="domainnet_vit_b16", variants={"plain": variant})
    assert loaded(f"{path}:plain").search.scheduler.name == "none"
    assert loaded(f"{path}:plain").trial.method.name == "ft"
    numbered = write(tmp_path, "numbered", variants={32: {"trial.steps": 5}})
    assert loaded(f"{numbered}:32").trial.steps == 5


def test_keys_of_a_suite_override_a_named_suite(tmp_path):
    def suite(source, *keys):
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
    with pytest.raises(
        ConfigError, match=r"wrong\.yaml with --set \S+: no suite .*mean 'domainnet'"
    ):
        load_config(wrong, [templates], check=False)


def test_suite_paths_in_variants_are_relative_to_the_file(tmp_path):
    write(tmp_path, "deep/mine", id_domain="photo")
    forms = {
        "key": {"trial.data.suite": "mine.yaml"},
        "section": {"trial.data": {"suite": "mine.yaml"}},
        "whole": {"trial": {"data": {"suite": "mine.yaml"}}},
    }
    write(tmp_path, "deep/base", variants=forms)
    path = write(tmp_path, "own", extends="deep/base.yaml")
    for form in forms:
        assert loaded(f"{path}:{form}").trial.data.suite == Suite(id_domain="photo")


@pytest.mark.parametrize(
    "form",
    [
        {"plugins": ["mine.py"]},
        {"trial": {"plugins": ["mine.py"]}},
        {"variants": {"x": {"plugins": ["mine.py"]}}},
        {"variants": {"x": {"trial.plugins": ["mine.py"]}}},
    ],
)
def test_paths_of_plugins_are_relative_to_the_file(form, tmp_path, monkeypatch):
    base = write(tmp_path, "deep/base", **form)
    (base.parent / "mine.py").write_text("")
    (tmp_path / "other.py").write_text("")
    monkeypatch.chdir(tmp_path)
    variant = ":x" if "variants" in form else ""
    path = write(tmp_path, "own", extends="deep/base.yaml")
    assert loaded(f"{path}{variant}").trial.plugins == (str(base.parent / "mine.py"),)
    file = load_config(path, ["trial.plugins=[other.py]"], check=False)
    assert file.trial.plugins[-1] == str(tmp_path / "other.py")


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
        assert caught.value.source is not None
        assert caught.value.source.endswith(".yaml")
        assert "hunter2" not in str(caught.value)


def test_a_variant_wins_over_the_file_and_set_over_both(tmp_path):
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


def test_a_variant_may_have_whole_sections_that_are_merged(tmp_path):
    trial = {"data": {"root": "here", "ood_domains": ["sketch"]}, "steps": 100}
    nested = {"trial": {"steps": 10, "eval": {"every": 5}}, "search.budget.trials": 3}
    search = {"name": "mine", "budget": {"trials": 9, "hours": 2}}
    path = write(tmp_path, "mine", trial=trial, search=search, variants={"short": nested})
    short = loaded(f"{path}:short")
    assert (short.trial.steps, short.trial.eval.every) == (10, 5)
    assert Path(short.trial.data.root).name == "here"
    assert short.trial.data.ood_domains == ("sketch",)
    assert (short.search.budget.trials, short.search.budget.hours) == (3, 2)
    assert short.search.name == "mine-short"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("domainnet_vit_b16:runlokal", r"no variant 'runlokal' \(did you mean 'runlocal'\?\)"),
        ("quickstart:runlocal", r"quickstart\.yaml: .*it has no variants"),
        ("quickstar:runlocal", r"quickstar: no such file .*did you mean 'quickstart'"),
    ],
)
def test_an_unknown_variant_is_an_error(source, said):
    with pytest.raises(ConfigError, match=said) as caught:
        loaded(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["mine", "main.yaml", "mine.yml", "mine:short"])
def test_a_file_of_a_similar_name_is_suggested(word, tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "mine").parent)
    with pytest.raises(ConfigError, match=r"no such file .*\(did you mean 'mine.yaml'\?\)"):
        loaded(word)


def test_names_of_folders_do_not_make_files_similar(tmp_path):
    folder = tmp_path / "a long path to a folder of configurations"
    write(folder, "zebra")
    with pytest.raises(ConfigError) as error:
        loaded(folder / "quickstar")
    assert error.value.hint == "did you mean 'quickstart'?"


def test_a_mistake_in_a_variant_has_its_name(tmp_path):
    path = write(tmp_path, "mine", variants={"bad": {"trial.optim.lrr": 1}, "worse": 3})
    with pytest.raises(ConfigError, match=r"mine\.yaml:bad: trial\.optim\.lrr = 1"):
        loaded(f"{path}:bad")
    with pytest.raises(ConfigError) as caught:
        loaded(f"{path}:worse")
    assert (caught.value.key, caught.value.value) == ("variants.worse", 3)
    with pytest.raises(ConfigError, match="expected the names of variants"):
        loaded(f"{write(tmp_path, 'list', variants=['bad'])}:bad")


def test_the_recorded_configuration_needs_no_other_file(tmp_path):
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


def test_the_record_has_name_and_digest_of_a_suite(tmp_path):
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
    config = search_record(file, tmp_path, {"id_val/acc": 1.0}).config
    assert re.fullmatch(r"mine \([0-9a-f]{12}\)", config["trial"]["data"]["suite"])
    named = search_record(loaded("domainnet_vit_b16"), tmp_path, {"id_val/acc": 1.0}).config
    assert named["trial"]["data"]["suite"] == "domainnet"


def test_a_mistake_in_a_suite_has_file_and_key(tmp_path):
    path = write(tmp_path, "own", trial={"data": {"suite": {"id_domain": "a", "template": "x"}}})
    with pytest.raises(ConfigError, match=r"own\.yaml: trial\.data\.suite: template = 'x'"):
        loaded(path)
    path = write(tmp_path, "own", trial={"data": {"suite": "imagnet"}})
    with pytest.raises(ConfigError, match=r"own\.yaml: no suite is called 'imagnet'.*'imagenet'"):
        loaded(path)


def test_overrides_are_applied_and_checked(tmp_path):
    path = write(tmp_path, "mine", search={"objective": [{"metric": "id_val/acc"}]})
    file = load_config(path, ["trial.optim.lr=2e-4", "search.budget.trials=3"], check=False)
    assert (file.trial.optim.lr, file.search.budget.trials) == (2e-4, 3)
    for override, key, words in [
        ("trial.optim.lr", None, "write it as key=value"),
        ("search.budget.trials=[", None, "line 1, column 2"),
        ("search.objective.mode=min", "search.objective", "not a section"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(path, [override], check=False)
        assert caught.value.key == key
        assert len(str(caught.value).splitlines()) == 1


PARAMETERS = "search.space.parameters"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"search": "x"}, "search"),
        ({"search": {"space": "lipsum_ft"}}, "search.space"),
        ({"search": {"space": {"parameters": [1]}}}, PARAMETERS),
        ({"search": {"space": {"parameters": {"optim.lr": 3}}}}, f"{PARAMETERS}.optim.lr"),
    ],
)
def test_an_override_does_not_hide_a_mistake(section, key, tmp_path):
    path = write(tmp_path, "mine", **section)
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"{PARAMETERS}.optim.lr.low=1e-6"], check=False)
    assert caught.value.key == key


def test_plugins_move_to_the_trial(tmp_path):
    path = write(tmp_path, "mine", plugins=["json"], trial={"plugins": ["math"]})
    assert loaded(path).trial.plugins == ("json", "math")
    assert "plugins" not in loaded(path).model_dump()
    with pytest.raises(ConfigError, match="no_such_module") as caught:
        loaded(write(tmp_path, "wrong", plugins=["no_such_module"]))
    assert caught.value.source == str(tmp_path / "wrong.yaml")


DEEP = "".join("  " * n + f"k{n}:\n" for n in range(3_000))
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trial: [1,", "line 1, column"),
        ("trial: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- 1", "expected the sections"),
        ("trial: {steps: 1}\nsearch: {}\ntrial: {steps: 2}", "'trial' is given twice"),
        ("trial: {seed: 2024-13-45}", "month must be in 1..12"),
        (f"trial: {{seed: {'9' * 5_000}}}", "digits"),
        (DEEP, "nested"),
        ("trial: " + "[" * 3_000 + "]" * 3_000, "nested"),
        ("trial: &a [*a]", "more than"),
        (BOMB, "more than"),
    ],
    ids=["broken", "python", "list", "twice", "date", "digits", "deep", "flow", "cycle", "bomb"],
)
def test_bad_yaml_is_one_line(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        loaded(path)
    assert caught.value.source == str(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
