"""The whole chain as one flow: download, the DVC stages, registration.

`onenip run` is this flow. A stage that DVC finds up to date is skipped, and a killed run goes on where it was
when it is started again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from flows.approval import ask_people, list_waiting, notify_waiting
from flows.failures import UNREACHABLE, name_run, network_task, notify_failure
from flows.judging import judge_and_show
from flows.pictures import to_data_uri
from flows.progress import note_end, note_start, read_line
from onenip.addresses import hide_secrets, holds_secret
from onenip.data import dvc
from onenip.data.checkout import hold_checkout
from onenip.data.manifest import DATA_DIR
from onenip.data.outputs import OUTPUTS
from onenip.errors import OneNIPError, SourceError, UnreachableError
from onenip.evaluation.counts import VerdictCounts, describe_wrong
from onenip.evaluation.results import group_figures, load_metrics
from onenip.operation import retraining
from onenip.operation.champion_report import (
    evaluate_champions,
    find_decision_report,
    write_decision_report,
)
from onenip.params import Params
from onenip.printing import open_console, plain
from onenip.registry.evaluations import publish_report
from onenip.registry.tags import GateResult
from onenip.workspace.files import require_current

STAGES = ("validate", "synthesize", "train", "evaluate")

_SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")
_PICTURES = 12  # heat maps shown in the flow run, at most


@dataclass(frozen=True)
class Download:
    """What to download; fields as the options of `onenip download`."""

    sources: tuple[str, ...]
    accept_license: bool = False
    endpoint_url: str | None = None
    sign_request: bool = True


@network_task("download")
def download(request: dict[str, Any]) -> State[Any]:
    """Bring the sources' images into `data/`, and name their version in `data.dvc`."""
    from onenip.stages import download as stage

    def work() -> str:
        params = Params.load()
        result = stage.run(
            params,
            sources=tuple(request["sources"]),
            data_dir=DATA_DIR,
            accept_license=request["accept_license"],
            endpoint_url=request["endpoint_url"],
            sign_request=request["sign_request"],
        )
        count = sum(result.categories.values())
        version = (result.version or "none")[:12]
        return f"{count} files of {len(result.categories)} categories, version {version}"

    return _settle("download", work)


@task(name="reproduce", task_run_name="{stage}", persist_result=False)
def reproduce(stage: str) -> State[Any]:
    """Ask DVC to bring one stage up to date; its lines join the run's log."""
    logger = get_run_logger()
    said = ["up to date"]  # what the stage's own module said last

    def listen(line: str) -> None:
        logger.info(line)
        if line.startswith(f"INFO onenip.stages.{stage}:"):
            said.append(read_line(line)[1])

    def work() -> str:
        require_current()
        dvc.repro(stage, on_line=listen)
        return said[-1]

    return _settle(stage, work)


@network_task("register")
def register() -> State[Any]:
    """Make the model the challenger of its categories in MLflow."""
    from onenip.stages import register as stage

    def work() -> str:
        found = stage.run(Params.load(), model_dir=OUTPUTS.model, evaluation_dir=OUTPUTS.evaluation)
        return ", ".join(f"{version.category} version {version.number}" for version in found)

    return _settle("register", work)


@network_task("compare with champions")
def compare_with_champions() -> State[Any]:
    """Evaluate the champions on the same images, for the report that shows both."""

    def work() -> str:
        folders = evaluate_champions(
            Params.load(),
            model_dir=OUTPUTS.model,
            evaluation_dir=OUTPUTS.evaluation,
            manifest=OUTPUTS.manifest,
        )
        return ", ".join(folder.name for folder in folders) or "there is none yet"

    return _settle("compare with champions", work)


@network_task("link report")
def link_report() -> State[Any]:
    """Write the report to sign, log it with the model's run, and attach a link to it to this one."""

    def work() -> str:
        report = write_decision_report(
            model_dir=OUTPUTS.model,
            evaluation_dir=OUTPUTS.evaluation,
            synthesis_dir=OUTPUTS.synthesis,
            training_dir=OUTPUTS.curves,
        )
        experiment = Params.load().register_.experiment
        address = publish_report(OUTPUTS.model, report, experiment=experiment)
        link = address or report.resolve().as_uri()
        create_link_artifact(key="report", link=link, link_text="Report to sign")
        return str(report)

    return _settle("link report", work)


@task(name="show", persist_result=False)
def show() -> None:
    """Attach the table of metrics and the heat maps to the run."""
    rows = group_figures(load_metrics(OUTPUTS.metrics))
    create_table_artifact(
        key="metrics",
        table=[
            {"category": name, **describe_wrong(row), **{key: row.get(key) for key in _SHOWN}}
            for name, row in rows.items()
        ],
        description="Per category on the test images: wrong verdicts with 95 % intervals, metrics in 0..1.",
    )
    pictures = "\n\n".join(
        f"**{plain(f'{path.parent.name}/{path.stem}')}**\n\n![]({to_data_uri(path)})"
        for path in _pick_pictures()
    )
    create_markdown_artifact(
        key="heatmaps",
        markdown=pictures,
        description="Images, heat maps and masks; the report holds more.",
    )


