"""The commands of `lipsum-tune` that are about data: what comes before a search."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperCommand

app = typer.Typer()

Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster; by default RAY_ADDRESS, or a local one.")
]


class _ListsLayouts(TyperCommand):
    """A command whose help ends with the layouts; they are imported only for that."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from trainers.data.formats import LAYOUTS

        listed = (f"{layout.name}: {layout.description}" for layout in LAYOUTS.values())
        self.epilog = "\n\n".join(["LAYOUT is one of", *listed])
        super().format_help(ctx, formatter)


@app.command(cls=_ListsLayouts)
def prepare(
    layout: Annotated[str, typer.Argument(help="How the images lie; see below.")],
    source: Annotated[str, typer.Argument(help="Their folder, or a URL such as s3://...")],
    destination: Annotated[
        str, typer.Argument(help="Folder or URL of the data set, for `trial.data.root`.")
    ],
    domain: Annotated[
        str | None, typer.Option(help="Name of the domain, for layouts of a single one.")
    ] = None,
    domains: Annotated[
        str | None,
        typer.Option(help="Only these of several, comma-separated; for `folders`, or `all`."),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Of images that no folder or file name gives one."),
    ] = None,
    deduplicate: Annotated[
        str | None, typer.Option(help="A text file of paths to leave out, one a line.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="A text file of class names in the order of the labels.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Of Parquet files.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of Parquet files.")] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Of train (or test, where there is no train) that becomes val.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Which images become val.")] = 0,
    resize: Annotated[
        int | None, typer.Option(help="Pixels of the short side, e.g. 256; only ever smaller.")
    ] = None,
    quality: Annotated[int, typer.Option(help="Of JPEGs that are encoded again.")] = 95,
    skip_bad: Annotated[
        str | None,
        typer.Option(help="Leave out this many bad images a domain at most: `20`, or `0.1%`."),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images in a Parquet file.")] = 4096,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what other settings made of a domain.")
    ] = False,
    address: Address = None,
) -> None:
    """Turn images in any usual layout into Parquet, checked; run it again to go on.

    Run again it also makes anew what has changed at the source, by sizes and times of files; single
    images in a bucket are not looked at for that.
    """
    from trainers.data.encoding import EncodeOptions
    from trainers.data.formats.index import LayoutOptions
    from tuning.preparation.manifest import PreparationFailed
    from tuning.preparation.plan import PrepareOptions, parse_ceiling
    from tuning.preparation.prepare import prepare as run_preparation
    from tuning.preparation.report import refusal, render

    named = tuple(name.strip() for name in (domains or "").split(",") if name.strip())
    options = PrepareOptions(
        LayoutOptions(
            domain=domain,
            domains=named,
            split=split,
            deduplicate=deduplicate,
            class_names=class_names,
            image_column=image_column,
            label_column=label_column,
        ),
        EncodeOptions(resize=resize, quality=quality),
        val_fraction=val_fraction,
        seed=seed,
        skip_bad=parse_ceiling(skip_bad),
        shard_size=shard_size,
        overwrite=overwrite,
    )
    try:
        report = run_preparation(layout, source, destination, options, address=address)
    except PreparationFailed as error:
        print(f"lipsum-tune: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("lipsum-tune: run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    Console().print(render(report), soft_wrap=True)
    if report.refused:
        print(f"lipsum-tune: {refusal(report)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command("zero-shot")
def zero_shot(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or a ready one such as `domainnet_vit_b16`.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key; may be repeated.")
    ] = None,
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option(help="Default: val, or test with `--expect published`, whose figures it is."),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="Accuracies to compare with: `published` (the suite's for this model), "
            "`real=82.5,sketch=57.0`, or a YAML file of the same."
        ),
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Only these of the configuration's, comma-separated.")
    ] = None,
) -> None:
    """Evaluate the zero-shot model alone: a check of names, templates, masks and preprocessing.

    Reading the test splits here selects nothing: no hyperparameter is chosen by what it shows. Exit
    status is 1 where a domain is off by more than sampling and rounding allow.
    """
    from trainers.errors import ConfigError
    from tuning.config.validation import load_config
    from tuning.zero_shot.evaluate import PUBLISHED, expectations, measure
    from tuning.zero_shot.report import causes, not_compared, zero_shot_table

    file = load_config(config, set_ or (), check=False)
    trial = file.trial
    which = split or ("test" if expect == PUBLISHED else "val")
    named = tuple(name.strip() for name in (domains or "").split(",") if name.strip())
    console = Console()
    try:
        expected = expectations(expect, trial) if expect else None
        with Console(stderr=True).status("starting") as status:
            rows = measure(
                trial, which, named, expected=expected,
                began=lambda domain: status.update(f"{domain}/{which}"),
            )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from None
    title = f"{trial.model.name}, zero-shot, {which} splits"
    console.print(zero_shot_table(rows, title=title, id_domain=trial.data.id_domain))
    console.print("Intervals and verdicts: 95 % sampling error of that many images (binomial).")
    if left := not_compared(rows):
        console.print(left, markup=False, soft_wrap=True)
    if found := causes(rows):
        print(found, file=sys.stderr)
        raise typer.Exit(1)
