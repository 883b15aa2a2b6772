"""What only a GPU can show, in at most 10 minutes: `python -m tests.benchmarks.gpu --out FOLDER`

The first part prints what `lipsum-tune plan --on` predicts for this card beside what is measured.
Every part runs in a process of its own, so that one that fails or takes too long leaves the others
their results, and its own rows so far. The figures and the card's name are written to `gpu.json`
after each part, and printed. Weights are random (`model.pretrained: random`), since time and memory
do not depend on them. `--dry` runs all parts on the CPU with the tiny CLIP: it shows that the
command works.
"""

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.images import write_first_images
from trainers.config import TrialConfig
from trainers.data.transforms import normalise
from trainers.loop.fake_step import FILLED, step_cost
from trainers.loop.state import start
from trainers.loop.step import Stepper
from trainers.models.image import pooled_features
from tuning.planning.cards import CARDS

CLASSES = ("apple", "bus", "cactus", "cat", "clock", "fish", "house", "umbrella", "banana", "bird")

WARM_UP = 3
"""Steps before those that are timed."""

Rows = Iterator[dict[str, Any]]


def trial(root, dry, **settings):
    """A configuration of one trial on the images in `root`; settings are top-level keys."""
    model = {"name": "tiny-clip"} if dry else {"name": "ViT-B-32", "pretrained": "random"}
    values = {
        "model": model,
        "data": {"root": str(root), "ood_domains": []},
        "method": {"name": "ft"},
        "optim": {"lr": 1e-5, "batch_size": 8 if dry else 256},
        "steps": 10_000,
        **settings,
    }
    return TrialConfig.model_validate(values)


CASES = (
    ("ViT-B-32", "ft", 256, None, "bf16"),
    ("ViT-B-16", "lipsum_ft", 256, None, "bf16"),
    ("ViT-B-16", "lipsum_ft", 256, 128, "bf16"),
    ("ViT-B-16", "flyp", 128, None, "fp32"),
    ("ViT-L-14", "lipsum_ft", 64, None, "bf16"),
)
"""Model, method, images of a step, images at once, precision."""


def predictions(root, dry):
    """Memory and seconds of a step, predicted as by `plan --on` and measured: the peak of tensors
    without CUDA's own, and the median. Without a GPU, memory is that of the CPU's kernels."""
    name, cases = card(), [("tiny-clip", "lipsum_ft", 8, None, "fp32")] if dry else CASES
    for model, method, batch, parts, precision in cases:
        pretrained = {} if dry else {"pretrained": "random"}
        config = trial(
            root,
            dry,
            model={"name": model, **pretrained},
            method={"name": method},
            optim={"lr": 1e-5, "batch_size": batch, "micro_batch_size": parts},
            precision=precision,
            zero_shot_cache_gb=0,
        )
        predicted = step_cost(config, classes=len(CLASSES), as_on_gpu=not dry)
        row = {"model": model, "method": method, "images": batch, "at once": parts or batch}
        row |= {"precision": precision, "GB, predicted": predicted.peak_bytes / 1e9}
        seconds = name and CARDS[name].step_s(predicted, precision)
        row |= {"GB, measured": None, "s, predicted": seconds, "s, measured": None}
        if is_on_gpu := torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            if predicted.peak_bytes > FILLED * memory:
                yield {**row, "GB, measured": "too large"}
                continue
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        steps = {model: product_steps(config)}
        (times,) = interleaved(steps, rounds=2 if dry else 10, repeats=1).values()
        if is_on_gpu:
            row["GB, measured"] = torch.cuda.max_memory_allocated() / 1e9
        yield {**row, "s, measured": statistics.median(times)}
        del steps


