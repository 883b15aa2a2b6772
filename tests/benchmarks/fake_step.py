"""Predictions of `plan --on` beside measurements: `python -m tests.benchmarks.fake_step`

1. Peak memory and operations of steps on a CPU, with PyTorch's CPU kernels in both: fake tensors
   against the profiler's allocations and PyTorch's counter, in float32.
2. Published images per second, and the efficiency that would follow.
3. Published memory of fine-tuning.
4. JPEGs that a core decodes and crops in a second.
"""

import io
import time
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests.trainers.tiny_models import random_model
from trainers.config import TrialConfig
from trainers.data.dataset import ImageDataset
from trainers.data.schema import LabelledImage, write_images
from trainers.data.transforms import train_view
from trainers.loop.fake_step import evaluation_cost, step_cost
from trainers.loop.state import state_of
from trainers.loop.step import Stepper
from trainers.models.image import ImageInput
from trainers.models.zero_shot import load_zero_shot
from trainers.seeding import generator
from tuning.planning.cards import CARDS, EFFICIENCY

MODELS = ("tiny-clip", "resnet", "timm")
"""The embedded one, and two of `tests.trainers.tiny_models`: a ResNet and an EfficientNet."""
BATCHES = (8, 16, 32)
CLASSES = tuple(f"class {number}" for number in range(10))
METHODS = ("ft", "lipsum_ft", "flyp")

ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **_: sdpa_flop_count(
        *a[:3]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *a, **_: (
        sdpa_backward_flop_count(*a[:4])
    ),
}
"""Kernels of CPUs that PyTorch's counter does not know."""

PUBLISHED = [
    ("train", "RTX-3090", "ViT-B-32", 512, 1704),
    ("train", "RTX-3090", "ViT-B-16", 192, 391),
    ("train", "RTX-3090", "ViT-L-14", 48, 85),
    ("forward", "RTX-3090", "ViT-B-32-quickgelu", 1024, 4602),
    ("forward", "RTX-3090", "ViT-B-16-quickgelu", 1024, 1387),
    ("forward", "RTX-3090", "ViT-L-14-quickgelu", 1024, 326),
    ("forward", "RTX-4090", "ViT-B-32-quickgelu", 1024, 8389),
    ("forward", "RTX-4090", "ViT-B-16-quickgelu", 1024, 2270),
    ("forward", "RTX-4090", "ViT-L-14-quickgelu", 1024, 566),
    ("clip", "A100-40GB", "ViT-B-32", 256, 108_845 / 128),
    ("clip", "A100-40GB", "ViT-B-16", 256, 136_371 / 344),
    ("clip", "A100-40GB", "ViT-L-14", 448, 35_525 / 200),
]
"""Images per second and GPU with automatic mixed precision. `train` and `forward` are from the
tables in `results/` of huggingface/pytorch-image-models (aa4b585), with PyTorch 1.12 and 2.4.
`clip` trains both encoders on captions of 77 tokens: the fastest run of each model in
trained_models_info.csv of LAION-AI/scaling-laws-openclip (652b1e7), with reading of images, the
exchange between hundreds of GPUs, and gradient checkpointing if memory requires it.
"""

PUBLISHED_GB = [
    ("facebookresearch/MetaCLIP#47", "flyp", "ViT-B-16-quickgelu", 256, "bf16", "26"),
    ("facebookresearch/MetaCLIP#47", "flyp", "ViT-B-16-quickgelu", 512, "bf16", "more than 32"),
    ("mlfoundations/open_clip#85", "flyp", "ViT-B-32", 416, "bf16", "at most 24"),
    ("mlfoundations/open_clip#85", "flyp", "ViT-B-32", 512, "bf16", "more than 24"),
    ("locuslab/FLYP#14", "flyp", "ViT-B-16", 512, "fp32", "three GPUs of 48"),
    ("VRF, NeurIPS 2024", "ft", "ViT-B-16", 192, "fp32", "at most 48"),
]
"""GB of a GPU, of training on captions of 77 tokens or of plain fine-tuning, without gradient
checkpointing, as users or authors state them. In VRF, 384 images are the most for two A6000."""

CAPTION = "a " * 80 + "{}."
"""Has more than 77 tokens."""


def trial(model, method, batch, **settings):
    """A configuration of one trial with random weights."""
    brings_its_weights = model == "tiny-clip" or model.startswith("local-dir:")
    pretrained = {} if brings_its_weights else {"pretrained": "random"}
    return TrialConfig.model_validate(
        {
            "model": {"name": model, **pretrained},
            "data": {"root": "none", "suite": {"id_domain": "real", "templates": ["a {}."]}},
            "method": {"name": method},
            "optim": {"batch_size": batch},
            "precision": "fp32",
            "zero_shot_cache_gb": 0,
            "eval": {"batch_size": batch},
            **settings,
        }
    )


