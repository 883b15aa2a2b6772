import open_clip
import pytest
import yaml

from trainers.config import TrialConfig, with_overrides
from trainers.data.config import DataConfig
from trainers.data.published import wordnet_ids
from trainers.data.suite import Suite, imagenet_names, load_suite, packaged_suites
from trainers.errors import ConfigError, validate
from trainers.texts import named_templates

OWN = {
    "name": "products",
    "id_domain": "studio",
    "ood_domains": ["street"],
    "templates": ["a photo of a {}.", "a {} for sale"],
    "class_names": {"sku_17": "running shoe", "sku_18": "sandal"},
}


def test_the_packaged_suites_have_the_papers_domains_and_figures():
    assert sorted(packaged_suites()) == ["domainnet", "imagenet", "pacs"]
    imagenet, domainnet = load_suite("imagenet"), load_suite("domainnet")
    assert imagenet.ood_domains == ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")
    assert [imagenet.rule(f"imagenet-{d}").num_classes for d in "ra"] == [200, 200]
    assert imagenet.rule("imagenet").num_classes is None  # a subset of 100 is an everyday case
    assert domainnet.rule("real").num_classes == 345
    published = domainnet.published["ViT-B-16-quickgelu/openai"]
    assert list(published.values()) == [82.46, 66.69, 65.57, 43.77, 56.98]
    pacs = load_suite("pacs")
    assert (pacs.id_domain, *pacs.ood_domains) == ("photo", "art_painting", "cartoon", "sketch")
    assert {pacs.rule(domain).num_classes for domain in pacs.ood_domains} == {7}
    for suite in (imagenet, domainnet):
        for figures in suite.published.values():
            assert list(figures) == [suite.id_domain, *suite.ood_domains]
        assert len(suite.all_templates) == 80


def test_imagenet_is_prompted_with_the_names_of_open_clip_by_wordnet_id():
    names = imagenet_names()
    # Hand-picked from the list that comes with ImageNet; the ids are not in the order of labels.
    picked = {"n01443537": "goldfish", "n02123045": "tabby cat", "n15075141": "toilet paper"}
    assert {identity: names[identity] for identity in picked} == picked
    assert list(names.values()) == list(open_clip.IMAGENET_CLASSNAMES)
    prompts = load_suite("imagenet").prompts(wordnet_ids())
    assert prompts.names.count("sunglasses") == 2  # as open_clip has them


def test_class_names_are_spoken_unless_a_suite_says_otherwise():
    rules = DataConfig().rules
    assert rules.prompts(("aircraft_carrier", "t-shirt")).names == ("aircraft carrier", "t shirt")
    assert rules.all_templates == named_templates()
    prompts = load_suite("domainnet").prompts(("The_Eiffel_Tower", "t-shirt"))
    assert prompts.names == ("The_Eiffel_Tower", "t-shirt")
    assert "a photo of a t-shirt." in prompts.of("t-shirt")


@pytest.mark.parametrize(
    ("class_names", "classes", "problem"),
    [
        ("spoken", ("t-shirt", "t_shirt"), "'t-shirt' and 't_shirt' are both called 't shirt'"),
        ("spoken", ("n01443537",), "'n01443537' is a WordNet id.*data.suite = imagenet"),
        ("imagenet", ("n99999999",), "no name for 'n99999999'"),
        ("verbatim", ("Cat", "cat"), "'Cat' and 'cat' are both called 'cat'"),
        ("spoken", ("red_fox", "red_ fox_"), "'red_fox' and 'red_ fox_' are both called 'red fox'"),
        ({"a": "shoe", "b": " Shoe "}, ("a", "b"), "'a' and 'b' are both called 'shoe'"),
        ({"sandal": "shoe"}, ("sandle",), r"no name for 'sandle' \(did you mean 'sandal'\?\)"),
    ],
)
def test_classes_that_a_prompt_cannot_tell_apart_are_refused(class_names, classes, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        Suite(id_domain="a", class_names=class_names).prompts(classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("templates", ["a photo"], r"templates = .*each with one {}"),
        ("templates", ["{} and {}"], "each with one {}"),
        ("templates", [], "expected templates"),
        ("templates", "openai", r"no templates are called so .*openai_imagenet"),
        ("class_names", "verbatin", r"class_names = 'verbatin'.*did you mean 'verbatim'"),
        ("class_names", {"a": " "}, "the class 'a' has an empty name"),
        ("ood_domain", ["x"], r"ood_domain = .*did you mean 'ood_domains'"),
        ("domains", {"x": {"num_class": 3}}, r"num_class = .*'num_classes'"),
        ("published", {"m": {"studio": 150}}, r"published\.m\.studio = 150: .*equal to 100"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line_that_names_file_and_key(key, value, problem, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN | {key: value}))
    with pytest.raises(ConfigError, match=problem) as caught:
        load_suite(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_suite_that_is_no_yaml_is_named(tmp_path):
    for content in (b"templates: [", b"\xff\xfe"):
        (tmp_path / "broken.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.yaml: "):
            load_suite(tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match=r"data\.suite = 3: expected the name"):
        validate(TrialConfig, {"data": {"suite": 3}}, "f.yaml")


def test_a_suite_names_the_domains_unless_the_user_does():
    def domains(**values):
        return DataConfig.model_validate({"suite": "domainnet", **values}).domains

    assert domains() == ("real", "painting", "clipart", "infograph", "sketch")
    assert domains(ood_domains=["sketch", "quickdraw"]) == ("real", "sketch", "quickdraw")
    assert domains(id_domain="sketch") == ("sketch", "real", "painting", "clipart", "infograph")
    assert domains(id_domain="photo")[0] == "photo"
    assert DataConfig().domains == domains()  # and without a suite, as ever


def test_a_suite_of_the_users_own_becomes_part_of_the_configuration(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN))
    config = TrialConfig.model_validate({"data": {"suite": str(path)}})
    path.unlink()  # as on another machine
    again = TrialConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.data.rules.prompts(("sku_18", "sku_17")).names == ("sandal", "running shoe")
    assert again.data.domains == ("studio", "street")
    changed = with_overrides(config, {"optim.lr": 1e-3}, "test")
    assert changed.data == config.data
    assert TrialConfig.model_validate({"data": {"suite": "imagenet"}}).data.suite == "imagenet"
