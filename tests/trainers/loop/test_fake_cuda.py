"""Whole runs on a GPU without a GPU: fake tensors of `cuda:0`, with CUDA's own autocast.

Operations on tensors of two devices raise, and so do waits for the GPU that `device` does not
list. `tests/trainers/loop/test_fake_gpu.py` needs no compiler and takes steps alone.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.trainers.loop.fake_cuda import build, runs
from tests.trainers.tiny_models import KINDS, random_model
from trainers.methods.registry import METHODS
from tuning.config.loading import ready_configs

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(build.COMPILER is None, reason="a library is compiled"),
    pytest.mark.skipif(build.HAS_CUDA, reason="PyTorch brings its own CUDA"),
]


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """Calls functions in processes that have a fake GPU."""
    library = build.build(tmp_path_factory.mktemp("library"))
    with ProcessPoolExecutor(1, get_context("spawn"), build.load, (library,)) as pool:
        yield lambda *call: pool.submit(build.forked, *call).result()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With one block an encoder."""
    towers = {key: KINDS["clip"][key] | {"layers": 1} for key in ("vision_cfg", "text_cfg")}
    return random_model(tmp_path_factory.mktemp("model"), "clip", **towers).name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_resumes_and_evaluates_on_its_device(method, cuda, model, tmp_path):
    cuda(runs.run_method, model, method, tmp_path)


@pytest.mark.parametrize("name", ready_configs())
def test_a_ready_configuration_takes_a_step(name, cuda):
    cuda(runs.run_configuration, name)


@pytest.mark.parametrize("method", ["ft", "lipsum_ft", "flyp"])
def test_memory_that_runs_out_anywhere(method, cuda, model):
    cuda(runs.run_short_of_memory, model, method)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("indexes_by_the_cpu", "Waited: Stepper._per_image"),
        ("needs_a_value", "Waited: Stepper._per_image"),
        ("has_a_buffer_on_the_cpu", "two devices, cuda:0 and cpu"),
        ("keeps_an_average", "AssertionError: bytes after each trial"),
    ],
)
def test_a_faulty_loss_is_found(fault, error, cuda, model, tmp_path):
    with pytest.raises(RuntimeError, match=error):
        cuda(runs.run_faulty, fault, model, "ft", tmp_path)
