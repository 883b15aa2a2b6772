"""What micro-batches and activation checkpointing save: `python -m tests.benchmarks.memory`

ViT-B/32 with random weights, a step of 64 images at 224 x 224 on the CPU. Each row is a process
of its own; its figure is the most memory that the process held at once, over two steps, with
weights, gradients, the moments of AdamW and the zero-shot model in it. Nothing is evaluated.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tests.benchmarks.vit_b32_cpu import peak_gib
from trainers import fine_tune as loop
from trainers.config import TrialConfig
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.loop.state import open_images, start
from trainers.loop.step import Stepper

BATCH = 64
CASES = ((BATCH, False), (8, False), (BATCH, True), (8, True))
"""Images that go through the model at once, and whether activations are checkpointed."""


def trial(root: Path, method: str, parts: int, checkpointing: bool) -> TrialConfig:
    """The configuration that is run."""
    return TrialConfig.model_validate(
        {
            "model": {"name": "ViT-B-32", "pretrained": "random"},
            "data": {"root": str(root), "ood_domains": []},
            "method": {"name": method},
            "optim": {"lr": 1e-5, "batch_size": BATCH, "micro_batch_size": parts},
            "activation_checkpointing": checkpointing,
            "steps": 2,
        }
    )


def peaks(config: TrialConfig) -> tuple[float, float]:
    """GiB before the first step and after the last one."""
    run = start(config)
    stepper, before = Stepper(run), peak_gib()
    train = open_images(config.data, config.data.id_domain, "train")
    for number, (views, labels) in enumerate(loop.training_batches(run, train)):
        stepper.step(number, views, labels, lr=config.optim.lr)
    return before, peak_gib()


def main() -> None:
    """Draw the images, run every case, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["ft", "flyp"])
    arguments = parser.parse_args()
    shown = Table(
        "", "images at once", "checkpointing", "before, GiB", "peak, GiB", "of the first row's"
    )
    with TemporaryDirectory() as folder:
        classes = ("apple", "bus", "cactus", "cat")
        root = build(Path(folder) / "images", classes=classes, images=ImageCounts(16, 1, 1))
        for method in arguments.methods:
            whole = None
            for parts, checkpointing in CASES:
                config = trial(root, method, parts, checkpointing)
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    before, peak = pool.submit(peaks, config).result()
                whole = peak if whole is None else whole
                shown.add_row(
                    method,
                    str(parts),
                    "yes" if checkpointing else "no",
                    f"{before:.2f}",
                    f"{peak:.2f}",
                    f"{peak / whole:.0%}",
                )
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
