"""Mistakes in naming a model: each is one line, told without loading weights."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.trainers.tiny_models import KINDS, random_model, write_config
from trainers.errors import ConfigError
from trainers.models import ModelConfig, check_model, load_clip


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address where nothing listens, and an empty cache: tests do not ask the network."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def refused(name: str, pretrained: str | Path | None = None) -> str:
    model = ModelConfig(name=name, pretrained=None if pretrained is None else str(pretrained))
    with pytest.raises(ConfigError) as caught:
        check_model(model)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    assert "model.name = 'ViT-B-31'" in refused("ViT-B-31", "openai")
    assert "did you mean 'ViT-B-32'" in refused("ViT-B-31", "openai")
    assert "did you mean 'tiny-clip'" in refused("tiny_clip")


def test_an_unknown_tag_is_refused_with_those_that_exist() -> None:
    message = refused("ViT-L-14-336-quickgelu", "openay")
    assert "did you mean 'openai'" in message
    assert "write a tag (openai), a checkpoint's path, or 'random'" in message


def test_no_weights_are_random_weights_only_where_that_is_said() -> None:
    message = refused("ViT-B-16")
    assert "model.pretrained = null: no weights for 'ViT-B-16'" in message
    for tag in open_clip.list_pretrained_tags_by_model("ViT-B-16"):
        assert tag in message
    check_model(ModelConfig(name="ViT-B-16", pretrained="random"))


@pytest.mark.parametrize("name", ["tiny-clip", "local-dir:/models/mine"])
def test_a_model_that_brings_its_weights_takes_no_others(name: str, tmp_path: Path) -> None:
    if name != "tiny-clip":
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": KINDS["clip"]}))
        name = f"local-dir:{tmp_path}"
    assert "brings its own weights" in refused(name, "random")


def test_quickgelu_weights_are_refused_in_a_gelu_model_for_every_tag_of_open_clips() -> None:
    told, by_name = 0, "write model.name = '{}-quickgelu'"
    for name, tag in open_clip.list_pretrained():
        needs = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        config = open_clip.get_model_config(name)
        with_clips_tokenizer = "hf_tokenizer_name" not in config["text_cfg"]
        if needs and with_clips_tokenizer and not config.get("quick_gelu", False):
            assert by_name.format(name) in refused(name, tag)
            assert f"{name}-quickgelu" in open_clip.list_models()
            told += 1
    assert told >= 20
    assert "neither on this machine" in refused(
        "ViT-B-16-quickgelu", "openai"
    )  # only the hub lacks


def test_a_hub_out_of_reach_is_told_in_one_line() -> None:
    assert "hf-hub:org/model" in refused("hf-hub:org/model")
    message = refused("ViT-B-32", "laion2b_s34b_b79k")
    assert "laion/CLIP-ViT-B-32-laion2B-s34B-b79K is neither on this machine nor to be" in message


def test_a_missing_package_is_named_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'lipsum-tune[huggingface]'" in refused("ViT-B-16-SigLIP", "webli")
    assert "pip install 'lipsum-tune[huggingface]'" in refused(
        "roberta-ViT-B-32", "laion2b_s12b_b32k"
    )


def test_a_tokenizer_that_cannot_be_had_is_told_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    message = refused("ViT-L-14-CLIPA", "random")
    assert "bert-base-uncased is neither on this machine nor to be had" in message


def test_a_configuration_of_ones_own_never_replaces_a_built_in_model(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.json"
    path.write_text(json.dumps(KINDS["clip"]), encoding="utf-8")
    built_in = open_clip.get_model_config("ViT-B-32")
    clip = load_clip(ModelConfig(name=str(path), pretrained="random"))
    assert clip.visual.conv1.out_channels == 32  # type: ignore[union-attr]
    assert open_clip.get_model_config("ViT-B-32") == built_in
    path.write_text(json.dumps(KINDS["clip"] | {"embed_dim": 8}), encoding="utf-8")
    changed = load_clip(ModelConfig(name=str(path), pretrained="random"))
    assert changed.visual.proj.shape == (32, 8)  # type: ignore[union-attr]


def test_what_is_no_model_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    assert "no such file" in refused(str(path), "random")
    path.write_text("{")
    assert "cannot be read as JSON" in refused(str(path), "random")
    path.write_text("[1]")
    assert "is no model configuration" in refused(str(path), "random")
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": {}}))
    assert "'text_cfg' is missing" in refused(str(path), "random")
    config: dict[str, Any] = KINDS["clip"] | {"vision_cfg": {"image_sise": 32}}
    path.write_text(json.dumps(config))
    assert "vision_cfg.image_sise = 32" in refused(str(path), "random")
    assert "did you mean 'image_size'" in refused(str(path), "random")
    path.write_text(json.dumps(KINDS["clip"] | {"vision_cfg": {"timm_model_name": "resnut"}}))
    assert "timm_model_name = 'resnut' is unknown to timm" in refused(str(path), "random")
    path.write_text(json.dumps(KINDS["clip"] | {"vision_cfg": {"image_size": [32, 64]}}))
    assert "must be square" in refused(str(path), "random")
    path.write_text(json.dumps(KINDS["clip"]))
    assert "no weights for" in refused(str(path))
    assert "a tag" not in refused(str(path), "openai").partition(";")[2]


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    ending: str, protocol: str, tmp_path: Path
) -> None:
    path, trap = tmp_path / f"weights{ending}", tmp_path / "trap"
    contents = {"state_dict": {"a": torch.zeros(1)}, "more": Malicious(trap)}
    if protocol == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps({"more": Malicious(trap)}, protocol=2))
    message = refused(str(write_config(tmp_path, "clip")), path)
    assert "is not run; save its state_dict alone" in message
    assert "mkdir" in message
    assert not trap.exists()


def test_a_whole_module_and_a_torchscript_archive_must_be_saved_again(tmp_path: Path) -> None:
    clip = load_clip(random_model(tmp_path, "clip"))
    name, path = str(write_config(tmp_path, "clip")), tmp_path / "clip.pt"
    torch.save(clip, path)
    assert "save its state_dict alone, as .safetensors" in refused(name, path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert "TorchScript archive" in refused(name, path)


def test_files_that_are_not_whole_or_hold_no_tensors_are_refused(tmp_path: Path) -> None:
    name = str(write_config(tmp_path, "clip"))
    state = load_clip(random_model(tmp_path, "clip")).state_dict()
    assert "no such file" in refused(name, tmp_path / "absent.pt")
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for ending in (".pt", ".safetensors"):
        whole = (tmp_path / f"a{ending}").read_bytes()
        for cut in (0, 100, len(whole) // 2):
            (tmp_path / f"cut{ending}").write_bytes(whole[:cut])
            assert "not a whole" in refused(name, tmp_path / f"cut{ending}")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    assert "holds no state_dict" in refused(name, tmp_path / "epoch.pt")
    torch.save({}, tmp_path / "empty.pt")
    assert "holds no tensors" in refused(name, tmp_path / "empty.pt")
    (tmp_path / "weights.npz").write_bytes(b"")
    assert "weights are read from .safetensors" in refused(name, tmp_path / "weights.npz")


def test_a_folder_without_weights_or_configuration_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(f"local-dir:{tmp_path}")
    config = tmp_path / "open_clip_config.json"
    config.write_text("{}")
    assert "has no 'model_cfg'" in refused(f"local-dir:{tmp_path}")
    config.write_text(json.dumps({"model_cfg": KINDS["clip"]}))
    assert "no weights there" in refused(f"local-dir:{tmp_path}")
