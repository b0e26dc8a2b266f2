"""Settings and stages as commands, in the order of the pipeline; `register` is among the registry's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onenip.cli.options import (
    DATA,
    PARAMS,
    DataOption,
    ManifestOption,
    ModelOption,
    ParamsOption,
    SynthesisOption,
)
from onenip.data.outputs import OUTPUTS
from onenip.printing import open_console, show

if TYPE_CHECKING:
    from onenip.params import Params


def preset(
    name: Annotated[
        str | None, typer.Argument(metavar="PRESET", help="Preset to write. [default: list all]")
    ] = None,
    *,
    params: ParamsOption = PARAMS,
    show: Annotated[bool, typer.Option("--show", help="Print instead of writing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace settings that are in no preset.")
    ] = False,
) -> None:
    """List the presets, or write params.yaml from one, every value with its explanation.

    Settings of the plant stay: download, register, gate, retrain, drift, review, notify. Other settings
    that you changed are replaced with `--force` only.
    """
    from onenip.params.presets import apply_preset, list_presets, load_preset, render

    if name is None:
        for known, sentence in list_presets().items():
            typer.echo(f"{known:18} {sentence}")
        return
    if show:
        typer.echo(render(load_preset(name)))
    else:
        apply_preset(name, params, force=force)
        typer.echo(f"{params} is now the preset {name}")


def download(
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Where images come from, see above; repeatable for several at once.",
        ),
    ] = None,
    params: ParamsOption = PARAMS,
    data: DataOption = DATA,
    accept_license: Annotated[
        bool,
        typer.Option(
            "--accept-license", help="You accept the data set's licence (asked by mvtec)."
        ),
    ] = False,
    endpoint_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="S3 endpoint. [default: AWS_ENDPOINT_URL, or AWS]"),
    ] = None,
    no_sign_request: Annotated[
        bool, typer.Option("--no-sign-request", help="Read a public bucket without credentials.")
    ] = False,
) -> None:
    """Bring the images of the sources into `data/`, and name their version in data.dvc.

    Afterwards the folder holds exactly what the sources name: images of an earlier download go.

    A source is a folder, an archive (zip, tar) here or by https, a table (CSV or JSON lines with path,
    category, label, mask), s3://bucket/prefix, *demo*, or the name of a public data set: *mvtec*, *visa*,
    *btad*, *dtd* (textures), *magnetic-tile*. Folders may be in MVTec layout, one such category,
    `CATEGORY/OK/IMAGE` and `CATEGORY/NG/IMAGE`, `CATEGORY/IMAGE`, or images alone; images in no folder of a
    split or label become `train/good`. docs/reference/images.md says what is read.

    All of it is fetched and checked first, then moved in at once: after an error or a kill the old
    data is still there, and the same command resumes.

        onenip download --source demo

        onenip download --source mvtec --source visa --accept-license

        onenip download --source https://example.com/set.tar.xz#sha256=9f86…
    """
    from onenip.stages import download as stage

    loaded = _read_params(params)
    result = stage.run(
        loaded,
        sources=tuple(source or ()),
        data_dir=data,
        accept_license=accept_license,
        endpoint_url=endpoint_url,
        sign_request=not no_sign_request,
    )
    change = "replaced" if result.is_changed else "up to date"
    typer.echo(f"{change}: {sum(result.categories.values())} files, version {result.version}")


def validate(
    *,
    params: ParamsOption = PARAMS,
    data: DataOption = DATA,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="For the manifest, quarantine, summary and Data Docs."),
    ] = OUTPUTS.validation,
) -> None:
    """Check every image, and list the usable ones in a manifest.

    Expects `CATEGORY/train/good`, `CATEGORY/test/good`, `CATEGORY/test/DEFECT` and masks
    `CATEGORY/ground_truth/DEFECT/STEM_mask.png`. A rule of severity *error* stops, *quarantine* leaves
    the image out of every later stage, *warning* only reports; `validate.severities` in the params
    changes that by name of the rule. The data folder itself is never touched: quarantined images are
    listed in `quarantine.csv` and copied to `quarantine/`. Open `data_docs/index.html` to see all rules.
    """
    from rich.padding import Padding
    from rich.table import Table

    from onenip.data.validation.docs import COUNTS, HEADINGS
    from onenip.stages import validate as stage

    loaded = _read_params(params)
    result = stage.run(loaded, data_dir=data, out_dir=out)
    table = Table("category", *COUNTS.values())
    for name, counts in result.summary["categories"].items():
        table.add_row(show(name), *(str(counts.get(kind, 0)) for kind in COUNTS))
    console = open_console()
    console.print(table)
    severity = ""
    for problem in result.problems:
        rule, first = problem.rule, problem.breaches[0]
        if rule.severity != severity:
            severity = rule.severity
            console.print(f"\n{HEADINGS[rule.severity]}", style="bold")
        console.print(f"  {rule.title}: {show(problem.places)}  ({rule.name})", highlight=False)
        for line in (
            show(f"{first.path}: {first.reason}"),
            f"→ {rule.remedy}" if rule.remedy else "",
        ):
            if line:
                console.print(Padding(line, (0, 0, 0, 6)), highlight=False)
    console.print("" if result.problems else "Nothing is wrong with any image.")
    console.print(f"With pictures: {out / 'data_docs' / 'index.html'}", soft_wrap=True)
    console.print(f"Every file: {out / 'summary.json'}", soft_wrap=True)


def synthesize(
    *,
    params: ParamsOption = PARAMS,
    data: DataOption = DATA,
    manifest: ManifestOption = OUTPUTS.manifest,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="For synthetic images, masks and the contact sheet."),
    ] = OUTPUTS.synthesis,
) -> None:
    """Make synthetic anomalies of normal images, with exact masks, reproducibly from the seed."""
    from onenip.stages import synthesize as stage

    loaded = _read_params(params)
    stage.run(loaded, data_dir=data, manifest=manifest, out_dir=out)


def train(
    *,
    params: ParamsOption = PARAMS,
    data: DataOption = DATA,
    manifest: ManifestOption = OUTPUTS.manifest,
    synthesis: SynthesisOption = OUTPUTS.synthesis,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the model.")] = OUTPUTS.model,
    curves: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For the training curve.")
    ] = OUTPUTS.curves,
) -> None:
    """Train and calibrate one model for all categories; after a kill it resumes from its last checkpoint."""
    from onenip.stages import train as stage

    loaded = _read_params(params)
    stage.run(
        loaded,
        data_dir=data,
        manifest=manifest,
        synthesis_dir=synthesis,
        out_dir=out,
        curves_dir=curves,
    )


def evaluate(
    *,
    params: ParamsOption = PARAMS,
    data: DataOption = DATA,
    manifest: ManifestOption = OUTPUTS.manifest,
    model: ModelOption = OUTPUTS.model,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For figures, tables, pictures and the report.")
    ] = OUTPUTS.evaluation,
    save_maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write the float32 map of every test image, at its own size, as "
            "FOLDER/CATEGORY/test/DEFECT/STEM.tiff, as MVTec's evaluation script reads them.",
        ),
    ] = None,
    champion: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Earlier evaluation to show beside this one in the report."
        ),
    ] = None,
) -> None:
    """Score the test images, and write all metrics with intervals, and the report.

    metrics.json holds image AUROC, AP and F1-max, pixel AUROC, AP and F1-max, AUPRO up to 30 % and
    5 %, and those at the model's own thresholds, per category and mean. report.html shows them with
    curves, histograms, the worst misses and the worst false alarms; scores.csv has a line per image.
    """
    from onenip.evaluation.counts import describe_wrong
    from onenip.evaluation.results import group_figures
    from onenip.params import Params
    from onenip.stages import evaluate as stage
    from onenip.workspace.files import require_current

    require_current()
    loaded = Params.load(params)
    result = stage.run(
        loaded,
        data_dir=data,
        manifest=manifest,
        model_dir=model,
        out_dir=out,
        save_maps=save_maps,
        synthesis_dir=OUTPUTS.synthesis,
        training_dir=OUTPUTS.curves,
        champion=champion,
    )
    wrong = describe_wrong(group_figures(result.metrics)["mean"])
    typer.echo("; ".join(f"{title} {text}" for title, text in wrong.items()))
    typer.echo(f"figures and report.html in {result.folder}")


def _read_params(path: Path) -> Params:
    """Params whose architecture can be built: a mistake there is an error before hours of work."""
    from onenip.model.network import check_architecture
    from onenip.params import Params
    from onenip.workspace.files import require_current

    require_current()
    params = Params.load(path)
    check_architecture(params.model)
    return params
