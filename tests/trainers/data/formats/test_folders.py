"""Class folders of one's own: domains, splits, the order of classes, and what is refused."""

import pytest

from tests.trainers.data.formats.more_trees import make_domain_folders, make_folders
from tests.trainers.data.formats.reading import kinds, read, read_one, refusal, table
from tests.trainers.data.formats.trees import draw
from trainers.data.formats.index import Finding


def test_classes_are_sorted_in_every_split(tmp_path):
    root = make_folders(tmp_path / "mine")
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("no folder of images")
    found = read("folders", root)
    assert [(x.domain, x.split) for x in found] == [
        ("mine", "train"),
        ("mine", "val"),
        ("mine", "test"),
    ]
    assert {x.class_names for x in found} == {("Zebra", "cat", "t-shirt")}
    for index, folder, count in zip(found, ("train", "valid", "test"), (2, 1, 1), strict=True):
        assert table(index) == [
            (f"{folder}/{name}/{folder}_{number}.jpg", label)
            for label, name in enumerate(("Zebra", "cat", "t-shirt"))
            for number in range(count)
        ]
        assert (index.findings, index.metadata) == ((), {"layout": "folders"})


def test_without_split_folders_all_is_train_or_as_chosen(tmp_path):
    root = make_folders(tmp_path) / "train"
    index = read_one("folders", root)
    assert (index.domain, index.split, len(index.examples)) == ("train", "train", 6)
    index = read_one("folders", root, split="test", domain="photo")
    assert (index.domain, index.split) == ("photo", "test")


def test_domains_share_one_order_of_classes(tmp_path):
    real, sketch = read("folders", make_domain_folders(tmp_path), domains=("all",))
    assert (real.domain, real.split, sketch.domain) == ("real", "train", "sketch")
    assert real.class_names == sketch.class_names == ("cat", "dog", "emu")
    assert [label for _, label in table(real)] == [0, 0, 0, 1, 1, 1]
    assert [label for _, label in table(sketch)] == [0, 0, 0, 2, 2, 2]
    assert real.findings == (Finding("real/emu", "missing class", "no images in real, train"),)
    assert kinds(sketch) == [("sketch/dog", "missing class", False)]


def test_domains_are_chosen_by_name_and_may_have_splits(tmp_path):
    make_folders(tmp_path / "photo")
    make_domain_folders(tmp_path)
    found = read("folders", tmp_path, domains=("sketch", "photo"))
    assert [(x.domain, x.split, len(x.examples)) for x in found] == [
        ("photo", "train", 6),
        ("photo", "val", 3),
        ("photo", "test", 3),
        ("sketch", "train", 6),
    ]
    error = refusal("folders", tmp_path, domains=("skech",))
    assert (error.key, error.value) == ("--domains", "skech")
    assert "did you mean 'sketch'" in error.problem
    assert refusal("folders", tmp_path, domains=("all",), domain="x").key == "--domain"


def test_roles_name_the_domains(tmp_path):
    for domain in ("real", "sketch", "street"):
        draw(tmp_path / domain / "cat" / "a.jpg")

    def domains(**options):
        return [index.domain for index in read("folders", tmp_path, **options)]

    assert domains(id="real") == ["real", "sketch", "street"]
    assert domains(id="street", ood=("sketch", "real")) == ["street", "sketch", "real"]
    assert domains(id="street", ood=("real",)) == ["street", "real"]
    for options, key, hint in (
        ({"id": "reel"}, "--id", "did you mean 'real'"),
        ({"id": "real", "ood": ("scetch",)}, "--ood", "did you mean 'sketch'"),
        ({"id": "real", "ood": ("real",)}, "--ood", "is the domain of --id"),
        ({"ood": ("real",)}, "--id", "is needed"),
        ({"id": "real", "domain": "x"}, "--domain", "together with --id"),
        ({"id": "real", "domains": ("all",)}, "--domains", "cannot be used with --id"),
    ):
        error = refusal("folders", tmp_path, **options)
        assert error.key == key
        assert hint in error.problem


