"""The card of an exported model: what its metadata claim, as the hub's own client reads it."""

import pytest
from huggingface_hub import ModelCard

from trainers.models.config import ModelConfig
from tuning.weights.card import card_data, summary
from tuning.weights.export import export_weights


def test_the_hub_reads_the_metadata(real, tmp_path):
    model = export_weights(real[0], tmp_path / "model", trial="trial-000")
    data = ModelCard.load(model / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("open_clip", "image-classification")


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
    assert card_data(ModelConfig(name=name, pretrained=pretrained)).base_model == base


@pytest.mark.parametrize("margins", [{}, {"id_test/acc": 1.5}])
def test_only_a_card_with_intervals_explains_them(margins):
    model = {"metrics": {"id_test/acc": 70.0}, "margins": margins}
    about = {"model": {"name": "tiny-clip"}, "alpha": None, "classes": ["ant"], "id_domain": "real"}
    text = summary({**about, "ood_domains": [], "test": {"this model": model}})
    assert ("± 1.5" in text) == ("± is for new images." in text) == bool(margins)
