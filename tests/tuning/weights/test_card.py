"""The card of an exported model: what its metadata claim, as the hub's own client reads it."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from tests.tuning.confirmation.written import write_results
from trainers.config import TrialConfig, with_overrides
from tuning.weights.card import card_data
from tuning.weights.export import export_weights

ABOUT = {"test": {}}


@pytest.fixture(scope="module")
def confirmed(real, tmp_path_factory):
    """The run, of which a trial was confirmed with two seeds."""
    run = shutil.copytree(real[0], tmp_path_factory.mktemp("confirmed") / "run")
    of_seed = [
        {"id_test/acc": acc, "ood_test/sketch/acc": 40.0, "ood_test/clipart/acc": 50.0}
        for acc in (80.0, 81.0)
    ]
    write_results(run, {("trial-000", seed): of_seed[seed] for seed in (0, 1)})
    return run


def test_the_metadata_have_test_accuracies(confirmed, images_root, tmp_path):
    text = (
        export_weights(confirmed, tmp_path / "model", trial="trial-000") / "README.md"
    ).read_text()
    data = ModelCard(text).data  # raises for metadata that the hub's client refuses
    assert (data.license, data.library_name, data.base_model) == (None, "open_clip", None)
    found = {result.dataset_name: result for result in data.eval_results}
    root = images_root.name
    accuracies = {f"{root}: real": 0.805, f"{root}: sketch": 0.4, f"{root}: clipart": 0.5}
    assert {name: result.metric_value for name, result in found.items()} == accuracies
    assert {result.dataset_split for result in found.values()} == {"test"}
    assert "2 trainings of trial-000 with fresh seeds" in found[f"{root}: real"].metric_name


def test_validation_accuracies_are_not_in_the_metadata(real, tmp_path):
    model = export_weights(real[0], tmp_path / "model", trial="trial-000")
    data = ModelCard.load(model / "README.md").data
    assert (data.eval_results, data.pipeline_tag) == (None, "image-classification")


@pytest.mark.parametrize(
    ("name", "pretrained", "base"),
    [
        ("ViT-B-32-quickgelu", "openai", "timm/vit_base_patch32_clip_224.openai"),
        ("hf-hub:org/clip", None, "org/clip"),
        ("ViT-B-32", "/models/mine.pt", None),
        ("tiny-clip", None, None),
    ],
)
def test_the_base_model_is_named_if_it_is_on_the_hub(name, pretrained, base):
    changes = {"model.name": name, "model.pretrained": pretrained}
    trial = with_overrides(TrialConfig(), changes, "test")
    assert card_data("title", trial, ABOUT).base_model == base


def test_data_sets_of_the_hub_are_named(tmp_path):
    for domain, source in {
        "photo": {"layout": "hub", "path": "flwrlabs/pacs", "revision": "0123abc"},
        "sketch": {"layout": "folders", "path": "/data/sketch"},
    }.items():
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "preparation.json").write_text(json.dumps({"source": source}))
    changes = {
        "data.root": str(tmp_path),
        "data.id_domain": "photo",
        "data.ood_domains": ["sketch"],
    }
    trial = with_overrides(TrialConfig(), changes, "test")
    test = {"zero-shot": {"metrics": {"id_test/acc": 90.0, "ood_test/sketch/acc": 30.0}}}
    data = card_data("title", trial, {"test": test})
    assert data.datasets == ["flwrlabs/pacs"]
    photo, sketch = data.eval_results
    assert (photo.dataset_type, photo.dataset_revision) == ("flwrlabs/pacs", "0123abc")
    assert (sketch.dataset_type, sketch.metric_name) == ("imagefolder", "Accuracy")
