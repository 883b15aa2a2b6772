import gzip
import tarfile

from tests.trainers.data.formats.more_trees import encoded, make_webdataset, write_tar
from tests.trainers.data.formats.reading import images, kinds, read, read_one, refusal, table
from trainers.data.formats.index import Finding
from trainers.data.splits import carve_splits


def tars(root, members, name="0.tar"):
    write_tar(root / name, members)
    (root / "classnames.txt").write_text("cat\ndog\n")
    return root


def test_samples_are_listed_with_their_labels(tmp_path):
    found = read("webdataset", make_webdataset(tmp_path / "birds"))
    assert [(x.domain, x.split) for x in found] == [("birds", "train"), ("birds", "test")]
    assert {x.class_names for x in found} == {("cat", "dog", "hot air balloon")}
    table = [(x.split, e.path, e.label) for x in found for e in x.examples]
    assert table == [
        ("train", "train/0.tar/000000.jpg", 0),
        ("train", "train/0.tar/000001.png", 2),
        ("train", "train/1.tar/more/000000.JPEG", 1),
        ("test", "test/0.tar/000000.webp", 1),
    ]
    assert not any(x.findings for x in found)
    assert found[0].metadata == {"layout": "webdataset"}


def test_names_longer_than_a_header_and_files_of_other_kinds_do_no_harm(tmp_path):
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
    index = read_one("webdataset", root)
    assert table(index) == [(f"0.tar/{deep}/a.jpg", 1), ("0.tar/b.jpg", 0)]
    assert images(root, index) == [encoded("a", "jpg"), encoded("b", "jpg")]
    assert not index.findings


def test_samples_without_a_image_or_a_label_are_bad_and_their_neighbours_stay(tmp_path):
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
            "f2.jpg": b"",
            "f2.json": b"[" * 100_000,
            "g.jpg": b"x",
            "g.cls": b"1",
        },
    )
    index = read_one("webdataset", root)
    assert table(index) == [("0.tar/g.jpg", 1)]
    assert index.findings == (
        Finding("0.tar/a", "no image", "", bad=True),
        Finding("0.tar/b.jpg", "no label", "neither .cls nor .json", bad=True),
        Finding("0.tar/c.jpg", "no label", ".cls is 'dog'", bad=True),
        Finding("0.tar/d.jpg", "no label", ".json is '{broken'", bad=True),
        Finding("0.tar/e.jpg", "no label", """.json is '{"label": null, "width": 3}'""", bad=True),
        Finding("0.tar/f.jpg", "no label", ".json is '[1]'", bad=True),
        Finding("0.tar/f2.jpg", "no label", f".json is {'[' * 40!r}", bad=True),
    )


def test_a_key_that_comes_twice_in_a_tar_is_used_once(tmp_path):
    root = tars(tmp_path, {"a.jpg": b"1", "a.cls": b"1", "b.jpg": b"2", "b.cls": b"0"})
    with tarfile.open(root / "0.tar", "a") as tar:
        tar.add(root / "classnames.txt", "a.cls")
        tar.add(root / "classnames.txt", "a.png")
    index = read_one("webdataset", root)
    assert table(index) == [("0.tar/a.jpg", 1), ("0.tar/b.jpg", 0)]
    assert kinds(index) == [
        ("0.tar/a.cls", "duplicate", False),
        ("0.tar/a.png", "duplicate", False),
    ]


def test_the_same_key_in_two_tars_is_two_samples(tmp_path):
    tars(tmp_path, {"a.jpg": b"1", "a.cls": b"1"})
    tars(tmp_path, {"a.jpg": b"2", "a.cls": b"0"}, "1.tar")
    index = read_one("webdataset", tmp_path)
    assert [e.path for e in index.examples] == ["0.tar/a.jpg", "1.tar/a.jpg"]


def test_tars_outside_a_split_s_folder_are_train_or_what_the_user_says(tmp_path):
    root = tars(tmp_path / "x", {"a.jpg": b"1", "a.cls": b"1"})
    assert [(x.domain, x.split) for x in read("webdataset", root)] == [("x", "train")]
    found = read("webdataset", root, split="test", domain="flickr")
    assert [(x.domain, x.split) for x in found] == [("flickr", "test")]


