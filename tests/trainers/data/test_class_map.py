from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.data.formats import trees
from tests.trainers.data.formats.reading import read_one
from trainers.config import DataConfig
from trainers.data.class_map import ClassMap, domain_class_map
from trainers.data.formats.imagenet import wordnet_ids
from trainers.data.schema import Header
from trainers.data.suite import DomainRule, Suite, load_suite
from trainers.errors import ConfigError

ID = ("ant", "bee", "cat", "dog")


def mapped(
    classes: Sequence[str],
    rule: DomainRule | None = None,
    metadata: Mapping[str, str] | None = None,
    id_classes: Sequence[str] = ID,
) -> ClassMap:
    rules = {"sketch": rule} if rule else {}
    data = DataConfig(suite=Suite(id_domain="real", ood_domains=("sketch",), domains=rules))
    header = Header(tuple(classes), metadata or {}, rows=1)
    return domain_class_map(data, id_classes, "sketch", header)


def test_the_same_classes_in_the_same_order_cost_nothing() -> None:
    logits = torch.randn(3, 4)
    assert mapped(ID).project(logits) is logits


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        (("bee", "dog"), [1, 3]),  # a mask
        (("dog", "ant"), [3, 0]),  # a mask in another order
        (("dog", "cat", "bee", "ant"), [3, 2, 1, 0]),  # a permutation
    ],
)
def test_a_part_of_the_classes_is_scored_in_its_own_order(
    classes: tuple[str, ...], columns: list[int]
) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [7.0, 5.0, 9.0, 4.0]])
    projection = mapped(classes)
    assert projection.project(logits) is not logits
    assert torch.equal(projection.project(logits), logits[:, columns])


def test_a_class_that_stands_for_several_scores_as_the_best_of_them() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [7.0, 5.0, 9.0, 4.0]])
    rule = DomainRule(class_map={"insect": ("ant", "bee"), "pet": ("dog",)})
    projection = mapped(("pet", "insect"), rule=rule)
    assert projection.project(logits).tolist() == [[3.0, 1.0], [4.0, 7.0]]


def test_classes_may_share_some_of_what_they_stand_for() -> None:
    rule = DomainRule(class_map={"pet": ("dog", "cat"), "dog": ("dog",)})
    assert mapped(("pet", "dog"), rule=rule).groups == ((3, 2), (3,))


def test_projections_equal_numpys_on_many_classes_and_unequal_groups() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"c{i}" for i in range(50))
    groups = {f"d{i}": tuple(rng.choice(names, rng.integers(1, 6), False)) for i in range(20)}
    logits = rng.standard_normal((8, 50)).astype(np.float32)
    expected = np.stack(
        [logits[:, [names.index(n) for n in groups[f"d{i}"]]].max(axis=1) for i in range(20)], 1
    )
    projection = mapped(tuple(groups), metadata={"class_map": json.dumps(groups)}, id_classes=names)
    assert np.array_equal(projection.project(torch.from_numpy(logits)).numpy(), expected)


