"""Near duplicates between splits, of which some are planted as resized and recompressed copies."""

import csv
import io
import re
import shutil

import numpy as np
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from trainers.data.dataset import ImageDataset
from trainers.data.schema import LabelledImage, part_path, write_images
from tuning import duplicates
from tuning.cli import app


def rewritten(image, scale, quality):
    """A copy as another site would keep it."""
    size = [round(scale * side) for side in image.size]
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_blocks_change_nothing(monkeypatch):
    features = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
    among = torch.nn.functional.normalize(torch.randn(33, 8), dim=-1)
    by_hand = (features @ among.T).numpy()
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    cosine, index = duplicates._nearest(features, among, torch.device("cpu"))
    np.testing.assert_allclose(cosine, by_hand.max(axis=1), rtol=1e-6)
    assert index.tolist() == by_hand.argmax(axis=1).tolist()


def test_planted_copies_are_found_with_their_originals(whole_root, tmp_path, monkeypatch):
    """In the test split of real are three copies of training images."""
    root = tmp_path / "planted"
    for domain in ("real", "sketch"):
        shutil.copytree(whole_root / domain, root / domain)
    train = ImageDataset(root, "real", "train")
    copies = [
        LabelledImage(rewritten(train.decode(row), scale, quality), f"copy-{row}", 0)
        for row, scale, quality in ((3, 0.8, 75), (9, 1.5, 70), (12, 1, 60))
    ]
    write_images(part_path(root, "real", "test", 1), copies, train.class_names)
    suite = {"id_domain": "real", "ood_domains": ["sketch"]}
    monkeypatch.chdir(tmp_path)
    values = {"trial": {"data": {"root": str(root), "suite": suite}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["zero-shot", "mine.yaml", "--check-duplicates"])
    assert done.exit_code == 0, done.output
    threshold = float(re.search(r"at least (\S+),", done.output)[1])
    assert 0.9 < threshold < 1
    with (tmp_path / "near_duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["cosine"]) >= threshold - 1e-4 for row in rows)
    of = [row for row in rows if (row["first"], row["second"]) == ("real/train", "real/test")]
    pairs = {row["path in second"]: row["path in first"] for row in of}
    assert {name: pairs[name] for name in pairs if name.startswith("copy")} == {
        f"copy-{row}": train.path(row) for row in (3, 9, 12)
    }
    assert not any((row["first"], row["second"]) == ("real/train", "sketch/test") for row in rows)
    line = next(line for line in done.output.splitlines() if line.startswith("real/test"))
    assert line.split()[1:3] == ["real/train", str(len(of))]
