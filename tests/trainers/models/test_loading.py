"""Weights from every kind of file, and what the image side says of itself."""

import json
import shutil

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file

from tests.trainers.tiny_models import KINDS, random_model, write_config
from trainers.errors import ConfigError
from trainers.models import tiny_clip
from trainers.models.architecture import architecture
from trainers.models.config import ModelConfig
from trainers.models.image import image_input
from trainers.models.loading import check_model, load_clip, skeleton


@pytest.fixture(scope="module")
def weights():
    """Of the kind `clip`, unlike those that `random` gives."""
    torch.manual_seed(5)
    return open_clip.CLIP(**KINDS["clip"]).state_dict()


def same(clip, weights):
    loaded = clip.state_dict()
    return set(loaded) == set(weights) and all(
        torch.equal(loaded[k], v) for k, v in weights.items()
    )


def test_weights_are_read_from_every_kind_of_file(weights, tmp_path):
    name = str(write_config(tmp_path, "clip"))
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, tmp_path / "c.pth")
    torch.save(weights, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    for file in ("a.safetensors", "b.pt", "c.pth", "d.bin"):
        model = ModelConfig(name=name, pretrained=str(tmp_path / file))
        check_model(model)
        assert same(load_clip(model), weights), file


def test_weights_are_read_from_a_folder_of_open_clips_layout(weights, tmp_path):
    preprocess = {"mean": [0.1, 0.2, 0.3], "resize_mode": "longest", "interpolation": "bilinear"}
    config = {"model_cfg": KINDS["clip"], "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    clip = load_clip(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert same(clip, weights)
    asked = image_input(clip)
    assert (asked.size, asked.mean) == (32, (0.1, 0.2, 0.3))
    assert (asked.resize_mode, asked.interpolation) == ("longest", "bilinear")


def test_weights_that_do_not_fit_are_told_by_file_and_first_keys(weights, tmp_path):
    name, path = str(write_config(tmp_path, "clip")), tmp_path / "a.safetensors"
    wrong = {key: value for key, value in weights.items() if "resblocks.1" not in key}
    wrong["ln_final.weight"] = torch.zeros(7)
    save_file(wrong | {"surplus": torch.zeros(2)}, path)
    with pytest.raises(ConfigError) as caught:
        load_clip(ModelConfig(name=name, pretrained=str(path)))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert f"model.pretrained = '{path}'" in message
    assert "missing visual.transformer.resblocks.1.ln_1.weight" in message
    assert "unexpected surplus" in message
    assert "ln_final.weight is [7] instead of [32]" in message


def test_a_model_that_open_clip_cannot_build_is_told_in_one_line(tmp_path):
    text = KINDS["clip"]["text_cfg"] | {"width": 33}
    with pytest.raises(ConfigError, match="it cannot be built: embed_dim must be divisible"):
        load_clip(random_model(tmp_path, "clip", text_cfg=text))


def test_random_weights_are_reproducible_and_use_no_global_rng(tmp_path):
    model = random_model(tmp_path, "timm")
    torch.manual_seed(1)
    first, drawn = load_clip(model), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    second = load_clip(model)
    assert same(second, first.state_dict())
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_paths_mean_the_same_in_every_folder(weights, tmp_path, monkeypatch):
    write_config(tmp_path, "clip")
    save_file(weights, tmp_path / "a.safetensors")
    shutil.copytree(tiny_clip.FOLDER, tmp_path / "folder", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(name="clip.json", pretrained="a.safetensors")
    folder = ModelConfig(name="local-dir:folder")
    monkeypatch.chdir("/")
    assert same(load_clip(model), weights)
    assert folder.name == f"local-dir:{tmp_path}/folder"
    assert ModelConfig.model_validate(model.model_dump(mode="json")) == model


def test_preprocessing_is_the_models_own(tmp_path):
    default = image_input(load_clip(random_model(tmp_path, "clip")))
    expected = PreprocessCfg()
    assert (default.size, default.mean, default.std) == (32, expected.mean, expected.std)
    assert (default.resize_mode, default.interpolation) == ("shortest", "bicubic")
    config = {"model_cfg": KINDS["clip"], "preprocess_cfg": {"resize_mode": "squash"}}
    (tmp_path / "squash.json").write_text(json.dumps(config))
    squash = ModelConfig(name=str(tmp_path / "squash.json"), pretrained="random")
    assert image_input(load_clip(squash)).resize_mode == "squash"


def test_weights_from_a_file_are_preprocessed_as_the_tags(tmp_path):
    model = ModelConfig(name="ViT-B-16-SigLIP", pretrained=str(tmp_path / "mine.safetensors"))
    preprocessing = architecture(model).preprocessing
    assert preprocessing["resize_mode"] == "squash"
    assert preprocessing["mean"] == (0.5, 0.5, 0.5)
    two_ways = architecture(ModelConfig(name="ViT-L-14", pretrained="x.pt")).preprocessing
    configs = [
        open_clip.get_pretrained_cfg("ViT-L-14", tag)
        for tag in open_clip.list_pretrained_tags_by_model("ViT-L-14")
    ]
    for key in ("mean", "std", "interpolation", "resize_mode"):
        assert (key in two_ways) == (len({config[key] for config in configs}) == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_has_every_parameter_and_no_memory(kind, tiny, tmp_path):
    parameters = dict(skeleton(random_model(tmp_path, kind)).named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    shapes = {name: p.shape for name, p in tiny(kind).named_parameters()}
    assert {name: p.shape for name, p in parameters.items()} == shapes


def test_a_skeleton_says_nothing_of_weights_that_are_not_there(tmp_path, caplog):
    skeleton(random_model(tmp_path, "clip"))
    assert not caplog.records
    load_clip(random_model(tmp_path, "clip"))  # which has random ones
    assert "No pretrained weights" in caplog.text
