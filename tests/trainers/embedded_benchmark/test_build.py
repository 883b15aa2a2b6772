import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainers.data.folders import SPLITS
from trainers.data.schema import part_path, read_header
from trainers.data.storage import open_store
from trainers.embedded_benchmark import build as building
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.embedded_benchmark.classes import load_classes, split_drawings
from trainers.embedded_benchmark.drawings import (
    drawing,
    layered_svg,
)
from trainers.embedded_benchmark.raster import raster
from trainers.embedded_benchmark.render import DOMAINS, render

CLASSES = ["cat", "whale", "bus", "clock"]
FEW = ImageCounts(train=4, val=2, test=2)
SHOWN = ("1F408", "1F697", "1F33B", "1F433", "1F3E0", "1F98B")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "benchmark"
    return build(root, images=FEW, classes=CLASSES, workers=1, progress=False)


def rows(root, domain, split):
    table = pq.read_table(part_path(root, domain, split)).to_pylist()
    return table


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def gallery():
    """Images (18, 64, 64, 3) of six drawings, three each, by domain."""
    keys = [(point, index) for point in SHOWN for index in range(3)]
    return {
        domain: np.stack([render(drawing(point), domain, (3, index)) for point, index in keys])
        * 1.0
        for domain in DOMAINS
    }


# Classes and drawings


def test_a_hundred_classes_share_no_drawing_and_have_one_or_several():
    classes = load_classes()
    assert len(classes) == 100
    assert list(classes) == sorted(classes)
    every = [point for points in classes.values() for point in points]
    assert len(every) == len(set(every))
    # With exactly two, some split would have to share a drawing with another.
    numbers = [len(points) for points in classes.values()]
    assert not {0, 2} & set(numbers)
    assert sum(number >= 3 for number in numbers) >= 10
    for item in (drawing(point) for points in classes.values() for point in points):
        assert raster(item, "line").getchannel("A").getbbox(), item.code_point
        assert raster(item, "colour").getchannel("A").getbbox(), item.code_point


def test_layers_divide_a_drawing_into_lines_and_colours():
    item = drawing("1F408")
    line, fill = layered_svg(item, "line"), layered_svg(item, "colour")
    assert "#e27022" in fill
    assert "#e27022" not in line
    assert 'stroke="#000"' in line
    assert 'stroke="#000"' not in fill


# Images


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_image_depends_on_its_key_and_on_nothing_else(domain):
    item = drawing("1F697")
    first = render(item, domain, (0, 1))
    np.random.default_rng(7).random()
    render(item, domain, (9, 9))
    assert (render(item, domain, (0, 1)) == first).all()
    assert (render(item, domain, (0, 2)) != first).any()
    assert (render(item, domain, (0, 1, 0)) != first).any()
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8


def test_clipart_lies_on_white(gallery):
    corners = gallery["clipart"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.mean(corners == 255) > 0.98


def test_sketches_have_hardly_any_colour(gallery):
    assert np.ptp(gallery["sketch"], axis=3).max() < 60
    assert np.ptp(gallery["clipart"], axis=3).max(axis=(1, 2)).min() > 80


def test_paintings_have_neither_white_ground_nor_black_outline(gallery):
    assert (gallery["painting"].min(axis=3) > 250).mean(axis=(1, 2)).max() < 0.2
    painting, clipart = ((gallery[d].max(axis=3) < 40).mean() for d in ("painting", "clipart"))
    assert painting < 0.4 * clipart


def test_infographs_have_the_most_hard_edges(gallery):
    edges = {
        domain: np.mean(np.abs(np.diff(images.mean(axis=3), axis=2)) > 40)
        for domain, images in gallery.items()
    }
    assert max(edges, key=lambda domain: edges[domain]) == "infograph"


def test_photographs_are_noisy_everywhere(gallery):
    assert gallery["real"].reshape(-1, 8, 8, 8, 8, 3).std(axis=(2, 4)).min() > 0.5
    assert (gallery["real"] == 255).all(axis=3).mean(axis=(1, 2)).max() < 0.1


# The benchmark


def test_every_class_has_its_images_in_every_domain_and_split(benchmark):
    every = set()
    for domain in DOMAINS:
        for split in SPLITS:
            found = rows(benchmark, domain, split)
            count = getattr(FEW, split)
            assert [row["label"] for row in found] == sorted([*range(4)] * count)
            for row in found:
                every.add(row["image"]["bytes"])
                name = sorted(CLASSES)[int(str(row["label"]))]
                assert f"/{name}/" in row["image"]["path"]
    assert len(every) == 4 * 5 * (4 + 2 + 2)
    image = Image.open(io.BytesIO(every.pop()))
    assert (image.format, image.size) == ("JPEG", (64, 64))
    assert all(sampling[1:3] == (1, 1) for sampling in image.layer)


def test_files_carry_class_names_licence_and_attribution(benchmark):
    for domain in DOMAINS:
        header = read_header(open_store(benchmark), f"{domain}/test/part-00000.parquet")
        assert header.class_names == tuple(sorted(CLASSES))
        assert header.metadata["license"] == "CC BY-SA 4.0"
        assert "OpenMoji" in header.metadata["attribution"]
        assert header.metadata["source"].startswith("https://")


def test_splits_share_no_drawing_of_a_class_that_has_several():
    for name, points in load_classes().items():
        parts = split_drawings(name, points, seed=0)
        assert all(parts[split] for split in SPLITS), name
        if len(points) > 1:
            assert sorted(point for part in parts.values() for point in part) == sorted(points)


def test_files_show_only_the_drawings_of_their_split(benchmark):
    allowed = split_drawings("cat", load_classes()["cat"], seed=0)
    for domain in DOMAINS:
        for split in SPLITS:
            paths = [str(row["image"]["path"]) for row in rows(benchmark, domain, split)]
            shown = {path.split("/")[-1].split("-")[0] for path in paths if "/cat/" in path}
            assert shown
            assert shown <= set(allowed[split])


def test_other_processes_draw_the_same_bytes(benchmark, tmp_path):
    root = build(tmp_path / "again", images=FEW, classes=CLASSES[::-1], workers=2, progress=False)
    assert contents(root) == contents(benchmark)


def test_building_again_changes_nothing(benchmark, monkeypatch):
    monkeypatch.setattr(building, "render", None)  # any rendering would fail
    before = {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")}
    build(benchmark, images=FEW, classes=CLASSES, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")} == before


def test_other_parameters_replace_the_benchmark(tmp_path):
    root = tmp_path / "b"
    for count in (1, 2):
        few = ImageCounts(count, 1, 1)
        build(root, images=few, classes=["whale"], workers=1, progress=False)
        assert len(rows(root, "real", "train")) == count
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["b"]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(
            tmp_path / "b", images=ImageCounts(1, 1, 1), classes=["bus"], workers=1, progress=False
        )
    assert [path.name for path in tmp_path.iterdir()] == [".b.lock"]


def test_a_folder_with_other_contents_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="other"):
        build(tmp_path, workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
