"""The page *Overview*: a tile for each category, with what waits for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import streamlit as st

from onenip.data.manifest import DATA_DIR
from onenip.data.outputs import OUTPUTS
from onenip.evaluation.counts import COUNT_NAMES
from onenip.images import IMAGE_SUFFIXES
from onenip.operation.drift import DriftMemory
from onenip.operation.threshold_change import recount
from onenip.pages.common import (
    CACHE_SECONDS,
    draw_link,
    find_thumbnail,
    list_answers,
    plain,
    read_registry,
)
from onenip.registry.tags import Version
from onenip.registry.versions import Standing
from onenip.review.answers import Answer
from onenip.review.items import WAITING, Reason, State
from onenip.review.queue import ReviewQueue

_STATE = Path(".onenip")
_ANSWERS = 1000  # of late
_REVIEWED_DAYS = 30
_WIDTH_PX, _PICTURE_PX, _GAPS_PX = 260, 56, 60  # of a tile, its picture, all gaps in it
_SORTS = ("what waits", "alarms", "name")


@dataclass(frozen=True)
class Tile:
    """What a category's tile says.

    Attributes:
        standing: its versions.
        alarms: alarms of late.
        answers: answers of late.
        missed: parts of late that the model passed and a person called defective.
        false_alarms: alarms of late that a person called good.
        held: arrivals that are held for a person.
        to_review: all images that wait for a person.
        is_drifting: whether arrivals drifted from those at approval.
    """

    standing: Standing
    alarms: int
    answers: int
    missed: int
    false_alarms: int
    held: int
    to_review: int
    is_drifting: bool

    @property
    def waiting(self) -> int:
        """How many things wait for a person."""
        return self.to_review + bool(self.standing.challenger) + self.is_drifting


def draw() -> None:
    """Draw the page."""
    st.title("Overview", anchor=False)
    tiles = _read_tiles()
    if not tiles:
        st.info(
            "No model is registered yet. Train one with `onenip run`, or show a model folder on "
            "*Inspect* with `onenip inspect --model FOLDER`."
        )
        return
    waiting = [tile for tile in tiles if tile.waiting]
    alarms = sum(tile.alarms for tile in tiles)
    st.caption(
        f"{len(tiles)} categories, {len(waiting)} wait for somebody, {alarms} alarms of late; "
        f"the registry as it was {read_registry().age_seconds:.0f} s ago"
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Find", key="find", bind="query-params", placeholder="category", width=220
        )
        shown = st.segmented_control(
            "Show",
            ["all", "waiting"],
            default="all",
            required=True,
            key="show",
            bind="query-params",
        )
        order = st.selectbox("Sort by", _SORTS, key="sort", bind="query-params", width=180)
    chosen = choose_tiles(waiting if shown == "waiting" else tiles, text=text, order=order)
    if not chosen:
        st.info("No category is left: clear the filter.")
    champions = [one for one in (tile.standing.champion for tile in chosen) if one is not None]
    counted = {one.uri: one for one in _recount(champions)}
    with st.container(horizontal=True):
        for tile in chosen:
            champion = tile.standing.champion
            _draw_tile(tile, None if champion is None else counted[champion.uri])


def choose_tiles(tiles: Sequence[Tile], *, text: str, order: str) -> list[Tile]:
    """Tiles whose category holds a text, in an order of `_SORTS`."""
    found = [one for one in tiles if text.strip().lower() in one.standing.category.lower()]
    keys = {"what waits": lambda one: -one.waiting, "alarms": lambda one: -one.alarms}
    return sorted(found, key=keys[order]) if order in keys else found


def make_tiles(
    standings: Sequence[Standing],
    answers: Sequence[Answer],
    waiting: Mapping[tuple[str, Reason, State], int],
    wrong: Mapping[tuple[str, str], int],
    drifting: Mapping[str, str],
) -> list[Tile]:
    """Tiles of registered categories, sorted by name.

    Args:
        standings: of the registry.
        answers: of late.
        waiting: of the review queue, as it counts them.
        wrong: reviewed parts that were judged wrongly, by category and what they are.
        drifting: digest of the champion that people were notified about, by title of the drift.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for answer in answers:
        category = answer.facts["category"]
        counts[category, "answers"] += 1
        counts[category, "alarms"] += answer.facts["verdict"] == "anomalous"
    for (category, reason, state), number in waiting.items():
        if state in WAITING:
            counts[category, "open"] += number
            counts[category, "held"] += number * (reason == "held")
    return [
        Tile(
            standing=one,
            alarms=counts[one.category, "alarms"],
            answers=counts[one.category, "answers"],
            missed=wrong.get((one.category, "defect"), 0),
            false_alarms=wrong.get((one.category, "good"), 0),
            held=counts[one.category, "held"],
            to_review=counts[one.category, "open"],
            is_drifting=one.champion is not None
            and one.champion.digest
            in (drifting.get(one.category), drifting.get(f"{one.category} (served)")),
        )
        for one in standings
    ]


