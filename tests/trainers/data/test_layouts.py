"""The contract of all layouts: through `prepare`, and read as a trial reads."""

import errno
import os
import shutil
import socket
from collections import Counter
from itertools import product
from typing import get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.images import file_of
from tests.trainers.data.layouts import LAYOUTS, write_table
from trainers.data.dataset import ImageDataset
from trainers.data.prepare import Options, prepare
from trainers.data.published import wordnet_ids
from trainers.data.sources import GENERAL, Layout, Source, open_domain
from trainers.data.store import CACHE_VARIABLE, open_store
from trainers.errors import ConfigError
from tuning.prepare import sources_of

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path):
    """A source on disk, and what is expected of it."""
    # The package `datasets` takes brackets for a pattern.
    root = tmp_path / ("source" if request.param in GENERAL[1:] else "source [1]")
    expected = LAYOUTS[request.param](root)
    return Source(path=str(root), layout=expected.layout, **expected.options), expected


def images_of(root, domain):
    """(class, colour) of every image by split, as a trial reads them."""
    found = {}
    for split in SPLITS:
        if (root / domain / split).is_dir():
            images = ImageDataset(root, domain, split)
            found[split] = [
                (images.class_names[label], images.decode(row).getpixel((4, 3)))
                for row, label in enumerate(images.labels)
            ]
    return found


def test_every_layout_has_a_test():
    assert set(LAYOUTS) - {"flat"} == {*get_args(Layout)}


def test_every_image_is_read_in_its_split_with_its_class(source, tmp_path):
    source, expected = source
    # Published test sets, of which a part becomes val.
    is_shift = source.layout.startswith("imagenet-")
    sources = sources_of(source, **expected.roles)
    id_domain, target = expected.roles.get("id_domain"), tmp_path / "data"
    report = prepare(sources, open_store(target), Options(), id_domain=id_domain)
    assert {domain.domain for domain in report.domains} == {d for d, _ in expected.images}
    assert sum(domain.left_out for domain in report.domains) == expected.left_out
    for domain in report.domains:
        found = images_of(target, domain.domain)
        assert domain.images == {split: len(images) for split, images in found.items()}
        given = {s: v for (d, s), v in expected.images.items() if d == domain.domain}
        known = {split: images for split, images in given.items() if split}
        anywhere = [image for images in found.values() for image in images]
        assert len(anywhere) == sum(map(len, given.values()))
        assert Counter(anywhere) == Counter(i for images in given.values() for i in images)
        for split, images in known.items():
            assert not Counter(images) - Counter(found[split])
        is_ood = id_domain is not None and domain.domain != id_domain
        assert {"val", "test"} <= found.keys()
        is_carved = None in given and not is_ood and not is_shift
        assert ("train" in found) == (is_carved or "train" in known)
    again = prepare(sources, open_store(target), Options(), id_domain=id_domain)
    assert {domain.status for domain in again.domains} == {"kept"}


def test_of_shifts_the_order_of_the_classes_is_kept(tmp_path):
    for layout in ("imagenet-r", "imagenet-a"):
        LAYOUTS[layout](tmp_path / layout)
        source = Source(path=str(tmp_path / layout), layout=layout)
        (found,) = open_domain(source, layout).values()
        assert tuple(found.class_names) == wordnet_ids(layout.replace("-", "_"))
        assert found.class_names == sorted(found.class_names, key=wordnet_ids().index)


def test_a_file_whose_name_is_not_utf8_is_listed(tmp_path):
    write(tmp_path, "cat/1.jpg", os.fsdecode(b"cat/\xff.jpg"))
    found = open_domain(Source(path=str(tmp_path)), "pets")["train"]
    assert found.rows["name"][:] == ["cat/1.jpg"]
    assert found.left_out == [(os.fsdecode(b"cat/\xff.jpg"), "its name is not UTF-8")]


