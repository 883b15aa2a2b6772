"""Build the benchmark from the command line: ``python -m trainers.embedded_benchmark ROOT``."""

import argparse
from pathlib import Path

from rich.console import Console

from trainers.embedded_benchmark.build import build
from trainers.embedded_benchmark.contact_sheet import contact_sheet


def main() -> None:
    """Build the benchmark, write its contact sheet beside it, and print where both are."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.embedded_benchmark", description=__doc__
    )
    parser.add_argument("root", type=Path, help="folder for the benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    given = parser.parse_args()
    root = build(given.root, seed=given.seed, size=given.size, workers=given.workers)
    sheet = contact_sheet(root, root.with_name(f"{root.name}-contact-sheet.png"))
    console = Console(soft_wrap=True)
    console.print(f"Benchmark: {root}", highlight=False)
    console.print(f"Contact sheet: {sheet}", highlight=False)


if __name__ == "__main__":
    main()
