"""What may be left out, and what makes no sense."""

from __future__ import annotations

import pytest

from trainers.data.encoding import EncodeOptions
from trainers.errors import ConfigError
from tuning.preparation.options import Ceiling, PrepareOptions, parse_ceiling


def test_a_ceiling_is_a_number_of_images_or_a_share() -> None:
    assert parse_ceiling(None) == Ceiling(0)
    assert parse_ceiling("20") == Ceiling(20)
    assert parse_ceiling("0.1%") == Ceiling(percent=0.1)
    assert [str(parse_ceiling(text)) for text in ("20", "0.1 %", "5%")] == ["20", "0.1%", "5%"]
    for text in ("", "-1", "1.5", "120%", "many", "%", "1,000"):
        with pytest.raises(ConfigError, match="--skip-bad"):
            parse_ceiling(text)


@pytest.mark.parametrize(
    ("ceiling", "bad", "images", "allowed"),
    [
        ("0", 0, 10, True),
        ("0", 1, 10, False),
        ("20", 20, 20, True),
        ("20", 21, 10_000, False),
        ("0.1%", 1, 1000, True),
        ("0.1%", 1, 999, False),
        ("0.1%", 0, 5, True),
        ("100%", 5, 5, True),
    ],
)
def test_a_ceiling_is_not_exceeded_by_what_it_names(
    ceiling: str, bad: int, images: int, allowed: bool
) -> None:
    assert parse_ceiling(ceiling).allows(bad, images) is allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PrepareOptions(val_fraction=1.0), "--val-fraction 1.0"),
        (PrepareOptions(val_fraction=-0.1), "--val-fraction -0.1"),
        (PrepareOptions(encode=EncodeOptions(resize=0)), "--resize 0"),
        (PrepareOptions(encode=EncodeOptions(quality=101)), "--quality 101"),
        (PrepareOptions(shard_size=0), "--shard-size 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options: PrepareOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options.check()
    PrepareOptions().check()