def test_images_of_imagenet_that_are_not_sorted_by_class_are_listed(tmp_path):
    write(tmp_path, f"train/{wordnet_ids()[0]}/1.JPEG", "val/1.JPEG")
    found = open_domain(Source(path=str(tmp_path), layout="imagenet"), "imagenet")
    assert [*found] == ["train"]
    assert found["train"].left_out == [("val/1.JPEG", "not in a class folder")]


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog/back"])
def test_a_link_to_a_folder_above_itself_is_not_followed(target, tmp_path):
    root = write(tmp_path / "pets", "cat/1.jpg", "dog/2.jpg")
    (root / "dog/back").symlink_to("../cat")
    (root / "cat/link").symlink_to(target)
    found = open_domain(Source(path=str(root)), "pets")["train"]
    assert found.rows["name"][:] == ["cat/1.jpg", "dog/2.jpg", "dog/back/1.jpg"]
    assert ("cat/link", "not an image by its name") in found.left_out


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    write(tmp_path, "cat/1.jpg", "dog/2.jpg")
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="dog"):
        open_domain(Source(path=str(tmp_path)), "pets")


def write(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def listed_as(root, text, encoding="utf-8"):
    root.mkdir(parents=True, exist_ok=True)
    (root / "real_train.txt").write_text(text, encoding)
    return root


def script(root):
    """Data beside a script that leaves a file if it runs."""
    write_table(root / "train.parquet", [(b"x", 0), (b"y", 1)])
    code = f"open({str(root / 'ran')!r}, 'w')\nimport datasets\n"
    (root / f"{root.name}.py").write_text(code)
    return root


def labelled(root, label, kind):
    """An image with a label of that kind."""
    features = {"image": datasets.Image(), "label": kind}
    rows = {"image": [{"bytes": b"x", "path": None}], "label": [label]}
    root.mkdir()
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.to_parquet(root / "train.parquet")
    return root


def two_orders(root):
    """Splits that were encoded one by one: the label 0 is a cat in one file, a dog in the other."""
    write_table(root / "train.parquet", [(b"x", 0), (b"y", 1)], ("cat", "dog"))
    write_table(root / "test.parquet", [(b"z", 0)], ("dog", "cat"))
    return root


def tars(root):
    """Tars whose members `datasets` would decode by PyTorch and NumPy."""
    members = write(root.with_name("members"), "1.png", "1.pth", "1.npy")
    shutil.make_archive(str(root / "train" / "0000"), "tar", members)
    return root


REFUSED = {
    "no classes": ("folders", lambda root: write(root, "1.jpg"), r"no image lies in a folder"),
    "domains for classes": (
        "folders",
        lambda root: write(root, *(f"{d}/{c}/1.jpg" for d in "ab" for c in ("cat", "dog"))),
        r"--id names one of several domains",
    ),
    "two folders of a split": (
        "folders", lambda root: write(root, "val/c/1.jpg", "valid/c/1.jpg"), r"are one split",
    ),
    "classes beside splits": (
        "folders", lambda root: write(root, "train/c/1.jpg", "cat/1.jpg"), r"in cat beside them",
    ),
    "no lists": ("domainnet", lambda root: write(root, "real/x.jpg"), r"no official list"),
    "a bad line": ("domainnet", lambda root: listed_as(root, "real/cat/1.jpg"), r"line 1 is not"),
    "not UTF-8": (
        "domainnet", lambda root: listed_as(root, "real/é/1.jpg 0", "latin-1"), r"'utf-8' codec",
    ),
    "a label of two": (
        "domainnet", lambda root: listed_as(root, "real/a/1.jpg 0\nreal/b/1.jpg 0"), r"not match",
    ),
    "a label of none": (
        "domainnet", lambda root: listed_as(root, "real/a/1.jpg 1"), r"do not match",
    ),
    "not ImageNet": ("imagenet", lambda root: write(root, "val/cat/1.jpg"), r"not imagenet: no im"),
    "no Parquet": ("parquet", lambda root: write(root, "x.parquet"), r"cannot be opened"),
    "tars": ("hub", tars, r"its images are in tars .WebDataset.: unpack them"),
    "two orders of classes": ("parquet", two_orders, r"label: its classes have other names or"),
    "a name of nothing": ("hub", lambda root: "nobody/nothing", r"cannot be opened"),
    "a script": ("hub", script, r"scripts are no longer supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_source_that_is_not_one_is_refused_in_one_line(name, tmp_path):
    layout, make, problem = REFUSED[name]
    root = make(tmp_path / "source")
    with pytest.raises(ConfigError, match=problem) as caught:
        open_domain(Source(path=str(root), layout=layout), "real")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "source" / "ran").exists()


def test_a_file_that_is_in_no_split_is_listed(tmp_path):
    options = LAYOUTS["parquet"](tmp_path).options
    shutil.copy(tmp_path / "data/train-00000-of-00002.parquet", tmp_path / "data/more.parquet")
    found = open_domain(Source(path=str(tmp_path), layout="parquet", **options), "d")["train"]
    assert ("data/more.parquet", "not train, val or test by its name") in found.left_out


def test_rows_without_a_label_or_domain_are_listed(tmp_path):
    rows, styles = [(b"x", "cat"), (b"y", ""), (b"z", "cat")], ["photo", "photo", None]
    write_table(tmp_path / "train.parquet", rows, None, style=styles)
    options = {"layout": "parquet", "domain_column": "style", "label_column": "label"}
    source = Source(path=str(tmp_path), **options)
    assert list(sources_of(source)) == ["photo"]
    found = open_domain(source, "photo")["train"]
    assert (found.class_names, found.rows["label"][:]) == (["cat"], [0, -1])
    assert found.left_out == [("split train (1 images)", "of no domain")]


def test_columns_and_class_names_that_are_not_clear_are_asked_for(tmp_path):
    write_table(tmp_path / "two" / "x.parquet", [(b"x", "a")], None, second=["b"])
    source = Source(path=str(tmp_path / "two"), layout="parquet")
    assert open_domain(source, "d")["train"].class_names == ["a"]
    wrong = source.model_copy(update={"label_column": "lable"})
    with pytest.raises(ConfigError, match=r"--label-column: which column is not clear; there are"):
        open_domain(wrong, "d")
    labelled(tmp_path / "number", 1, datasets.Value("int64"))
    with pytest.raises(ConfigError, match=r"names of the classes are not known .--class-names"):
        open_domain(Source(path=str(tmp_path / "number"), layout="parquet"), "d")
    named = {"layout": "parquet", "class_names": ("cat", "dog")}
    labelled(tmp_path / "several", [0, 1], datasets.Sequence(datasets.Value("int64")))
    with pytest.raises(
        ConfigError, match=r"--label-column = 'label': an image has no single label"
    ):
        open_domain(Source(path=str(tmp_path / "several"), **named), "d")
    write_table(tmp_path / "numbered" / "x.parquet", [(b"x", 1), (b"y", 0)], ("0", "1"))
    numbered = Source(path=str(tmp_path / "numbered"), layout="parquet", class_names=("cat", "dog"))
    found = open_domain(numbered, "d")["train"]
    assert (found.class_names, found.rows["label"][:]) == (["cat", "dog"], [1, 0])


def readme(files, **more):
    entry = {"config_name": "default", "data_files": files, **more}
    return f"---\n{yaml.safe_dump({'configs': [entry]})}---\n"


def write_paths(file, paths):
    """A table whose images are files, wherever their paths lead."""
    features = {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat"])}
    images = [{"bytes": None, "path": str(path)} for path in paths]
    rows = {"image": images, "label": len(paths) * [0]}
    pq.write_table(pa.table(rows, schema=datasets.Features(features).arrow_schema), file)


def test_no_file_outside_of_a_source_is_read(tmp_path):
    """Parquet files and a README.md of somebody else may name any path."""
    (tmp_path / "private").mkdir()
    private = tmp_path / "private/me.png"
    private.write_bytes(file_of(Image.new("RGB", (8, 6), "red")))
    own = tmp_path / "source/images/1.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(file_of(Image.new("RGB", (8, 6), "blue")))
    paths = [own, private, f"{own.parent}/../../private/me.png", "a\0b", "x" * 5000]
    write_paths(tmp_path / "source/train.parquet", paths)
    (tmp_path / "link").symlink_to(tmp_path / "source")
    for layout, folder in product(("parquet", "hub"), ("source", "link")):
        source = Source(path=str(tmp_path / folder), layout=layout)
        target = tmp_path / layout / folder
        (report,) = prepare(
            {"x": source}, open_store(target), Options(val_fraction=0, test_fraction=0)
        ).domains
        assert images_of(target, "x") == {"train": [("cat", (0, 0, 255))]}
        assert report.left_out == 4
    chained = f"file://{private}::{own}"
    for name in (
        str(private),
        "../private/*.png",
        f"zip://*::{private}",
        f"local://{private}",
        chained,
    ):
        (tmp_path / "source/README.md").write_text(readme(name))
        with pytest.raises(ConfigError, match=r"files outside of it|cannot be opened"):
            open_domain(source, "x")
    with pytest.raises(ConfigError, match="files outside of it"):  # of the chain
        open_domain(source, "x")


def test_a_folder_of_somebody_else_takes_no_downloads_of_this_user(tmp_path, monkeypatch):
    """The caches of the hub and of `datasets` may hold private data sets."""
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    image = file_of(Image.new("RGB", (8, 6), "red"))
    private = [hub / "datasets--me--private/blobs/1.png", cache / "downloads/2.png"]
    for path in private:
        path.parent.mkdir(parents=True)
        path.write_bytes(image)
    (tmp_path / "foreign").mkdir()
    write_paths(tmp_path / "foreign/train.parquet", private)
    source = Source(path=str(tmp_path / "foreign"), layout="hub")
    options = Options(val_fraction=0, test_fraction=0)
    (report,) = prepare({"x": source}, open_store(tmp_path / "x"), options).domains
    assert (report.images, report.left_out) == ({"train": 0}, 2)
    write_table(hub / "datasets--me--private/snapshots/1/train.parquet", [(image, 0)])
    for name in (f"{hub}/datasets--me--private/snapshots/*/*", "hf://datasets/me/private/*"):
        (tmp_path / "foreign/README.md").write_text(readme(name))
        with pytest.raises(ConfigError, match=r"its README.md names files outside of it"):
            open_domain(source, "x")


def test_a_readme_sends_no_request(tmp_path):
    """`datasets` asks a host for what a URL names before its files are known."""
    write_table(tmp_path / "foreign/train.parquet", [(b"x", 0)])
    source = Source(path=str(tmp_path / "foreign"), layout="hub")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/internal/x.parquet"
        for text in (
            readme(url),
            readme([{"split": "train", "path": [url]}]),
            readme(f"zip://*::{url}"),
            readme("*.parquet", data_dir="../../outside"),
        ):
            (tmp_path / "foreign/README.md").write_text(text)
            with pytest.raises(ConfigError, match="files outside of it"):
                open_domain(source, "x")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("pattern", "is_own"),
    [
        ("data/*.parquet", True),
        ("zip://*::hf://datasets/me/pets@1234/a.zip", True),
        ("hf://datasets/me/pets/data/*", True),
        ("hf://datasets/me/private/*", False),
        ("../private@main/*", False),
        ("http://127.0.0.1:9/x.parquet", False),
        ("s3://bucket/x.parquet", False),
        ("/home/me/photos/*", False),
    ],
)
def test_a_data_set_of_the_hub_names_its_own_repository_alone(pattern, is_own, monkeypatch):
    asked = []

    def resolve(pattern, base_path):
        asked.append(pattern)
        raise FileNotFoundError("nothing there")

    monkeypatch.setattr("datasets.data_files.resolve_pattern", resolve)
    monkeypatch.setattr(  # of the package's loader, what needs the network
        "datasets.load_dataset_builder",
        lambda *_, **__: datasets.data_files.resolve_pattern(pattern, "hf://datasets/me/pets@1234"),
    )
    with pytest.raises(ConfigError, match="nothing there" if is_own else "files outside of it"):
        open_domain(Source(path="me/pets", layout="hub"), "x")
    assert asked == ([pattern] if is_own else [])
