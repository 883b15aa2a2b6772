import gzip
import tarfile
from pathlib import Path

import pytest

from tests.trainers.data.formats.more_trees import encoded, make_webdataset, write_tar
from trainers.data.formats.index import Finding, LayoutOptions, SplitListing
from trainers.data.formats.readers import read_sources
from trainers.data.formats.webdataset import webdataset
from trainers.data.splits import carve_validation
from trainers.data.storage import open_store
from trainers.errors import ConfigError


def listings(root: str | Path, **options: object) -> list[SplitListing]:
    return webdataset(open_store(root), LayoutOptions(**options))  # type: ignore[arg-type]


def refused(root: Path, complaint: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        listings(root, **options)
    assert "\n" not in str(raised.value)


def tars(root: Path, members: dict[str, bytes], name: str = "0.tar") -> Path:
    write_tar(root / name, members)
    (root / "classnames.txt").write_text("cat\ndog\n")
    return root


def test_samples_are_listed_with_their_labels_and_captions(tmp_path: Path) -> None:
    found = listings(make_webdataset(tmp_path / "birds"))
    assert [(x.domain, x.split) for x in found] == [("birds", "train"), ("birds", "test")]
    assert {x.class_names for x in found} == {("cat", "dog", "hot air balloon")}
    table = [(x.split, e.path, e.label, e.caption) for x in found for e in x.examples]
    assert table == [
        ("train", "train/0.tar/000000.jpg", 0, None),
        ("train", "train/0.tar/000001.png", 2, "a balloon over a field"),
        ("train", "train/1.tar/more/000000.JPEG", 1, None),
        ("test", "test/0.tar/000000.webp", 1, None),
    ]
    assert not any(x.findings for x in found)
    assert found[0].metadata == {"layout": "webdataset"}


def test_images_are_read_from_where_they_lie_on_any_file_system(tmp_path: Path) -> None:
    root = make_webdataset(tmp_path)
    memory = open_store(f"memory://{tmp_path.name}")
    for file in (path for path in root.rglob("*") if path.is_file()):
        with memory.write(file.relative_to(root).as_posix()) as target:
            target.write(file.read_bytes())
    expected = [encoded("a", "jpg"), encoded("b"), encoded("c", "jpg"), encoded("d", "webp")]
    for store in (open_store(root), memory):
        found = webdataset(store, LayoutOptions())
        sources = [example.source for listing in found for example in listing.examples]
        assert list(read_sources(store, sources)) == expected


def test_names_longer_than_a_header_and_files_of_other_kinds_do_no_harm(tmp_path: Path) -> None:
    deep = "/".join(["folder" * 20] * 3)
    root = tars(
        tmp_path,
        {
            "README.md": b"hello",
            "._a.jpg": b"a resource fork",
            f"{deep}/a.jpg": encoded("a", "jpg"),
            f"{deep}/a.cls": b"1",
            "b.seg.png": encoded("mask"),
            "b.jpg": encoded("b", "jpg"),
            "b.cls": b"0",
        },
    )
    (listing,) = listings(root)
    assert [(e.path, e.label) for e in listing.examples] == [
        (f"0.tar/{deep}/a.jpg", 1),
        ("0.tar/b.jpg", 0),
    ]
    sources = [e.source for e in listing.examples]
    assert list(read_sources(open_store(root), sources)) == [
        encoded("a", "jpg"),
        encoded("b", "jpg"),
    ]
    assert not listing.findings


def test_samples_without_a_image_or_a_label_are_bad_and_their_neighbours_stay(
    tmp_path: Path,
) -> None:
    root = tars(
        tmp_path,
        {
            "a.cls": b"0",
            "b.jpg": b"",
            "c.jpg": b"",
            "c.cls": b"dog",
            "d.jpg": b"",
            "d.json": b"{broken",
            "e.jpg": b"",
            "e.json": b'{"label": null, "width": 3}',
            "f.jpg": b"",
            "f.json": b"[1]",
            "g.jpg": b"x",
            "g.cls": b"1",
        },
    )
    (listing,) = listings(root)
    assert [(e.path, e.label) for e in listing.examples] == [("0.tar/g.jpg", 1)]
    assert listing.findings == (
        Finding("0.tar/a", "no image", "", bad=True),
        Finding("0.tar/b.jpg", "no label", "neither .cls nor .json", bad=True),
        Finding("0.tar/c.jpg", "no label", ".cls says 'dog'", bad=True),
        Finding("0.tar/d.jpg", "no label", ".json says '{broken'", bad=True),
        Finding(
            "0.tar/e.jpg", "no label", """.json says '{"label": null, "width": 3}'""", bad=True
        ),
        Finding("0.tar/f.jpg", "no label", ".json says '[1]'", bad=True),
    )


def test_a_key_that_comes_twice_in_a_tar_is_used_once(tmp_path: Path) -> None:
    root = tars(tmp_path, {"a.jpg": b"1", "a.cls": b"1", "b.jpg": b"2", "b.cls": b"0"})
    with tarfile.open(root / "0.tar", "a") as tar:
        tar.add(root / "classnames.txt", "a.cls")
        tar.add(root / "classnames.txt", "a.png")
    (listing,) = listings(root)
    assert [(e.path, e.label) for e in listing.examples] == [("0.tar/a.jpg", 1), ("0.tar/b.jpg", 0)]
    assert [(f.path, f.kind, f.bad) for f in listing.findings] == [
        ("0.tar/a.cls", "duplicate", False),
        ("0.tar/a.png", "duplicate", False),
    ]


def test_the_same_key_in_two_tars_is_two_samples(tmp_path: Path) -> None:
    tars(tmp_path, {"a.jpg": b"1", "a.cls": b"1"})
    tars(tmp_path, {"a.jpg": b"2", "a.cls": b"0"}, "1.tar")
    (listing,) = listings(tmp_path)
    assert [e.path for e in listing.examples] == ["0.tar/a.jpg", "1.tar/a.jpg"]


def test_tars_outside_a_split_s_folder_are_train_or_what_the_user_says(tmp_path: Path) -> None:
    root = tars(tmp_path / "x", {"a.jpg": b"1", "a.cls": b"1"})
    assert [(x.domain, x.split) for x in listings(root)] == [("x", "train")]
    found = listings(root, split="test", domain="flickr")
    assert [(x.domain, x.split) for x in found] == [("flickr", "test")]


def test_tars_of_several_splits_side_by_side_go_by_their_names(tmp_path: Path) -> None:
    sample = {"a.jpg": b"1", "a.cls": b"1"}
    for name in ("in1k-train-00", "in1k-train-01", "in1k-validation-00", "in1k_test", "more"):
        tars(tmp_path, sample, f"{name}.tar")
    found = [(x.split, [e.path for e in x.examples]) for x in listings(tmp_path)]
    assert found == [
        ("train", ["in1k-train-00.tar/a.jpg", "in1k-train-01.tar/a.jpg", "more.tar/a.jpg"]),
        ("val", ["in1k-validation-00.tar/a.jpg"]),
        ("test", ["in1k_test.tar/a.jpg"]),
    ]
    found = [(x.split, len(x.examples)) for x in listings(tmp_path, split="val")]
    assert found == [("train", 2), ("val", 2), ("test", 1)]


def test_a_tar_that_speaks_of_another_split_than_its_folder_is_refused(tmp_path: Path) -> None:
    root = make_webdataset(tmp_path)
    (root / "train" / "1.tar").rename(root / "train" / "cats-val-1.tar")
    refused(root, "train/cats-val-1.tar lies in the folder of the split 'train' .* 'val'")


def test_keys_may_have_dots(tmp_path: Path) -> None:
    members = {}
    for key in ("p1", "shot.2021.01", "shot.2021.02", "some.folder/p.2"):
        members |= {f"{key}.jpg": key.encode(), f"{key}.cls.txt": b"1", f"{key}.txt": key.encode()}
    (listing,) = listings(tars(tmp_path, members))
    assert [(e.path, e.caption) for e in listing.examples] == [
        ("0.tar/p1.jpg", "p1"),
        ("0.tar/shot.2021.01.jpg", "shot.2021.01"),
        ("0.tar/shot.2021.02.jpg", "shot.2021.02"),
        ("0.tar/some.folder/p.2.jpg", "some.folder/p.2"),
    ]
    assert not listing.findings


def test_a_key_with_dots_beside_the_key_before_them_is_not_lost_in_silence(tmp_path: Path) -> None:
    names = ("a.jpg", "a.cls", "a.2.jpg", "a.2.cls", "a.seg.png", "b.1.jpg")
    (listing,) = listings(tars(tmp_path, dict.fromkeys(names, b"1")))
    assert [e.path for e in listing.examples] == ["0.tar/a.jpg"]
    assert [(f.path, f.kind, f.bad) for f in listing.findings] == [
        ("0.tar/a.2.jpg", "unclear name", True),
        ("0.tar/b.1.jpg", "no label", True),
    ]


def test_names_in_another_encoding_are_made_printable(tmp_path: Path) -> None:
    names = (b"caf\xe9", b"caf\xe8", b"th\xe9")
    members = {}
    for name in names:
        key = name.decode("utf-8", "surrogateescape")
        members |= {f"{key}.jpg": name, f"{key}.cls": b"1"}
    del members[f"{key}.cls"]
    listings_found = listings(tars(tmp_path, members))
    train, val = carve_validation(listings_found, 0.5, seed=0)
    assert {e.path for x in (train, val) for e in x.examples} == {
        r"0.tar/caf\xe9.jpg",
        r"0.tar/caf\xe8.jpg",
    }
    assert [f.path for f in train.findings] == [r"0.tar/th\xe9.jpg"]


def test_class_names_stand_beside_the_tars_above_them_or_in_a_file_of_the_user_s(
    tmp_path: Path,
) -> None:
    root = tmp_path / "sets" / "x"
    write_tar(root / "0.tar", {"a.jpg": b"1", "a.cls": b"1"})
    refused(root, r"--class-names is missing: there is no classnames.txt")
    (tmp_path / "mine.txt").write_text("m\nn\n")
    assert listings(root, class_names=str(tmp_path / "mine.txt"))[0].class_names == ("m", "n")
    (root.parent / "classnames.txt").write_text("above\nit\n")
    assert listings(root)[0].class_names == ("above", "it")
    (root / "classnames.txt").write_text("beside\nit\n")
    assert listings(root)[0].class_names == ("beside", "it")
    (root / "classnames.txt").write_text("twice\ntwice\n")
    refused(root, r"classnames.txt: duplicate names: 'twice' stands in lines 1 and 2")
    (root / "classnames.txt").write_bytes(b"\xff\xfe")
    refused(root, r"classnames.txt: .*decode")


def test_splits_that_name_different_classes_are_refused(tmp_path: Path) -> None:
    root = make_webdataset(tmp_path)
    (root / "test" / "classnames.txt").write_text("cat\ndog\n")
    refused(root, r"classnames.txt and test/classnames.txt name different classes")


def test_compressed_and_broken_tars_are_refused(tmp_path: Path) -> None:
    members = {"a.jpg": encoded("a", "jpg"), "a.cls": b"1", "b.jpg": encoded("b", "jpg")}
    root = tars(tmp_path, members)
    file = root / "0.tar"
    whole = file.read_bytes()
    (root / "1.tar.gz").write_bytes(gzip.compress(whole))
    refused(root, r"1.tar.gz is compressed.*decompress it")
    (root / "1.tar.gz").unlink()
    # A header starts at every 512 bytes: a.jpg's, its image (2 blocks), a.cls's, and so on.
    second = next(i for i in range(512, len(whole), 512) if whole[i : i + 5] == b"a.cls")
    third = next(i for i in range(512, len(whole), 512) if whole[i : i + 5] == b"b.jpg")
    broken = {
        "empty": b"",
        "another format": gzip.compress(whole),
        "text": b"nothing of the kind" * 100,
        "cut in an image": whole[: third + 600],
        "cut in a header": whole[: second + 100],
        "overwritten header": whole[:second] + b"\xff" * 512 + whole[second + 512 :],
    }
    for data in broken.values():
        file.write_bytes(data)
        refused(root, r"0.tar cannot be read as a tar")


def test_a_folder_without_tars_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path, r"no \*.tar, nor a folder.*there is readme.txt")
    refused(tmp_path, "--domains = 'x'", domains=("x",))
