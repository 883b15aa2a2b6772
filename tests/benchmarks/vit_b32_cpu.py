"""A whole trial of ViT-B/32 on CPUs: `python -m tests.benchmarks.vit_b32_cpu`

The weights are random (`model.pretrained: random`), for it is time and memory that are asked, and
those do not depend on them; accuracy is that of guessing. Each method runs in a process of its own,
on a few hundred images of the embedded benchmark, at 224 x 224 and batch 32. Seconds a step are
measured between evaluations and come as median and range; the peak of the memory is that
of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.gpu import CLASSES
from tests.benchmarks.spread import spread
from tests.benchmarks.steps import MODELS
from trainers.config import TrialConfig
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.fine_tune import fine_tune
from trainers.loop.state import load_split

METHODS = ("ft", "lipsum_ft")
BATCH = 32


def run(config: TrialConfig) -> tuple[str, ...]:
    """A row of the table: one trial from beginning to end, and what it took."""
    began = time.perf_counter()
    reports = list(fine_tune(config))
    seconds = time.perf_counter() - began
    steps = [BATCH / report.metrics["train/images_per_s"] for report in reports]
    evaluated = len(reports) * sum(len(images) for images in load_split(config, "val").values())
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return (
        config.method.name,
        spread(steps),
        f"{evaluated / reports[-1].metrics['cost/eval_seconds']:.1f}",
        f"{peak:.2f}",
        f"{seconds:.0f}",
    )


def main() -> None:
    """Draw the images, run both methods, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4, help="steps between evaluations")
    parser.add_argument("--train", type=int, default=24, help="images a class and domain")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        images = ImageCounts(arguments.train, 2, 1)
        root = build(Path(folder) / "images", classes=CLASSES, images=images)
        title = f"ViT-B/32, batch {BATCH}, 224 x 224, {torch.get_num_threads()} threads"
        table = Table("", "s a step", "evaluated images/s", "peak GiB", "s", title=title)
        for method in METHODS:
            values = {
                **MODELS["ViT-B-32"],
                "data": {"root": str(root)},
                "method": {"name": method},
                "eval": {"every": arguments.every, "batch_size": BATCH},
                "steps": arguments.steps,
            }
            config = TrialConfig.model_validate(values)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                table.add_row(*pool.submit(run, config).result())
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