def table(rows):
    """Rows with the same keys as a table of Markdown."""
    lines = [[*rows[0]], ["---"] * len(rows[0])]
    for row in rows:
        found = ["" if value is None else value for value in row.values()]
        lines.append([f"{f:.3g}" if isinstance(f, float) else str(f) for f in found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def throughput(root, dry):
    """Images a second and share of the card's peak, interleaved: bare loop, FT, Lipsum-FT with the
    zero-shot model beside it and with its stored features."""
    rounds, repeats = (2, 1) if dry else (5, 4)
    for compiled in (False,) if dry else (False, True):
        for name in ("tiny-clip",) if dry else ("ViT-B-32", "ViT-B-16"):
            model = {"name": name, **({} if dry else {"pretrained": "random"})}
            settings = {"model": model, "compile": compiled}
            lipsum = {**settings, "method": {"name": "lipsum_ft"}}
            configs = {
                "bare loop": trial(root, dry, **settings),
                "FT": trial(root, dry, **settings),
                "Lipsum-FT, live teacher": trial(root, dry, **lipsum, zero_shot_cache_gb=0),
                "Lipsum-FT, shared teacher": trial(root, dry, **lipsum, zero_shot_cache_gb=20),
            }
            if not compiled:  # another trial has stored the features, which both encoders share
                shared = product_steps(configs["Lipsum-FT, shared teacher"])
                for _ in islice(shared, WARM_UP + rounds * repeats):
                    pass
                del shared
            steps = {
                case: bare_steps(config) if case == "bare loop" else product_steps(config)
                for case, config in configs.items()
            }
            flops = student_flops(configs["bare loop"])
            times = interleaved(steps, rounds=rounds, repeats=repeats)
            batch = configs["FT"].optim.batch_size
            bare = statistics.median(times["bare loop"])
            for case, seconds in times.items():
                median = statistics.median(seconds)
                yield {
                    "model": name,
                    "encoder": "compiled" if compiled else "eager",
                    "loop": case,
                    "images/s": batch / median,
                    "spread": [batch / max(seconds), batch / min(seconds)],
                    "time / bare": median / bare,
                    "mfu": card() and flops / median / (1e12 * CARDS[card()].half_tflops),
                }
            del steps
            torch.compiler.reset()
            gc.collect()  # compiled modules refer to themselves
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def product_steps(config):
    """Steps of this project on views that are on the device already."""
    run = start(config)
    stepper = Stepper(run)
    views, labels = batch_of(config, run.zero_shot.image_input.size, len(run.class_names))
    number = 0
    while True:
        yield stepper.step(number, views, labels, lr=config.optim.lr)
        number += 1


def bare_steps(config):
    """The same steps of plain fine-tuning as one would write them without this project."""
    run = start(config.model_copy(update={"compile": False}))  # only for its model and its head
    visual = run.student.visual.requires_grad_(True)
    head = nn.Linear(run.student.head.shape[1], len(run.class_names), bias=False).to(run.device)
    if config.compile:
        visual.compile()
    parameters = [*visual.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, fused=True)
    views, labels = batch_of(config, run.zero_shot.image_input.size, len(run.class_names))
    labels = labels.to(run.device)
    image_input, autocast = run.zero_shot.image_input, run.precision.autocast
    while True:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            features = pooled_features(visual, normalise(views, image_input))
        logits = 100 * head(functional.normalize(features.float(), dim=-1))
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        yield loss.detach()


def batch_of(config, size, classes):
    """Random views (B, 3, size, size) uint8 on the device, and labels (B,) on the CPU as loaded."""
    draw, batch = torch.Generator().manual_seed(0), config.optim.batch_size
    views = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=draw)
    labels = torch.randint(classes, (batch,), generator=draw)
    return views.to(device()), labels


def student_flops(config):
    """Operations of the student's forward and backward passes over one batch."""
    steps = bare_steps(config.model_copy(update={"compile": False}))
    with FlopCounterMode(display=False) as counter:
        next(steps)
    return float(counter.get_total_flops())


def interleaved(cases, *, rounds, repeats):
    """Seconds of a step, `rounds` values for each case, whose measurements take turns."""
    for steps in cases.values():  # compilation, allocation, the first moments of AdamW
        for _ in range(WARM_UP):
            next(steps)
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, steps in cases.items():
            synchronise()
            began = time.perf_counter()
            for _ in range(repeats):
                next(steps)
            synchronise()
            seconds[case].append((time.perf_counter() - began) / repeats)
    return seconds


def out_of_memory(root, dry):
    """A batch that does not fit is halved until it does, and its loss is that of small parts."""
    if dry:
        yield {"out of memory": "needs a GPU"}
        return
    batch = {"lr": 1e-5, "batch_size": 4096}
    losses = {}
    for parts in (128, None):
        config = trial(root, dry, optim={**batch, "micro_batch_size": parts})
        if parts is None:  # the first case fits; leave this one 12 GB
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, 12e9 / total))
        run = start(config)
        views, labels = batch_of(config, run.zero_shot.image_input.size, len(run.class_names))
        stepper = Stepper(run)
        losses[parts] = [float(stepper.step(n, views, labels, lr=1e-5)[0]) for n in range(3)]
        halved = run.micro_batch_size
        del run, stepper, views
        torch.cuda.empty_cache()
    difference = max(abs(a - b) for a, b in zip(losses[128], losses[None], strict=True))
    row = {"batch": 4096, "limit GB": 12, "images at once": halved}
    yield {**row, "largest difference of the loss": difference}


def float16(root, dry):
    """Losses with float16 and its scaler beside bfloat16 over 30 steps, and steps skipped."""
    for precision in ("bf16",) if dry else ("bf16", "fp16"):
        config = trial(root, dry, precision=precision)
        run = start(config)
        stepper = Stepper(run)
        views, labels = batch_of(config, run.zero_shot.image_input.size, len(run.class_names))
        losses, scales = [], []
        for number in range(3 if dry else 30):
            losses.append(float(stepper.step(number, views, labels, lr=1e-5)[0]))
            scales.append(run.scaler.get_scale())
        skipped = sum(after < before for before, after in pairwise(scales))
        row = {"precision": precision, "first loss": losses[0], "last loss": losses[-1]}
        yield {**row, "scale": scales[-1], "skipped steps": skipped}


