"""Lipsum-FT in plain PyTorch: what a user would write without a search of this project.

It has the steps, the losses and the validation accuracies of the quickstart. The zero-shot model
with its head, its tokenizer and the decoded images come from this project; the training loop, the
views, the random texts and the evaluation are plain PyTorch and torchvision.
"""

import copy
import json
import math
import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from trainers.data.config import DataConfig
from trainers.data.dataset import ImageDataset
from trainers.data.store import open_root
from trainers.models.config import ModelConfig
from trainers.models.zero_shot import load_zero_shot

DATA = DataConfig()
BICUBIC = v2.InterpolationMode.BICUBIC
BATCH_SIZE, EVAL_BATCH_SIZE, TEXTS, WARM_UP = 64, 64, 80, 0.1
ENDS = (2046, 2047)
"""Start and end token."""


class TrainViews(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images, size):
        self.images = images
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, DATA.crop_area, interpolation=BICUBIC),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        view: Tensor = self.transform(self.images.pixels(index))
        return view, torch.as_tensor(self.images.labels[index])


@cache
def zero_shot_model():
    """The model that is fine-tuned, with a head of class prompts."""
    train = ImageDataset(open_root(DATA.root), DATA.id_domain, "train")
    return load_zero_shot(ModelConfig(name="tiny-clip"), DATA.rules.prompts(train.class_names))


@cache
def validation_images():
    """Views (N, 3, H, W) uint8 and labels (N,) of each domain, decoded once in a process."""
    image_input, found = zero_shot_model().image_input, {}
    for domain in DATA.domains:
        images = ImageDataset(open_root(DATA.root), domain, "val")
        views, labels = zip(*images.eval_batches(image_input, EVAL_BATCH_SIZE), strict=True)
        found[domain] = torch.cat(views), torch.cat(labels)
    return found


def train(lr, reg_weight, text_length, *, steps=120, every=40, seed=0):
    """Fine-tune, and yield metrics and a checkpoint at every evaluation."""
    torch.manual_seed(seed)
    zero_shot = zero_shot_model()
    visual = copy.deepcopy(zero_shot.visual).requires_grad_(True)
    head = torch.nn.Parameter(zero_shot.head.clone())
    scale, vocabulary = zero_shot.logit_scale, zero_shot.vocabulary
    ordinary = torch.as_tensor(vocabulary.ids)

    optimizer = torch.optim.AdamW([*visual.parameters(), head], lr=lr, weight_decay=0, fused=True)
    warm_up = round(WARM_UP * steps)

    def factor(step):
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    pixels_of = zero_shot.image_input
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pixels_of.mean, pixels_of.std))
    images = ImageDataset(open_root(DATA.root), DATA.id_domain, "train")
    views = TrainViews(images, pixels_of.size)
    loader = DataLoader(views, BATCH_SIZE, shuffle=True, drop_last=True)

    step, began, sums = 0, time.time(), torch.zeros(2)
    while step < steps:
        for batch, labels in loader:
            pixels = (batch.float() / 255 - mean) / std
            features = functional.normalize(visual(pixels), dim=-1)
            task = functional.cross_entropy(scale * features @ head.T, labels)
            with torch.no_grad():
                before = zero_shot.image_features(pixels)
                drawn = ordinary[torch.randint(len(ordinary), (TEXTS, text_length))]
                first, last = (torch.full((TEXTS, 1), end) for end in ENDS)
                texts = zero_shot.encode_tokens(torch.cat([first, drawn, last], dim=1))
            gap = (scale * (features - before) @ texts.T).square().mean() / 2
            optimizer.zero_grad()
            (task + reg_weight * gap).backward()
            optimizer.step()
            schedule.step()
            sums += torch.stack([task.detach(), gap.detach()])
            step += 1
            if step % every == 0 or step == steps:
                metrics = evaluate(visual, head, scale, mean, std)
                metrics |= {"step": step, "seconds": time.time() - began}
                task_loss, reg = (total / every for total in sums.tolist())
                metrics |= {"train/task_loss": task_loss, "train/reg": reg}
                sums.zero_()
                yield metrics, {"visual": visual.state_dict(), "head": head.detach()}
            if step == steps:
                break


@torch.no_grad()
def evaluate(visual, head, scale, mean, std):
    """Accuracy in percent and NLL of each domain, and the means of the accuracies."""
    found = {}
    for domain, (views, labels) in validation_images().items():
        right, nll = 0, 0.0
        for batch, target in zip(
            views.split(EVAL_BATCH_SIZE), labels.split(EVAL_BATCH_SIZE), strict=True
        ):
            features = functional.normalize(visual((batch.float() / 255 - mean) / std), dim=-1)
            logits = scale * features @ head.T
            right += int((logits.argmax(dim=-1) == target).sum())
            nll += float(functional.cross_entropy(logits, target, reduction="sum"))
        found[f"{domain}/acc"] = 100 * right / len(labels)
        found[f"{domain}/nll"] = nll / len(labels)
    of_id = found[f"{DATA.id_domain}/acc"]
    of_ood = [found[f"{domain}/acc"] for domain in DATA.ood_domains]
    ood = sum(of_ood) / len(of_ood)
    return {
        **found,
        "id_val/acc": of_id,
        "ood_val/mean_acc": ood,
        "val/mean_acc": (of_id + ood) / 2,
    }


def append(results, params, metrics):
    with results.open("a") as file:
        file.write(json.dumps({"time": time.time(), "params": params, **metrics}) + "\n")
