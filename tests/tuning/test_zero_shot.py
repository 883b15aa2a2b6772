"""Zero-shot accuracies compared with open_clip's own classifier, also on other classes."""

import io
import shutil

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import CLASSES
from tests.trainers.tiny_models import random_model
from tests.tuning.result_tables import text_of
from trainers.config import TrialConfig, with_overrides
from trainers.data.schema import LabelledImage, part_path, write_images
from trainers.errors import ConfigError
from trainers.models import tiny_clip
from trainers.models.clip import load_tokenizer
from trainers.models.config import ModelConfig
from tuning.cli import app
from tuning.zero_shot import Row, causes, guesses, measure, published, zero_shot_table

MASKED = ("umbrella", "cat", "bus")
"""A part of the classes, in another order."""
MAPPED = {"pet": ("cat", "fish"), "thing": ("clock", "umbrella")}
"""Classes that stand for several, whose images are those of their first."""


def rows_of(root, domain, split):
    return pq.read_table(part_path(root, domain, split)).to_pylist()


def relabel(source, target, domain, split, classes):
    """Write the images of some classes under the names of others, in that order."""
    names = list(classes)
    images = [
        LabelledImage(row["image"]["bytes"], row["image"]["path"], names.index(name))
        for row in rows_of(source, domain, split)
        for name, of in classes.items()
        if CLASSES[row["label"]] == of
    ]
    write_images(part_path(target, domain, split), images, names)


@pytest.fixture(scope="module")
def root(whole_root, tmp_path_factory):
    """Splits val and test: real and painting whole, sketch masked, clipart mapped; no train."""
    root = tmp_path_factory.mktemp("shifted")
    for split in ("val", "test"):
        for domain in ("real", "painting"):
            shutil.copytree(whole_root / domain / split, root / domain / split)
        relabel(whole_root, root, "sketch", split, {name: name for name in MASKED})
        first = {name: of[0] for name, of in MAPPED.items()}
        relabel(whole_root, root, "clipart", split, first)
    return root


@pytest.fixture(scope="module")
def config(root):
    suite = {
        "name": "shifted",
        "id_domain": "real",
        "ood_domains": ["painting", "sketch", "clipart"],
        "domains": {"sketch": {"num_classes": 3}, "clipart": {"class_map": MAPPED}},
        "published": {"tiny-clip/None": {"real": 90.0, "sketch": 1.0}},
    }
    return TrialConfig.model_validate({"data": {"root": str(root), "suite": suite}})


