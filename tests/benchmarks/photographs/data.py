"""The images: PACS (Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017).

9,991 images of 7 classes in the domains photo, art_painting, cartoon and sketch. The data set is
not part of this project: `--pacs` names a folder `<domain>/<class>/*`. All photos are used, and
`PER_CLASS` images of each class of the other domains, so that an evaluation is affordable.
"""

from __future__ import annotations

import random
import subprocess
import sys

from trainers.data.suite import load_suite

PER_CLASS = 150
"""Images of a class and OOD domain at most; the guitars of cartoon (135) and the houses of sketch
(80) are fewer."""
FRACTIONS = ("--val-fraction", "0.2", "--test-fraction", "0.4")
"""Of photo. The other domains are divided in the same proportion: 1 val to 2 test."""


def prepare(pacs, chosen, data):
    """Link the images that are used into `chosen`, and prepare them in `data`.

    Complete domains are kept by the command itself.
    """
    suite = load_suite("pacs")
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
    command = [sys.executable, "-m", "tuning", "prepare", "folders", str(chosen), str(data)]
    command += ["--id", suite.id_domain, "--ood", ",".join(suite.ood_domains), *FRACTIONS]
    subprocess.run(command, check=True)