def test_class_names_of_the_user_give_the_order(tmp_path):
    root = make_folders(tmp_path / "mine")
    names = tmp_path / "names.txt"
    names.write_text("t-shirt\ncat\nbus\nZebra\n")
    train, *_ = read("folders", root, class_names=str(names))
    assert train.class_names == ("t-shirt", "cat", "bus", "Zebra")
    assert [label for _, label in table(train)] == [0, 0, 1, 1, 3, 3]
    assert kinds(train) == [("train/bus", "missing class", False)]
    names.write_text("tshirt\ncat\nZebra\n")
    error = refusal("folders", root, class_names=str(names))
    assert (error.key, error.value) == ("--class-names", str(names))
    assert "'t-shirt' (did you mean 'tshirt'?)" in error.problem


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (("train/a.jpg", "truck/a.jpg", "van/a.jpg"), ("train", "truck", "van")),
        (("train/n1/images/0.png", "train/n2/images/1.png"), ("n1", "n2")),
    ],
)
def test_a_class_may_be_called_train_or_keep_its_images_deeper(tmp_path, files, classes):
    for file in files:
        draw(tmp_path / file)
    assert read_one("folders", tmp_path).class_names == classes


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ((), "no class folders with images; found nothing"),
        (("a.jpg",), "no class folders with images; found 1 image(s) outside"),
        (("train/cat/a.jpg", "extra/a.jpg"), "there are images in extra beside it"),
        (("valid/cat/a.jpg", "val/cat/a.jpg"), "both the split 'val'"),
        (("t-shirt/a.jpg", "t_shirt/a.jpg"), "'t-shirt' and 't_shirt'"),
    ],
)
def test_folders_that_are_no_distinct_classes_are_refused(tmp_path, files, problem):
    for file in files:
        draw(tmp_path / file)
    assert problem in refusal("folders", tmp_path).problem


def test_images_of_an_unknown_kind_are_named_if_there_are_no_others(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.HEIC").write_bytes(b"an image")
    problem = refusal("folders", tmp_path).problem
    assert problem.endswith("found cat; 1 of no known kind of image ignored, e.g. cat/a.HEIC")


def test_domains_that_would_be_taken_for_classes_are_refused(tmp_path):
    for domain in ("real", "sketch"):
        for name in ("cat", "dog"):
            draw(tmp_path / domain / name / "a.jpg")
    error = refusal("folders", tmp_path)
    assert "real, sketch look like domains" in error.problem
    assert "--id" in str(error.hint)
    assert len(read("folders", tmp_path, domains=("all",))) == 2


def test_images_outside_a_class_and_empty_folders_are_reported(tmp_path):
    draw(tmp_path / "cat" / "a.jpg")
    draw(tmp_path / "overview.png")
    (tmp_path / "dog").mkdir()
    index = read_one("folders", tmp_path)
    assert index.class_names == ("cat",)
    assert kinds(index) == [("overview.png", "no class", True), ("dog", "empty folder", False)]


def test_a_class_that_the_id_domain_lacks_is_refused(tmp_path):
    for image in ("studio/cup", "studio/pen", "street/cup", "street/pen", "street/unsorted"):
        draw(tmp_path / image / "a.jpg")
    error = refusal("folders", tmp_path, id="studio")
    assert error.source == f"{tmp_path}/street"
    assert "unsorted are not classes of the split train of 'studio'" in error.problem
    assert len(read("folders", tmp_path, domains=("all",))) == 2  # each is trained on by itself


def test_a_class_that_train_lacks_is_one_if_the_user_names_it(tmp_path):
    root = make_folders(tmp_path / "mine")
    draw(root / "test" / "bus" / "1.jpg")
    error = refusal("folders", root)
    assert error.source == f"{root}/test"
    assert "the folders bus are not classes of the split train of 'mine'" in error.problem
    names = tmp_path / "names.txt"
    names.write_text("bus\ncat\nt-shirt\nZebra\n")
    *_, test = read("folders", root, class_names=str(names))
    assert ("test/bus/1.jpg", 0) in table(test)
