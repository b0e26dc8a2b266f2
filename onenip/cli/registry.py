"""Commands about the registry: register, status, approve, reject, rollback, threshold, audit, webhooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from onenip.cli.options import (
    PARAMS,
    ByOption,
    CategoryArgument,
    EvaluationOption,
    ModelOption,
    ParamsOption,
    ReasonOption,
)
from onenip.data.labels import clean_name
from onenip.data.outputs import OUTPUTS
from onenip.printing import open_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onenip.registry.audit import Entry
    from onenip.registry.tags import Version
    from onenip.registry.versions import Standing

SHOWN_METRICS = ("image_auroc", "pixel_ap", "aupro")

VersionOption = Annotated[
    int | None,
    typer.Option(
        "--version", metavar="NUMBER", help="Version that you looked at. [default: the challenger]"
    ),
]


def register_model(
    *,
    params: ParamsOption = PARAMS,
    model: ModelOption = OUTPUTS.model,
    evaluation: EvaluationOption = OUTPUTS.evaluation,
) -> None:
    """Register the model: one version per category, each a challenger that waits for approval.

    The weights are stored once in MLflow; a version `onenip-<category>` only points at them.
    Registering the same model again changes nothing. Without MLFLOW_TRACKING_URI everything is kept
    in `mlflow.db` and `mlartifacts/` here.
    """
    from onenip.params import Params
    from onenip.stages import register as stage

    versions = stage.run(Params.load(params), model_dir=model, evaluation_dir=evaluation)
    for version in versions:
        state = ", ".join(version.aliases) or version.approval
        typer.echo(f"{version.category}: version {version.number} ({state})")


def status() -> None:
    """Show champion and challenger of every category, and how long a challenger has waited."""
    from onenip.evaluation.counts import describe_wrong
    from onenip.registry import approval
    from onenip.registry.versions import approval_command, read_snapshot

    console = open_console()
    snapshot = read_snapshot()
    recorded = approval.reconcile(snapshot)
    for entry in recorded:
        _print_recorded(console, entry)
    standings = (read_snapshot() if recorded else snapshot).standings.values()
    if not standings:
        console.print("Nothing is registered yet: run `onenip register`.")
        return
    table = _table(
        "category", "", "version", *describe_wrong({}), *SHOWN_METRICS, "gate", "since (UTC)"
    )
    counted = _recount(standings)
    for standing in standings:
        name = standing.category
        rows = [("champion", standing.champion), ("challenger", standing.challenger)]
        if standing.champion is None and standing.provisional is not None:
            rows.insert(0, ("provisional", standing.provisional))
        for role, version in rows:
            table.add_row(name, role, *_describe(version and counted.get(version.uri, version)))
            name = ""
        table.add_section()
    console.print(table)
    waiting = [standing for standing in standings if standing.challenger]
    for standing in waiting:
        console.print(
            f"{standing.category} waits: {approval_command(standing.category)}",
            highlight=False,
        )


def approve(
    category: CategoryArgument,
    *,
    by: ByOption,
    reason: ReasonOption,
    version: VersionOption = None,
    override: Annotated[
        bool, typer.Option("--override", help="Approve although the gate rejected it.")
    ] = False,
) -> None:
    """Make the challenger of a category its champion; `onenip rollback` brings the former champion back."""
    from onenip.registry import approval

    now = approval.approve(category, by=by, reason=reason, version=version, override=override)
    typer.echo(f"{category}: version {now.number} is champion, approved by {by}")


def reject(
    category: CategoryArgument,
    *,
    by: ByOption,
    reason: ReasonOption,
    version: VersionOption = None,
) -> None:
    """Reject the challenger of a category; the champion stays."""
    from onenip.registry import approval

    now = approval.reject(category, by=by, reason=reason, version=version)
    typer.echo(f"{category}: version {now.number} was rejected by {by}")


def rollback(category: CategoryArgument, *, by: ByOption, reason: ReasonOption) -> None:
    """Undo the last decision about what serves: a changed threshold, else the champion.

    A champion that is taken down counts as rejected.
    """
    from onenip.registry import approval

    now = approval.rollback(category, by=by, reason=reason)
    typer.echo(f"{category}: version {now.number} serves as it did before")


def threshold(
    category: CategoryArgument,
    *,
    by: ByOption,
    reason: ReasonOption,
    false_alarms: Annotated[
        str | None,
        typer.Option(
            "--false-alarms", metavar="SHARE", help="Wanted share of false alarms: 5% or 0.05."
        ),
    ] = None,
    recall: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Wanted share of synthetic anomalies found: 90% or 0.9."
        ),
    ] = None,
    value: Annotated[
        float | None, typer.Option(metavar="SCORE", help="The image score itself.")
    ] = None,
    challenger: Annotated[
        bool, typer.Option("--challenger", help="Of the challenger instead of the champion.")
    ] = False,
    recent: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Answers that `serve --recent` keeps.")
    ] = str(OUTPUTS.recent),
    yes: Annotated[bool, typer.Option("--yes", help="Apply without asking.")] = False,
) -> None:
    """Change from which score on a category's images are anomalous; `onenip rollback` undoes it.

    Shows first what would change on the version's test images and on recent predictions. Nothing is
    trained; a running server follows.
    """
    from onenip.operation.threshold_change import choose_value, load_tested, preview
    from onenip.registry import approval
    from onenip.registry.champions import load_candidate
    from onenip.registry.tags import PREFIX
    from onenip.registry.versions import CHALLENGER, CHAMPION, find_addressed
    from onenip.review.answers import Answers

    alias = CHALLENGER if challenger else CHAMPION
    version = find_addressed(f"models:/{PREFIX}{category}@{alias}")
    spec = load_candidate(version).spec
    chosen = choose_value(
        spec,
        category,
        value=value,
        false_alarm_rate=_to_share(false_alarms, "--false-alarms"),
        recall=_to_share(recall, "--recall"),
    )
    tested = load_tested(version)
    answers = Answers(recent).list_latest(category=category)
    scores = [a.facts["score"] for a in answers if a.facts.get("digest") == version.digest]
    found = preview(spec, category, chosen, tested=tested, recent_scores=scores)
    typer.echo(f"{category} version {version.number} ({alias})")
    for line in found.describe():
        typer.echo(line)
    if not yes:
        typer.confirm("Apply?", abort=True)
    approval.set_threshold(category, value=chosen, by=by, reason=reason, alias=alias)
    typer.echo(f"{category}: threshold of version {version.number} is {chosen:.4g}, set by {by}")


def audit(
    category: Annotated[
        str | None,
        typer.Argument(
            metavar="CATEGORY", help="Only this category. [default: all]", parser=clean_name
        ),
    ] = None,
) -> None:
    """Print the audit trail: who did what, when and why.

    Changes made by hand in MLflow are noticed and recorded.

    Exits with status 2 if an entry is missing or was altered.
    """
    from onenip.errors import RegistryError
    from onenip.registry import approval
    from onenip.registry import audit as trail
    from onenip.registry.versions import require_category

    if category is not None:
        require_category(category)
    approval.reconcile()
    entries = trail.read_trail(category)
    table = _table("when (UTC)", "category", "what", "version", "by", "reason", "champion")
    for entry in entries:
        table.add_row(
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.category,
            entry.action,
            str(entry.version),
            entry.by,
            entry.reason,
            str(entry.champion or "-"),
        )
    open_console().print(table)
    breaks = trail.find_breaks(entries, trail.read_heads(category))
    if breaks:
        raise RegistryError("the audit trail is not whole: " + "; ".join(breaks))


def webhooks(
    *,
    params: ParamsOption = PARAMS,
    test: Annotated[bool, typer.Option("--test", help="Send an example.")] = False,
) -> None:
    """Make MLflow's server send changes of the registry to notify.webhook; `onenip up` does it too.

    Needs a server (MLFLOW_TRACKING_URI) that keeps webhooks. ONENIP_WEBHOOK_SECRET signs what it
    sends. Doing it again changes nothing; without a webhook in params the earlier one is removed.
    """
    from onenip.errors import RegistryError
    from onenip.operation import notices
    from onenip.params import Params
    from onenip.registry.webhooks import ensure_webhook, send_example

    notify = Params.load(params).notify
    change = ensure_webhook(
        notices.read_address(notify), events=notify.registry_events, secret=notices.read_secret()
    )
    typer.echo(f"registry webhook: {change}")
    if test and (reason := send_example()):
        raise RegistryError(f"the example did not arrive: {reason}")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _recount(standings: Iterable[Standing]) -> dict[str, Version]:
    """Versions for which a threshold was decided on, with their verdicts counted at it, by address."""
    every = [v for one in standings for v in (one.champion, one.challenger) if v is not None]
    decided = [version for version in every if version.threshold is not None]
    if not decided:
        return {}
    from onenip.operation.threshold_change import recount  # imports torch

    return {version.uri: version for version in recount(decided)}


def _describe(version: Version | None) -> list[str]:
    from onenip.evaluation.counts import describe_wrong

    if version is None:
        return ["-"] * (5 + len(SHOWN_METRICS))
    metrics = [*describe_wrong(version.metrics).values()] + [
        f"{version.metrics[name]:.3f}" if name in version.metrics else "-" for name in SHOWN_METRICS
    ]
    gate = "-" if version.gate is None else version.gate.verdict
    since = version.decided_at if "champion" in version.aliases else version.created_at
    return [str(version.number), *metrics, gate, f"{since:%Y-%m-%d %H:%M}" if since else "-"]


def _print_recorded(console: Console, entry: Entry) -> None:
    console.print(
        f"Recorded: {entry.category} version {entry.version}: {entry.reason}", style="bold"
    )


def _to_share(text: str | None, option: str) -> float | None:
    """A share, written as 0.05 or as 5%."""
    from onenip.errors import DataError

    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise DataError(f"{option} {text}: not a share such as 5% or 0.05") from error
