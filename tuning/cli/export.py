"""Commands that make weights: `train` and `export`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from trainers.errors import ConfigError, storage_failures
from tuning.cli.options import Config, Set, app, found, show


@app.command()
def train(
    config: Config,
    set_: Set = None,
    output: Annotated[Path, typer.Option(help="New folder for the last checkpoint.")] = Path(
        "trained"
    ),
) -> None:
    """Run a single trial without a search or Ray, from the `trial:` section alone.

    Example: lipsum-tune train quickstart --set trial.optim.lr=1e-4 --output trained
    """
    from tuning.config.validation import load_trial

    trial = load_trial(config, set_ or ())
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError("exists already: choose another --output", source=output)
    # With torch, after mistakes in the configuration were reported.
    from trainers.checkpoints.format import WEIGHTS
    from trainers.fine_tune import fine_tune
    from trainers.folders import temporary_folder
    from tuning.weights.sources import write_trial

    for report in fine_tune(trial):
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in report.metrics.items()
            if name in ("train/loss", "train/reg", "line/a")
            or (name.endswith(("/acc", "/mean_acc")) and not name.startswith("line/"))
        )
        print(f"step {report.step}/{trial.steps}  {figures}", flush=True)
        with storage_failures(output, "cannot be written"):
            output.mkdir(parents=True, exist_ok=True)
            with temporary_folder(".unfinished-", output) as folder:
                write_trial(folder, trial)
                report.save(folder)
                # Each file replaces the one before as a whole, the weights last.
                for path in sorted(folder.iterdir(), key=lambda path: path.name == WEIGHTS):
                    path.replace(output / path.name)
    show("Checkpoint", output.resolve())


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            callback=found,
            help="A run folder, the name of one in runs/, or what `train --output` wrote.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="A new folder, for open_clip's `local-dir:`.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add model.onnx: image encoder and head in one file.")
    ] = False,
    register: Annotated[
        str | None, typer.Option(help="Add it to this model in MLflow's registry.", metavar="NAME")
    ] = None,
    trial: Annotated[
        str | None,
        typer.Option(
            help="ID of a trial, or `ft`. Default: the model of `confirm`, or what won before it."
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="`id_val`: the model of `confirm` that ID accuracy alone has chosen."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --trial: point of the line, from 0, the zero-shot model, to 1, the end of "
            "the training. Default: the point that the trial chose.",
        ),
    ] = None,
) -> None:
    """Write fine-tuned weights as a folder that open_clip loads, with the classifier head.

    Example: lipsum-tune export quickstart --output exported
    """
    if register is None and output is None:
        raise ConfigError("give --output FOLDER, --register NAME or both")
    which: dict[str, Any] = {"trial": trial, "rule": rule, "alpha": alpha, "onnx": onnx}
    if register is not None:
        _register(run, register, output, which)
    elif output is not None:
        from tuning.weights.export import ABOUT, export_weights

        exported = export_weights(run, output, **which)
        about = json.loads((exported / ABOUT).read_text(encoding="utf-8"))
        if "chosen" in about and not trial:
            name = f"{about['trial']}. " if "trial" in about else ""
            show("Model", f"{name}{about['chosen']}")
    if output is not None:
        written = output.expanduser().absolute()
        show("Exported", written)
        show("Try it", f"python {shlex.quote(str(written / 'predict.py'))} IMAGE ...")


def _register(run: Path, name: str, output: Path | None, which: dict[str, Any]) -> None:
    """Add weights to MLflow's registry, and show how they are loaded."""
    from tuning.run import load_run
    from tuning.views.mlflow.client import redact, tracking_uri
    from tuning.weights.registry import register_weights

    version = register_weights(run, name, output, **which)
    what = str(version.description).partition("\n")[0].lstrip("# ")
    loaded = load_run(run)
    uri = redact(tracking_uri(loaded.file.search.tracking.uri, loaded.folder.parent))
    show("Registered", f"{what} as {version.name}, version {version.version}")
    show("Load with", f'mlflow.set_tracking_uri("{uri}")')
    show("", f'mlflow.pyfunc.load_model("models:/{version.name}/{version.version}")')