def nccl(root, dry):
    """A sum over the process group of a Ray Train worker; a trial of one worker has none."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from tuning.execution.ray_session import ray_session

    def loop(_):
        import torch.distributed as dist

        total = torch.ones(1, device=ray.train.torch.get_device())
        dist.all_reduce(total)
        workers = dist.get_world_size()
        return {"backend": dist.get_backend(), "workers": workers, "sum": float(total)}

    with ray_session(None), TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            loop,
            scaling_config=ScalingConfig(num_workers=1, use_gpu=not dry),
            run_config=RunConfig(name="nccl", storage_path=folder),
        )
        yield trainer.fit().return_value  # of Train V2


def searches(root, dry):
    """Searches as in the quickstart: one trial at a time, and two that share the card."""
    from tuning import load_config, run_search

    trials = 2 if dry else 6
    for together in (1, 2):
        with TemporaryDirectory() as folder:
            overrides = {
                "trial.data.root": root,
                "trial.steps": 4 if dry else 120,
                "trial.eval.every": 2 if dry else 40,
                "search.scheduler": "{name: none}",
                "search.storage": folder,
                "search.budget.trials": trials,
                "search.resources.max_concurrent": together,
                "search.resources.gpus_per_worker": 0 if dry else 1 / together,
            }
            file = load_config("quickstart", [f"{key}={value}" for key, value in overrides.items()])
            began = time.perf_counter()
            result = run_search(file, console=Console(quiet=True))
            seconds = time.perf_counter() - began
            training = sum(r.metrics["cost/seconds"] for r in result.history.records if r.metrics)
            best = result.best
            yield {
                "trials": trials,
                "at a time": together,
                "seconds": seconds,
                "seconds in training": training,
                "failed": len(result.failed),
                "GPU memory, GB": best and best.metrics.get("cost/gpu_memory_gb"),
                "GPU use, %": best and best.metrics.get("cost/gpu_util"),
                "best val/mean_acc": None if best is None else best.metrics["val/mean_acc"],
            }


PARTS: dict[str, tuple[Callable[[Path, bool], Rows], int]] = {
    "predictions": (predictions, 60),
    "throughput": (throughput, 210),
    "out of memory": (out_of_memory, 60),
    "float16": (float16, 45),
    "nccl": (nccl, 60),
    "searches": (searches, 150),
}
"""Each part, and the seconds after which it is given up; together less than 10 minutes. A CPU gets
four times as long."""


def run_part(part, root, dry, file):
    """Run one part. After each row, write all rows, the seconds, and the most memory on the card.

    The memory is that of this process: none if others train.
    """
    began, rows = time.perf_counter(), []
    for row in PARTS[part][0](root, dry):
        rows.append(row)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else None
        result = {"rows": rows, "seconds": time.perf_counter() - began, "peak GiB": peak}
        file.write_text(json.dumps(result))


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def card():
    """The name of this card in `plan --on`, such as A100-80GB of "NVIDIA A100-SXM4-80GB"; None if
    it is not known there."""
    words = re.findall(r"\w+", torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    return next((name for name in CARDS if {*name.split("-")} <= {*words}), None)


def main():
    """Run every part in a process of its own, and write what was found after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry", action="store_true", help="on the CPU, with the tiny CLIP")
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)  # run one part here
    arguments = parser.parse_args()
    out, dry = arguments.out, arguments.dry
    if arguments.images is not None:
        (part,) = arguments.parts
        run_part(part, arguments.images, dry, out / f"{part}.json")
        return
    if not (dry or torch.cuda.is_available()):
        parser.error("PyTorch sees no GPU; --dry tries the command on the CPU")

    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if dry else {})}
    name = "CPU, dry run" if dry else torch.cuda.get_device_name()
    found: dict[str, Any] = {"card": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    found["parts"] = {}
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        root = write_first_images(Path(folder) / "images", CLASSES, train=24, val=8, test=1)
        for part in arguments.parts:
            own = ["--out", folder, "--images", root, "--parts", part, *(["--dry"] if dry else [])]
            command = [sys.executable, "-m", "tests.benchmarks.gpu", *map(str, own)]
            result, file = {}, Path(folder) / f"{part}.json"
            try:
                limit = PARTS[part][1] * (4 if dry else 1)
                subprocess.run(command, check=True, timeout=limit, env=environment)
            except subprocess.SubprocessError as error:  # the other parts still have their figures
                result["error"] = str(error).rpartition("' ")[2]
            if file.is_file():
                result |= json.loads(file.read_text())
            found["parts"][part] = result
            (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
    print((out / "gpu.json").read_text())
    if rows := found["parts"].get("predictions", {}).get("rows"):
        print(f"{name}, predicted and measured:\n\n{table(rows)}")


if __name__ == "__main__":
    main()
