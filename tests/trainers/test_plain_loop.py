"""A whole Lipsum-FT as a user would write it in plain PyTorch: the product has the same figures.

The zero-shot model, the batches, the random tokens and the decoded images are those of the product;
steps, learning rates and evaluation are written out.
"""

import copy
import math

import pytest
import torch
from torch.nn import functional

from tests.trainers.curves import changed
from trainers.data.loaders import eval_batches
from trainers.fine_tune import fine_tune, training_batches
from trainers.loop.images import load_split, open_images
from trainers.loop.training import start
from trainers.texts import random_texts

WARM_UP = 2
"""Of six steps."""
SHARED = ("train/task_loss", "train/reg", "id_val/acc", "id_val/nll", "ood_val/mean_acc")


def plain_reports(trial):
    """The metrics of `SHARED` at every evaluation."""
    training, lr, steps = start(trial), trial.optim.lr, trial.steps
    zero_shot, mean, std = training.setup.zero_shot, *moments(training.setup.zero_shot.image_input)
    visual = copy.deepcopy(zero_shot.visual).requires_grad_(True)
    head = torch.nn.Parameter(zero_shot.head.clone())
    scale, method = zero_shot.logit_scale, trial.method
    optimizer = torch.optim.AdamW([*visual.parameters(), head], lr=lr, weight_decay=0)
    sums = torch.zeros(2)
    batches = training_batches(training, open_images(trial.data, "real", "train"))
    for step, (views, labels) in enumerate(batches):
        fallen = (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP))) / 2
        factor = (step + 1) / WARM_UP if step < WARM_UP else fallen
        optimizer.param_groups[0]["lr"] = lr * factor
        pixels = (views.float() / 255 - mean) / std
        features = functional.normalize(visual(pixels), dim=-1)
        task = functional.cross_entropy(scale * features @ head.T, labels)
        with torch.no_grad():
            before = zero_shot.image_features(pixels)
            size = method.text_count, method.text_length
            tokens = random_texts(zero_shot.vocabulary, *size, seed=trial.seed, step=step)
            texts = zero_shot.encode_tokens(tokens)
        gap = (scale * (features - before) @ texts.T).square().mean() / 2
        optimizer.zero_grad()
        (task + method.reg_weight * gap).backward()
        optimizer.step()
        sums += torch.stack([task.detach(), gap.detach()])
        if (step + 1) % trial.eval.every == 0:
            accs, nlls = [], []
            for images in load_split(trial, "val").values():
                whole, of = next(eval_batches(images, zero_shot.image_input, len(images)))
                with torch.no_grad():
                    seen = functional.normalize(visual((whole.float() / 255 - mean) / std), dim=-1)
                    logits = scale * seen @ head.T
                accs.append(100 * float((logits.argmax(dim=-1) == of).float().mean()))
                nlls.append(float(functional.cross_entropy(logits, of)))
            id_acc, *ood_accs = accs
            ood = sum(ood_accs) / len(ood_accs)
            yield [*(sums / trial.eval.every).tolist(), id_acc, nlls[0], ood]
            sums.zero_()


def moments(image_input):
    """Mean and deviation of pixels, (3, 1, 1) each."""
    return (torch.tensor(of).view(3, 1, 1) for of in (image_input.mean, image_input.std))


def test_a_plain_loop_has_the_figures_of_the_product(trial):
    config = changed(trial, optim__warmup_fraction=WARM_UP / trial.steps)
    for plain, report in zip(plain_reports(config), fine_tune(config), strict=True):
        assert plain == pytest.approx([report.metrics[name] for name in SHARED], rel=1e-5)
