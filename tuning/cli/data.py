"""Commands before a search: `prepare` for data, and `zero-shot` for data and model."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperCommand

from tuning.cli.options import Address, Config, Set, names

app = typer.Typer()


_TREES = """\b
Trees of the layout `folders`:
  SOURCE/<domain>/<class>/*.jpg          with --id studio --ood street,sketch
  SOURCE/<domain>/<split>/<class>/*.jpg  the same; splits: train, val, test
  SOURCE/<class>/*.jpg                   one domain; --domain gives its name
  SOURCE/<split>/<class>/*.jpg           the same
Missing val and test splits come from train, by class, the same each time."""


class _ListsLayouts(TyperCommand):
    """A command whose help ends with the list of layouts, imported only for that."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from trainers.data.formats import LAYOUTS

        listed = (f"{name}: {layout.description}" for name, layout in LAYOUTS.items())
        self.epilog = "\n\n".join(["Values of LAYOUT:", *listed, _TREES])
        super().format_help(ctx, formatter)


Layout = Annotated[str, typer.Argument(help="How the images are stored: the name of a layout.")]
Source = Annotated[str, typer.Argument(help="Their folder, or a URL such as s3://...")]
Destination = Annotated[
    str, typer.Argument(help="Folder or URL of the data set, for `trial.data.root`.")
]
Domain = Annotated[
    str | None, typer.Option(help="Name of the domain, for layouts of a single domain.")
]
Domains = Annotated[
    str | None, typer.Option(help="Only these domains, comma-separated; for `folders`, also `all`.")
]
IdDomain = Annotated[
    str | None,
    typer.Option("--id", help="For `folders`: the domain to fine-tune on, a folder of SOURCE."),
]
OodDomains = Annotated[
    str | None,
    typer.Option(
        help="For `folders`: the domains that are only evaluated, comma-separated. Their "
        "train images become the val and test splits that they lack. Default: all but --id."
    ),
]
SplitOfRest = Annotated[
    Literal["train", "val", "test"] | None,
    typer.Option(help="Split of images without one in their folder or file name."),
]
Deduplicate = Annotated[
    str | None, typer.Option(help="A text file of paths to leave out, one per line.")
]
ClassNames = Annotated[
    str | None, typer.Option(help="A text file of class names in the order of the labels.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images in Parquet files.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels in Parquet files.")]
ValFraction = Annotated[
    float, typer.Option(help="Share of train (or of test, without train) that becomes val.")
]
TestFraction = Annotated[
    float | None,
    typer.Option(
        help="Share of train that becomes test, if there is no test split. Default: 0.2 for "
        "`folders`, else 0."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the images that become val and test.")]
Resize = Annotated[
    int | None, typer.Option(help="Pixels of the short side, e.g. 256; never enlarges.")
]
Quality = Annotated[int, typer.Option(help="Quality of re-encoded JPEGs.")]
SkipBad = Annotated[
    str, typer.Option(help="Leave out at most this many bad images per domain: `20`, or `0.1%`.")
]
ShardSize = Annotated[int, typer.Option(help="Images per Parquet file.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace domains prepared with other settings.")
]


@app.command(cls=_ListsLayouts)
def prepare(
    layout: Layout,
    source: Source,
    destination: Destination,
    domain: Domain = None,
    domains: Domains = None,
    id_: IdDomain = None,
    ood: OodDomains = None,
    split: SplitOfRest = None,
    deduplicate: Deduplicate = None,
    class_names: ClassNames = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    val_fraction: ValFraction = 0.1,
    test_fraction: TestFraction = None,
    seed: Seed = 0,
    resize: Resize = None,
    quality: Quality = 95,
    skip_bad: SkipBad = "0",
    shard_size: ShardSize = 4096,
    overwrite: Overwrite = False,
    address: Address = None,
) -> None:
    """Convert images in a usual layout into checked Parquet files; run it again to continue.

    Run again, it also replaces what has changed at the source, judged by sizes and times of files;
    single images in a bucket are not compared.

    Example: lipsum-tune prepare folders /data/shop data/shop --id studio --ood street,sketch
    """
    from trainers.data.encoding import EncodeOptions
    from trainers.data.formats.index import LayoutOptions
    from tuning.preparation.manifest import PreparationFailed
    from tuning.preparation.plan import PrepareOptions
    from tuning.preparation.prepare import prepare as run_preparation
    from tuning.preparation.report import refusal, render

    options = PrepareOptions(
        LayoutOptions(
            domain=domain,
            domains=names(domains),
            id=id_,
            ood=names(ood),
            split=split,
            deduplicate=deduplicate,
            class_names=class_names,
            image_column=image_column,
            label_column=label_column,
        ),
        EncodeOptions(resize=resize, quality=quality),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        skip_bad=skip_bad,
        shard_size=shard_size,
        overwrite=overwrite,
    )
    try:
        report = run_preparation(layout, source, destination, options, address=address)
    except PreparationFailed as error:
        print(f"lipsum-tune: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("lipsum-tune: run the same command again to continue", file=sys.stderr)
        raise typer.Exit(130) from None
    Console().print(render(report), soft_wrap=True)
    if report.refused:
        print(f"lipsum-tune: {refusal(report)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command("zero-shot")
def zero_shot(
    config: Config,
    set_: Set = None,
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option(help="Default: val, but test with `--expect published`."),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="Accuracies to compare with: `published` (those of the suite for this model), "
            "`real=82.5,sketch=57.0`, or a YAML file with such pairs."
        ),
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Only these domains of the configuration, comma-separated.")
    ] = None,
) -> None:
    """Evaluate the zero-shot model: a check of class names, templates, masks and preprocessing.

    Reading the test splits here does not bias a search: no hyperparameter is chosen by the result.
    The exit status is 1 if a domain differs by more than sampling and rounding explain.

    Example: lipsum-tune zero-shot domainnet_vit_b16 --expect published
    """
    from trainers.errors import ConfigError
    from tuning.config.validation import load_config

    file = load_config(config, set_ or (), check=False)
    # With torch, after mistakes in the configuration were reported.
    from tuning.zero_shot.evaluate import PUBLISHED, expectations, measure
    from tuning.zero_shot.report import causes, not_compared, zero_shot_table

    trial = file.trial
    which = split or ("test" if expect == PUBLISHED else "val")
    console = Console()
    try:
        expected = expectations(expect, trial) if expect else None
        with Console(stderr=True).status("starting") as status:
            rows = measure(
                trial, which, names(domains), expected=expected,
                began=lambda domain: status.update(f"{domain}/{which}"),
            )  # fmt: skip
    except ConfigError as error:
        raise error.within(config) from None
    title = f"{trial.model.name}, zero-shot, {which} splits"
    console.print(zero_shot_table(rows, title=title, id_domain=trial.data.id_domain))
    console.print("Intervals and verdicts: 95 % sampling error of that many images (binomial).")
    if left := not_compared(rows):
        console.print(left, markup=False, soft_wrap=True)
    if found := causes(rows):
        print(found, file=sys.stderr)
        raise typer.Exit(1)
