import pytest
import torch

from trainers.data.class_map import domain_class_map
from trainers.data.config import DataConfig
from trainers.data.published import wordnet_ids
from trainers.data.suite import DomainRule, Suite, load_suite
from trainers.errors import ConfigError

ID = ("ant", "bee", "cat", "dog")


def mapped(classes, rule=None, id_classes=ID):
    rules = {"sketch": rule} if rule else {}
    data = DataConfig(suite=Suite(id_domain="real", ood_domains=("sketch",), domains=rules))
    return domain_class_map(data, id_classes, "sketch", tuple(classes))


INSECTS = DomainRule(class_map={"insect": ("ant", "bee"), "pet": ("dog",)})


@pytest.mark.parametrize(
    ("classes", "rule", "expected"),
    [
        pytest.param(("bee", "dog"), None, [[1, 3], [5, 4]], id="mask"),
        pytest.param(("dog", "ant"), None, [[3, 0], [4, 7]], id="mask in another order"),
        pytest.param(ID[::-1], None, [[3, 2, 1, 0], [4, 9, 5, 7]], id="permutation"),
        pytest.param(("pet", "insect"), INSECTS, [[3, 1], [4, 7]], id="best of several"),
    ],
)
def test_the_classes_of_a_domain_are_scored_in_its_own_order(classes, rule, expected):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [7.0, 5.0, 9.0, 4.0]])
    assert mapped(classes, rule).project(logits).tolist() == expected


def test_classes_may_share_some_of_what_they_stand_for():
    rule = DomainRule(class_map={"pet": ("dog", "cat"), "dog": ("dog",)})
    assert mapped(("pet", "dog"), rule=rule).groups == ((3, 2), (3,))


@pytest.mark.parametrize(
    ("classes", "rule", "problem"),
    [
        (("ant", "cats"), {}, r"'cats': no class of real.* \(in a suite.*; did you mean 'cat'\?\)"),
        (tuple("xyzuv"), {}, "'x', 'y', 'z' and 2 more: no class of real, which has 4"),
        (("ant", "ant"), {}, "sketch: several classes are called 'ant'"),
        (ID, {"num_classes": 200}, "it has 4 classes, and the suite expects 200"),
        (("pet", "bug"), {"class_map": {"pet": ["dog"]}}, "'bug': no class of real"),
        (("pet",), {"class_map": {"pet": ["dgo"]}}, "'pet': no class of real"),
        (
            ("pet", "dog"),
            {"class_map": {"pet": ["dog", "cat"], "dog": ["cat", "dog"]}},
            "'pet', 'dog' stand for the same classes of real",
        ),
    ],
)
def test_a_class_that_cannot_be_scored_is_refused_by_name(classes, rule, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        mapped(classes, DomainRule.model_validate(rule))
    assert "\n" not in str(caught.value)


def test_images_of_classes_that_cannot_be_scored_are_left_out_where_a_suite_says_so():
    skip = DomainRule(unknown_classes="skip")
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [7.0, 5.0, 9.0, 4.0], [1.0, 1.0, 1.0, 2.0]])
    partly = mapped(("dog", "cow", "bee"), rule=skip)
    assert partly.project(logits).tolist() == [[3.0, 1.0], [4.0, 5.0], [2.0, 1.0]]
    assert partly.columns(torch.tensor([2, 1, 0])).tolist() == [1, -1, 0]  # bee, cow, dog
    assert partly.num_classes == 2
    whole = mapped(("dog", "bee"), rule=skip)
    assert whole.columns(torch.tensor([0, 1, 1])).tolist() == [0, 1, 1]
    groups = {"pet": ("dog", "hamster"), "fish": ("cod",)}
    some = DomainRule(unknown_classes="skip", class_map=groups)
    assert mapped(("fish", "pet"), rule=some).groups == ((), (3,))
    with pytest.raises(ConfigError, match="none of its classes is one of real"):
        mapped(("cow",), rule=skip)


def test_the_classes_of_imagenets_shifts_fit_imagenets():
    ids, suite = wordnet_ids(), load_suite("imagenet")
    for domain in ("imagenet-r", "imagenet-a"):
        names = wordnet_ids(domain.replace("-", "_"))
        groups = mapped(names, suite.rule(domain), id_classes=ids).groups
        assert [ids[group[0]] for group in groups] == list(names)
