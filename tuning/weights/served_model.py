"""An exported model as MLflow serves it: image files in, class probabilities out.

MLflow copies this file beside the exported folder and runs the copy wherever the model is loaded.
So it imports nothing of this project, and no object is pickled.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import ExifTags, Image
from safetensors.torch import load_file
from torchvision import transforms

BATCH_SIZE = 64


class ServedModel(PythonModel):
    """Classifies the bytes of image files, resized and cropped as in the evaluation."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model and its head, onto a GPU if there is one."""
        folder = Path(context.artifacts["exported"])
        about = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        self.classes, self.logit_scale = columns(about), about["logit_scale"]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        clip, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.clip = clip.eval().to(self.device)
        self.head = load_file(folder / "head.safetensors")["head"].to(self.device)
        view = about["preprocessing"]
        crop = view["crop_pct"][about["id_domain"]]
        if view["resize_mode"] == "shortest" and crop < 1:  # open_clip's own crops nothing
            resized = round(view["size"] / crop)
            self.preprocess = transforms.Compose(
                [
                    transforms.Resize(resized, transforms.InterpolationMode(view["interpolation"])),
                    transforms.CenterCrop(view["size"]),
                    transforms.ToTensor(),
                    transforms.Normalize(view["mean"], view["std"]),
                ]
            )

    @torch.no_grad()
    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row of probabilities for each image file in the column `image`."""
        found = []
        for first in range(0, len(model_input), BATCH_SIZE):
            files = model_input["image"].iloc[first : first + BATCH_SIZE]
            images = (prepared(Image.open(io.BytesIO(file))) for file in files)
            views = torch.stack([self.preprocess(image) for image in images])
            features = self.clip.encode_image(views.to(self.device), normalize=True)
            found.append((self.logit_scale * features @ self.head.T).softmax(dim=-1).cpu())
        return pd.DataFrame(torch.cat(found).double().numpy(), columns=self.classes)


def columns(about: dict[str, Any]) -> list[str]:
    """The names of the classes in the order of the head; those of the data if two are alike."""
    names: list[str] = about["classes"]
    return names if len(set(names)) == len(names) else list(about["class_names"])


def prepared(image: Image.Image) -> Image.Image:
    """The image as in the evaluation: upright, 8 bits a channel, on white."""
    op = Image.Transpose
    upright = {  # by EXIF orientation
        2: op.FLIP_LEFT_RIGHT,
        3: op.ROTATE_180,
        4: op.FLIP_TOP_BOTTOM,
        5: op.TRANSPOSE,
        6: op.ROTATE_270,
        7: op.TRANSVERSE,
        8: op.ROTATE_90,
    }
    image.load()
    try:  # `ImageOps.exif_transpose` raises at malformed EXIF
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        orientation = 1
    if orientation in upright:
        image = image.transpose(upright[orientation])
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


set_model(ServedModel())
