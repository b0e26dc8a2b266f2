"""Commands about people's judgement: feedback, and the review queue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onenip.cli.options import PARAMS, ParamsOption
from onenip.data.labels import clean_name
from onenip.data.outputs import OUTPUTS
from onenip.printing import show as show_text

if TYPE_CHECKING:
    from onenip.params import Params
    from onenip.review.queue import ReviewQueue
    from onenip.sources.inbox import Inbox

# onenip.review.items has these, too; importing it here would make help slow
LabelChoice = Literal["good", "defect", "unsure"]

RecentOption = Annotated[
    str, typer.Option("--recent", metavar="ADDRESS", help="Answers that `serve --recent` keeps.")
]
SaysOption = Annotated[str, typer.Option("--by", metavar="NAME", help="Who says so; kept.")]
LabelOption = Annotated[
    LabelChoice, typer.Option("--label", metavar="good|defect|unsure", help="What the part is.")
]
KindOption = Annotated[str, typer.Option(metavar="KIND", help="Of the defect, such as scratch.")]
BoxOption = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="X,Y,W,H", help="Around the defect, in px; repeatable."),
]
MaskOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Mask of the defect, instead of boxes.")
]
NoteOption = Annotated[str, typer.Option(metavar="TEXT", help="Further words; kept.")]


def feedback(
    part: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="Id of an answer of `serve`, or an image.")
    ],
    *,
    label: LabelOption,
    by: SaysOption,
    kind: KindOption = "",
    box: BoxOption = None,
    mask: MaskOption = None,
    note: NoteOption = "",
    category: Annotated[
        str,
        typer.Option(
            "--category", "-c", metavar="CATEGORY", help="Of an image file.", parser=clean_name
        ),
    ] = "",
    recent: RecentOption = str(OUTPUTS.recent),
) -> None:
    """Say what a part that was judged really is; it waits for a reviewer then."""
    import base64

    from onenip.data.labels import check_category
    from onenip.review.answers import Answers, Feedback
    from onenip.review.collecting import read_file

    boxes, drawn = _parse_boxes(box), mask.read_bytes() if mask else None
    if Path(part).is_file():
        one = read_file(Path(part), check_category(category), "feedback", f"{by}: {label} {kind}")
        _open_queue().tell(one, label, by=by, kind=kind, boxes=boxes, mask=drawn, note=note)
    else:
        packed = base64.b64encode(drawn).decode() if drawn else ""
        said = Feedback(part, label, by, kind, boxes, packed, note)
        Answers(recent).give_feedback(said)
    typer.echo(f"{part}: {label}; it waits for review")


def collect(*, params: ParamsOption = PARAMS) -> None:
    """Fill the queue: feedback, alarms, near misses, held arrivals, disagreements, outliers.

    Images that nobody looked at within `review.days` go, as do the least helpful above `review.gigabytes`.
    """
    from onenip.errors import OneNIPError
    from onenip.params import Params
    from onenip.registry.champions import Champions, load_candidate
    from onenip.review import collecting
    from onenip.review.answers import Answers

    loaded, queue = Params.load(params), _open_queue()
    answers = Answers(loaded.review.answers or OUTPUTS.recent)
    counts = collecting.collect_waiting(queue, answers, _open_inbox(loaded))
    for name, count in counts.items():
        typer.echo(f"{name}: {count}")
    champions = Champions()
    try:
        standings = [*champions.snapshot.standings.values()]
    except OneNIPError as error:
        typer.echo(f"no champions are asked: {error}", err=True)
        standings = []
    for standing in standings:
        category = standing.category
        try:
            champion, waiting = champions.find(category), standing.challenger
            if champion is None:
                continue
            count = collecting.collect_outliers(queue, category, champion)
            typer.echo(f"{category}: outliers: {count}")
            if waiting is not None:
                count = collecting.collect_disagreements(
                    queue, answers, category, champion=champion, challenger=load_candidate(waiting)
                )
                typer.echo(f"{category}: disagreements of champion and challenger: {count}")
        except OneNIPError as error:
            typer.echo(f"{category}: its models are not asked: {error}", err=True)
    gone = queue.trim(days=loaded.review.days, gigabytes=loaded.review.gigabytes)
    if gone:
        typer.echo(f"images that nobody looked at in time, or without room, deleted: {gone}")


def show(
    *,
    category: Annotated[
        str | None,
        typer.Option("--category", "-c", metavar="CATEGORY", help="Only of it.", parser=clean_name),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="COUNT", min=1, help="At most so many.")] = 50,
) -> None:
    """List images that wait for a person, those that help most first."""
    from onenip.review.items import WAITING

    queue = _open_queue()
    items = queue.list_items(category=category, limit=limit)
    for item in items:
        state = "" if item.state == "open" else f" ({item.state})"
        problem = f"; {item.problem}" if item.problem else ""
        line = (
            f"{item.id} {item.category} {item.reason}{state}: {item.detail}{problem} {item.image}"
        )
        typer.echo(show_text(line))
    counts = queue.count().items()
    total = sum(
        n for (name, _, state), n in counts if state in WAITING and category in (None, name)
    )
    if total > len(items):
        typer.echo(f"and {total - len(items)} more: --limit {total}, or --category", err=True)


def decide(
    items: Annotated[
        list[str], typer.Argument(metavar="ID", help="As `onenip review list` names them.")
    ],
    *,
    label: LabelOption,
    by: SaysOption,
    kind: KindOption = "",
    box: BoxOption = None,
    mask: MaskOption = None,
    note: NoteOption = "",
) -> None:
    """Say what images show; `onenip review apply` brings that into the data."""
    drawn = mask.read_bytes() if mask else None
    for item in _open_queue().decide(
        items, label, by=by, kind=kind, boxes=_parse_boxes(box), mask=drawn, note=note
    ):
        typer.echo(f"{item.id}: {item.state} {item.label} {item.kind}".rstrip())


def undo(
    opinion: Annotated[
        int, typer.Argument(metavar="NUMBER", help="As `onenip review history` names it.")
    ],
    *,
    by: SaysOption,
) -> None:
    """Take back what was said about an image; the record keeps both."""
    item = _open_queue().undo(opinion, by=by)
    typer.echo(f"{item.id}: {item.state}")


def history(
    item: Annotated[str | None, typer.Argument(metavar="ID", help="Of one image.")] = None,
    *,
    limit: Annotated[int, typer.Option(metavar="COUNT", min=1, help="At most so many.")] = 50,
) -> None:
    """List who said what about which image, the latest first."""
    found = _open_queue().history(item=item, limit=limit + 1)
    for said in found[:limit]:
        undone = f", taken back by {said.undone_by}" if said.undone_by else ""
        words = " ".join(filter(None, [said.label, said.kind, said.note]))
        line = f"{said.id} {said.at:%Y-%m-%d %H:%M} {said.by} ({said.role}): {words}{undone}"
        typer.echo(show_text(f"{line} {said.item}"))
    if len(found) > limit:
        typer.echo(f"and earlier ones: --limit {2 * limit}", err=True)


def apply(*, params: ParamsOption = PARAMS) -> None:
    """Bring decisions into the data, as a version: normals into training, defects into the test set.

    A defect that was trained on leaves the training images and never becomes a test image. What was undone
    since is taken out again.
    """
    from onenip.params import Params
    from onenip.registry.champions import Champions
    from onenip.review.placing import apply_labels

    loaded = Params.load(params)
    done = apply_labels(
        _open_queue(), loaded, inbox=_open_inbox(loaded), find_champion=Champions().find
    )
    for item in done.items:
        words = filter(None, [item.label or item.state, item.kind, item.place, item.problem])
        typer.echo(show_text(f"{item.id} {item.category}: {', '.join(words)}"))
    if done.in_inbox:
        typer.echo(f"{done.in_inbox} normal images lie in the inbox; `onenip ingest` takes them in")
    typer.echo(f"test set: {'unchanged' if done.commit is None else f'commit {done.commit[:12]}'}")


def summary(
    *,
    hours: Annotated[
        float, typer.Option(metavar="HOURS", min=0.1, help="How far back to look.")
    ] = 24.0,
    send: Annotated[
        bool,
        typer.Option("--send", help="Send it to the addresses of notify.*, as a cron job may."),
    ] = False,
    params: ParamsOption = PARAMS,
) -> None:
    """Show what was served, said and decided in the last day, by category, and what waits."""
    from datetime import UTC, datetime, timedelta

    from onenip.operation.notices import NoticeError, notify
    from onenip.params import Params
    from onenip.review.answers import Answers
    from onenip.review.summary import summarize

    loaded, queue = Params.load(params), _open_queue()
    since = datetime.now(tz=UTC) - timedelta(hours=hours)
    lines = summarize(queue, Answers(loaded.review.answers or OUTPUTS.recent), since=since)
    typer.echo("\n".join(lines))
    if not send:
        return
    picture = next((one.image for one in queue.list_items(limit=1)), None)  # what helps most
    text = "\n".join(lines)
    if not notify("summary", text, facts={}, params=loaded.notify, picture=picture):
        raise NoticeError("nobody took the summary; see notify.webhook and notify.addresses")


def _open_queue() -> ReviewQueue:
    from onenip.review.queue import ReviewQueue

    return ReviewQueue()


def _open_inbox(params: Params) -> Inbox | None:
    from onenip.sources.inbox import open_inbox

    if params.retrain.inbox is None:
        return None
    return open_inbox(params.retrain.inbox, settle_seconds=params.retrain.settle_seconds)


def _parse_boxes(texts: list[str] | None) -> list[list[int]]:
    from onenip.errors import DataError

    try:
        return [[int(part) for part in text.split(",")] for text in texts or ()]
    except ValueError as error:
        raise DataError(f"--box: X,Y,W,H in px: {error}") from error
