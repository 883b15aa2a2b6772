"""The fault matrix of the documentation names tests that exist, for every cell."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
NUMBERED = dict(re.findall(r"^(\d+)\. (.+)$", PAGE, re.M))
ROWS = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
CELLS = [cell for row in ROWS if row[1].strip() != "this trial" for cell in row[1:]]
UNTESTED = re.compile(r"not run|not concerned|none has started|ha(s|ve) ended")


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[^:`]+)::(\w+)`", "\n".join(NUMBERED.values()))
    assert len(named) >= len(NUMBERED) > 60
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_cell_names_a_test_or_says_that_there_is_none():
    used = set()
    for cell in CELLS:
        numbers = [
            number for group in re.findall(r"\[([\d, ]+)\]", cell) for number in group.split(", ")
        ]
        assert numbers or UNTESTED.fullmatch(cell.strip()), cell
        used |= set(numbers)
    assert used == NUMBERED.keys()