def measured(config):
    """Peak bytes of the second of two real steps on the CPU, and its operations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        zero_shot = load_zero_shot(config.model, config.data.rules.prompts(CLASSES))
        run = state_of(config, zero_shot, CLASSES, torch.device("cpu"))
        stepper, size = Stepper(run), run.zero_shot.image_input.size
        for number in range(2):
            views = torch.zeros(config.optim.batch_size, 3, size, size, dtype=torch.uint8)
            labels = torch.arange(len(views)) % len(run.class_names)
            counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
            with record_function(f"step {number}"), counter:
                stepper.step(number, views, labels, lr=1e-5)
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    live, peak, is_second = 0, 0, False
    for event in events:
        is_second |= event.name() == "step 1"
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live if is_second else 0)
    return peak, counter.get_total_flops()


def compare(config):
    """Peak bytes and operations of a step: (predicted, measured) each."""
    predicted = step_cost(config, classes=len(CLASSES), as_on_gpu=False)
    peak, flops = measured(config)
    return (predicted.peak_bytes, peak), (predicted.flops, flops)


@cache
def operations(kind, model, batch):
    """The operations of a step, or of a forward pass, in bfloat16."""
    if kind == "forward":
        config = trial(model, "ft", batch, precision="bf16")
        return evaluation_cost(config, classes=1000)[0]
    cost = with_long_captions("flyp" if kind == "clip" else "ft", model, batch, "bf16")
    return [*cost.of_parts, *cost.of_optimizer]


def with_long_captions(method, model, batch, precision):
    """What a step on captions of 77 tokens costs; plain fine-tuning has none."""
    data = {"root": "none", "suite": {"id_domain": "real", "templates": [CAPTION]}}
    return step_cost(trial(model, method, batch, precision=precision, data=data), classes=1000)


def at_data_sheet(kind, name, model, batch):
    """Images per second at the peak of a card's data sheet."""
    return batch / (EFFICIENCY * CARDS[name].seconds(operations(kind, model, batch), "bf16"))


def decoded_a_second(folder, number=400):
    """JPEGs of a smooth random image with noise, 500 x 375 pixels, decoded and cropped by one
    thread in a second of CPU time, and their bytes."""
    rng, image = np.random.default_rng(0), np.zeros((375, 500, 3))
    for octave in range(7):
        side = 3 * 2**octave
        small = rng.uniform(0, 255, (side, side, 3)).astype(np.uint8)
        large = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        image += np.asarray(large) / 2 ** (octave + 1)
    image = (image + rng.normal(size=image.shape) * 8).clip(0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=90)
    root = Path(folder) / "photos"
    file = root / "real" / "train" / "0.parquet"
    file.parent.mkdir(parents=True)
    write_images(file, [LabelledImage(data.getvalue(), "0.jpg", 0)], ("thing",), {})
    images, config = ImageDataset(root, "real", "train"), trial("tiny-clip", "ft", 1).data
    image_input = ImageInput(224, (0.5,) * 3, (0.5,) * 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.process_time()
    for index in range(number):
        train_view(images.pixels(0), image_input, generator(0, "view", 0, index), config)
    seconds = time.process_time() - began
    torch.set_num_threads(threads)
    return number / seconds, len(data.getvalue())


def main():
    """Print the three tables."""
    head = "memory MB, measured | predicted | GFLOP, measured | predicted"
    print(f"| model | batch | method | {head} |\n|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for model in MODELS:
            name = model if model == "tiny-clip" else random_model(folder, model).name
            for batch, method in product(BATCHES, METHODS):
                memory, flops = compare(trial(name, method, batch))
                print(
                    f"| {model} | {batch} | {method} | {memory[1] / 1e6:.1f} | "
                    f"{memory[0] / 1e6:.1f} ({memory[0] / memory[1] - 1:+.1%}) | "
                    f"{flops[1] / 1e9:.2f} | {flops[0] / flops[1] - 1:+.1%} |",
                    flush=True,
                )
        rate, size = decoded_a_second(folder)
    print("\n| | card | model | images/s, published | at the data sheet's peak | efficiency |")
    print("|---|---|---|---|---|---|")
    for kind, card, model, batch, published in PUBLISHED:
        at_peak = at_data_sheet(kind, card, model, batch)
        row = f"| {kind} | {card} | {model} | {published:,} | {at_peak:,.0f} | "
        print(f"{row}{published / at_peak:.2f} |", flush=True)
    print("\n| source | method | model | images | precision | GB, published | flash | plain |")
    print("|---|---|---|---|---|---|---|---|")
    for source, *case, published in PUBLISHED_GB:
        flash = with_long_captions(*case).peak_bytes / 1e9
        with sdpa_kernel(SDPBackend.MATH):  # as before PyTorch 2
            plain = with_long_captions(*case).peak_bytes / 1e9
        row = f"| {source} | {' | '.join(map(str, case))} | {published} | "
        print(f"{row}{flash:.1f} | {plain:.1f} |", flush=True)
    print(f"\n{rate:.0f} JPEGs of {size / 1e3:.0f} KB in a second of a core")


if __name__ == "__main__":
    main()
