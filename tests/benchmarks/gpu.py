"""Memory and seconds of steps on this GPU, predicted as by `plan --on` and measured.

`python -m tests.benchmarks.gpu` prints a table. Memory is the peak of tensors, without CUDA's own;
seconds are the median of ten steps on views that are on the card already. Weights are random, since
neither depends on them. Whether everything works on a GPU: `make test-gpu`.
"""

import gc
import re
import statistics
import time

import torch

from tests.trainers.curves import changed
from tests.tuning.planning.real_step import trial
from trainers.loop.fake_step import FILLED, step_cost
from trainers.loop.setup import Setup
from trainers.loop.training import Training
from trainers.models.zero_shot import load_zero_shot
from tuning.planning.cards import CARDS

CLASSES = tuple(f"class {number}" for number in range(10))
WARM_UP, TIMED = 3, 10
"""Steps."""

CASES = (
    ("ViT-B-32", "ft", 256, None, "bf16"),
    ("ViT-B-16", "lipsum_ft", 256, None, "bf16"),
    ("ViT-B-16", "lipsum_ft", 256, 128, "bf16"),
    ("ViT-B-16", "flyp", 128, None, "fp32"),
    ("ViT-L-14", "lipsum_ft", 64, None, "bf16"),
)
"""Model, method, images of a step, images at once, precision."""


def measured(config):
    """Peak bytes of tensors and median seconds of a step."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    where = torch.device("cuda")
    zero_shot = load_zero_shot(config.model, config.data.rules.prompts(CLASSES), where)
    training = Training(Setup(config, zero_shot, CLASSES, where))
    size, batch = zero_shot.image_input.size, config.optim.batch_size
    views = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, device=where)
    labels, seconds = torch.arange(batch) % len(CLASSES), []
    for _ in range(WARM_UP + TIMED):
        torch.cuda.synchronize()
        began = time.perf_counter()
        training.step(views, labels)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return torch.cuda.max_memory_allocated(), statistics.median(seconds[WARM_UP:])


def card():
    """The name of this card in `plan --on`, such as A100-80GB of "NVIDIA A100-SXM4-80GB"; None if
    it is not known there."""
    words = re.findall(r"\w+", torch.cuda.get_device_name())
    return next((name for name in CARDS if {*name.split("-")} <= {*words}), None)


def main():
    """Print the table, row by row."""
    memory, name = torch.cuda.get_device_properties(0).total_memory, card()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}\n")
    columns = ["model", "method", "images", "at once", "precision", "GB, predicted", "measured"]
    print(f"| {' | '.join([*columns, 's, predicted', 'measured'])} |\n|{9 * '---|'}")
    for model, method, batch, parts, precision in CASES:
        config = changed(
            trial(model, method, batch, precision=precision),
            model__pretrained="random",
            optim__micro_batch_size=parts,
        )
        predicted = step_cost(config, classes=len(CLASSES))
        seconds = f"{CARDS[name].step_s(predicted, precision):.3g}" if name else ""
        row = [model, method, batch, parts or batch, precision, f"{predicted.peak_bytes / 1e9:.3g}"]
        if predicted.peak_bytes > FILLED * memory:
            row += ["too large", seconds, ""]
        else:
            peak_bytes, step_s = measured(config)
            row += [f"{peak_bytes / 1e9:.3g}", seconds, f"{step_s:.3g}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
