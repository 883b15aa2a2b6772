"""Fixtures for all tests: few real images, a short trial, and one Ray for each test process."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

# Ray reads this when it is imported. Heads, jobs and clients of all tests use a token: a process
# cannot use it for some clusters only.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)
# torch reads these when it is imported. Several tests run at a time and share the cores; all but
# those of `tests/gpu`, which are named on the command line, compare results with those of a CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not any("tests/gpu" in argument for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import settings

from tests.images import CLASSES, write_first_images
from tests.ray_head import running_head
from tests.s3 import ENVIRONMENT as S3_ENVIRONMENT
from tests.s3 import anywhere as anywhere
from tests.s3 import bucket as bucket
from trainers.config import TrialConfig
from trainers.data.schema import LabelledImage, read_header, write_images
from trainers.data.store import CACHE_VARIABLE, open_store
from trainers.methods.registry import _LOADED, _TEXTS, METHODS, SEARCH_SPACES

settings.register_profile("many", max_examples=1000)  # of --hypothesis-profile many


def pytest_configure():
    """Hear SIGINT, which a shell has its background jobs ignore, and give this user Ray's token."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not (Path.home() / ".ray" / "auth_token").exists():  # the command takes seconds
        ray = Path(sys.executable).parent / "ray"
        subprocess.run([ray, "get-auth-token", "--generate"], check=True, capture_output=True)


def pytest_addoption(parser):
    parser.addoption("--tenth", type=int, help="Of tests marked `nightly`, only this tenth, 0 to 9")
    parser.addoption(
        "--rewrite-screens", action="store_true", help="Write files of expected output"
    )


def pytest_collection_modifyitems(config, items):
    """Choose among nightly tests, and run those with Ray first, so that processes end together."""
    tenth = config.getoption("--tenth")
    left_out = [
        item
        for item in items
        if tenth is not None
        and item.get_closest_marker("nightly")
        and zlib.crc32(item.nodeid.encode()) % 10 != tenth
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


def pytest_collection_finish():
    """Leave all that was imported out of later collections of garbage: each took half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def screen(request):
    """Compares a text with the whole file `screens/NAME.txt` beside the test.

    `pytest --rewrite-screens` writes these files; their difference is what users see changed.
    """

    def compare(name, text):
        lines = [line.rstrip() for line in text.splitlines()]
        shown, path = "\n".join([*lines, ""]), request.path.parent / "screens" / f"{name}.txt"
        if request.config.getoption("--rewrite-screens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(shown, encoding="utf-8")
        assert shown == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="session", autouse=True)
def _arrow_cache(tmp_path_factory):
    """Give the tests, and all processes that they start, caches of their own."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("arrow"))


@pytest.fixture(scope="session")
def ray_head(_arrow_cache):
    """The Ray head of this test process: two CPUs, a dashboard, and the S3 server of `tests.s3`.

    It is started at its first use, and the test process is not connected to it: use `local_ray`,
    or `ray_session(ray_head.address)` in fixtures of a wider scope. Tests that end nodes start a
    cluster of their own.
    """
    with running_head(cpus=2, **S3_ENVIRONMENT) as head:
        yield head


@pytest.fixture
def local_ray(ray_head, monkeypatch):
    """Let this test, and drivers that it starts as processes, find `ray_head` at RAY_ADDRESS.

    `ray_session()` connects to it, and disconnects at its end; searches do so by themselves.
    """
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    return ray_head.address


@pytest.fixture(scope="module", autouse=True)
def _disconnected_afterwards():
    """Fail a file that leaves this process connected to Ray: the next file would use that Ray."""
    yield
    connected = ray.is_initialized()
    ray.shutdown()
    assert not connected


@pytest.fixture(autouse=True)
def _methods_of_this_test():
    """Remove the methods and search spaces that a test registers: plug-ins load once a process."""
    registries = (METHODS, SEARCH_SPACES)
    before = [dict(registry) for registry in registries]
    yield
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)
    _LOADED.clear()
    _TEXTS.clear()


@pytest.fixture(scope="session")
def whole_root(tmp_path_factory):
    """The five domains of the built-in benchmark with eight classes and few images."""
    root = tmp_path_factory.mktemp("data") / "images"
    return write_first_images(root, CLASSES, train=6, val=3, test=2)


@pytest.fixture(scope="session")
def images_root(whole_root, tmp_path_factory):
    """The same data, but whoever decodes an image of a test split fails."""
    root = tmp_path_factory.mktemp("sealed") / "images"
    shutil.copytree(whole_root, root)
    for path in root.glob("*/test/*.parquet"):
        header = read_header(open_store(root), str(path.relative_to(root)))
        labels = pq.read_table(path)["label"].to_pylist()
        sealed = [LabelledImage(b"sealed", "sealed", label) for label in labels]
        write_images(path, sealed, header.class_names)
    return root


@pytest.fixture(scope="session")
def trial(images_root):
    """A Lipsum-FT of six steps on the real embedded model, evaluated at every third and at its end.

    The zero-shot model's features are not rounded, so that they can be compared with others.
    """
    return TrialConfig.model_validate(
        {
            "data": {"root": str(images_root)},
            "method": {"name": "lipsum_ft", "text_count": 16},
            "optim": {"lr": 3e-4, "batch_size": 8},
            "eval": {"every": 3, "line": "off"},
            "steps": 6,
            "zero_shot_cache_gb": 0,
        }
    )