def test_tars_of_several_splits_side_by_side_go_by_their_names(tmp_path):
    sample = {"a.jpg": b"1", "a.cls": b"1"}
    for name in ("in1k-train-00", "in1k-train-01", "in1k-validation-00", "in1k_test", "more"):
        tars(tmp_path, sample, f"{name}.tar")
    found = [(x.split, [e.path for e in x.examples]) for x in read("webdataset", tmp_path)]
    assert found == [
        ("train", ["in1k-train-00.tar/a.jpg", "in1k-train-01.tar/a.jpg", "more.tar/a.jpg"]),
        ("val", ["in1k-validation-00.tar/a.jpg"]),
        ("test", ["in1k_test.tar/a.jpg"]),
    ]
    found = [(x.split, len(x.examples)) for x in read("webdataset", tmp_path, split="val")]
    assert found == [("train", 2), ("val", 2), ("test", 1)]


def test_a_tar_named_as_another_split_than_its_folder_is_refused(tmp_path):
    root = make_webdataset(tmp_path)
    (root / "train" / "1.tar").rename(root / "train" / "cats-val-1.tar")
    assert "train/cats-val-1.tar is named as the split 'val'" in refusal("webdataset", root).problem


def test_keys_may_have_dots(tmp_path):
    members = {}
    for key in ("p1", "shot.2021.01", "shot.2021.02", "some.folder/p.2"):
        members |= {f"{key}.jpg": key.encode(), f"{key}.cls.txt": b"%d" % (len(members) // 2)}
    index = read_one("webdataset", tars(tmp_path, members))
    assert table(index) == [
        ("0.tar/p1.jpg", 0),
        ("0.tar/shot.2021.01.jpg", 1),
        ("0.tar/shot.2021.02.jpg", 2),
        ("0.tar/some.folder/p.2.jpg", 3),
    ]
    assert not index.findings


def test_names_in_another_encoding_are_made_printable(tmp_path):
    names = (b"caf\xe9", b"caf\xe8", b"th\xe9")
    members = {}
    for name in names:
        key = name.decode("utf-8", "surrogateescape")
        members |= {f"{key}.jpg": name, f"{key}.cls": b"1"}
    del members[f"{key}.cls"]
    found = read("webdataset", tars(tmp_path, members))
    train, val = carve_splits(found, 0.5, seed=0)
    assert {e.path for x in (train, val) for e in x.examples} == {
        r"0.tar/caf\xe9.jpg",
        r"0.tar/caf\xe8.jpg",
    }
    assert [f.path for f in train.findings] == [r"0.tar/th\xe9.jpg"]


def test_class_names_are_beside_the_tars_above_them_or_of_the_user(tmp_path):
    root = tmp_path / "sets" / "x"
    write_tar(root / "0.tar", {"a.jpg": b"1", "a.cls": b"1"})
    assert refusal("webdataset", root).key == "--class-names"
    (tmp_path / "mine.txt").write_text("m\nn\n")
    chosen = str(tmp_path / "mine.txt")
    assert read_one("webdataset", root, class_names=chosen).class_names == ("m", "n")
    for folder, name in ((root.parent, "above"), (root, "beside")):
        (folder / "classnames.txt").write_text(f"{name}\nit\n")
        assert read_one("webdataset", root).class_names == (name, "it")
    for data in (b"twice\ntwice\n", b"\xff\xfe"):
        (root / "classnames.txt").write_bytes(data)
        assert refusal("webdataset", root).source == f"{root}/classnames.txt"


def test_splits_with_different_class_names_are_refused(tmp_path):
    root = make_webdataset(tmp_path)
    (root / "test" / "classnames.txt").write_text("cat\ndog\n")
    assert "test/classnames.txt have different" in refusal("webdataset", root).problem


def test_compressed_and_broken_tars_are_refused(tmp_path):
    members = {"a.jpg": encoded("a", "jpg"), "a.cls": b"1", "b.jpg": encoded("b", "jpg")}
    root = tars(tmp_path, members)
    file = root / "0.tar"
    whole = file.read_bytes()
    (root / "1.tar.gz").write_bytes(gzip.compress(whole))
    assert refusal("webdataset", root).problem == "1.tar.gz is compressed"
    (root / "1.tar.gz").unlink()
    # A header starts at every 512 bytes: a.jpg's, its image (2 blocks), a.cls's, and so on.
    second = next(i for i in range(512, len(whole), 512) if whole[i : i + 5] == b"a.cls")
    third = next(i for i in range(512, len(whole), 512) if whole[i : i + 5] == b"b.jpg")
    for data in (
        b"",
        gzip.compress(whole),
        b"nothing of the kind" * 100,
        whole[: third + 600],  # cut in an image
        whole[: second + 100],  # cut in a header
        whole[:second] + b"\xff" * 512 + whole[second + 512 :],
    ):
        file.write_bytes(data)
        assert refusal("webdataset", root).problem.startswith("0.tar cannot be read as a tar")
