import copy

import pytest
import torch

from tests.trainers.curves import changed, curve, short
from tests.trainers.tiny_models import random_model
from trainers.checks import check_trials
from trainers.errors import ConfigError
from trainers.models.activations import keep_no_activations
from trainers.models.image import pooled_features
from trainers.models.student import TextTower

KINDS = ("clip", "custom-text", "bidirectional", "coca", "timm")
TOKENS = torch.tensor([[49406, 320, 1929, 49407, 0], [49406, 320, 2368, 1929, 49407]])


def image_tower(clip):
    visual = clip.visual
    images = torch.rand(4, 3, *visual.preprocess_cfg["size"])
    return copy.deepcopy(visual), lambda tower: pooled_features(tower, images)


def text_tower(clip):
    return TextTower(clip), lambda tower: tower(TOKENS)


@pytest.mark.parametrize("side", [image_tower, text_tower])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_gradients_are_bit_equal_with_less_memory(tiny, kind, side):
    tower, features = side(tiny(kind))
    plain = _gradients(tower.requires_grad_(), features)
    keep_no_activations(tower)
    checkpointed = _gradients(tower, features)
    assert checkpointed[0] < plain[0]
    assert checkpointed[1].keys() == plain[1].keys()
    assert all(torch.equal(plain[1][name], value) for name, value in checkpointed[1].items())


def _gradients(tower, features):
    """Bytes that the forward pass keeps beside the parameters, and the parameters' gradients."""
    tower.zero_grad(set_to_none=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = features(tower)
    size = sum(kept.values())
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return size, gradients


@pytest.mark.parametrize("method", ["lipsum_ft", "r_adapter", "tpgm"])
def test_a_run_with_it_is_equal_to_one_without_to_the_last_bit(trial, method):
    fields = {"projection_steps": 2} if method == "tpgm" else {}
    config = short(trial, {"name": method, **fields}, eval__line="off")
    assert curve(changed(config, activation_checkpointing=True)) == curve(config)


def test_a_resnet_is_refused_before_a_worker_starts(trial, tmp_path):
    config = trial.model_copy(update={"model": random_model(tmp_path, "resnet")})
    check_trials([config])
    with pytest.raises(ConfigError, match="ModifiedResNet, cannot compute them again") as error:
        check_trials([config.model_copy(update={"activation_checkpointing": True})])
    assert error.value.key == "activation_checkpointing"
