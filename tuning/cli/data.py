"""Commands before a search: `prepare` for data, and `zero-shot` for data and model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from tuning.cli.options import Config, Set, app, names

_LAYOUTS = """\b
Values of LAYOUT:
  folders          class folders, see below
  parquet          a folder of Parquet files as Hugging Face writes them
  hub              a data set of the Hugging Face hub: its name, or a folder
  domainnet        DomainNet: <domain>_{train,test}.txt beside the domains
  imagenet         ImageNet: {train,val}/<WordNet id>/*.JPEG
  imagenet-v2      ImageNet-V2: folders 0 to 999
  imagenet-r       ImageNet-R: folders of 200 WordNet ids
  imagenet-a       ImageNet-A: folders of 200 WordNet ids
  imagenet-sketch  ImageNet-Sketch: folders of WordNet ids

\b
Trees of the layout `folders`:
  SOURCE/<domain>/<class>/*.jpg          with --id studio --ood street,sketch
  SOURCE/<domain>/<split>/<class>/*.jpg  the same; splits: train, val, test
  SOURCE/<class>/*.jpg                   one domain; --domain gives its name
  SOURCE/<split>/<class>/*.jpg           the same
Missing val and test splits come from train, by class, the same each time."""


@app.command(epilog=_LAYOUTS)
def prepare(
    layout: Annotated[str, typer.Argument(help="How the images are stored: a layout's name.")],
    source: Annotated[
        str, typer.Argument(help="Folder of the images, or name of a data set on the hub.")
    ],
    destination: Annotated[
        str, typer.Argument(help="Folder or URL of the data set, for `trial.data.root`.")
    ],
    id_: Annotated[str | None, typer.Option("--id", help="The domain to fine-tune on.")] = None,
    ood: Annotated[
        str | None,
        typer.Option(
            help="The domains that are only evaluated, comma-separated: their train images become "
            "the val and test splits that they lack. Default: all but --id."
        ),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Name of the domain, if the source has one.")
    ] = None,
    domain_column: Annotated[
        str | None, typer.Option(help="Column of a table that names the domain of each image.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of a data set on the hub.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Configuration of a data set on the hub.")
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(help="Splits of a table, such as `train=train,validation=test`."),
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="A text file of class names in the order of the labels.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of train (or of test, without train) that becomes val.")
    ] = 0.1,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of train that becomes test, if there is no test split. Default: 0.2 for "
            "data of your own, else 0."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of val and test images.")] = 0,
    resize: Annotated[
        int | None, typer.Option(help="Pixels of the short side, e.g. 256; never enlarges.")
    ] = None,
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates",
            help="Leave out of val and test images whose bytes are in another split.",
        ),
    ] = False,
) -> None:
    """Check images, give them splits and write them as Parquet; run it again after a kill.

    Example: lipsum-tune prepare folders /data/shop data/shop --id studio --ood street,sketch
    """
    from trainers.data.prepare import Options
    from trainers.data.prepare import prepare as run_preparation
    from trainers.data.sources import Source
    from trainers.data.store import open_store
    from trainers.errors import validate
    from trainers.yaml_text import read_text
    from tuning.prepare import render, sources_of

    lines = None
    if class_names is not None:
        text = read_text(Path(class_names), "utf-8-sig", key="--class-names", value=class_names)
        lines = [line.strip() for line in text.splitlines()]
    values = {
        "layout": layout, "path": source, "revision": revision, "subset": subset,
        "domain_column": domain_column, "image_column": image_column,
        "label_column": label_column, "class_names": lines,
        "splits": dict(pair.partition("=")[::2] for pair in names(splits)),
    }  # fmt: skip
    whole = validate(Source, values, "prepare")
    made = {
        "val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed,
        "resize": resize, "drop_duplicates": drop_duplicates,
    }  # fmt: skip
    options = validate(Options, made, "prepare")
    sources = sources_of(whole, id_domain=id_, ood=names(ood), domain=domain)
    target = open_store(destination)
    try:
        report = run_preparation(sources, target, options, id_domain=id_, console=Console())
    except KeyboardInterrupt:
        print("lipsum-tune: run the same command again", file=sys.stderr)
        raise typer.Exit(130) from None
    Console().print(render(report), soft_wrap=True)


@app.command("zero-shot")
def zero_shot(
    config: Config,
    set_: Set = None,
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option(help="Default: val, but test with `--expect published`."),
    ] = None,
    expect: Annotated[
        Literal["published"] | None,
        typer.Option(help="Compare with the accuracies that the suite has of this model."),
    ] = None,
    check_duplicates: Annotated[
        bool,
        typer.Option(
            "--check-duplicates",
            help="Instead, count images that are nearly the same in two splits or domains, and "
            "list them in near_duplicates.csv.",
        ),
    ] = False,
) -> None:
    """Evaluate the zero-shot model: a check of class names, templates and preprocessing.

    Reading the test splits here does not bias a search: no hyperparameter is chosen by the result.
    With --expect, the exit status is 1 if a domain differs by more than its sampling error.

    Example: lipsum-tune zero-shot domainnet_vit_b16 --expect published
    """
    from trainers.errors import ConfigError
    from tuning.config.validation import load_config

    trial = load_config(config, set_ or (), check=False).trial

    # With torch, after mistakes in the configuration were reported.
    from trainers.data.roots import remarks
    from tuning.duplicates import duplicates_table, near_duplicates
    from tuning.zero_shot import causes, guesses, measure, published, zero_shot_table

    console = Console()
    status = Console(stderr=True).status("starting")
    which = split or ("test" if expect else "val")
    try:
        if check_duplicates:
            with status:
                found = near_duplicates(trial, began=status.update)
            found.write(Path("near_duplicates.csv"))
            console.print(duplicates_table(found), soft_wrap=True)
            return
        expected = published(trial) if expect else None
        with status:
            rows = measure(trial, which, expected=expected, began=status.update)
    except ConfigError as error:
        raise error.within(config) from None
    title = f"{trial.model.name}, zero-shot, {which} splits"
    table = zero_shot_table(rows, title=title, id_domain=trial.data.id_domain)
    console.print(table)
    console.print("± is the 95 % sampling error of the accuracy on that many images.")
    parts = [(domain, which) for domain in trial.data.domains]
    for line in (*guesses(rows), *remarks(trial.data.root, parts)):
        print(f"! {line}")
    if likely := causes(rows):
        print(likely, file=sys.stderr)
        raise typer.Exit(1)
