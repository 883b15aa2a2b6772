"""A whole trial of ViT-B/32 on CPUs: `python -m tests.benchmarks.vit_b32_cpu`

The weights are random (`model.pretrained: random`), for it is time and memory that are asked, and
those do not depend on them; accuracy is that of guessing. Each method runs in a process of its own,
on a few hundred images of the embedded benchmark, at 224 x 224 and batch 32. Seconds a step are
measured between evaluations and come as median, least and greatest; the peak of the memory is that
of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from trainers.config import TrialConfig
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.fine_tune import fine_tune
from trainers.loop.state import load_split

CLASSES = ("apple", "bus", "cactus", "cat", "clock", "fish", "house", "umbrella", "banana", "bird")
METHODS = ("ft", "lipsum_ft")
BATCH = 32


def trial(root: Path, method: str, steps: int, every: int) -> TrialConfig:
    """The configuration that is run."""
    return TrialConfig.model_validate(
        {
            "model": {"name": "ViT-B-32", "pretrained": "random"},
            "data": {"root": str(root)},
            "method": {"name": method},
            "optim": {"lr": 1e-5, "batch_size": BATCH},
            "eval": {"every": every, "batch_size": BATCH},
            "steps": steps,
        }
    )


def run(config: TrialConfig) -> dict[str, Any]:
    """One trial from beginning to end, and what it took."""
    before, began = peak_gib(), time.perf_counter()
    reports = list(fine_tune(config))
    seconds = time.perf_counter() - began
    ran = reports[-1].run
    held_out = sum(len(images) for images in load_split(config, "val").values())
    evaluated = held_out * len(reports)
    return {
        "method": config.method.name,
        "seconds_a_step": [BATCH / report.metrics["train/images_per_s"] for report in reports],
        "evaluated_a_second": evaluated / reports[-1].metrics["cost/eval_seconds"],
        "peak_gib": peak_gib(),
        "imported_gib": before,
        "parameters": size(ran.student),
        "of_the_zero_shot_model": sum(
            p.numel() for p in reports[-1].run.zero_shot.clip.parameters()
        ),
        "seconds": seconds,
    }


def size(model: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def peak_gib() -> float:
    """The greatest memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Draw the images, run both methods, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4, help="steps between evaluations")
    parser.add_argument("--train", type=int, default=24, help="images a class and domain")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        images = ImageCounts(arguments.train, 2, 1)
        root = build(Path(folder) / "images", classes=CLASSES, images=images)
        configs = [trial(root, method, arguments.steps, arguments.every) for method in METHODS]
        rows = []
        for config in configs:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rows.append(pool.submit(run, config).result())
    Console(width=110).print(table(rows))


def table(rows: list[dict[str, Any]]) -> Table:
    """One row a method."""
    title = f"ViT-B/32, batch {BATCH}, 224 x 224, {torch.get_num_threads()} threads"
    columns = (
        "s a step (least-greatest)",
        "evaluated images/s",
        "peak GiB",
        "trained / all",
        "s",
    )
    shown = Table("", *columns, title=title, caption="imports alone: see the peak in brackets")
    for row in rows:
        steps = row["seconds_a_step"]
        shown.add_row(
            row["method"],
            f"{statistics.median(steps):.2f} ({min(steps):.2f}-{max(steps):.2f})",
            f"{row['evaluated_a_second']:.1f}",
            f"{row['peak_gib']:.2f} ({row['imported_gib']:.2f})",
            f"{row['parameters'] / 1e6:.1f} M / {row['of_the_zero_shot_model'] / 1e6:.1f} M",
            f"{row['seconds']:.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
