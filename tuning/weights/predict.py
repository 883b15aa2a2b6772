"""Classes of images by the model of an exported folder; needs open_clip and nothing else.

`lipsum-tune export` copies this file beside the model: `python predict.py image.jpg ...` prints
file, class and probability. An image that cannot be read is named on stderr; the exit status is
then 1.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torchvision import transforms

_BATCH = 64
"""Images that `predict` classifies at a time."""


class Classifier:
    """The model with its head, on a GPU if there is one."""

    def __init__(self, folder: Path | str = ".") -> None:
        about = json.loads(Path(folder, "classes.json").read_text(encoding="utf-8"))
        self.classes, self.scale = about["classes"], about["logit_scale"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        clip, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.clip = clip.eval().to(self.device)
        self.head = load_file(Path(folder, "head.safetensors"))["head"].to(self.device)
        view = about["preprocessing"]
        crop = view["crop_pct"][about["id_domain"]]
        if view["resize_mode"] == "shortest" and crop < 1:  # open_clip's own shows the whole side
            resized, how = round(view["size"] / crop), view["interpolation"]
            self.preprocess = transforms.Compose(
                [
                    transforms.Resize(resized, transforms.InterpolationMode(how)),
                    transforms.CenterCrop(view["size"]),
                    transforms.ToTensor(),
                    transforms.Normalize(view["mean"], view["std"]),
                ]
            )

    @torch.no_grad()
    def probabilities(self, images: Iterable[Image.Image]) -> Tensor:
        """(N, K), in the order of `classes`."""
        views = torch.stack([self.preprocess(prepared(image)) for image in images])
        features = self.clip.encode_image(views.to(self.device), normalize=True)
        return (self.scale * features @ self.head.T).softmax(dim=-1).cpu()

    def __call__(self, image: Image.Image) -> str:
        """The most probable class."""
        return str(self.classes[int(self.probabilities([image]).argmax())])

    def predict(self, model_input: Any, params: Any = None) -> Any:
        """MLflow's: probabilities for the bytes of image files in the column `image`."""
        files = [io.BytesIO(file) for file in model_input["image"]]
        batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
        rows = [self.probabilities(map(Image.open, batch)) for batch in batches]
        return type(model_input)(torch.cat(rows).double().numpy(), columns=self.classes)


_load_pyfunc = Classifier  # where MLflow looks for it


def prepared(image: Image.Image) -> Image.Image:
    """The image as in the evaluation: upright, 8 bits a channel, on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


if __name__ == "__main__":
    classify = Classifier(Path(__file__).parent)
    is_bad = False
    for name in sys.argv[1:]:
        try:
            (found,) = classify.probabilities([Image.open(name)])
        except Exception as error:  # a corrupt file can make a decoder raise anything
            is_bad = True
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(name, classify.classes[int(found.argmax())], f"{found.max():.3f}", sep="\t")
    if is_bad:
        sys.exit(1)
