"""The card of an exported model: what its metadata claim, as the hub's own client reads it."""

import json

import pytest
from huggingface_hub import ModelCard

from trainers.config import TrialConfig, with_overrides
from tuning.weights.card import card_data
from tuning.weights.export import export_weights

ABOUT = {"test": {}}


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
    test = {"this model": {"metrics": {"id_test/acc": 80.5, "ood_test/sketch/acc": 30.0}}}
    test["zero-shot"] = {"metrics": {"id_test/acc": 1.0}}
    data = card_data("title", trial, {"test": test})
    assert data.datasets == ["flwrlabs/pacs"]
    photo, sketch = data.eval_results
    assert (photo.metric_value, photo.dataset_split) == (0.805, "test")
    assert (photo.dataset_type, photo.dataset_revision) == ("flwrlabs/pacs", "0123abc")
    assert (sketch.dataset_type, sketch.metric_name) == ("imagefolder", "Accuracy")