def test_every_domain_is_scored_in_its_own_classes(config, root):
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip.FOLDER}")
    clip.eval()
    by_hand = {}
    with torch.no_grad():
        head = open_clip.build_zero_shot_classifier(
            clip, load_tokenizer(ModelConfig()), CLASSES, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        for domain in ("real", "painting", "sketch", "clipart"):
            rows = rows_of(root, domain, "test")
            images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
            views = [preprocess(image) for image in images]
            features = clip.encode_image(torch.stack(views), normalize=True)
            logits = clip.logit_scale.exp() * features @ head
            by_hand[domain] = logits.numpy(), np.array([row["label"] for row in rows])
    began = []
    rows = {row.domain: row for row in measure(config, "test", began=began.append)}
    assert list(rows) == began == ["real", "painting", "sketch", "clipart"]
    assert {d: (r.images, r.classes) for d, r in rows.items()} == {
        "real": (16, 8), "painting": (16, 8), "sketch": (6, 3), "clipart": (4, 2),
    }  # fmt: skip
    of = {name: CLASSES.index(name) for name in CLASSES}
    project = {
        "real": lambda x: x,
        "painting": lambda x: x,
        "sketch": lambda x: x[:, [of[name] for name in MASKED]],
        "clipart": lambda x: np.stack(
            [x[:, [of[n] for n in group]].max(axis=1) for group in MAPPED.values()], axis=1
        ),
    }
    for domain, (logits, labels) in by_hand.items():
        own = project[domain](logits)
        log_p = own - np.log(np.exp(own).sum(axis=1, keepdims=True))
        assert rows[domain].acc == pytest.approx(100 * (own.argmax(axis=1) == labels).mean())
        nll = -log_p[np.arange(len(labels)), labels].mean()
        assert rows[domain].nll == pytest.approx(nll, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("acc", "expected", "agrees"),
    [
        (82.2, 82.46, True),  # 0.33 + 0.05 are allowed
        (82.0, 82.46, False),
        (82.9, 82.46, False),  # better than published is off as well
        (99.96, 100.0, True),  # by rounding alone
        (50.0, None, None),
    ],
)
def test_an_accuracy_agrees_within_sampling_and_rounding(acc, expected, agrees):
    row = Row("real", 52_041, 345, acc, 0.7, 1.0, expected)
    assert row.agrees is agrees
    assert (causes([row]) is not None) == (agrees is False)


def test_the_ood_mean_is_compared_over_all_domains_or_none():
    def last_row(*expected):
        names, accs = ("photographs_at_night", "imagenet-v2", "sketch"), (90.0, 40.0, 50.0)
        rows = [
            Row(name, 50_000, 1000, acc, 11.234, 12.34, known)
            for name, acc, known in zip(names, accs, expected, strict=True)
        ]
        text = text_of(zero_shot_table(rows, title="t", id_domain=names[0]), 80)
        assert "…" not in text  # no cell is cut
        return text.splitlines()[-1].split()

    assert last_row(90.0, 41.0, 47.0) == ["mean", "OOD", "45.00", "44.00", "+1.00"]
    assert last_row(90.0, 41.0, None) == ["mean", "OOD", "45.00"]
    assert last_row(None, None, None) == ["mean", "OOD", "45.00"]


def test_figures_are_those_of_the_suite_for_the_model_and_its_domains(config):
    assert published(config) == {"real": 90.0, "sketch": 1.0}
    for change in ({"model.name": "ViT-B-32"}, {"data.id_domain": "x", "data.ood_domains": []}):
        with pytest.raises(ConfigError, match="suite 'shifted' has no published accuracies of"):
            published(with_overrides(config, change, "test"))


def test_the_command_marks_differences_and_exits_with_1(config, tmp_path):
    file = tmp_path / "mine.yaml"
    values = {"trial": config.model_dump(mode="json", include={"data": {"root", "suite"}})}
    file.write_text(yaml.safe_dump(values))
    runner = CliRunner(env={"COLUMNS": "80"})
    plain = runner.invoke(app, ["zero-shot", str(file)])
    assert plain.exit_code == 0, plain.output
    assert "val splits" in plain.stdout
    assert "expected" not in plain.stdout
    published = runner.invoke(app, ["zero-shot", str(file), "--expect", "published"])
    assert published.exit_code == 1
    assert "test splits" in published.stdout
    off = [line.split()[0] for line in published.stdout.splitlines() if line.endswith(" off")]
    assert off == ["sketch"]
    assert "class names or templates" in published.stderr


def test_an_accuracy_as_by_guessing_is_named(config, tmp_path):
    values = {"trial": config.model_dump(mode="json", include={"data": {"root", "suite"}})}
    values["trial"]["model"] = {"name": random_model(tmp_path, "clip").name}
    (tmp_path / "random.yaml").write_text(yaml.safe_dump(values))
    said = CliRunner().invoke(app, ["zero-shot", str(tmp_path / "random.yaml")]).stdout
    assert "\n! real: zero-shot " in said
    assert "as by guessing among 8 classes" in said
    for acc, expected in ((12.5, 1), (21.7, 1), (21.8, 0)):  # Wilson's interval: ± 9.2
        assert len(guesses([Row("real", 75, 8, acc, 1.0, 1.0)])) == expected
