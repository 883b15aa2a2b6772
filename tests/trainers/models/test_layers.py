"""The layers of encoders, against open_clip's own way of locking the first of them."""

import pytest

from trainers.models.student import TextTower, layers_of


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_the_first_layers_are_those_that_open_clip_locks(frozen, tiny):
    visual = tiny("clip").visual
    visual.lock(unlocked_groups=2 + 2 - frozen)  # groups: embedding, 2 blocks, projection
    trained = {name for name, p in visual.named_parameters() if p.requires_grad}
    visual.requires_grad_(False)
    assert trained == {name for name, layer in layers_of(visual).items() if layer >= frozen}


@pytest.mark.parametrize(
    ("kind", "embedding", "block", "top"),
    [
        ("coca", "positional_embedding", "transformer.resblocks.1.attn.in_proj_bias",
         "attn_pool.query"),
        ("resnet", "bn3.weight", "layer2.0.conv1.weight", "attnpool.positional_embedding"),
        ("timm", "trunk.conv_stem.weight", "trunk.blocks.1.0.conv_exp.weight", "head.proj.weight"),
    ],
)  # fmt: skip
def test_every_image_encoder_has_embedding_blocks_and_a_top(kind, embedding, block, top, tiny):
    layers = layers_of(tiny(kind).visual)
    assert (layers[embedding], layers[block]) == (0, 2)
    assert layers[top] == max(layers.values()) > 2


@pytest.mark.parametrize("kind", ["clip", "custom-text", "roberta"])
def test_text_towers_have_layers_too(kind, tiny):
    layers = layers_of(TextTower(tiny(kind)))
    by_layer = {layer: [n for n, own in layers.items() if own == layer] for layer in range(4)}
    assert all("embedding" in name for name in by_layer[0])
    assert all(".0." in name for name in by_layer[1])
    assert all(".1." in name for name in by_layer[2])
    assert "clip.logit_scale" in by_layer[3]
