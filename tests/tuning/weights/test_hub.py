"""`export --push`, with the client of the hub, against a server of this machine in its place."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from tests.tuning.confirmation.written import write_results
from tests.tuning.weights.test_export import FILES
from trainers.config import TrialConfig, with_overrides
from trainers.errors import ConfigError, StorageFailed
from tuning.cli import app
from tuning.weights.hub import card_data, check_upload, upload

ABOUT = {"test": {}}


class Hub(BaseHTTPRequestHandler):
    """The five requests that an upload of small files makes."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        is_private = self.server.is_private
        self._answer({"id": self.path.removeprefix("/api/models/"), "private": is_private})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            created = json.loads(body)
            self.server.created.append(created)
            repo = f"{created['organization']}/{created['name']}"
            self._answer({"url": f"http://{self.headers['Host']}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            kind = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": name, **kind} for name in names]})
        else:
            assert self.path.endswith("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/someone/robust/commit/0"
            self._answer({"commitUrl": url, "commitOid": "0" * 40})

    def _answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.is_private, server.created, server.files, server.tokens = True, [], {}, set()
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def confirmed(real, tmp_path_factory):
    """The run, of which a trial was confirmed with two seeds."""
    run = shutil.copytree(real[0], tmp_path_factory.mktemp("confirmed") / "run")
    of_seed = [
        {"id_test/acc": acc, "ood_test/sketch/acc": 40.0, "ood_test/clipart/acc": 50.0}
        for acc in (80.0, 81.0)
    ]
    write_results(run, {("trial-000", seed): of_seed[seed] for seed in (0, 1)})
    return run


def test_a_dry_run_prints_files_and_card_and_sends_nothing(
    confirmed, images_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    output = tmp_path / "model"
    command = ["export", str(confirmed), "--output", str(output), "--trial", "trial-000"]
    command += ["--push", "someone/robust", "--license", "mit", "--dry-run"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "someone/robust, private" in done.output
    assert all(f"{name}, {(output / name).stat().st_size:,} bytes" in done.output for name in FILES)
    text = (output / "README.md").read_text()
    assert all(line in done.output for line in text.splitlines())
    assert "hf download someone/robust" in text
    data = ModelCard(text).data  # raises for metadata that the hub's client refuses
    assert (data.license, data.library_name, data.base_model) == ("mit", "open_clip", None)
    found = {result.dataset_name: result for result in data.eval_results}
    root = images_root.name
    accuracies = {f"{root}: real": 0.805, f"{root}: sketch": 0.4, f"{root}: clipart": 0.5}
    assert {name: result.metric_value for name, result in found.items()} == accuracies
    assert {result.dataset_split for result in found.values()} == {"test"}
    assert "2 trainings of trial-000 with fresh seeds" in found[f"{root}: real"].metric_name


def test_validation_accuracies_are_not_in_the_metadata(real, tmp_path):
    command = ["export", str(real[0]), "--output", str(tmp_path / "model"), "--trial", "trial-000"]
    assert CliRunner().invoke(app, command).exit_code == 0
    data = ModelCard.load(tmp_path / "model/README.md").data
    assert (data.eval_results, data.pipeline_tag) == (None, "image-classification")


def test_push_creates_a_private_repository_of_the_exported_files(confirmed, hub, tmp_path):
    command = [sys.executable, "-m", "tuning", "export", str(confirmed), "--trial", "trial-000"]
    environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--push", "someone/robust"],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/someone/robust" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("someone", "robust")
    assert created.get("private", created.get("visibility")) in (True, "private")
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.files.keys() == FILES
    assert json.loads(hub.files["classes.json"])["trial"] == "trial-000"


def test_a_private_model_is_not_added_to_a_public_repository(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "README.md").write_text("card")
    hub.is_private = False
    with pytest.raises(ConfigError, match="exists and is public"):
        upload(tmp_path, "someone/robust")
    assert hub.files == {}
    upload(tmp_path, "someone/robust", private=False)
    assert hub.files == {"README.md": b"card"}


def test_a_hub_that_does_not_answer_may_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageFailed, match="Connection refused"):
        upload(tmp_path, "someone/robust")


@pytest.mark.parametrize("repo", ["robust", "a/b/c", "someone/-robust"])
def test_names_of_repositories_are_checked_first(repo):
    with pytest.raises(ConfigError) as caught:
        check_upload(repo, needs_token=False)
    assert caught.value.key == "--push"


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
    changes = {"model.name": name, "model.pretrained": pretrained}
    trial = with_overrides(TrialConfig(), changes, "test")
    assert card_data("title", trial, ABOUT).base_model == base


def test_data_sets_of_the_hub_are_named(tmp_path):
    for domain, source in {
        "photo": {"layout": "hub", "path": "flwrlabs/pacs", "revision": "0123abc"},
        "sketch": {"layout": "folders", "path": "/data/sketch"},
    }.items():
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "preparation.json").write_text(json.dumps({"source": source}))
    changes = {
        "data.root": str(tmp_path),
        "data.id_domain": "photo",
        "data.ood_domains": ["sketch"],
    }
    trial = with_overrides(TrialConfig(), changes, "test")
    test = {"zero-shot": {"metrics": {"id_test/acc": 90.0, "ood_test/sketch/acc": 30.0}}}
    data = card_data("title", trial, {"test": test})
    assert data.datasets == ["flwrlabs/pacs"]
    photo, sketch = data.eval_results
    assert (photo.dataset_type, photo.dataset_revision) == ("flwrlabs/pacs", "0123abc")
    assert (sketch.dataset_type, sketch.metric_name) == ("imagefolder", "Accuracy")
