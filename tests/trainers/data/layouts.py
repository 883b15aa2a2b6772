"""A miniature source of every layout, and the images that must come out of it."""

from dataclasses import dataclass, field
from hashlib import sha256

import datasets
from PIL import Image

from tests.images import file_of
from trainers.data.published import wordnet_ids

TENCH, GOLDFISH, SHARK = wordnet_ids()[:3]


@dataclass
class Expected:
    """Images as (class, colour), by domain and split; with the split None, in any of them."""

    layout: str
    images: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    """Of the source."""
    roles: dict = field(default_factory=dict)
    left_out: int = 0

    def add(self, domain, split, class_):
        """Expect one more image; returns its content."""
        of_part = self.images.setdefault((domain, split), [])
        red, green, blue = sha256(f"{domain}{split}{class_}{len(of_part)}".encode()).digest()[:3]
        of_part.append((class_, (red, green, blue)))
        return file_of(Image.new("RGB", (8, 6), (red, green, blue)))

    def write(self, root, domain, split, class_, path):
        """Expect one more image, which is a file."""
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(self.add(domain, split, class_))


def folders(root):
    """Two domains, one of which has split folders and the other a class called `train`."""
    expected = Expected("folders", roles={"id_domain": "studio"}, left_out=2)
    for name in ("cup", "t-shirt", "train"):
        for number in range(4):
            below = "more/" if name == "cup" else ""
            expected.write(root, "studio", None, name, f"studio/{name}/{below}{number}.PNG")
    for name in ("cup", "train"):
        for split, word in (("val", "valid"), ("test", "Test")):
            expected.write(root, "street", split, name, f"street/{word}/{name}/1.jpg")
    (root / "street" / "Test" / "cup" / "notes.docx").write_text("not an image")
    (root / "street" / "Test" / "stray.png").write_bytes(b"not in a class")
    (root / "studio" / ".DS_Store").write_text("hidden")
    return expected


def flat(root):
    """Classes alone: one domain without splits."""
    expected = Expected("folders", roles={"domain": "pets"}, left_out=1)
    for name in ("cat", "dog"):
        for number in range(10):
            expected.write(root, "pets", None, name, f"{name}/{number}.png")
    (root / "empty").mkdir()
    (root / "README.md").write_text("Pets.")
    return expected


def write_table(path, rows, classes=("cat", "dog"), **columns):
    """A Parquet file as Hugging Face writes it, of contents and labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("string")
    features = {"image": datasets.Image(decode=False), "label": label}
    features |= dict.fromkeys(columns, datasets.Value("string"))
    images = [data if data is None else {"bytes": data, "path": None} for data, _ in rows]
    values = {"image": images, "label": [label for _, label in rows], **columns}
    made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    made.to_parquet(path)


def parquet(root):
    """Train in two files, validation, and a test split whose labels are secret."""
    expected = Expected("parquet", roles={"domain": "pets"}, left_out=1)
    expected.options["splits"] = {}
    for name, split, labels in (
        ("train-00000-of-00002", "train", (0, 1, 1)),
        ("train-00001-of-00002", "train", (1, 0, 0, 0, 1, 1, 0)),
        ("validation-00000-of-00001", "val", (0, 1)),
    ):
        known = split if split != "train" else None  # a part of it becomes test
        rows = [(expected.add("pets", known, ("cat", "dog")[label]), label) for label in labels]
        write_table(root / "data" / f"{name}.parquet", rows)
    write_table(root / "data" / "test-00000-of-00001.parquet", 2 * [(b"secret", -1)])
    return expected


def hub(root):
    """A repository with two configurations, string labels and a column of domains."""
    expected = Expected("hub", roles={"id_domain": "photo"})
    expected.options |= {"subset": "pets", "domain_column": "style", "label_column": "label"}
    rows, styles = [], []
    for style in ("photo", "art"):
        for name in ("dog", "cat") * 5:
            rows.append((expected.add(style, None, name), name))
            styles.append(style)
    write_table(root / "pets" / "full.parquet", rows, None, style=styles)
    write_table(root / "other" / "full.parquet", [(b"x", "y")], None, style=["photo"])
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: pets\n  data_files: pets/*.parquet\n"
        "- config_name: other\n  data_files: other/*.parquet\n---\n"
    )
    return expected


def domainnet(root):
    """Official lists, whose order of labels is nobody's sorting; one domain is not chosen."""
    classes = ("teddy-bear", "tent", "The_Eiffel_Tower", "t-shirt")
    roles = {"id_domain": "real", "ood": ["sketch"]}
    expected = Expected("domainnet", roles=roles, left_out=1)
    for domain in ("real", "sketch", "clipart"):
        lines = {"train": [], "test": []}
        for label, name in enumerate(classes):
            for number in range(4):
                split = "test" if number == 3 else "train"
                path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.jpg"
                known = "test" if split == "test" else None if domain == "real" else "val"
                if domain != "clipart":
                    expected.write(root, domain, known, name, path)
                lines[split].append(f"{path} {label}")
        if domain == "real":
            lines["train"].append(lines["test"][0])  # it stays in test
        for split, text in lines.items():
            (root / f"{domain}_{split}.txt").write_text("\n".join(text) + "\n")
    return expected


def imagenet(root):
    """Two classes, and one that train lacks."""
    expected = Expected("imagenet", left_out=1)
    for name in (GOLDFISH, TENCH):
        for number in range(4):
            expected.write(root, "imagenet", None, name, f"train/{name}/{number}.JPEG")
            expected.write(root, "imagenet", "test", name, f"val/{name}/{number}.JPEG")
    (root / "val" / SHARK).mkdir()
    (root / "val" / SHARK / "1.JPEG").write_bytes(b"x")
    return expected


def shift(layout, classes):
    """A shift whose folders stand for the classes of these WordNet ids, and a file beside them."""

    def make(root):
        expected = Expected(layout, left_out=1)
        for folder, name in classes.items():
            for number in range(3):
                expected.write(root, layout, None, name, f"{folder}/{number}.jpeg")
        (root / "README.txt").write_text("A class a folder.\n")
        return expected

    return make


def some(ids):
    return {name: name for name in (wordnet_ids(ids)[3], wordnet_ids(ids)[0])}


LAYOUTS = {
    "folders": folders,
    "flat": flat,
    "parquet": parquet,
    "hub": hub,
    "domainnet": domainnet,
    "imagenet": imagenet,
    "imagenet-v2": shift("imagenet-v2", {str(n): wordnet_ids()[n] for n in (2, 10, 999)}),
    "imagenet-r": shift("imagenet-r", some("imagenet_r")),
    "imagenet-a": shift("imagenet-a", some("imagenet_a")),
    "imagenet-sketch": shift("imagenet-sketch", some("imagenet")),
}
