"""How do cost and memory grow with the size of a search? `python -m tests.benchmarks.growth`

Three sizes, each over some powers of ten or four:

- trials: driver CPU time and memory of a search of instant trials (`many_trials`), a process each;
- images: listing of class folders, opening of a Parquet data set with and without this machine's
  cache, and one image at random;
- devices: CPU time that searcher and scheduler take for a trial in `simulator`, with one trial a
  device at a time. No Ray node is started for it.

`--out FOLDER` gets `growth.json`, to which later runs add theirs, and the figure `growth.png`,
with logarithmic axes and the slope of a straight line through each series: 0 is constant, 1 is
proportional to the size.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from PIL import Image
from pyarrow import csv
from rich.console import Console
from rich.table import Table

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.simulate import recorded_setting
from tests.benchmarks.simulator import simulate
from tests.benchmarks.surface import SimulatedTrainings
from trainers.data.cache.arrow_cache import CACHE_VARIABLE, cache_folder
from trainers.data.dataset import ImageDataset
from trainers.data.formats import LAYOUTS
from trainers.data.formats.index import LayoutOptions
from trainers.data.schema import IMAGE_TYPE, arrow_schema, part_path
from trainers.data.storage import open_store

TRIALS: Final = (10, 100, 1_000, 10_000)
IMAGES: Final = (1_000, 10_000, 100_000, 1_000_000)
DEVICES: Final = (1, 4, 16, 64)
SIMULATED_TRIALS: Final = 256
CLASSES: Final = 100
SHARD: Final = 10_000
"""Images of a Parquet file."""
DRAWS: Final = 1_000
"""Images that are read at random."""

Row = dict[str, float]


def of_trials(size: int) -> Row:
    """A search of so many instant trials."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "readings.csv"
        command = [sys.executable, "-m", "tests.benchmarks.many_trials", "--sampler", "random"]
        command += ["--trials", str(size), "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        readings = csv.read_csv(output)
    cpu, memory = readings["cpu"].to_numpy(), readings["rss_mb"].to_numpy()
    return {"driver, CPU s": cpu[-1] - cpu[0], "driver, MB": memory[-1]}


def of_images(size: int) -> Row:
    """A data set of so many images of 8 x 8 pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "JPEG")
    names = [f"{number:07d}.jpg" for number in range(size)]
    classes = [f"class-{number}" for number in range(CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ[CACHE_VARIABLE] = str(base / "arrow")
        for name in classes:
            (base / "folders" / "train" / name).mkdir(parents=True)
        for number, name in enumerate(names):
            (base / "folders" / "train" / classes[number % CLASSES] / name).touch()
        source, options = open_store(base / "folders"), LayoutOptions(domain="drawn")
        row = {
            "list folders, CPU s": _cpu_seconds(
                lambda: list(LAYOUTS["folders"].read(source, options))
            )
        }

        schema = arrow_schema(classes, {})
        for part, first in enumerate(range(0, size, SHARD)):
            paths = names[first : first + SHARD]
            content = [pa.array([encoded.getvalue()] * len(paths)), pa.array(paths)]
            column = pa.StructArray.from_arrays(content, fields=list(IMAGE_TYPE))
            labels = pa.array(np.arange(len(paths)) % CLASSES)
            target = part_path(base / "parquet", "drawn", "train", part)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table([column, labels], schema=schema), target)
        open_images = lambda: ImageDataset(base / "parquet", "drawn", "train")  # noqa: E731
        row["open, first time, CPU s"] = _cpu_seconds(open_images)
        row["open, cached, CPU s"] = _cpu_seconds(open_images)
        images, rng = open_images(), np.random.default_rng(0)
        drawn = rng.integers(size, size=DRAWS).tolist()
        row["one image, CPU ms"] = _cpu_seconds(lambda: [images.decode(i) for i in drawn])
        row["cache, MB"] = sum(path.stat().st_size for path in cache_folder().iterdir()) / 1e6
    return row


def of_devices(size: int) -> Row:
    """A simulated search with so many trials at a time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    setting = recorded_setting()
    row = {}
    for label, name in (("TPE + ASHA", "ours with TPE and ASHA"), ("random", "random")):
        contender = CONTENDERS[name]
        searcher, scheduler = contender.create(setting.problem, 0)
        trainings = SimulatedTrainings(setting.surfaces, np.random.default_rng(0))
        steps = contender.evaluate_at(setting.problem)
        ended = simulate(searcher, scheduler, trainings, setting.costs, steps, size)
        seconds = _cpu_seconds(lambda e=ended: list(itertools.islice(e, SIMULATED_TRIALS)))  # type: ignore[misc]
        row[f"{label}, CPU ms a trial"] = 1e3 * seconds / SIMULATED_TRIALS
    return row


def _cpu_seconds(function: Callable[[], Any]) -> float:
    gc.collect()
    began = time.process_time()
    function()
    return time.process_time() - began


PARTS: Final[Mapping[str, tuple[Callable[[int], Row], Sequence[int]]]] = {
    "trials": (of_trials, TRIALS),
    "images": (of_images, IMAGES),
    "devices": (of_devices, DEVICES),
}


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of the straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def draw(measured: Mapping[str, Mapping[int, Row]], path: Path) -> None:
    """One panel for each part."""
    figure = Figure(figsize=(5 * len(measured), 4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, part in zip(panels, [part for part in PARTS if part in measured], strict=True):
        rows = measured[part]
        sizes = list(rows)
        for name in rows[sizes[0]]:
            values = [row[name] for row in rows.values()]
            axes.loglog(
                sizes, values, marker="o", label=f"{name} (slope {slope(sizes, values):.2f})"
            )
        axes.set(xlabel=part)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Measure, print, and write figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, help="in place of those of every part")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    console = Console(width=140)
    measured: dict[str, dict[int, Row]] = {}
    stored = arguments.out / "growth.json" if arguments.out else None
    if stored and stored.exists():
        parts = json.loads(stored.read_text())
        measured = {part: {int(n): row for n, row in parts[part].items()} for part in parts}
    for part in arguments.parts:
        measure, sizes = PARTS[part]
        for size in arguments.sizes or sizes:
            row = {name: float(value) for name, value in measure(size).items()}
            print(part, size, row, flush=True)
            measured[part] = dict(sorted({**measured.get(part, {}), size: row}.items()))
        rows = measured[part]
        table = Table(part, *map(str, rows), "slope")
        for name in next(iter(rows.values())):
            values = [row[name] for row in rows.values()]
            table.add_row(
                name, *(f"{value:.3g}" for value in values), f"{slope(list(rows), values):.2f}"
            )
        console.print(table)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(json.dumps(measured, indent=1))
        draw(measured, stored.with_suffix(".png"))


if __name__ == "__main__":
    main()
