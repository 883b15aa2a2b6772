"""The benchmark of photographs: the texts of its model, and its images."""

import pytest
import torch
from PIL import Image

from tests.benchmarks.photographs import zero_shot_clip
from tests.benchmarks.photographs.__main__ import DOMAINS, PER_CLASS, prepare_images
from trainers.data.roots import without_split


def test_the_target_of_a_name_is_the_mean_of_its_classes():
    targets = zero_shot_clip.targets_of_names(torch.eye(1000))
    assert targets["tabby"].argmax() == 281
    assert targets["elephant"][[101, 385, 386]].tolist() == pytest.approx([3**-0.5] * 3)
    pacs = {"dog", "elephant", "giraffe", "guitar", "horse", "house", "person"}
    assert pacs <= targets.keys()


def test_all_images_of_the_id_domain_are_used(tmp_path):
    number = PER_CLASS + 10
    for domain in DOMAINS:
        folder = tmp_path / "pacs" / domain / "dog"
        folder.mkdir(parents=True)
        for index in range(number):
            colour = (index, DOMAINS.index(domain), 0)
            Image.new("RGB", (2, 2), colour).save(folder / f"{index}.png")
    prepare_images(tmp_path / "pacs", tmp_path, "sketch")
    chosen = {one: len([*(tmp_path / "sketch/chosen" / one / "dog").iterdir()]) for one in DOMAINS}
    assert chosen == {one: number if one == "sketch" else PER_CLASS for one in DOMAINS}
    root = str(tmp_path / "sketch" / "data")
    assert not without_split(root, DOMAINS, "test")
    assert without_split(root, DOMAINS, "train") == [one for one in DOMAINS if one != "sketch"]
