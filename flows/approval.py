"""Approval in the browser: a flow run that shows the comparison and waits for a form.

One run for each version that waits. It is suspended, so it holds neither a process nor the checkout, and
resumes when somebody submits the form on Prefect's page. The first decision wins, there or on the command
line; a later one is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas import State
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from flows.failures import notify_failure
from flows.pictures import to_data_uri
from onenip.data.outputs import OUTPUTS
from onenip.errors import RegistryError
from onenip.evaluation.counts import COUNT_NAMES, describe_wrong
from onenip.operation.notices import Kind, notify
from onenip.operation.threshold_change import recount
from onenip.params import NotifyParams, Params
from onenip.printing import plain
from onenip.registry import approval as decisions
from onenip.registry import versions
from onenip.registry.evaluations import fetch_evaluation, find_report
from onenip.registry.tags import GateResult, Version
from onenip.registry.versions import CHALLENGER
from onenip.serving.schema import MAX_NAME

DEPLOYMENT = "approve/approve"

_PRINTABLE = r"^[^\x00-\x1f]+$"
_MAX_NUMBER = 10**9  # Prefect's server breaks at a parameter that its JSON cannot hold
_PICTURES = 9
_PICTURES_IN_FORM = 3
_KINDS = ("sample", "miss", "false_alarm")  # how `evaluate` names its pictures
_SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


class Decision(RunInput):
    """Fields of the form."""

    decision: Literal["approve", "reject"] = Field(description="Shall this version serve?")
    by: str = Field(
        pattern=r"\S",
        max_length=decisions.MAX_BY,
        description="Who decides; kept in the audit trail.",
    )
    reason: str = Field(
        pattern=r"\S",
        max_length=decisions.MAX_REASON,
        description="Why; kept in the audit trail.",
    )
    override: bool = Field(default=False, description="Approve although the gate rejected it.")


@flow(
    name="approve",
    persist_result=True,
    flow_run_name="approve {category} {number}",
    on_failure=[notify_failure],
    on_crashed=[notify_failure],
)
def approve(
    category: Annotated[str, Field(pattern=_PRINTABLE, max_length=MAX_NAME)],
    number: Annotated[int, Field(ge=1, le=_MAX_NUMBER)],
) -> State[Any]:
    """Show a version beside its champion, wait for the form, and do what it says.

    Args:
        category: the product category.
        number: the version that waits.
    """
    params = Params.load()
    try:
        version = versions.find_version(category, number)
    except RegistryError as error:
        return Failed(message=str(error))
    if version.approval != "pending":
        return Completed(message=f"{category} version {number} is {version.approval} already")
    comparison = show_comparison(version)
    form = Decision.with_initial_data(description=comparison)
    wait = int(params.retrain.approval_wait_hours * 3600)
    answer = suspend_flow_run(wait_for_input=form, timeout=wait, key="decision")
    try:
        message = decide(version, answer)
    except RegistryError as error:
        get_run_logger().warning("not done: %s", error)
        if not _find_answer(category, number):  # a slip, such as an empty reason
            ask_people([version], again=str(flow_run.id))
        return Completed(message=f"not done: {error}")
    return Completed(message=message)


def decide(version: Version, answer: Decision) -> str:
    """Do what the form says.

    Raises:
        RegistryError: if somebody decided before, or a newer version replaced this one.
    """
    category, number = version.category, version.number
    if answer.decision == "reject":
        decisions.reject(category, by=answer.by, reason=answer.reason, version=number)
        return f"{category} version {number} was rejected by {answer.by}"
    decisions.approve(
        category, by=answer.by, reason=answer.reason, version=number, override=answer.override
    )
    return f"{category} version {number} is champion, approved by {answer.by}"


def show_comparison(version: Version) -> str:
    """Attach champion and challenger side by side, the gate's reasons and heat maps to the run.

    Returns:
        A short form of the same, in Markdown, for the form itself.
    """
    champion = versions.champion(version.category)
    counted = recount([version, *([champion] if champion else [])])
    rows = list(zip(("challenger", "champion"), counted, strict=False))
    slug = "".join(c if c.isalnum() else "-" for c in version.category.lower())
    create_table_artifact(
        key=f"comparison-{slug}",
        table=[
            {
                "role": role,
                "version": one.number,
                **describe_wrong(one.metrics),
                **{k: round(v, 4) for k, v in one.metrics.items() if k not in COUNT_NAMES},
            }
            for role, one in rows
        ],
        description=f"{version.category} on the test images: 95 % intervals, metrics in 0..1.",
    )
    pictures = _render_heat_maps(version)
    gate = _render_gate(version)
    report = _link_report(version)
    create_markdown_artifact(
        key=f"challenger-{slug}",
        markdown="\n\n".join(
            [
                f"# {plain(version.category)} version {version.number}",
                _render_table(rows),
                gate,
                *report,
                *pictures,
            ]
        ),
        description="Champion and challenger, what the gate says, and heat maps of the challenger.",
    )
    return "\n\n".join([_render_table(rows), gate, *report, *pictures[:_PICTURES_IN_FORM]])


def list_waiting() -> list[Version]:
    """Challengers without a decision, sorted by category.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    found = [one.challenger for one in versions.read_snapshot().standings.values()]
    return [version for version in found if version is not None and version.approval == "pending"]


