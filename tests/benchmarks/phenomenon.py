"""What is a search worth on the built-in benchmark? `python -m tests.benchmarks.phenomenon --out O`

The searches and the table of `photographs`, with the trial of the quickstart. The benchmark was
shaped to show the effect of Lipsum-FT within minutes: this table demonstrates the method, it is no
evidence for it.
"""

from pathlib import Path

from tests.benchmarks.photographs.__main__ import completed, parser_of
from tests.benchmarks.photographs.table import markdown
from trainers.data.suite import Suite
from tuning import load_config

QUICKSTART = load_config("quickstart").trial
SUITE = Suite(id_domain=QUICKSTART.data.id_domain, ood_domains=QUICKSTART.data.ood_domains)
GIVEN = {
    "trial.model.name": QUICKSTART.model.name,
    "trial.data.root": QUICKSTART.data.root,
    "trial.data.suite": "null",
    "trial.optim.batch_size": QUICKSTART.optim.batch_size,
    "trial.steps": QUICKSTART.steps,
    "trial.eval.every": QUICKSTART.steps,
    "trial.eval.line_images": QUICKSTART.eval.line_images,
}


def main():
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for everything that is made")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = completed(arguments, lambda: GIVEN)
    (arguments.out / "table.md").write_text(markdown(results, SUITE), encoding="utf-8")
    print(markdown(results, SUITE))


if __name__ == "__main__":
    main()
