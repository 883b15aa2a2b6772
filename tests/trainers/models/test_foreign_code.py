"""Attacks by model folders that bring Python code, with the real `transformers`.

It is installed into a folder of its own: in the environment of all tests, every process would
import it with open_clip, which takes seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.tiny_models import KINDS

pytestmark = pytest.mark.nightly

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
LOAD = """
import logging, sys
from trainers.errors import ConfigError
from trainers.models.config import ModelConfig
from trainers.models.loading import check_model, create_clip
from trainers.models.tokenizers import load_tokenizer
logging.basicConfig()
model = ModelConfig.model_validate_json(sys.argv[1])
for step in (check_model, load_tokenizer, create_clip):
    try:
        step(model)
    except ConfigError as error:
        print("refused:", error)
"""


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    options = ["--quiet", "--no-deps", "--target", str(folder)]
    packages = ["transformers>=5", "tokenizers>=0.21"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True)
    return folder


@pytest.fixture
def evil(tmp_path):
    """A folder whose every auto class is code that writes a file."""
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
    return folder


def python(transformers, cache, code, argument):
    """Run the code in a process that has transformers, and answer `y` to every question."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(transformers)]),
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", code, argument]
    answers = "y\n" * 100
    return subprocess.run(
        command, input=answers, env=environment, capture_output=True, text=True, check=False
    )


def loaded(transformers, cache, model):
    """What a process prints that loads the model."""
    done = python(transformers, cache, LOAD, json.dumps(model))
    return done.stdout + done.stderr


def folder_model(folder, **text):
    config = KINDS["clip"] | {"text_cfg": KINDS["clip"]["text_cfg"] | text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    return {"name": f"local-dir:{folder}"}


@pytest.mark.parametrize("keywords", [{}, {"trust_remote_code": True}])
def test_a_tokenizer_of_a_folder_runs_no_code(keywords, transformers, evil, tmp_path):
    model = folder_model(evil, hf_tokenizer_name="evil", tokenizer_kwargs=keywords)
    printed = loaded(transformers, tmp_path, model)
    assert not (tmp_path / "marker").exists(), printed
    assert "trust_remote_code" in printed


def test_a_tokenizer_by_name_runs_no_code(transformers, evil, tmp_path):
    text = KINDS["clip"]["text_cfg"] | {"hf_tokenizer_name": str(evil)}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(KINDS["clip"] | {"text_cfg": text}))
    printed = loaded(transformers, tmp_path, {"name": str(path), "pretrained": "random"})
    assert not (tmp_path / "marker").exists(), printed
    assert "its tokenizer is Python code, which is not run" in printed


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("evil", "is Python code, which is not run"),
        ("encoder-decoder", "is not one of"),  # transformers has no model for its AutoModel
    ],
)
def test_a_text_tower_runs_no_code(kind, problem, transformers, evil, tmp_path):
    config = json.loads((evil / "config.json").read_text()) | {"model_type": kind}
    (evil / "config.json").write_text(json.dumps(config))
    text = {"context_length": 24, "hf_model_name": str(evil), "hf_pooler_type": "mean_pooler"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(KINDS["clip"] | {"text_cfg": text}))
    model = {"name": str(path), "pretrained": "random", "trust_remote_code": True}
    printed = loaded(transformers, tmp_path, model)
    assert not (tmp_path / "marker").exists(), printed
    assert problem in printed


def test_a_user_can_allow_the_code_of_a_tokenizer(transformers, evil, tmp_path):
    model = folder_model(evil, hf_tokenizer_name="evil") | {"trust_remote_code": True}
    printed = loaded(transformers, tmp_path, model)
    assert (tmp_path / "marker").exists(), printed
    assert "model.trust_remote_code = true: Python code of the tokenizer" in printed


TOKENS = """
import sys
from pathlib import Path
from open_clip.tokenizer import HFTokenizer
from tests.trainers.models.test_tokenizers import TEXTS, own, small_json
from trainers.models.tokenizers import load_tokenizer
folder = Path(sys.argv[1])
path = small_json(folder / "tokenizer.json")
(folder / "tokenizer_config.json").write_text(
    '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}'
)
expected = HFTokenizer(str(folder), context_length=24)(TEXTS)
found = load_tokenizer(own(folder, path, vocab_size=12, pool_type="eos", eos_id=2))(TEXTS)
print(found.tolist() == expected.tolist())
"""


def test_a_tokenizer_file_gives_the_tokens_of_transformers(transformers, tmp_path):
    done = python(transformers, tmp_path, TOKENS, str(tmp_path))
    assert done.stdout == "True\n", done.stderr
