"""Commands about arriving images: ingest, notify, held, release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onenip.cli.options import PARAMS, ParamsOption
from onenip.data.labels import clean_name
from onenip.printing import show

if TYPE_CHECKING:
    from onenip.params import Params
    from onenip.sources.inbox import Inbox

_SHOWN = 50


def ingest(*, params: ParamsOption = PARAMS) -> None:
    """Take in the images that wait in the inbox (retrain.inbox); train nothing.

    Bad images, duplicates and images that a person must look at are moved to folders beside the
    inbox, each with a note. Needs a registry only where a category has a champion.
    """
    from onenip.data.checkout import hold_checkout
    from onenip.ingestion.ingest import ingest as take_in
    from onenip.operation.provisional import provide
    from onenip.params import Params
    from onenip.registry.champions import Champions
    from onenip.sources.inbox import SHELVES

    loaded, champions = Params.load(params), Champions()
    with hold_checkout("ingest"):
        result = take_in(
            loaded,
            inbox=_open(loaded),
            find_champion=champions.find,
            find_unified=champions.find_unified,
        )
        for category, counts in result.counts.items():
            outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            typer.echo(f"{category or 'in no folder'}: {outcomes}")
        for item in result.set_aside[:_SHOWN]:
            typer.echo(show(f"  {item.key}: {item.outcome}: {item.reason}"))
        others = sum(counts.get(shelf, 0) for counts in result.counts.values() for shelf in SHELVES)
        if others > _SHOWN:
            typer.echo(f"  and {others - _SHOWN} more")
        typer.echo(f"data version {result.data_version or 'none'}")
        for version in provide(loaded, root=Path()):
            typer.echo(
                f"{version.category}: version {version.number} is provisional, never trained"
            )


def notify(
    categories: Annotated[
        list[str],
        typer.Argument(
            metavar="CATEGORY", help="Categories that got new images.", parser=clean_name
        ),
    ],
) -> None:
    """Announce new images to Prefect's server (PREFECT_API_URL), which looks into the inbox at once."""
    from onenip.operation.notices import ARRIVED_EVENT, emit

    for category in categories:
        emit(ARRIVED_EVENT, category, payload={})
        typer.echo(f"{category}: announced")


def held(*, params: ParamsOption = PARAMS) -> None:
    """List held images, which wait for a person to look at them, with the reason."""
    from onenip.params import Params
    from onenip.sources.inbox import NOTE_SUFFIX

    inbox = _open(Params.load(params))
    for arrival in inbox.list_arrivals(shelf="held"):
        if not arrival.key.endswith(NOTE_SUFFIX):
            note = inbox.read_note("held", arrival.key) or {}
            typer.echo(show(f"{arrival.key}: {note.get('reason', 'no note')}"))


def release(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Held image, as `onenip held` names it, or a category."
        ),
    ],
    *,
    by: Annotated[
        str, typer.Option("--by", metavar="NAME", help="Who looked at it; kept with the image.")
    ],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why it is normal; kept with the image.")
    ],
    params: ParamsOption = PARAMS,
) -> None:
    """Declare a held image normal: it goes back to the inbox and is taken in next time.

    With the name of a category, all its held images are, such as those of a new product.
    """
    from datetime import UTC, datetime

    from onenip.errors import SourceError
    from onenip.params import Params
    from onenip.sources.inbox import NOTE_SUFFIX

    inbox = _open(Params.load(params))
    folder = f"{clean_name(name.rstrip('/'))}/"
    below = [one.key for one in inbox.list_arrivals(shelf="held") if one.key.startswith(folder)]
    for key in [one for one in below if not one.endswith(NOTE_SUFFIX)] or [name]:
        note = inbox.read_note("held", key)
        if note is None:
            raise SourceError(f"no held image {key}; see `onenip held`")
        at = datetime.now(tz=UTC).isoformat(timespec="seconds")
        decided = {"by": by, "reason": reason, "at": at, "held_for": note.get("reason", "")}
        inbox.release(key, note={"sha256": note["sha256"], **decided})
        typer.echo(f"{Path(key).name}: back in the inbox")


def _open(params: Params) -> Inbox:
    from onenip.sources.inbox import open_inbox

    return open_inbox(params.retrain.require_inbox(), settle_seconds=params.retrain.settle_seconds)
