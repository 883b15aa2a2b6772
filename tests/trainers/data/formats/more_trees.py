"""Miniature sources in the general layouts: arrays, tars, class folders and Parquet.

Every image is real, in a colour of its own.
"""

import io
import json
import tarfile
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.images import file_of
from tests.trainers.data.formats import trees
from tests.trainers.data.formats.trees import draw
from trainers.data.formats.index import LayoutOptions

ARRAY_LABELS = {
    "DomainNetReal_x224": [0, 343, 344, 0],
    "DomainNetSketch_x224": [344, 1],
    "ImageNetR_x224": [0, 199, 3],
    "ImageNet_x224": [999, 0],
}
"""Labels of the arrays that `make_arrays` writes, in the order of their images."""


def encoded(name, extension="png", size=(6, 4)):
    """A small image in a colour made from its name."""
    red, green, blue = sha256(name.encode()).digest()[:3]
    image = Image.new("RGB", size, (red, green, blue))
    return file_of(image, Image.registered_extensions()[f".{extension}"])


def pixels(count, size=8, seed=0):
    """(count, size, size, 3) uint8 images of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def make_arrays(root):
    """Four of the official release's folders with the labels of `ARRAY_LABELS`."""
    for seed, (name, labels) in enumerate(ARRAY_LABELS.items()):
        folder = root / name
        folder.mkdir(parents=True)
        np.save(folder / "test_images.npy", pixels(len(labels), seed=seed))
        np.save(folder / "test_labels.npy", np.array(labels))
    return root


def write_tar(path, members):
    """A tar of files in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def make_webdataset(root):
    """Two tars in `train` and one in `test`, of three classes; labels in the usual spellings."""
    (root / "train").mkdir(parents=True)
    (root / "classnames.txt").write_text("cat\ndog\nhot air balloon\n")
    write_tar(
        root / "train" / "0.tar",
        {
            "000000.jpg": encoded("a", "jpg"),
            "000000.cls": b"0",
            "000001.png": encoded("b"),
            "000001.cls.txt": b"2\n",
            "000001.txt": b"a balloon over a field\n",
        },
    )
    write_tar(
        root / "train" / "1.tar",
        {
            "./more/000000.json": json.dumps({"label": 1, "width": 6}).encode(),
            "./more/000000.JPEG": encoded("c", "jpg"),
        },
    )
    write_tar(
        root / "test" / "0.tar",
        {"000000.webp": encoded("d", "webp"), "000000.json": b'{"cls": 1}'},
    )
    return root


def make_folders(root):
    """`train` with three classes of two images, `valid` and `test` with one image each."""
    for split, count in (("train", 2), ("valid", 1), ("test", 1)):
        for name in ("Zebra", "cat", "t-shirt"):
            for number in range(count):
                draw(root / split / name / f"{split}_{number}.jpg")
    return root


def make_domain_folders(root):
    """Domains `real` and `sketch`, without splits; `sketch` lacks the class `dog`."""
    for domain, names in (("real", ("cat", "dog")), ("sketch", ("cat", "emu"))):
        for name in names:
            for number in range(3):
                draw(root / domain / name / f"{domain}_{number}.png")
    return root


def write_parquet(path, images, labels, *, class_names=("cat", "dog"), row_group_size=2):
    """A file as Hugging Face writes it, with class names unless they are None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        None if data is None else {"bytes": data, "path": f"{path.stem}_{row}.png"}
        for row, data in enumerate(images)
    ]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, image_type), "label": list(labels)})
    if class_names is not None:
        features = {
            "image": {"_type": "Image"},
            "label": {"names": list(class_names), "_type": "ClassLabel"},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def make_parquet(root):
    """`data/train-*` in two files and `data/validation-*` in one, of the classes cat and dog."""
    for name, names, labels in (
        ("train-00000-of-00002", "abc", [0, 1, 1]),
        ("train-00001-of-00002", "de", [1, 0]),
        ("validation-00000-of-00001", "f", [0]),
    ):
        write_parquet(root / "data" / f"{name}.parquet", [encoded(n) for n in names], labels)
    return root


TREES = {
    "domainnet": (trees.make_domainnet, LayoutOptions(), 40),
    "imagenet": (trees.make_imagenet, LayoutOptions(), 20),
    "imagenet-v2": (trees.make_imagenet_v2, LayoutOptions(), 8),
    "imagenet-r": (trees.make_imagenet_r, LayoutOptions(), 10),
    "imagenet-a": (trees.make_imagenet_a, LayoutOptions(), 6),
    "imagenet-sketch": (trees.make_imagenet_sketch, LayoutOptions(), 6),
    "objectnet": (trees.make_objectnet, LayoutOptions(), 8),
    "arrays": (make_arrays, LayoutOptions(domains=("real", "imagenet-r")), 7),
    "webdataset": (make_webdataset, LayoutOptions(domain="web"), 4),
    "folders": (make_domain_folders, LayoutOptions(domains=("all",)), 12),
    "parquet": (make_parquet, LayoutOptions(domain="pets"), 6),
}
"""A miniature source of each layout, and its number of images."""