def notify_waiting(version: Version, result: GateResult | None, params: NotifyParams) -> None:
    """Notify the team that a version waits for a person, or failed the gate.

    Args:
        version: a challenger.
        result: of the gate; None where it was not asked.
        params: where notices go.
    """
    facts: dict[str, Any] = {"category": version.category, "version": version.number}
    pictures = sorted((OUTPUTS.evaluation / "heatmaps" / version.category).glob("*.png"))
    picture = next((one for one in pictures if one.stem.startswith("miss")), None)
    text = f"{version.category}: version {version.number} "
    if result is None:
        said = f"{text}waits for approval"
        notify("challenger-waits", said, facts=facts, params=params, picture=picture)
        return
    facts |= {"verdict": result.verdict, "reasons": list(result.reasons)}
    failed = result.verdict == "reject"
    text += "failed the gate" if failed else f"waits for approval (gate: {result.verdict})"
    kind: Kind = "gate-failed" if failed else "challenger-waits"
    said = f"{text}: {result.reasons[0]}"
    notify(kind, said, facts=facts, params=params, picture=picture)


def ask_people(waiting: Sequence[Version], *, again: str = "") -> None:
    """Start a run with a form for each version, once, where a server has the deployment.

    Args:
        waiting: the versions.
        again: id of a run whose form changed nothing; empty for the first.
    """
    for version in waiting:
        with get_client(sync_client=True) as client:
            try:
                client.read_deployment_by_name(DEPLOYMENT)
            except ObjectNotFound:
                get_run_logger().info(
                    "%s waits: %s", version.category, versions.approval_command(version.category)
                )
                continue
        run_deployment(
            DEPLOYMENT,
            parameters={"category": version.category, "number": version.number},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"approve {version.category} {version.number} {version.digest} {again}".rstrip(),
        )


def close_forms() -> None:
    """Cancel the runs whose version was decided elsewhere, or replaced by a newer one.

    Raises:
        RegistryError: if the registry cannot be reached.
    """
    paused = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[approve.name])),
            flow_run_filter=FlowRunFilter(state=paused),
        )
        registered = versions.list_categories()
        for run in runs:
            category, number = (run.parameters.get(key) for key in ("category", "number"))
            if category in registered and isinstance(category, str) and isinstance(number, int):
                answer = _find_answer(category, number)
            else:  # whoever has the password made it up
                answer = "is gone from the registry"
            if answer:
                message = f"{category} version {number} {answer}"
                client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
                get_run_logger().info("the form of %s is closed: %s", run.name, message)


def _find_answer(category: str, number: int) -> str:
    """Why a version needs no decision any more, such as "is approved by Ada already", or nothing."""
    known = {version.number: version for version in versions.list_versions(category)}
    version = known.get(number)
    if version is None:
        return "is gone from the registry"
    if version.approval != "pending":
        by = f" by {version.approver}" if version.approver else ""
        return f"is {version.approval}{by} already"
    waiting = [other for other, one in known.items() if CHALLENGER in one.aliases]
    return "" if number in waiting or not waiting else f"was replaced by version {waiting[0]}"


def _render_table(rows: Sequence[tuple[str, Version]]) -> str:
    """Markdown table: a line per metric, a column per version."""
    names = [name for name in _SHOWN if any(name in one.metrics for _, one in rows)]
    lines = [
        "| | " + " | ".join(f"{role} {one.number}" for role, one in rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    wrong = [describe_wrong(one.metrics) for _, one in rows]
    lines += [
        f"| {title} | " + " | ".join(texts[title] for texts in wrong) + " |" for title in wrong[0]
    ]
    for name in names:
        cells = [f"{one.metrics[name]:.3f}" if name in one.metrics else "-" for _, one in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _render_gate(version: Version) -> str:
    if version.gate is None:
        return "The gate was not asked."
    reasons = "\n".join(f"- {reason}" for reason in version.gate.reasons)
    warnings = "".join(f"\n- Warning: {warning}" for warning in version.gate.warnings)
    return f"Gate: **{version.gate.verdict}**\n\n{reasons}{warnings}"


def _link_report(version: Version) -> list[str]:
    try:
        address = find_report(version.run_id)
    except RegistryError:  # the comparison alone is still worth showing
        return []
    return [f"[The whole report]({address})"] if address else []


def _render_heat_maps(version: Version) -> list[str]:
    """Captioned pictures of the challenger: image, heat map, mask; each kind in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = fetch_evaluation(version.run_id, Path(scratch))
        except RegistryError:  # the comparison alone is still worth showing
            return []
        files = sorted((folder / "heatmaps" / version.category).glob("*.png"))
        kinds = [[p for p in files if p.stem.startswith(kind)] for kind in _KINDS]
        turns = [one for turn in zip_longest(*kinds) for one in turn if one is not None]
        return [
            f"**{plain(path.stem.replace('_', ' '))}** (image, heat map, mask)\n\n"
            f"![]({to_data_uri(path)})"
            for path in turns[:_PICTURES]
        ]
