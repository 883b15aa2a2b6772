"""What an exported folder says to somebody who has open_clip and safetensors alone."""

import open_clip
import torch
from safetensors.torch import load_file


def open_clip_logits(folder, images):
    """(B, K) of normalised images (B, 3, H, W)."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    head = load_file(folder / "head.safetensors")["head"]
    with torch.no_grad():
        features = model.eval().encode_image(images, normalize=True)
        logits = model.logit_scale.exp() * features @ head.T
    return logits
