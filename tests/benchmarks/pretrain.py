"""Pre-train `tiny-clip`: `python -m tests.benchmarks.pretrain OUTPUT`.

`trial.model.name=local-dir:OUTPUT` fine-tunes another one.

CLIP's recipe (Radford et al., 2021) at the size of a laptop: symmetric contrastive loss between
images and captions, on every OpenMoji drawing redrawn in all five domains. The images are drawn
with another seed than those of the embedded benchmark, so none of its images is used here. Its
drawings are used: like CLIP, this model has seen the things that it is later asked to name.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import platformdirs
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from open_clip.loss import ClipLoss
from open_clip.transform import PreprocessCfg
from rich.progress import track
from safetensors.torch import save_file
from torch import nn

from tests.benchmarks.captions import all_class_drawings, all_drawings, caption, tidy_name
from trainers.data.config import DataConfig
from trainers.data.store import open_store
from trainers.data.transforms import normalise, train_view
from trainers.embedded_benchmark.arrays import SIZE
from trainers.embedded_benchmark.classes import DOMAINS
from trainers.embedded_benchmark.render import render
from trainers.models import tiny_clip
from trainers.models.clip import MERGES, load_tokenizer, model_config, vocabulary
from trainers.models.config import ModelConfig
from trainers.models.image import image_input
from trainers.models.text import encode_tokens, shortened
from trainers.seeding import generator
from trainers.texts.random_texts import effective_rank, random_texts, second_moment

IMAGE_SEED = 7_919
"""First number of the key of every image here; the seeds of the benchmark itself are small."""
CROPS = DataConfig(crop_area=(0.9, 1.0))
"""What open_clip pre-trains with, so that the model reads a whole image best."""


@dataclass(frozen=True)
class Recipe:
    steps: int = 6000
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.1
    renderings: int = 6
    """Images a drawing and domain."""
    seed: int = 0


def pretrain(recipe, output, keep):
    """Train from scratch and write a folder that open_clip loads (float16), and the figures.

    If `keep` is given, one is written after each so many steps, `OUTPUT/<step>`.
    """
    torch.manual_seed(recipe.seed)
    config = model_config(ModelConfig())
    model = open_clip.model.CLIP(**config)
    visual = model.visual
    preprocessing = json.loads(tiny_clip.CONFIG.read_text())["preprocess_cfg"]
    cfg = PreprocessCfg(size=config["vision_cfg"]["image_size"], **preprocessing)
    visual.preprocess_cfg = dataclasses.asdict(cfg)
    # As in open_clip's own training, only matrices decay.
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True,
    )  # fmt: skip
    loss_of = ClipLoss()
    start = time.perf_counter()
    for step, (views, tokens) in enumerate(_batches(recipe, model)):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        features = nn.functional.normalize(visual(views), dim=-1)
        text_features = encode_tokens(model, tokens)
        loss = loss_of(features, text_features, model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        done = step + 1
        if done % (keep or 500) == 0 or done == recipe.steps:
            folder = output / str(done) if keep else output
            _write(model, recipe, folder, done, loss.item(), time.perf_counter() - start)


def _batches(recipe, model):
    """Normalised views and their captions' tokens."""
    drawings = {code_point: row for row, code_point in enumerate(all_drawings())}
    images = _rendered(recipe.renderings)
    tokenize, pixels = load_tokenizer(ModelConfig()), image_input(model)
    for step in range(recipe.steps):
        rng = generator(recipe.seed, "pretrain", step)
        views, captions = [], []
        for code_point, class_name in _drawings_of_a_batch(recipe.batch_size, rng):
            domain, rendering = rng.integers(len(DOMAINS)), rng.integers(recipe.renderings)
            image = torch.from_numpy(np.array(images[drawings[code_point], domain, rendering]))
            views.append(train_view(image.permute(2, 0, 1), pixels, rng, CROPS))
            name = tidy_name(code_point)
            if class_name is not None and rng.random() < 0.5:
                name = class_name.replace("_", " ").replace("-", " ")
            # Half the captions name the domain, half are made of OpenAI's templates.
            if rng.random() < 0.5:
                captions.append(caption(name, DOMAINS[domain], rng))
            else:
                template = OPENAI_IMAGENET_TEMPLATES[rng.integers(len(OPENAI_IMAGENET_TEMPLATES))]
                captions.append(str(template(name)))
        tokens = tokenize(captions)
        longest = int(tokens.argmax(dim=-1).max()) + 1
        yield normalise(torch.stack(views), pixels), tokens[:, :longest]


def _drawings_of_a_batch(size, rng):
    """Code points with their class: half of the benchmark's classes, half of everything else.

    No class and no drawing comes twice, or the loss would push pairs apart that belong together.
    """
    classes = all_class_drawings()
    in_classes = {code_point for codes in classes.values() for code_point in codes}
    names = rng.choice(list(classes), size=min(size // 2, len(classes)), replace=False)
    chosen: list[tuple[str, str | None]] = [(str(rng.choice(classes[n])), str(n)) for n in names]
    others = [point for point in all_drawings() if point not in in_classes]
    rest = rng.choice(others, size=size - len(chosen), replace=False)
    return chosen + [(str(code_point), None) for code_point in rest]


def _rendered(renderings):
    """(drawings, domains, renderings, SIZE, SIZE, 3) uint8, kept in the user's cache folder."""
    drawings = all_drawings()
    path = platformdirs.user_cache_path("lipsum-tune") / f"pretrain_{renderings}.npy"
    if not path.exists():
        shape = (len(drawings), len(DOMAINS), renderings, SIZE, SIZE, 3)
        images = np.empty(shape, dtype=np.uint8)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(_render_all, drawings, [renderings] * len(drawings), chunksize=8)
            for row, rendered in enumerate(track(rows, "Drawing", total=len(drawings))):
                images[row] = rendered
        with open_store(path.parent).write(path.name) as file:
            np.save(file, images)
    return np.load(path, mmap_mode="r")


def _render_all(code_point, renderings):
    return np.stack(
        [
            [render(code_point, domain, (IMAGE_SEED, index)) for index in range(renderings)]
            for domain in DOMAINS
        ]
    )


@torch.no_grad()
def _write(model, recipe, output, step, loss, seconds):
    """Weights and figures so far; float16 halves the file and costs no accuracy to speak of."""
    tokens = random_texts(vocabulary(ModelConfig()), 1024, 8, seed=0, step=0)
    texts = encode_tokens(model, shortened(model, tokens))
    figures = {
        "step": step,
        "loss": round(loss, 4),
        "logit_scale": round(float(model.logit_scale.exp()), 2),
        "effective_rank_of_random_texts": round(effective_rank(second_moment(texts)), 2),
        "seconds": round(seconds),
        "recipe": dataclasses.asdict(recipe),
    }
    print(json.dumps(figures), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output / tiny_clip.WEIGHTS.name)
    shutil.copyfile(tiny_clip.CONFIG, output / tiny_clip.CONFIG.name)
    shutil.copyfile(tiny_clip.FOLDER / MERGES, output / MERGES)
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the weights and figures")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--keep", type=int, help="write OUTPUT/<step> each so many steps")
    given = parser.parse_args()
    pretrain(Recipe(steps=given.steps, seed=given.seed), given.output, given.keep)


if __name__ == "__main__":
    main()
