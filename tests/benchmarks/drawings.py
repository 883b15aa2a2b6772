"""What does a search of drawings bring home? `python -m tests.benchmarks.drawings --out O`

The rows of `photographs` for the built-in benchmark: one search, of 20 trials of the quickstart.
The benchmark was shaped to show the effect of Lipsum-FT within minutes: this table demonstrates the
method, it is no evidence for it.
"""

import argparse
from pathlib import Path

from tests.benchmarks.models.study import study
from tuning import load_config


def configuration(changes):
    """The quickstart with other values for dotted keys."""
    given = {"search.references": "[]"} | changes  # `confirm` trains plain fine-tuning
    return load_config("quickstart", [f"{key}={value}" for key, value in given.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for everything that is made")
    study({"real": configuration}, (0,), parser.parse_args().out)


if __name__ == "__main__":
    main()
