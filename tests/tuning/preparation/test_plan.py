"""Plans: what is refused before anything is written, and what may go on."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainers.data.formats.trees import draw, make_domainnet
from trainers.data.encoding import EncodeOptions
from trainers.data.formats.index import LayoutOptions
from trainers.data.shards import make_shard
from trainers.errors import ConfigError
from tuning.preparation.manifest import other_parts, write_record
from tuning.preparation.plan import PrepareOptions, may_skip, plan_preparation

OPTIONS = PrepareOptions()


@pytest.fixture
def tree(tmp_path):
    return make_domainnet(tmp_path / "source")


def planned(tree, destination, options=OPTIONS, layout=""):
    return plan_preparation(layout or "domainnet", str(tree), str(destination), options)


def prepare_here(tree, destination, options=OPTIONS):
    """A whole preparation in this process, its records included, as an earlier run leaves it."""
    plan = planned(tree, destination, options)
    for domain in plan.domains:
        for shard in domain.shards:
            make_shard(plan.source, plan.destination, shard, options.encode)
        facts = {"digest": domain.digest, "settings": dict(domain.settings)}
        write_record(domain.store, "done", facts)
    return plan


def refusal(tree, destination, options=OPTIONS):
    with pytest.raises(ConfigError) as caught:
        planned(tree, destination, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plan_has_the_splits_of_all_domains_and_writes_nothing(tree, tmp_path):
    for file in tree.rglob("*.jpg"):
        file.write_bytes(b"")  # no image is opened
    plan = planned(tree, tmp_path / "data")
    counts = {
        f"{shard.domain}/{shard.split}": len(shard.examples)
        for domain in plan.domains
        for shard in domain.shards
    }
    assert counts == {  # of 2 images a class in train one is carved; painting lacks the t-shirts
        "painting/train": 6, "painting/val": 6, "painting/test": 7,
        "real/train": 7, "real/val": 7, "real/test": 7,
    }  # fmt: skip
    assert plan.images == 40
    assert not (tmp_path / "data").exists()
    names = {shard.class_names for domain in plan.domains for shard in domain.shards}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("limit", "bad", "images", "allowed"),
    [
        ("0", 0, 10, True),
        ("0", 1, 10, False),
        ("20", 20, 20, True),
        ("20", 21, 10_000, False),
        ("0.1%", 1, 1000, True),
        ("0.1 %", 1, 999, False),
        ("0.1%", 0, 5, True),
        ("100%", 5, 5, True),
    ],
)
def test_bad_images_up_to_the_limit_are_left_out(limit, bad, images, allowed):
    assert may_skip(limit, bad, images) is allowed


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (PrepareOptions(val_fraction=1.0), "--val-fraction"),
        (PrepareOptions(val_fraction=-0.1), "--val-fraction"),
        (PrepareOptions(test_fraction=0.9), "--test-fraction"),
        (PrepareOptions(encode=EncodeOptions(resize=0)), "--resize"),
        (PrepareOptions(encode=EncodeOptions(quality=101)), "--quality"),
        (PrepareOptions(shard_size=0), "--shard-size"),
        *(
            (PrepareOptions(skip_bad=limit), "--skip-bad")
            for limit in ("", "-1", "1.5", "9" * 5000, "120%", "many", "%", "1,000")
        ),
        (PrepareOptions(LayoutOptions(domain="..")), "--domain"),
        (PrepareOptions(LayoutOptions(domain="a/b")), "--domain"),
    ],
)
def test_an_option_out_of_range_is_refused(options, key, tree, tmp_path):
    with pytest.raises(ConfigError) as caught:
        planned(tree / "real", tmp_path / "data", options, "folders")
    assert caught.value.key == key


def test_folders_get_the_splits_that_a_search_and_confirm_read(tmp_path):
    for domain in ("studio", "street"):
        for number in range(10):
            draw(tmp_path / "source" / domain / "cup" / f"{number}.jpg")
    roles = LayoutOptions(id="studio")

    def splits(options):
        plan = planned(tmp_path / "source", tmp_path / "x", options, "folders")
        shards = [shard for domain in plan.domains for shard in domain.shards]
        return {f"{shard.domain}/{shard.split}": len(shard.examples) for shard in shards}

    of_id = {"studio/train": 7, "studio/val": 1, "studio/test": 2}
    assert splits(PrepareOptions(roles)) == {**of_id, "street/val": 3, "street/test": 7}
    every = LayoutOptions(domains=("all",))
    assert splits(PrepareOptions(every))["street/train"] == 7
    assert "studio/test" not in splits(PrepareOptions(roles, test_fraction=0))


def test_an_unknown_layout_is_refused_with_a_suggestion(tree, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'imagenet-v2'") as caught:
        planned(tree, tmp_path / "data", layout="imagenet-v3")
    assert (caught.value.key, caught.value.value) == ("layout", "imagenet-v3")


def test_a_place_that_cannot_be_read_or_written_is_named(tree, tmp_path):
    data = tmp_path / "data"
    assert refusal(tmp_path / "nowhere", data).endswith("nowhere: no such folder")
    assert "a file, where a folder" in refusal(tree / "real_train.txt", data)
    assert "a file, where a folder" in refusal(tree, tree / "real_train.txt")
    assert "Protocol not known: nfs" in refusal(tree, "nfs://server/data")
    assert "credentials do not belong" in refusal(tree, "s3://key:secret@bucket/data")
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(tmp_path / "empty", data)
    assert not data.exists()


def test_the_destination_may_not_lie_in_the_source(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    for inside in (tree, tree / "prepared", tree / ".." / "source" / "x", tmp_path / "link" / "x"):
        assert "apart" in refusal(tree, inside)


def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    draw(tmp_path / "source" / "cat" / "a.png")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/source/cat/caf\xe9.png"))).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"caf\\xe9.png.* not UTF-8"):
        planned(tmp_path / "source", tmp_path / "data", layout="folders")


def test_a_source_in_a_folder_that_is_written_is_refused(tmp_path):
    source = make_domainnet(tmp_path / "data" / "real" / "raw")
    assert "keep the source" in refusal(source, tmp_path / "data")
    painting = PrepareOptions(LayoutOptions(domains=("painting",)))
    plan = planned(source, tmp_path / "data", painting)
    assert [domain.domain for domain in plan.domains] == ["painting"]


def test_the_same_again_may_go_on_and_other_settings_may_not(tree, tmp_path):
    data = tmp_path / "data"
    assert not any(d.is_done for d in prepare_here(tree, data).domains)
    again = planned(tree, data)
    assert all(domain.is_done and not domain.overwrite for domain in again.domains)
    smaller = replace(OPTIONS, encode=EncodeOptions(resize=8))
    assert re.search(
        r"data/painting: was prepared with other settings: --resize None, now 8 "
        r"\(--overwrite replaces it\)",
        refusal(tree, data, smaller),
    )
    assert "--seed 0, now 1; --shard-size 4096, now 2" in refusal(
        tree, data, replace(OPTIONS, seed=1, shard_size=2)
    )
    plan = planned(tree, data, replace(smaller, overwrite=True))
    assert all(domain.overwrite and not domain.is_done for domain in plan.domains)


def test_other_images_or_class_names_are_other_data(tree, tmp_path):
    data = tmp_path / "data"
    prepare_here(tree, data)
    lists = [tree / f"{domain}_test.txt" for domain in ("painting", "real")]
    whole = [file.read_text() for file in lists]
    lists[0].write_text("".join(whole[0].splitlines(keepends=True)[1:]))
    assert "other images at the source" in refusal(tree, data)
    for file, text in zip(lists, whole, strict=True):
        file.write_text(text)
    assert planned(tree, data).domains[0].is_done
    real = replace(OPTIONS, layout=LayoutOptions(domains=("real",)))
    assert [d.is_done for d in planned(tree, data, real).domains] == [True]


def test_files_that_prepare_did_not_make_are_not_replaced(tree, tmp_path):
    own = tmp_path / "data" / "real" / "train" / "mine.parquet"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"images of my own")
    assert "data/real: holds Parquet files" in refusal(tree, tmp_path / "data")
    plan = planned(tree, tmp_path / "data", PrepareOptions(overwrite=True))
    real = next(domain for domain in plan.domains if domain.domain == "real")
    assert other_parts(real.store, real.shards) == ["train/mine.parquet"]


def test_files_beyond_the_plan_are_replaced_only_where_that_was_said(tree, tmp_path):
    data = tmp_path / "data"
    plan = prepare_here(tree, data)
    extra = data / "real" / "train" / "part-00007.parquet"
    extra.write_bytes(b"")
    assert "real: train/part-00007.parquet is not part" in refusal(tree, data)
    real = next(domain for domain in plan.domains if domain.domain == "real")
    facts = {"digest": real.digest, "settings": dict(real.settings), "overwrite": True}
    write_record(real.store, "done", facts)  # the option was for the files of then
    assert "real: train/part-00007.parquet is not part" in refusal(tree, data)
    write_record(real.store, "unfinished", facts)
    again = planned(tree, data)  # given, then killed
    assert [domain.overwrite for domain in again.domains] == [False, True]
    assert again.domains[1].extra == ("train/part-00007.parquet",)


@pytest.mark.parametrize("status", ["unfinished", "refused"])
def test_what_is_not_done_may_go_on_with_fewer_images(tree, tmp_path, status):
    data, options = tmp_path / "data", PrepareOptions(shard_size=2)
    plan = prepare_here(tree, data, options)
    listed = (tree / "real_test.txt").read_text().splitlines(keepends=True)
    (tree / "real_test.txt").write_text("".join(listed[2:]))  # the last of four parts goes
    assert "other images at the source" in refusal(tree, data, options)
    real = plan.domains[1]
    facts = {"digest": real.digest, "settings": dict(real.settings)}
    facts |= {"layout": "domainnet", "source": str(tree)}
    write_record(real.store, status, facts)
    again = planned(tree, data, options).domains[1]
    assert (again.is_done, again.overwrite) == (False, False)
    assert again.extra == ("test/part-00003.parquet",)
    assert "--shard-size 2, now 3" in refusal(tree, data, PrepareOptions(shard_size=3))
    moved = make_domainnet(tmp_path / "other")
    (moved / "real_test.txt").write_text("".join(listed[4:]))
    assert "other images at the source" in refusal(moved, data, options)
    (data / "real" / "mine.parquet").write_bytes(b"of my own")
    assert "real: mine.parquet is not part" in refusal(tree, data, options)


def test_digests_do_not_depend_on_where_the_source_lies(tree, tmp_path):
    prepare_here(tree, tmp_path / "data")
    moved = tree.rename(tmp_path / "moved")
    assert all(domain.is_done for domain in planned(moved, tmp_path / "data").domains)
