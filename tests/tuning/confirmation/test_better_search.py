"""Which of several searches has found the best trial."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tuning import fakes
from tests.tuning.confirmation.written import SEEDS, confirmed, write_predictions, write_results
from tests.tuning.run_folders import search_file, swap_classes, write_run
from tuning.confirmation.better_search import better_search
from tuning.runs.run_folder import load_run


def said(*folders):
    return better_search([load_run(folder) for folder in folders])


def compared(root, folder, trials, images=None, **changes):
    """A finished search whose trials end at these ID and OOD accuracies.

    Args:
        images: number of validation images of each domain.
    """
    records = [fakes.trial(number, *accs) for number, accs in enumerate(trials)]
    write_run(folder, search_file(root, **changes), records)
    if images is not None:
        file = folder / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"val_images": {"real": images}}))
    return folder


def test_of_two_searches_the_better_one_is_named(images_root, tmp_path):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, ood in ((first, 62.0), (second, 64.0)):
        compared(images_root, folder, [(85.0, ood)], images=40_000)
    text = "second is ahead of first by val/mean_acc 74.5 to 73.5, on validation data."
    assert said(first, second) == f"{text} Confirm both with the same seeds before you choose."
    confirmed(first, trial_000=(73.0, 80.0))
    confirmed(second, trial_000=(74.0, 81.5))
    assert said(second, first).startswith(text)
    assert said(first, second).endswith(
        " second has 1.5 points more OOD accuracy than first, at 1.5 points more ID accuracy, "
        "on the test splits over fresh seeds; ± holds for new seeds alone."
    )
    write_results(second, {("ft", 1000): {"id_test/acc": 1.0}}, splits={"real": "other"})
    assert said(first, second).endswith("before you choose.")


def test_test_accuracies_differ_by_more_than_seeds_and_images(images_root, tmp_path):
    right = {"first": np.arange(400) % 3 > 0, "second": np.arange(400) % 5 > 0}
    for name, of_images in right.items():
        folder = compared(images_root, tmp_path / name, [(85.0, 62.0)], trial__steps=len(name))
        confirmed(folder, trial_000=(73.0, 100 * of_images.mean()))
        for seed in SEEDS:
            of_domains = dict.fromkeys(("real", *fakes.DOMAINS), of_images)
            predicted = dict.fromkeys(("predicted", "zero_shot"), of_domains)
            write_predictions(folder, ("trial-000", seed), predicted)
    text = said(tmp_path / "second", tmp_path / "first")
    assert text.startswith(
        "second and first cannot be compared on validation data: they differ in trial.steps. "
        "second has 13.5 ± "
    )
    assert text.endswith("over fresh seeds; ± holds for new seeds and new images.")


def test_equal_searches_have_no_winner(images_root, tmp_path):
    a, b = (compared(images_root, tmp_path / name, [(85.0, 62.0)]) for name in "ab")
    assert said(a, b).startswith("No difference between a and b: val/mean_acc 73.5 to 73.5, on ")


def test_a_difference_within_the_margin_of_the_images_is_none(images_root, tmp_path):
    """Wilson's interval of 50 % on 400 images is 4.9 points to either side."""
    a, b, c = (
        compared(images_root, tmp_path / name, [(80.0, ood)], images=400)
        for name, ood in (("a", 60.0), ("b", 69.0), ("c", 71.0))
    )
    found = said(a, b)
    assert found.startswith("No difference between b and a: val/mean_acc 74.5 to 70, ± 4.9 points")
    assert said(a, c).startswith("c is ahead of a by val/mean_acc 75.5 to 70, on")
    assert said(a, b, c).startswith("No difference between c and b: ")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trial__model__name": "ViT-B-16-quickgelu"}, "trial.model"),
        ({"trial__steps": 80}, "trial.steps"),
        ({"search__objective": [{"metric": "id_val/acc"}]}, "search.objective"),
        ({"search__constraints": ["id_val/acc >= 9"]}, "search.constraints"),
        ({"trial__data__ood_domains": ["sketch"]}, "images"),
    ],
)
def test_searches_of_different_kinds_are_not_compared(changes, named, images_root, tmp_path):
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)])
    b = compared(images_root, tmp_path / "b", [(86.0, 66.0)], **changes)
    text = "a and b cannot be compared on validation data: they differ in"
    assert said(a, b) == f"{text} {named}."


def test_other_images_of_the_same_folders_are_not_compared(images_root, tmp_path):
    other = Path(shutil.copytree(images_root, tmp_path / "copy"))
    swap_classes(other, "real", "val")
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)])
    assert said(a, compared(other, tmp_path / "b", [(86.0, 66.0)])).endswith("differ in images.")


def test_a_trial_that_misses_its_constraint_wins_nothing(images_root, tmp_path):
    constraint = {"search__constraints": ["id_val/acc >= 85"]}
    a = compared(images_root, tmp_path / "a", [(85.0, 62.0)], **constraint)
    b = compared(images_root, tmp_path / "b", [(65.0, 99.0)], **constraint)
    assert said(a, b) == "Only a has a trial that meets the constraints."
    c = compared(images_root, tmp_path / "c", [(65.0, 99.0)], **constraint)
    assert said(b, c) == "None of these searches has a trial that meets the constraints."


def test_of_several_objectives_all_count(images_root, tmp_path):
    both = {"search__objective": [{"metric": "id_val/acc"}, {"metric": "ood_val/mean_acc"}]}
    a = compared(images_root, tmp_path / "a", [(85.0, 30.0)], **both)
    b = compared(images_root, tmp_path / "b", [(84.9, 60.0)], **both)
    shown = "id_val/acc 85 to 84.9 and ood_val/mean_acc 30 to 60, on validation data."
    assert said(a, b).startswith(f"Neither of a and b is ahead in all objectives: {shown}")
    c = compared(images_root, tmp_path / "c", [(85.0, 60.0)], **both)
    assert said(b, c).startswith("c is ahead of b by id_val/acc 85 to 84.9 and ood_val/mean_acc 60")
