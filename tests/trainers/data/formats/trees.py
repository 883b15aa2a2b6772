"""Miniature trees of DomainNet, ImageNet and its shifts, and ObjectNet, as their archives unpack.

Every image is a real JPEG or PNG, in a colour of its own. Nothing in a tree is unusual unless
its function says so.
"""

import json
from hashlib import sha256

from PIL import Image

DOMAINNET_CLASSES = (
    "teddy-bear",
    "tent",
    "The_Eiffel_Tower",
    "tiger",
    "trumpet",
    "t-shirt",
    "umbrella",
)
"""In the order of the labels, which is neither Python's nor quite anybody's sorting."""

TENCH, GOLDFISH, WHITE_SHARK = "n01440764", "n01443537", "n01484850"
HAMMERHEAD, STINGRAY, GOLDFINCH = "n01494475", "n01498041", "n01531178"
ACORN, TOILET_TISSUE = "n12267677", "n15075141"

IMAGENET_TRAIN = (TENCH, GOLDFISH, WHITE_SHARK, TOILET_TISSUE)

OBJECTNET_LABELS = {
    "air_freshener": "Air freshener",
    "alarm_clock": "Alarm clock",
    "banana": "Banana",
    "bicycle": "Bicycle",
    "chair": "Chair",
}
OBJECTNET_NAMES = {  # an ImageNet name has commas of its own
    "Chair": "barber chair; folding chair; rocking chair, rocker",
    "Alarm clock": "analog clock; digital clock",
    "Banana": "banana",
    "Bicycle": "mountain bike, all-terrain bike, off-roader; bicycle-built-for-two, tandem bicycle",
}
OBJECTNET_INDICES = {  # in ImageNet, in the order of WordNet ids
    "barber chair": 423,
    "folding chair": 559,
    "rocking chair, rocker": 765,
    "analog clock": 409,
    "digital clock": 530,
    "banana": 954,
    "mountain bike, all-terrain bike, off-roader": 671,
    "bicycle-built-for-two, tandem bicycle": 444,
}


def draw(file, size=(16, 12), frame=None):
    """An image of `size` (width, height) in a colour made from the file's name, perhaps framed.

    The format is the name's; `.JPEG` is a JPEG. The frame is two pixels wide.
    """
    red, green, blue = sha256(file.name.encode()).digest()[:3]
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, frame or (red, green, blue))
    if frame:
        image.paste((red, green, blue), (2, 2, size[0] - 2, size[1] - 2))
    image.save(file)
    return file


def make_domainnet(root, domains=("painting", "real")):
    """Two images a class in train and one in test; painting's train list lacks the t-shirts.

    The real train list of painting lacks them, too.
    """
    for domain in domains:
        train, test = [], []
        for label, name in enumerate(DOMAINNET_CLASSES):
            for number in (1, 2, 3):
                path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.jpg"
                draw(root / path)
                (test if number == 3 else train).append(f"{path} {label}")
        if domain == "painting":
            train = [line for line in train if "/t-shirt/" not in line]
        for split, lines in (("train", train), ("test", test)):
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def make_imagenet(root):
    """Four classes, three images each in train and two in val."""
    for name in IMAGENET_TRAIN:
        for number in (10, 9, 100):
            draw(root / "train" / name / f"{name}_{number}.JPEG")
        for number in (1, 2):
            draw(root / "val" / name / f"ILSVRC2012_val_0000{number}_{name}.JPEG")
    return root


def make_imagenet_v2(root):
    """Classes 2, 10, 100 and 999 in the archive's folder, two images each."""
    archive = root / "imagenetv2-matched-frequency-format-val"
    for index in (2, 10, 100, 999):
        for letter in "ab":
            draw(archive / str(index) / f"{letter}{index}.jpeg")
    return root


def make_imagenet_r(root):
    """Five of the 200 classes, two images each, and the archive's README."""
    return _shift(
        root, "imagenet-r", (GOLDFISH, WHITE_SHARK, HAMMERHEAD, STINGRAY, ACORN), "art_{}.jpg"
    )


def make_imagenet_a(root):
    """Three of the 200 classes, two images each, and the archive's README."""
    return _shift(root, "imagenet-a", (STINGRAY, GOLDFINCH, ACORN), "0.00{} _ bird _ 0.9.jpg")


def make_imagenet_sketch(root):
    """Three of the 1000 classes, two images each."""
    return _shift(root, "sketch", (TENCH, GOLDFISH, TOILET_TISSUE), "sketch_{}.JPEG")


def make_objectnet(root):
    """Four classes that ImageNet has and one that it has not, two PNGs each with a red frame."""
    archive = root / "objectnet-1.0"
    for folder in OBJECTNET_LABELS:
        for number in (1, 2):
            draw(archive / "images" / folder / f"{folder}{number}.png", (24, 20), frame="red")
    write_objectnet_mappings(archive / "mappings")
    return root


def write_objectnet_mappings(folder):
    """The four files; classes that no table here names are called `class 0`, `class 1` and so on.

    The class of index i is on line 7 i + 3 (modulo 1000) of the list of 2012.
    """
    names = {index: name for name, index in OBJECTNET_INDICES.items()}
    line_of = {index: (7 * index + 3) % 1000 for index in range(1000)}
    lines = [""] * 1000
    for index, line in line_of.items():
        lines[line] = names.get(index, f"class {index}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    for file, values in (
        ("folder_to_objectnet_label.json", OBJECTNET_LABELS),
        ("objectnet_to_imagenet_1k.json", OBJECTNET_NAMES),
        ("pytorch_to_imagenet_2012_id.json", {str(i): n for i, n in line_of.items()}),
    ):
        (folder / file).write_text(json.dumps(values, indent=2))


def _shift(root, archive, classes, file):
    for name in classes:
        for number in (1, 2):
            draw(root / archive / name / file.format(number))
    (root / archive / "README.txt").write_text("A class a folder.\n")
    return root
