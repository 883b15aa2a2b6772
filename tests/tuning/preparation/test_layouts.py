"""Every layout, from a miniature tree to Parquet and back, without Ray."""

import io

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.trainers.data.formats import trees
from tests.trainers.data.formats.more_trees import TREES
from tests.tuning.preparation.reading import names_in, rows
from trainers.data.encoding import EncodeOptions
from trainers.data.formats import LAYOUTS
from trainers.data.shards import make_shard
from trainers.data.storage import open_store
from tuning.preparation.plan import PrepareOptions, plan_preparation


def prepare_here(layout, source, destination, options):
    """Prepare in this process, and count the findings by kind."""
    plan = plan_preparation(layout, str(source), str(destination), options)
    kinds = {}
    for domain in plan.domains:
        found = [found.finding for found in domain.findings]
        for shard in domain.shards:
            found += make_shard(plan.source, plan.destination, shard, options.encode).findings
        for finding in found:
            kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
    return kinds


@pytest.mark.parametrize("layout", TREES)
def test_a_tree_becomes_parquet_with_every_image_in_its_class(layout, tmp_path):
    make, layout_options, count = TREES[layout]
    source = make(tmp_path / "source")
    options = PrepareOptions(layout_options, val_fraction=0, test_fraction=0, shard_size=3)
    prepare_here(layout, source, tmp_path / "data", options)
    indexes = LAYOUTS[layout].read(open_store(source), layout_options)
    assert sum(len(index.examples) for index in indexes) == count
    splits = {file.parent for file in (tmp_path / "data").rglob("*.parquet")}
    assert splits == {tmp_path / "data" / index.domain / index.split for index in indexes}
    for index in indexes:
        found = rows(tmp_path / "data", f"{index.domain}/{index.split}")
        assert [(path, name) for path, name, _ in found] == [
            (example.path, index.class_names[example.label]) for example in index.examples
        ]


def test_every_image_keeps_its_own_pixels(tmp_path):
    source = trees.make_domainnet(tmp_path / "source")
    prepare_here("domainnet", source, tmp_path / "data", PrepareOptions(shard_size=5))
    found = rows(tmp_path / "data", "real/train") + rows(tmp_path / "data", "real/val")
    assert len(found) == 14
    for path, name, colour in found:
        assert path.split("/")[:2] == ["real", name]
        with Image.open(source / path) as original:
            assert original.getpixel((8, 6)) == colour


def test_the_red_frame_of_objectnet_is_gone(tmp_path):
    source = trees.make_objectnet(tmp_path / "source")
    options = PrepareOptions(val_fraction=0)
    assert "border" not in prepare_here("objectnet", source, tmp_path / "data", options)
    table = pq.read_table(tmp_path / "data" / "objectnet/test/part-00000.parquet")
    for row in table["image"].to_pylist():
        with Image.open(io.BytesIO(row["bytes"])) as image:
            assert image.size == (20, 16)
            assert (255, 0, 0) not in [colour for _, colour in image.getcolors() or []]


def test_smaller_images_and_a_validation_split(tmp_path):
    source = trees.make_imagenet_v2(tmp_path / "source")
    options = PrepareOptions(encode=EncodeOptions(resize=6), val_fraction=0.5, seed=3)
    kinds = prepare_here("imagenet-v2", source, tmp_path / "data", options)
    assert kinds == {"missing class": 996}
    val, test = (rows(tmp_path / "data", f"imagenet-v2/{split}") for split in ("val", "test"))
    assert sorted(name for _, name, _ in val) == sorted(name for _, name, _ in test)
    assert not {path for path, _, _ in val} & {path for path, _, _ in test}
    names = names_in(open_store(tmp_path / "data"), "imagenet-v2/val/part-00000.parquet")
    assert len(names) == 1000