@flow(
    name="pipeline",
    flow_run_name=name_run("pipeline"),
    persist_result=False,
    on_failure=[notify_failure],
    on_crashed=[notify_failure],
)
def pipeline(request: dict[str, Any]) -> State[Any]:
    """Chain download, the DVC stages and registration; ask the gate, then people, about what is new."""
    steps = [partial(reproduce, stage, return_state=True) for stage in STAGES]
    if request["sources"]:
        steps.insert(0, partial(download, request, return_state=True))
    for step in steps:
        state = step()
        if not state.is_completed():
            return Failed(message=state.message)
    try:
        known = {(version.category, version.number) for version in list_waiting()}
        for one in (compare_with_champions, register):
            state = one(return_state=True)
            if not state.is_completed():
                return Failed(message=state.message)
        new = [v for v in list_waiting() if (v.category, v.number) not in known]
        results = _judge() if new else {}
        for version in new:
            if version.category in results:
                retraining.store_gate(version, results[version.category])
        state = link_report(return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    except OneNIPError as error:
        return Failed(message=f"register: {error}")
    show()
    for version in new:
        notify_waiting(version, results.get(version.category), Params.load().notify)
    ask_people(new)
    return Completed(message="every category has a challenger")


def run_pipeline(request: Download) -> None:
    """Run the flow in this process.

    Raises:
        SourceError: if an address holds a password, which Prefect would keep and show.
        BusyError: if another command is at work in this checkout.
        OneNIPError: if a step failed; the message says which and why.
    """
    for address in (*request.sources, request.endpoint_url or ""):
        if holds_secret(address):
            raise SourceError(
                f"{hide_secrets(address)}: it holds a password or signature, which Prefect would keep; "
                "write ${NAME} in its place and set NAME in the environment"
            )
    with hold_checkout("pipeline"):
        state = pipeline(asdict(request), return_state=True)
    if not state.is_completed():
        raise OneNIPError(state.message or "the pipeline failed")


def _judge() -> dict[str, GateResult]:
    note_start("gate")
    started_at = time.monotonic()
    results = judge_and_show()
    words = ", ".join(f"{name}: {result.verdict}" for name, result in results.items())
    note_end("gate", time.monotonic() - started_at, words)
    return results


def _settle(name: str, work: Callable[[], str]) -> State[Any]:
    """State of a step, whose work says what came of it: an error that a user can act on is one line."""
    note_start(name)
    started_at = time.monotonic()
    try:
        text = work()
    except OneNIPError as error:
        note_end(name, time.monotonic() - started_at, str(error), is_failed=True)
        state_name = UNREACHABLE if isinstance(error, UnreachableError) else None
        return Failed(message=f"{name}: {error}", name=state_name)
    note_end(name, time.monotonic() - started_at, text)
    return Completed(message=f"{name}: {text}")


def _pick_pictures() -> list[Path]:
    """Heat maps of all categories in turn, so that none is left out."""
    folders = sorted(p for p in (OUTPUTS.evaluation / "heatmaps").iterdir() if p.is_dir())
    files = [sorted(folder.glob("*.png")) for folder in folders]
    longest = max(map(len, files), default=0)
    turns = [files[c][i] for i in range(longest) for c in range(len(files)) if i < len(files[c])]
    return turns[:_PICTURES]


def print_summary() -> None:
    """Print defects missed and false alarms of each category, and where to look next."""
    from rich import box
    from rich.table import Table

    content = load_metrics(OUTPUTS.metrics)
    table = Table("category", *describe_wrong({}), *_SHOWN, box=box.SIMPLE_HEAD)
    for name, row in group_figures(content).items():
        cells = ("-" if row.get(key) is None else f"{row[key]:.3f}" for key in _SHOWN)
        table.add_row(name, *describe_wrong(row).values(), *cells)
    console = open_console()
    console.print(table)
    counts = [VerdictCounts(**row) for row in content["verdicts"].values()]
    wrong = describe_wrong(sum(counts[1:], start=counts[0]).to_dict())
    console.print("; ".join(f"{title}: {text}" for title, text in wrong.items()))
    console.print(f"report  {find_decision_report(OUTPUTS.model) or OUTPUTS.report}")
    console.print(
        "next    `onenip inspect` shows heat maps and the form to approve at http://127.0.0.1:8501,"
    )
    console.print("        or `onenip approve CATEGORY --by NAME --reason TEXT`")


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "onenip", "run", *sys.argv[1:]])
