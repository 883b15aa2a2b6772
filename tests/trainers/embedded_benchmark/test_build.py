import io
import subprocess
import sys

import numpy as np
import platformdirs
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.waiting import wait_until
from trainers.data.config import DataConfig
from trainers.data.data_root import resolve_root
from trainers.data.fingerprint import image_counts
from trainers.data.folders import SPLITS
from trainers.data.schema import part_path, read_header
from trainers.data.store import open_store
from trainers.embedded_benchmark import build as building
from trainers.embedded_benchmark.build import ImageCounts, build
from trainers.embedded_benchmark.classes import DOMAINS, load_classes, split_drawings
from trainers.embedded_benchmark.drawings import layers, raster
from trainers.embedded_benchmark.render import render

CLASSES = ["cat", "whale", "bus", "clock"]
FEW = ImageCounts(train=4, val=2, test=2)
SHOWN = ("1F408", "1F697", "1F33B", "1F433", "1F3E0", "1F98B")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "benchmark"
    return build(root, images=FEW, classes=CLASSES, workers=1, progress=False)


def rows(root, domain, split):
    return pq.read_table(part_path(root, domain, split)).to_pylist()


def test_a_hundred_classes_share_no_drawing_and_splits_neither():
    classes = load_classes()
    assert len(classes) == 100
    assert list(classes) == sorted(classes)
    every = [point for points in classes.values() for point in points]
    assert len(every) == len(set(every))
    assert sum(len(points) >= 3 for points in classes.values()) >= 10
    for name, points in classes.items():
        parts = split_drawings(name, points)
        assert all(parts[split] for split in SPLITS), name
        if len(points) > 1:
            assert sorted(point for part in parts.values() for point in part) == sorted(points)
    for point in every:
        assert raster(point, "line").getchannel("A").getbbox(), point
        assert raster(point, "colour").getchannel("A").getbbox(), point


def test_layers_divide_a_drawing_into_lines_and_colours():
    found = layers("1F408")
    assert ["#e27022" in found[layer] for layer in ("line", "colour")] == [False, True]
    assert ['stroke="#000"' in found[layer] for layer in ("line", "colour")] == [True, False]


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_image_depends_on_its_key_and_on_nothing_else(domain):
    first = render("1F697", domain, (0, 1))
    np.random.default_rng(7).random()
    render("1F697", domain, (9, 9))
    assert (render("1F697", domain, (0, 1)) == first).all()
    assert (render("1F697", domain, (0, 2)) != first).any()
    assert (render("1F697", domain, (0, 1, 0)) != first).any()
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)