@pytest.mark.parametrize(
    ("classes", "arguments", "problem"),
    [
        (
            ("ant", "cats"),
            {},
            r"'cats': no class of real.* \(did you mean 'cat'\?\) \(in a suite",
        ),
        (tuple("xyzuv"), {}, "'x', 'y', 'z' and 2 more: no class of real, which has 4 .in a suite"),
        (("ant", "ant"), {}, "sketch: several of its classes are called 'ant'"),
        (ID, {"rule": DomainRule(num_classes=200)}, "it has 4 classes, and the suite expects 200"),
        (
            ("pet", "insect"),
            {"rule": DomainRule(class_map={"pet": ("dog",)})},
            "its class_map has nothing for 'insect'",
        ),
        (
            ("pet",),
            {"metadata": {"class_map": '{"pet": ["dgo"]}'}},
            r"'dgo' in its class_map: no class of real.* \(did you mean 'dog'\?\)",
        ),
        (
            ("pet",),
            {"rule": DomainRule(class_map={"pet": ("dog",), "pte": ("cat",)})},
            r"the class_map of the suite has 'pte', which is not one of its classes \(.*'pet'",
        ),
        (
            ("pet", "dog"),
            {"rule": DomainRule(class_map={"pet": ("dog", "cat"), "dog": ("cat", "dog")})},
            "'pet' and 'dog' stand for the same classes of real",
        ),
        (
            ("pet", "dog"),
            {
                "rule": DomainRule(unknown_classes="skip"),
                "metadata": {"class_map": '{"pet": ["dog", "cow"], "dog": ["dog"]}'},
            },
            "'pet' and 'dog' stand for the same classes of real",
        ),
        (("pet",), {"metadata": {"class_map": "[]"}}, "is not a JSON object of lists"),
        (("pet",), {"metadata": {"class_map": '{"pet": "dog"}'}}, "is not a JSON object of lists"),
    ],
)
def test_a_class_that_cannot_be_scored_is_refused_by_name(
    classes: tuple[str, ...], arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        mapped(classes, **arguments)
    assert "\n" not in str(caught.value)


def test_images_of_classes_that_cannot_be_scored_are_left_out_where_a_suite_says_so() -> None:
    skip = DomainRule(unknown_classes="skip")
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [7.0, 5.0, 9.0, 4.0], [1.0, 1.0, 1.0, 2.0]])
    partly = mapped(("dog", "cow", "bee"), rule=skip)
    scored, labels = partly.score(logits, torch.tensor([2, 1, 0]))  # bee, cow, dog
    assert scored.tolist() == [[3.0, 1.0], [2.0, 1.0]]
    assert labels.tolist() == [1, 0]
    assert partly.num_classes == 2
    whole = mapped(("dog", "bee"), rule=skip)
    assert whole.score(logits, torch.tensor([0, 1, 1]))[1].tolist() == [0, 1, 1]
    groups = {"pet": ["dog", "hamster"], "fish": ["cod"]}
    of_files = mapped(("fish", "pet"), rule=skip, metadata={"class_map": json.dumps(groups)})
    assert of_files.groups == ((), (3,))
    with pytest.raises(ConfigError, match="none of its classes is one of real"):
        mapped(("cow",), rule=skip)


def test_what_the_suite_maps_goes_before_what_the_files_say() -> None:
    data = DataConfig.model_validate(
        {"suite": {"id_domain": "real", "ood_domains": ["sketch"],
                   "domains": {"sketch": {"class_map": {"pet": ["cat"]}}}}}
    )  # fmt: skip
    header = Header(("pet",), {"class_map": '{"pet": ["dog"]}'}, rows=1)
    assert domain_class_map(data, ID, "sketch", header).groups == ((2,),)
    plain = data.model_copy(update={"suite": None})
    assert domain_class_map(plain, ID, "sketch", header).groups == ((3,),)


def test_what_the_layouts_of_imagenets_shifts_name_fits_imagenets_classes(tmp_path: Path) -> None:
    made = {
        "imagenet-v2": trees.make_imagenet_v2,
        "imagenet-r": trees.make_imagenet_r,
        "imagenet-a": trees.make_imagenet_a,
        "imagenet-sketch": trees.make_imagenet_sketch,
        "objectnet": trees.make_objectnet,
    }
    ids, suite, sizes = wordnet_ids(), load_suite("imagenet"), {}
    for layout, make in made.items():
        listing = read_one(layout, make(tmp_path))
        assert listing.domain in {*suite.ood_domains, "objectnet"}
        rule = suite.rule(listing.domain) if layout != "objectnet" else None  # a tree of few
        projection = mapped(listing.class_names, rule, listing.metadata, ids)
        sizes[layout] = len(projection.groups)
        if layout == "objectnet":
            assert max(len(group) for group in projection.groups) > 1
        else:
            named = [ids[group[0]] for group in projection.groups]
            assert named == list(listing.class_names)
    assert [sizes[name] for name in list(made)[:4]] == [1000, 200, 200, 1000]
