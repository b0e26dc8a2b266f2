"""Commands about models: how two differ, and the report of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onenip.cli.options import EvaluationOption, ModelOption
from onenip.data.outputs import OUTPUTS
from onenip.printing import open_console, show

if TYPE_CHECKING:
    from rich.table import Table

    from onenip.evaluation.comparison import Comparison, Difference

_SHOWN_CHANGES = 40
_SHOWN_FIGURES = ("image_auroc", "image_ap", "pixel_ap", "aupro", "recall", "false_alarm_rate")


def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Evaluation: a folder, an MLflow run id, or models:/NAME@ALIAS."
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    *,
    confidence: Annotated[
        float,
        typer.Option(metavar="FRACTION", min=0.5, max=0.999, help="Confidence of the intervals."),
    ] = 0.95,
    draws: Annotated[
        int, typer.Option(metavar="COUNT", min=100, help="Bootstrap resamples of the test images.")
    ] = 2000,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of the resampling.")] = 0,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every figure, and every changed verdict.")
    ] = False,
) -> None:
    """Compare two evaluations: B minus A per category, with intervals, and the verdicts that changed.

    Both models are compared on the images that both have scored, resampled in pairs. A difference
    whose interval leaves out 0 is marked: other test images of the same kind would not turn it round.
    """
    import tempfile

    from onenip.evaluation.comparison import compare as compare_evaluations
    from onenip.evaluation.results import Evaluation

    with tempfile.TemporaryDirectory() as scratch:
        loaded = [
            Evaluation.load(_resolve(reference, Path(scratch) / str(at)))
            for at, reference in enumerate((first, second))
        ]
        found = compare_evaluations(
            loaded[0], loaded[1], confidence=confidence, draws=draws, seed=seed
        )
    console = open_console()
    console.print(_tabulate(found, everything=everything))
    typer.echo(
        f"Percent, B minus A, {100 * confidence:g} % intervals, on {found.common} images that both "
        f"have scored; * leaves out 0."
    )
    if found.only_first or found.only_second:
        typer.echo(f"Left out: {found.only_first} images only in A, {found.only_second} only in B.")
    _notify_changes(found, everything=everything)


def report(
    *,
    evaluation: EvaluationOption = OUTPUTS.evaluation,
    champion: Annotated[
        str | None,
        typer.Option(
            metavar="EVALUATION",
            help="Evaluation to show beside it: a folder, an MLflow run id, or models:/NAME@ALIAS.",
        ),
    ] = None,
    model: ModelOption = OUTPUTS.model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file.")] = OUTPUTS.folder
    / "report.html",
) -> None:
    """Write the report of an evaluation as a document to sign: date, commit, versions, the gate's word.

    The champion's figures stand beside it if wanted. It prints on two to four pages a category.
    """
    import tempfile

    from onenip.data.manifest import DATA_DIR
    from onenip.evaluation.report import write_report
    from onenip.operation.champion_report import describe_decision

    with tempfile.TemporaryDirectory() as scratch:
        write_report(
            evaluation,
            out,
            model_dir=model if model.is_dir() else None,
            data_dir=DATA_DIR,
            synthesis_dir=OUTPUTS.synthesis,
            training_dir=OUTPUTS.curves,
            champion=[_resolve(champion, Path(scratch))] if champion else (),
            decision=describe_decision(model) if model.is_dir() else None,
        )
    typer.echo(str(out))


def _resolve(reference: str, scratch: Path) -> Path:
    """Folder of an evaluation that is named by its path, its run, or a registered model."""
    if Path(reference).is_dir():
        return Path(reference)
    if "/" in reference and not reference.startswith("models:/"):
        from onenip.errors import DataError

        raise DataError(f"{reference}: no such folder", path=reference)
    from onenip.registry.evaluations import fetch_evaluation

    return fetch_evaluation(reference, scratch)


def _tabulate(found: Comparison, *, everything: bool) -> Table:
    from rich.table import Table

    from onenip.evaluation.metrics import NAMES

    table = Table("category", "figure", box=None, pad_edge=False)
    for title in ("A", "B", "B - A", "interval"):
        table.add_column(title, justify="right", no_wrap=True)
    for category, differences in found.differences.items():
        names = NAMES if everything else _SHOWN_FIGURES
        for at, name in enumerate(names):
            title = "" if at else category
            last = at == len(names) - 1
            table.add_row(title, name, *_format(differences[name]), end_section=last)
    return table


def _format(difference: Difference) -> tuple[str, str, str, str]:
    from onenip.evaluation.metrics import Undefined

    before, after = (
        "n/a" if isinstance(value, Undefined) else f"{100 * value:.1f}"
        for value in (difference.champion, difference.challenger)
    )
    value, low, high = difference.difference, difference.low, difference.high
    if isinstance(value, Undefined):
        return before, after, "n/a", value.reason
    ends = ""
    if not isinstance(low, Undefined) and not isinstance(high, Undefined):
        ends = f"{100 * low:+.1f} to {100 * high:+.1f} {'*' if difference.is_certain else ' '}"
    return before, after, f"{100 * value:+.1f}", ends


def _notify_changes(found: Comparison, *, everything: bool) -> None:
    better = sum(item.is_better for item in found.changed)
    worse = len(found.changed) - better
    typer.echo(f"Verdicts changed: {len(found.changed)}, {better} for the better, {worse} not.")
    shown = found.changed if everything else found.changed[:_SHOWN_CHANGES]
    for item in shown:
        word = "better" if item.is_better else "worse"
        before, after = (
            f"{side.score:.3g}{'>' if side.is_anomalous else '<='}{side.threshold:.3g}"
            for side in (item.before, item.after)
        )
        typer.echo(show(f"  {word:6} {item.after.name} ({item.after.label}): {before} -> {after}"))
    if len(shown) < len(found.changed):
        typer.echo(f"  and {len(found.changed) - len(shown)} more; --all shows them")
