"""Models of the Hugging Face hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save

from tests.trainers.tiny_models import KINDS
from trainers.errors import ConfigError
from trainers.models.architecture import _from_hub, architecture
from trainers.models.config import ModelConfig
from trainers.models.loading import check_model, load_clip

REPOSITORY = "org/tiny"


class Hub(BaseHTTPRequestHandler):
    """The few answers that a download needs."""

    files: dict[str, bytes]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def log_message(self, *_):
        """Nothing."""

    def _answer(self, *, body):
        contents = self.files.get(self.path.removeprefix(f"/{REPOSITORY}/resolve/main/"))
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            contents = json.dumps(
                {"id": REPOSITORY, "siblings": [{"rfilename": name} for name in self.files]}
            ).encode()
        self.send_response(404 if contents is None else 200)
        if contents is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        contents = contents or b""
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(contents).hexdigest()}"')
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if body:
            self.wfile.write(contents)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    torch.manual_seed(7)
    weights = open_clip.CLIP(**KINDS["clip"]).state_dict()
    config = {"model_cfg": KINDS["clip"], "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    Hub.files = {
        "open_clip_config.json": json.dumps(config).encode(),
        "open_clip_model.safetensors": save(weights),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    _from_hub.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    _from_hub.cache_clear()


def test_a_model_of_the_hub_is_checked_fetched_and_loaded(hub):
    model = ModelConfig(name=f"hf-hub:{REPOSITORY}")
    check_model(model)
    assert architecture(model).config == KINDS["clip"]
    clip = load_clip(model)
    Hub.files = {}  # from here on, all comes from this machine
    check_model(model)
    torch.manual_seed(7)
    expected = open_clip.CLIP(**KINDS["clip"]).state_dict()
    assert all(torch.equal(clip.state_dict()[key], value) for key, value in expected.items())
    assert clip.visual.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]


def test_a_repository_without_weights_is_refused(hub):
    Hub.files.pop("open_clip_model.safetensors")
    with pytest.raises(ConfigError, match=r"org/tiny has none of open_clip_model\.safetensors"):
        check_model(ModelConfig(name=f"hf-hub:{REPOSITORY}"))


@pytest.mark.usefixtures("hub")
def test_a_repository_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="org/other is not on this machine"):
        check_model(ModelConfig(name="hf-hub:org/other"))