def _read_tiles() -> list[Tile]:
    waiting, wrong = {}, {}
    if OUTPUTS.review.is_dir():
        queue, since = ReviewQueue(), datetime.now(tz=UTC) - timedelta(days=_REVIEWED_DAYS)
        waiting, wrong = queue.count(), queue.count_wrong(since=since)
    return make_tiles(
        [*read_registry().standings.values()],
        list_answers(limit=_ANSWERS),
        waiting,
        wrong,
        DriftMemory(_STATE / "drift.json").read(),
    )


@st.cache_data(ttl=10 * CACHE_SECONDS, show_spinner="Fetching evaluations…")
def _recount(champions: list[Version]) -> list[Version]:
    return recount(champions)


def _draw_tile(tile: Tile, champion: Version | None) -> None:
    category = tile.standing.category
    with st.container(border=True, width=_WIDTH_PX, gap="xsmall"):
        with st.container(horizontal=True, gap="small"):  # also on a narrow screen
            if source := find_thumbnail(_find_picture(category)):
                st.image(source, alt=f"a normal image of {category}", width=_PICTURE_PX)
            head = st.container(width=_WIDTH_PX - _PICTURE_PX - _GAPS_PX)
        with head:
            draw_link("Decide", f"**{plain(category)}**", category=category)
            st.caption(plain(_describe_champion(tile.standing)))
        with st.container(horizontal=True, gap="xsmall"):
            if tile.standing.challenger is not None:
                st.badge(f"version {tile.standing.challenger.number} waits", color="orange")
            if tile.to_review:
                st.badge(f"{tile.to_review} to review", color="blue")
            if tile.held:
                st.badge(f"{tile.held} held", color="violet")
            if tile.is_drifting:
                st.badge("drifts", color="red")
        st.caption(_describe_late(tile, champion))


def _describe_champion(standing: Standing) -> str:
    one = standing.champion
    if one is None:
        if standing.provisional is not None:
            return "provisional: never trained on it"
        return "nothing serves yet"
    since = f" since {one.decided_at:%Y-%m-%d}" if one.decided_at else ""
    return f"version {one.number}{since}, by {one.approver or 'nobody known'}"


def _describe_late(tile: Tile, champion: Version | None) -> str:
    parts = [f"{tile.alarms} alarms of {tile.answers} parts of late"] if tile.answers else []
    if tile.missed or tile.false_alarms:
        parts.append(f"reviewed: {tile.missed} missed, {tile.false_alarms} false alarms")
    if champion is not None and set(COUNT_NAMES) <= champion.metrics.keys():
        missed, defective, alarms, good = (round(champion.metrics[name]) for name in COUNT_NAMES)
        parts.append(
            f"test images: {missed} of {defective} missed, {alarms} of {good} false alarms"
        )
    return "; ".join(parts) or "no parts judged of late"


@st.cache_data(ttl=10 * CACHE_SECONDS, show_spinner=False)
def _find_picture(category: str) -> Path | None:
    """The first normal training image of a category, if the data are laid out here."""
    folder = DATA_DIR / category / "train" / "good"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return next((one for one in found if one.suffix.lower() in IMAGE_SUFFIXES), None)
