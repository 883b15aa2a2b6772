"""The card of an exported model: what its metadata claim, as the hub's own client reads it."""

import pytest
from huggingface_hub import ModelCard

from trainers.models.config import ModelConfig
from tuning.weights.card import card_data
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
