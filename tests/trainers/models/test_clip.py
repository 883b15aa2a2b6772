"""Models and tokenizers as open_clip loads them, and mistakes in naming them: each is one line."""

import gzip
import json
import os
import pickle
import sys

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainers.tiny_models import KINDS, random_model
from trainers.errors import ConfigError
from trainers.models.clip import (
    MERGES,
    check_model,
    create_clip,
    load_clip,
    load_tokenizer,
    skeleton,
)
from trainers.models.config import ModelConfig
from trainers.models.image import ImageInput, image_input

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    """An address where nothing listens, and an empty cache: tests do not use the network."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path):
    random_model(tmp_path, "clip")
    return tmp_path / "clip"


def refused(name, pretrained=None):
    model = ModelConfig(name=str(name), pretrained=None if pretrained is None else str(pretrained))
    with pytest.raises(ConfigError) as caught:
        check_model(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def folder_model(folder, **changes):
    (folder / CONFIG).write_text(json.dumps({"model_cfg": KINDS["clip"] | changes}))
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("name", "pretrained", "part"),
    [
        ("ViT-B-31", "openai", "did you mean 'ViT-B-32'"),
        ("tiny_clip", None, "did you mean 'tiny-clip'"),
        ("ViT-L-14-336-quickgelu", "openay", "did you mean 'openai'"),
        ("ViT-L-14-336-quickgelu", "openay", "a tag (openai), a checkpoint's path, or 'random'"),
        ("ViT-B-16", "absent.pt", "no weights of 'ViT-B-16'"),
        ("ViT-B-16", None, "no weights of 'ViT-B-16'"),
        ("tiny-clip", "random", "brings its own weights"),
        ("hf-hub:org/model", None, "hf-hub:org/model"),
        ("ViT-B-32", "laion2b_s34b_b79k", "Failed to download weights"),
    ],
)
def test_a_name_or_tag_that_does_not_exist_is_corrected(name, pretrained, part):
    assert part in refused(name, pretrained)


def test_quickgelu_weights_are_refused_in_a_gelu_model():
    """For every such tag of open_clip."""
    refusals = 0
    for name, tag in open_clip.list_pretrained():
        needs = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        if needs and not open_clip.get_model_config(name).get("quick_gelu", False):
            assert f"write model.name = '{name}-quickgelu'" in refused(name, tag)
            assert f"{name}-quickgelu" in open_clip.list_models()
            refusals += 1
    assert refusals >= 20


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    name = random_model(tmp_path, "siglip").name
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'lipsum-tune[huggingface]'" in refused(name)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        pytest.param("[" * 100_000, "no model configuration", id="deep"),
        ('{"model_cfg": {"embed_dim": 8, "vision_cfg": {}}}', "'text_cfg'"),
        (json.dumps({"model_cfg": KINDS["clip"] | {"vision_cfg": {"x": 3}}}), "argument 'x'"),
        (json.dumps({"model_cfg": KINDS["clip"] | {"vision_cfg": 3}}), "no model configuration"),
    ],
)
def test_a_file_that_is_no_model_configuration_is_refused(contents, part, folder):
    (folder / CONFIG).write_text(contents)
    assert part in refused(f"local-dir:{folder}")


def test_a_folder_without_weights_or_configuration_is_refused(tmp_path):
    name = f"local-dir:{tmp_path}"
    assert "No such file" in refused(name)
    folder_model(tmp_path)
    assert "Required pretrained weights" in refused(name)
    assert "brings its own weights" in refused(name, "random")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "weights.pt"])
def test_a_pipe_is_not_waited_for(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "weights.pt":
        assert "not a regular file" in refused("ViT-B-16", folder / name)
    else:
        assert f"{folder / name}': not a regular file" in refused(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [0.2, 0.0, 0.2]),
        ("std", [1e-300] * 3),
        ("std", ["0.2"] * 3),
        ("mean", [float("nan")] * 3),
        ("mean", [0.5] * 2),
        ("mean", 0.5),
    ],
)
def test_images_that_cannot_be_normalised_are_refused(key, value, folder):
    config = {"model_cfg": KINDS["clip"], "preprocess_cfg": {key: value}}
    (folder / CONFIG).write_text(json.dumps(config))
    assert f"preprocess_cfg.{key}: " in refused(f"local-dir:{folder}")


def test_merges_that_unpack_to_very_much_are_refused(folder):
    (folder / MERGES).write_bytes(gzip.compress(bytes(100 * 2**20)))
    assert "bpe.txt.gz unpacks to more than" in refused(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 100}, "its tokenizer has tokens up to 49405, its text tower 100"),
        ({"pool_type": "eos", "eos_id": 7}, "gives different texts the same features"),
    ],
)
def test_a_text_tower_that_does_not_fit_its_tokenizer_is_refused(changes, message, tmp_path):
    text = KINDS["clip"]["text_cfg"] | changes
    assert message in refused(random_model(tmp_path, "clip", text_cfg=text).name)


@pytest.mark.parametrize(
    "keywords",
    [
        {"trust_remote_code": True},
        {"bpe_path": "/etc/passwd"},
        {"additional_special_tokens": ["(a+)+$"]},
        {"reduction_mask": "syntax"},
    ],
)
def test_a_folder_cannot_name_code_or_files(keywords, folder):
    text = KINDS["clip"]["text_cfg"] | {"tokenizer_kwargs": keywords}
    message = refused(folder_model(folder, text_cfg=text))
    assert f"text_cfg.tokenizer_kwargs.{next(iter(keywords))}" in message


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("ending", [".pth", ".bin"])
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(ending, protocol, folder, tmp_path):
    (folder / WEIGHTS).unlink()
    path, trap = folder / f"open_clip_pytorch_model{ending}", tmp_path / "trap"
    contents = {"state_dict": {"a": torch.zeros(1)}, "more": Malicious(trap)}
    if protocol == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps({"more": Malicious(trap)}, protocol=2))
    assert "damaged or holds code" in refused(f"local-dir:{folder}")
    (tmp_path / "vit-of-code.json").write_text(json.dumps(KINDS["clip"]))
    open_clip.add_model_config(tmp_path / "vit-of-code.json")
    path.rename(tmp_path / "w.npz")
    assert "allow_pickle" not in refused("vit-of-code", tmp_path / "w.npz")
    assert not trap.exists()


def test_weights_that_do_not_fit_are_refused(folder):
    state = load_file(folder / WEIGHTS)
    fitting = {key: value for key, value in state.items() if "resblocks.1" not in key}
    save_file(fitting | {"surplus": torch.zeros(2)}, folder / WEIGHTS)
    missing = 'Missing key(s) in state_dict: "visual.transformer.resblocks.1.ln_1.weight"'
    assert missing in refused(f"local-dir:{folder}")


def same(clip, weights):
    loaded = clip.state_dict()
    return set(loaded) == set(weights) and all(
        torch.equal(loaded[k], v) for k, v in weights.items()
    )


@pytest.mark.parametrize("name", [WEIGHTS, "open_clip_pytorch_model.pth"])
@pytest.mark.parametrize("size", [0, 100, 0.5], ids=["empty", "100 bytes", "half"])
def test_a_truncated_file_of_weights_is_refused(name, size, folder):
    """As a download that was interrupted leaves it."""
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save = save_file if name == WEIGHTS else torch.save
    save(whole, folder / name)
    bytes_left = size if size != 0.5 else (folder / name).stat().st_size // 2
    os.truncate(folder / name, bytes_left)
    assert "it cannot be loaded" in refused(f"local-dir:{folder}")


def test_weights_are_read_from_every_kind_of_file(folder, tmp_path):
    """For a name of open_clip, to which a model of a test is added."""
    weights = load_file(folder / WEIGHTS)
    (tmp_path / "vit-of-a-test.json").write_text(json.dumps(KINDS["clip"]))
    open_clip.add_model_config(tmp_path / "vit-of-a-test.json")
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, tmp_path / "c.pth")
    torch.save(weights, tmp_path / "d.bin", _use_new_zipfile_serialization=False)
    for file in ("a.safetensors", "b.pt", "c.pth", "d.bin"):
        model = ModelConfig(name="vit-of-a-test", pretrained=str(tmp_path / file))
        check_model(model)
        assert same(load_clip(model), weights), file


def test_random_weights_are_reproducible_and_use_no_global_rng():
    model = ModelConfig(name="MobileCLIP2-S0", pretrained="random")
    torch.manual_seed(1)
    first, drawn = create_clip(model), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert same(load_clip(model), first.state_dict())
    pixels = image_input(first)  # as all tags of this model say, and not OpenAI's values
    assert (pixels.size, pixels.mean, pixels.std) == (256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_preprocessing_is_the_models_own(folder):
    def pixels():
        return image_input(load_clip(ModelConfig(name=f"local-dir:{folder}")))

    shape = {"size": 32, "std": open_clip.OPENAI_DATASET_STD}
    assert pixels() == ImageInput(mean=open_clip.OPENAI_DATASET_MEAN, **shape)
    asked = {"mean": (0.1, 0.2, 0.3), "resize_mode": "longest", "interpolation": "bilinear"}
    config = {"model_cfg": KINDS["clip"], "preprocess_cfg": asked}
    (folder / CONFIG).write_text(json.dumps(config))
    assert pixels() == ImageInput(**asked, **shape)


def test_paths_mean_the_same_in_every_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    model = ModelConfig(name="local-dir:clip")
    file = ModelConfig(name="ViT-B-32", pretrained="mine/weights.pt")
    assert (model.name, model.paths) == (f"local-dir:{folder}", [str(folder)])
    assert file.paths == [file.pretrained] == [f"{folder.parent}/mine/weights.pt"]
    assert ModelConfig(name="ViT-B-32", pretrained="openai").paths == []
    assert ModelConfig.model_validate(model.model_dump(mode="json")) == model
    assert [path.name for path in model.files] == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_has_every_parameter_and_no_memory(kind, tiny, tmp_path, caplog):
    model = random_model(tmp_path, kind)
    caplog.clear()
    parameters = dict(skeleton(model).named_parameters())
    assert not caplog.records
    assert all(parameter.is_meta for parameter in parameters.values())
    shapes = {name: p.shape for name, p in tiny(kind).named_parameters()}
    assert {name: p.shape for name, p in parameters.items()} == shapes


EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertConfig, BertModel, PythonBackend as Base
class EvilTokenizer(Base):
    pass
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertModel):
    config_class = EvilConfig
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder whose every auto class is code that writes a file, and a user who allows all."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    classes = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    config = {"model_type": "evil", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"AutoTokenizer": ["evil.EvilTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "EvilTokenizer", "auto_map": tokenizer})
    )
    yield folder
    assert not (tmp_path / "marker").exists()


def test_a_tokenizer_runs_no_code(evil):
    text = KINDS["clip"]["text_cfg"] | {"hf_tokenizer_name": "evil"}
    with pytest.raises(ConfigError, match="is Python code, which is not run"):
        load_tokenizer(ModelConfig(name=folder_model(evil, text_cfg=text)))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("evil", "is Python code, which is not run"),
        # transformers has no model for its AutoModel
        ("encoder-decoder", "is not one of|cannot be instantiated"),
    ],
)
def test_a_text_tower_runs_no_code(kind, problem, evil):
    config = json.loads((evil / "config.json").read_text()) | {"model_type": kind}
    (evil / "config.json").write_text(json.dumps(config))
    text = {"context_length": 24, "hf_model_name": str(evil), "hf_pooler_type": "mean_pooler"}
    for load in (load_clip, skeleton):
        with pytest.raises(ConfigError, match=problem):
            load(ModelConfig(name=folder_model(evil, text_cfg=text)))
