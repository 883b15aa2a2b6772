"""Build the benchmark from the command line: ``python -m trainers.embedded_benchmark ROOT``."""

import argparse
from pathlib import Path

from trainers.embedded_benchmark.build import build


def main() -> None:
    """Build the benchmark, and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.embedded_benchmark", description=__doc__
    )
    parser.add_argument("root", type=Path, help="folder for the benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    given = parser.parse_args()
    root = build(given.root, seed=given.seed, size=given.size, workers=given.workers)
    print(f"Benchmark: {root}")


if __name__ == "__main__":
    main()
