"""The benchmark of photographs: the texts of its model, and its images."""

import shutil

import pytest
import torch
from PIL import Image

from tests.benchmarks.photographs import zero_shot_clip
from tests.benchmarks.photographs.__main__ import (
    DOMAINS,
    PER_CLASS,
    label_other_domains,
    prepare_images,
)
from trainers.data.dataset import ImageDataset
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


def test_labelled_data_have_validation_images_of_other_domains(tmp_path, whole_root, monkeypatch):
    domains = ("real", "sketch", "clipart")
    monkeypatch.setattr("tests.benchmarks.photographs.__main__.DOMAINS", domains)
    shutil.copytree(whole_root, tmp_path / "real" / "data")
    before, joined = label_other_domains(tmp_path, "real")
    data, labelled = tmp_path / "real" / "data", tmp_path / "real" / "labelled"
    parts = [("real", "train"), ("sketch", "val"), ("clipart", "val")]
    expected = [row for part in parts for row in images_of(data, *part)]
    assert images_of(labelled, "real", "train") == expected
    assert (before, joined) == (len(images_of(data, "real", "train")), len(expected))
    assert images_of(labelled, "sketch", "test") == images_of(data, "sketch", "test")
    assert label_other_domains(tmp_path, "real") == (before, joined)


def images_of(root, domain, split):
    images = ImageDataset(root, domain, split)
    return [(images.path(n), int(images.labels[n])) for n in range(len(images))]
