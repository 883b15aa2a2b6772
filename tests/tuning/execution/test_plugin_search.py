"""A method from a file outside of the package, searched on a real local Ray and exported."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.trainers.exported import open_clip_logits
from tests.tuning.execution.real_searches import outcomes, real_file
from trainers.data.transforms import normalise
from trainers.loop.state import load_split
from trainers.models.clip import load_clip
from trainers.models.image import image_input
from tuning.execution.ray_session import ray_session
from tuning.search import run_search
from tuning.weights.export import export_weights

pytestmark = pytest.mark.ray

PLUGIN = Path(__file__).parents[2] / "trainers" / "methods" / "lora.py"


def test_a_plugins_method_is_searched_and_exported(images_root, ray_head, tmp_path):
    """Its rank and learning rate, in the space that it brings; workers import it by themselves."""
    file = real_file(
        images_root,
        tmp_path,
        plugins=[str(PLUGIN)],
        trial__method={"name": "lora"},
        trial__precision="fp32",
        search__space={"name": "lora"},
        search__budget__trials=2,
    )
    with ray_session(ray_head.address):
        result = run_search(file, console=Console(quiet=True))

    assert outcomes(result) == {"trial-000": "finished", "trial-001": "finished"}
    first, second = (record.params for record in result.history.records)
    assert first == {"method.rank": 2, "optim.lr": 1e-2}
    assert second.keys() == first.keys()

    # The accuracy of the exported model, read by open_clip alone, is that of the best trial.
    best = result.best
    assert best is not None
    folder = export_weights(result.folder, tmp_path / "exported", trial=best.trial_id)
    size, images = image_input(load_clip(file.trial.model)), load_split(file.trial, "val")["real"]
    views, labels = next(images.eval_batches(size, len(images)))
    predicted = open_clip_logits(folder, normalise(views, size)).argmax(dim=-1)
    accuracy = 100 * float((predicted == labels).float().mean())
    assert accuracy == pytest.approx(best.metrics["id_val/acc"])
