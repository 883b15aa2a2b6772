"""Every layout, from a miniature tree to Parquet and back, without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainers.data.formats import more_trees, trees
from tests.tuning.preparation.reading import counts, names_in, rows
from trainers.data.encoding import EncodeOptions
from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import LayoutOptions
from trainers.data.shards import make_shard
from trainers.data.storage import open_store
from tuning.preparation.plan import PrepareOptions, plan_preparation

DOMAINNET = dict.fromkeys(trees.DOMAINNET_CLASSES, 1)
TREES: dict[str, tuple[Callable[[Path], Path], LayoutOptions, Mapping[str, Mapping[str, int]]]] = {
    "domainnet": (
        trees.make_domainnet,
        LayoutOptions(),
        {
            "painting/train": {name: 2 for name in DOMAINNET if name != "t-shirt"},
            "painting/test": DOMAINNET,
            "real/train": dict.fromkeys(DOMAINNET, 2),
            "real/test": DOMAINNET,
        },
    ),
    "imagenet": (
        trees.make_imagenet,
        LayoutOptions(),
        {
            "imagenet/train": {"n01440764": 3, "n01443537": 3, "n01484850": 3, "n15075141": 3},
            "imagenet/test": {"n01440764": 2, "n01443537": 2, "n01484850": 2, "n15075141": 2},
        },
    ),
    "imagenet-v2": (
        trees.make_imagenet_v2,
        LayoutOptions(),
        # great white shark, brambling, black swan, toilet tissue: 2, 10, 100, 999
        {
            "imagenet-v2/test": {
                "n01484850": 2, "n01530575": 2, "n01860187": 2, "n15075141": 2,
            }
        },
    ),
    "imagenet-r": (
        trees.make_imagenet_r,
        LayoutOptions(),
        {
            "imagenet-r/test": {
                "n01443537": 2, "n01484850": 2, "n01494475": 2, "n01498041": 2, "n12267677": 2,
            }
        },
    ),
    "imagenet-a": (
        trees.make_imagenet_a,
        LayoutOptions(),
        {"imagenet-a/test": {"n01498041": 2, "n01531178": 2, "n12267677": 2}},
    ),
    "imagenet-sketch": (
        trees.make_imagenet_sketch,
        LayoutOptions(),
        {"imagenet-sketch/test": {"n01440764": 2, "n01443537": 2, "n15075141": 2}},
    ),
    "objectnet": (
        trees.make_objectnet,
        LayoutOptions(),
        {"objectnet/test": {"alarm_clock": 2, "banana": 2, "bicycle": 2, "chair": 2}},
    ),
    "arrays": (
        more_trees.make_arrays,
        LayoutOptions(domains=("real", "imagenet-r")),
        {
            "real/test": {"aircraft_carrier": 2, "zebra": 1, "zigzag": 1},
            "imagenet-r/test": {"n01443537": 1, "n12267677": 1, "n01498041": 1},
        },
    ),
    "webdataset": (
        more_trees.make_webdataset,
        LayoutOptions(domain="web"),
        {"web/train": {"cat": 1, "hot air balloon": 1, "dog": 1}, "web/test": {"dog": 1}},
    ),
    "folders": (
        more_trees.make_domain_folders,
        LayoutOptions(domains=("real", "sketch")),
        {"real/train": {"cat": 3, "dog": 3}, "sketch/train": {"cat": 3, "emu": 3}},
    ),
    "parquet": (
        more_trees.make_parquet,
        LayoutOptions(domain="pets"),
        {"pets/train": {"cat": 2, "dog": 3}, "pets/val": {"cat": 1}},
    ),
}  # fmt: skip


def prepare_here(
    layout: str, source: Path, destination: Path, options: PrepareOptions
) -> dict[str, int]:
    """Prepares in this process; the findings by kind."""
    plan = plan_preparation(layout, str(source), str(destination), options)
    kinds: dict[str, int] = {}
    for domain in plan.domains:
        found = [found.finding for found in domain.findings]
        for shard in domain.shards:
            found += make_shard(plan.source, plan.destination, shard, options.encode).findings
        for finding in found:
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    return kinds


def test_every_layout_has_a_tree() -> None:
    assert TREES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", TREES)
def test_a_tree_becomes_parquet_with_every_image_in_its_class(layout: str, tmp_path: Path) -> None:
    make, layout_options, expected = TREES[layout]
    source = make(tmp_path / "source")
    options = PrepareOptions(layout_options, val_fraction=0, shard_size=3)
    prepare_here(layout, source, tmp_path / "data", options)
    splits = {
        path.parent.relative_to(tmp_path / "data").as_posix()
        for path in (tmp_path / "data").rglob("*.parquet")
    }
    assert splits == expected.keys()
    for split, classes in expected.items():
        assert counts(tmp_path / "data", split) == classes


def test_every_image_keeps_its_own_pixels(tmp_path: Path) -> None:
    source = trees.make_domainnet(tmp_path / "source")
    prepare_here("domainnet", source, tmp_path / "data", PrepareOptions(shard_size=5))
    found = rows(tmp_path / "data", "real/train") + rows(tmp_path / "data", "real/val")
    assert len(found) == 14
    for path, name, colour in found:
        assert path.split("/")[:2] == ["real", name]
        with Image.open(source / path) as original:
            assert original.getpixel((8, 6)) == colour


def test_the_red_frame_of_objectnet_is_gone(tmp_path: Path) -> None:
    source = trees.make_objectnet(tmp_path / "source")
    options = PrepareOptions(val_fraction=0)
    assert "border" not in prepare_here("objectnet", source, tmp_path / "data", options)
    table = pq.read_table(tmp_path / "data" / "objectnet/test/part-00000.parquet")
    for row in table["image"].to_pylist():
        with Image.open(io.BytesIO(row["bytes"])) as image:
            assert image.size == (20, 16)
            assert (255, 0, 0) not in [colour for _, colour in image.getcolors() or []]


def test_smaller_images_and_a_validation_split(tmp_path: Path) -> None:
    source = trees.make_imagenet_v2(tmp_path / "source")
    options = PrepareOptions(encode=EncodeOptions(resize=6), val_fraction=0.5, seed=3)
    kinds = prepare_here("imagenet-v2", source, tmp_path / "data", options)
    assert kinds == {"missing class": 996}
    val, test = (rows(tmp_path / "data", f"imagenet-v2/{split}") for split in ("val", "test"))
    assert sorted(name for _, name, _ in val) == sorted(name for _, name, _ in test)
    assert not {path for path, _, _ in val} & {path for path, _, _ in test}
    names = names_in(open_store(tmp_path / "data"), "imagenet-v2/val/part-00000.parquet")
    assert len(names) == 1000