def test_every_domain_looks_as_it_should():
    keys = [(point, index) for point in SHOWN for index in range(3)]
    gallery = {  # (18, 64, 64, 3) each
        domain: np.stack([render(point, domain, (3, index)) for point, index in keys]) * 1.0
        for domain in DOMAINS
    }
    corners = gallery["clipart"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.mean(corners == 255) > 0.98
    assert np.ptp(gallery["sketch"], axis=3).max() < 60  # hardly any colour
    assert np.ptp(gallery["clipart"], axis=3).max(axis=(1, 2)).min() > 80
    assert (gallery["painting"].min(axis=3) > 250).mean(axis=(1, 2)).max() < 0.2
    painting, clipart = ((gallery[d].max(axis=3) < 40).mean() for d in ("painting", "clipart"))
    assert painting < 0.4 * clipart  # no black outlines
    edges = {
        domain: np.mean(np.abs(np.diff(images.mean(axis=3), axis=2)) > 40)
        for domain, images in gallery.items()
    }
    assert max(edges, key=edges.get) == "infograph"
    assert gallery["real"].reshape(-1, 8, 8, 8, 8, 3).std(axis=(2, 4)).min() > 0.5  # noisy
    assert (gallery["real"] == 255).all(axis=3).mean(axis=(1, 2)).max() < 0.1


def test_every_class_has_its_images_in_every_domain_and_split(benchmark):
    every, allowed = set(), split_drawings("cat", load_classes()["cat"])
    for domain in DOMAINS:
        for split in SPLITS:
            found = rows(benchmark, domain, split)
            assert [r["label"] for r in found] == sorted([*range(4)] * getattr(FEW, split))
            for row in found:
                every.add(row["image"]["bytes"])
                _, _, name, file = row["image"]["path"].split("/")
                assert name == sorted(CLASSES)[row["label"]]
                assert name != "cat" or file.split("-")[0] in allowed[split]
        header = read_header(open_store(benchmark), f"{domain}/test/part-00000.parquet")
        assert header.class_names == tuple(sorted(CLASSES))
        assert header.metadata["license"] == "CC BY-SA 4.0"
        assert "OpenMoji" in header.metadata["attribution"]
    assert len(every) == 4 * 5 * (4 + 2 + 2)
    image = Image.open(io.BytesIO(every.pop()))
    assert (image.format, image.size) == ("JPEG", (64, 64))
    assert all(sampling[1:3] == (1, 1) for sampling in image.layer)


def test_other_processes_draw_the_same_bytes(benchmark, tmp_path):
    def contents(root):
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root): path.read_bytes() for path in files}

    root = build(tmp_path / "again", images=FEW, classes=CLASSES[::-1], workers=2, progress=False)
    assert contents(root) == contents(benchmark)


def test_a_part_is_drawn_by_itself(benchmark, tmp_path):
    part = ("painting", "val")
    root = build(tmp_path / "b", [part], images=FEW, classes=CLASSES, workers=1, progress=False)
    assert part_path(root, *part).read_bytes() == part_path(benchmark, *part).read_bytes()
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {"benchmark.json", "painting/val/part-00000.parquet"}


def test_a_split_is_drawn_when_it_is_first_read(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(building, "ImageCounts", lambda: FEW)
    monkeypatch.setattr(building, "load_classes", lambda: {"cat": load_classes()["cat"]})
    data = DataConfig(ood_domains=("sketch",))
    root = resolve_root(data.root).local_path()
    assert not [*root.rglob("*.parquet")]
    assert image_counts(data, "val") == {"real": FEW.val, "sketch": FEW.val}
    assert {*root.rglob("*.parquet")} == {part_path(root, d, "val") for d in data.domains}


def test_the_processes_that_draw_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text(
        "from pathlib import Path\n"
        "from trainers.embedded_benchmark.build import build\n"
        "if __name__ == '__main__':\n"
        f"    build(Path({str(tmp_path / 'b')!r}), [('real', 'train')], workers=2)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL) as process:
        parent, made = psutil.Process(process.pid), tmp_path / "b" / building.MARKER
        # The resource tracker and two that draw.
        wait_until(lambda: made.exists() and len(parent.children()) == 3, process=process)
        children = parent.children()
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive


def test_building_again_changes_nothing(benchmark, monkeypatch):
    monkeypatch.setattr(building, "render", None)  # any rendering would fail
    before = {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")}
    build(benchmark, images=FEW, classes=CLASSES, workers=1, progress=False)
    assert {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")} == before


def test_other_parameters_replace_the_benchmark_and_nothing_else(tmp_path, monkeypatch):
    def whale(folder, count):
        few = ImageCounts(count, 1, 1)
        return build(tmp_path / folder, images=few, classes=["whale"], workers=1, progress=False)

    for count in (1, 2):
        assert len(rows(whale("b", count), "real", "train")) == count
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["b"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="other"):
        whale("own", 1)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["thesis.tex"]
    monkeypatch.delattr(building, "write_images")
    with pytest.raises(NameError):
        whale("failed", 1)
    left = {path.name for path in (tmp_path / "failed").rglob("*")}
    assert left <= {building.MARKER, *DOMAINS}
