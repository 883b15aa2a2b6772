"""Mistakes in naming a model: each is one line, found without loading weights if possible."""

import json
import os
import pickle

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.trainers.tiny_models import KINDS, random_model, write_config
from trainers.errors import ConfigError
from trainers.models.config import ModelConfig
from trainers.models.loading import check_model, load_clip


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    """An address where nothing listens, and an empty cache: tests do not use the network."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def refused(name, pretrained=None, *, load=False):
    model = ModelConfig(name=str(name), pretrained=None if pretrained is None else str(pretrained))
    if load:
        check_model(model)
    with pytest.raises(ConfigError) as error:
        load_clip(model) if load else check_model(model)
    message = str(error.value)
    assert "\n" not in message
    assert "model." in message
    return message


@pytest.mark.parametrize(
    ("name", "pretrained", "part"),
    [
        ("ViT-B-31", "openai", "did you mean 'ViT-B-32'"),
        ("tiny_clip", None, "did you mean 'tiny-clip'"),
        ("ViT-L-14-336-quickgelu", "openay", "did you mean 'openai'"),
        ("ViT-L-14-336-quickgelu", "openay", "a tag (openai), a checkpoint's path, or 'random'"),
        ("ViT-B-16", "absent.pt", "no such file"),
        ("ViT-B-16", "weights.pt/x.npz", "weights are read from .safetensors"),
        ("tiny-clip", "random", "brings its own weights"),
        ("hf-hub:org/model", None, "hf-hub:org/model"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K is not on this"),
    ],
)
def test_a_name_or_tag_that_does_not_exist_is_corrected(name, pretrained, part):
    assert part in refused(name, pretrained)


def test_random_weights_are_used_only_on_request():
    message = refused("ViT-B-16")
    assert "no weights for 'ViT-B-16'" in message
    assert all(tag in message for tag in open_clip.list_pretrained_tags_by_model("ViT-B-16"))
    check_model(ModelConfig(name="ViT-B-16", pretrained="random"))


def test_quickgelu_weights_are_refused_in_a_gelu_model():
    """For every such tag of open_clip."""
    refusals = 0
    for name, tag in open_clip.list_pretrained():
        needs = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        config = open_clip.get_model_config(name)
        with_clips_tokenizer = "hf_tokenizer_name" not in config["text_cfg"]
        if needs and with_clips_tokenizer and not config.get("quick_gelu", False):
            assert f"write model.name = '{name}-quickgelu'" in refused(name, tag)
            assert f"{name}-quickgelu" in open_clip.list_models()
            refusals += 1
    assert refusals >= 20


def test_a_missing_package_is_named_first(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, tag in (("ViT-B-16-SigLIP", "webli"), ("roberta-ViT-B-32", "laion2b_s12b_b32k")):
        assert "pip install 'lipsum-tune[huggingface]'" in refused(name, tag)


def test_a_tokenizer_that_is_not_available_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "bert-base-uncased is not on this machine" in refused("ViT-L-14-CLIPA", "random")


def test_a_users_configuration_never_replaces_a_built_in_model(tmp_path):
    path = tmp_path / "ViT-B-32.json"
    path.write_text(json.dumps(KINDS["clip"]), encoding="utf-8")
    built_in = open_clip.get_model_config("ViT-B-32")
    clip = load_clip(ModelConfig(name=str(path), pretrained="random"))
    assert clip.visual.conv1.out_channels == 32
    assert open_clip.get_model_config("ViT-B-32") == built_in
    path.write_text(json.dumps(KINDS["clip"] | {"embed_dim": 8}), encoding="utf-8")
    changed = load_clip(ModelConfig(name=str(path), pretrained="random"))
    assert changed.visual.proj.shape == (32, 8)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        ("{", "cannot be read as JSON"),
        pytest.param("[" * 100_000, "cannot be read as JSON", id="deep"),
        ([1], "is no model configuration"),
        ({"embed_dim": 8, "vision_cfg": {}}, "'text_cfg' is missing"),
        (KINDS["clip"] | {"vision_cfg": {"image_sise": 32}}, "'image_sise'"),
        (KINDS["clip"] | {"vision_cfg": {"timm_model_name": "resnut"}}, "resnut"),
        (KINDS["clip"] | {"vision_cfg": {"image_size": [32, 64]}}, "must be square"),
    ],
)
def test_a_file_that_is_no_model_configuration_is_refused(contents, part, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    assert part in refused(path, "random")


def test_a_configuration_of_ones_own_has_no_tags(tmp_path):
    path = write_config(tmp_path, "clip")
    assert "a tag" not in refused(path).partition("write")[2]
    assert "no such file" in refused(tmp_path / "absent.json", "random")


def test_a_folder_without_weights_or_configuration_is_refused(tmp_path):
    name, config = f"local-dir:{tmp_path}", tmp_path / "open_clip_config.json"
    assert "no such file" in refused(name)
    config.write_text("{}")
    assert "has no 'model_cfg'" in refused(name)
    config.write_text(json.dumps({"model_cfg": KINDS["clip"]}))
    assert "no weights" in refused(name)
    assert "brings its own weights" in refused(name, "random")


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(ending, protocol, tmp_path):
    path, trap = tmp_path / f"weights{ending}", tmp_path / "trap"
    contents = {"state_dict": {"a": torch.zeros(1)}, "more": Malicious(trap)}
    if protocol == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps({"more": Malicious(trap)}, protocol=2))
    message = refused(write_config(tmp_path, "clip"), path, load=True)
    assert "save its state_dict alone" in message
    assert not trap.exists()


def test_a_folder_with_code_instead_of_weights_is_not_run(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": KINDS["clip"]}))
    torch.save({"more": Malicious(trap)}, tmp_path / "open_clip_pytorch_model.bin")
    assert "save its state_dict alone" in refused(f"local-dir:{tmp_path}", load=True)
    assert not trap.exists()


def test_whole_modules_and_torchscript_archives_are_refused(tmp_path):
    clip = load_clip(random_model(tmp_path, "clip"))
    name, path = write_config(tmp_path, "clip"), tmp_path / "clip.pt"
    torch.save(clip, path)
    assert "save its state_dict alone" in refused(name, path, load=True)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "save its state_dict alone" in refused(name, path, load=True)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_files_that_are_cut_short_or_hold_no_tensors_are_refused(ending, tmp_path):
    name, cut = write_config(tmp_path, "clip"), tmp_path / f"cut{ending}"
    state = load_clip(random_model(tmp_path, "clip")).state_dict()
    save = torch.save if ending == ".pt" else save_file
    save(state, tmp_path / f"whole{ending}")
    whole = (tmp_path / f"whole{ending}").read_bytes()
    for length in (0, 100, len(whole) // 2):
        cut.write_bytes(whole[:length])
        assert "cannot be loaded into" in refused(name, cut, load=True)
    save({}, cut)
    assert "cannot be loaded into" in refused(name, cut, load=True)
    if ending == ".pt":
        save({"epoch": 3}, cut)
        assert "cannot be loaded into" in refused(name, cut, load=True)
