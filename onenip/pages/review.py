"""The page *Review*: images that a person should look at, one by one or many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from onenip.data.outputs import OUTPUTS
from onenip.detector.heatmaps import draw_heat
from onenip.detector.prediction import Region, find_regions, resize_map
from onenip.errors import DataError, ImageError, OneNIPError
from onenip.images import load_mask, resize_image
from onenip.pages.common import find_thumbnail, load_candidates, plain, take_image
from onenip.pages.people import ask_person, may
from onenip.pages.viewer import Panel, draw_viewer
from onenip.review.items import REASONS, WAITING, Item, Label, Reason, State
from onenip.review.marks import load_map
from onenip.review.queue import ReviewQueue
from onenip.serving.people import Person

_DONE = "reviewed"
_SKIPPED = "skipped"
_SHOWN_OPINIONS = 30
_MIN_AREA_PX = 4
_SMALL = (32, 32)  # px at which the nearest prompt is looked for


def draw() -> None:
    """Draw the page."""
    st.title("Review", anchor=False)
    queue = ReviewQueue()
    counts = queue.count() if OUTPUTS.review.is_dir() else {}
    waiting = {key: n for key, n in counts.items() if key[2] in WAITING}
    if not waiting:
        st.info(
            "Nothing waits for you. The queue fills with held arrivals, alarms, near misses and what "
            "people report on the line."
        )
        _draw_done(queue)
        _draw_record(queue)
        return
    category, reason = _choose(waiting)
    items = queue.list_items(category=category, reason=reason)
    person = ask_person()
    found = sum(
        n
        for (name, why, _), n in waiting.items()
        if category in (None, name) and reason in (None, why)
    )
    single, many, record = st.tabs([f"One by one ({found})", "Many at once", "Who said what"])
    with single:
        _draw_one(queue, items, person)
    with many:
        if found > len(items):
            st.caption(f"The first {len(items)} of {found}.")
        _draw_many(queue, items, person)
    with record:
        _draw_record(queue)


def _choose(waiting: dict[tuple[str, Reason, State], int]) -> tuple[str | None, Reason | None]:
    """What to look at; it stays chosen when nothing of it is left, so that no key meets another image."""
    everything = "all"
    asked = {
        name: str(st.session_state.get(name, st.query_params.get(name, everything)))
        for name in ("category", "reason")
    }
    known = {key[0] for key in waiting} | {asked["category"]}
    categories = [everything, *sorted(known - {everything})]
    category = st.sidebar.selectbox("Category", categories, key="category", bind="query-params")
    own = [key for key in waiting if category in (everything, key[0])]
    reasons = [one for one in REASONS if one in {asked["reason"], *(key[1] for key in own)}]
    reason = st.sidebar.selectbox(
        "Reason", [everything, *reasons], key="reason", bind="query-params"
    )
    return (
        None if category == everything else category,
        next((one for one in REASONS if one == reason), None),
    )


def _draw_one(queue: ReviewQueue, items: Sequence[Item], person: Person | None) -> None:
    skipped = st.session_state.setdefault(_SKIPPED, [])
    left = [one for one in items if one.id not in skipped]
    _draw_done(queue)
    if not left:
        st.info(
            "You went through all of them. Skipped ones come again when the page is opened anew; "
            "other categories and reasons are on the left."
        )
        return
    item = left[0]
    image = take_image(item.image)
    if image is None:
        st.button("Skip", shortcut="S", on_click=skipped.append, args=(item.id,))
        return
    _describe(item)
    boxes = _draw_pictures(queue, item, image)
    if may(person, "inspector", [item.category]) and person is not None:
        _draw_buttons(queue, item, person.name, boxes)
    _draw_said(queue, item)


def _draw_done(queue: ReviewQueue) -> None:
    """What was said last, and the way back."""
    if done := st.session_state.get(_DONE):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.success(plain(done[2]))
            st.button("Undo", shortcut="U", on_click=_undo, args=(queue, done[0], done[1]))


def _draw_buttons(queue: ReviewQueue, item: Item, by: str, boxes: Sequence[Sequence[int]]) -> None:
    said = [one.kind for one in queue.history(item=item.id) if not one.undone_by]
    named = next(filter(None, said), "")
    decided = queue.list_items(category=item.category, states=("decided",))
    kinds = sorted({named, *(one.kind for one in decided)} - {""})
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button("Good", shortcut="G", on_click=_say, args=(queue, item, "good", by))
        kind = st.selectbox(
            "Kind of defect",
            kinds,
            index=kinds.index(named) if named else None,
            accept_new_options=True,
            placeholder="not named",
            width=220,
            key=f"kind/{item.id}",
        )
        st.button(
            "Defect",
            shortcut="D",
            type="primary",
            on_click=_say,
            args=(queue, item, "defect", by, kind or "", boxes),
        )
        st.button("Cannot say", shortcut="N", on_click=_say, args=(queue, item, "unsure", by))
        skip = st.session_state[_SKIPPED].append
        st.button("Skip", shortcut="S", on_click=skip, args=(item.id,))


def _draw_said(queue: ReviewQueue, item: Item) -> None:
    """What was said about an image before."""
    for one in queue.history(item=item.id):
        said = f"{one.by} ({one.role}): {one.label} {one.kind} {one.note}".strip()
        text = f"{one.at:%Y-%m-%d %H:%M} {plain(said)}"
        if one.undone_by:
            st.caption(f"~~{text}~~ taken back by {plain(one.undone_by)}")
        else:
            st.caption(text)


def _describe(item: Item) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(item.category)}**")
        st.badge(item.reason, color="blue")
        if item.state == "disputed":
            st.badge("reviewers disagree", color="red")
        if item.score is not None and item.threshold is not None:
            st.markdown(
                f"{plain(item.verdict)}: score **{item.score:.2f}**, threshold {item.threshold:.2f}"
            )
        st.caption(f"{item.at:%Y-%m-%d %H:%M} UTC; {plain(item.detail)}")


def _draw_pictures(queue: ReviewQueue, item: Item, image: NDArray[np.uint8]) -> list[list[int]]:
    """Image, heat map and nearest normal; gives the boxes that a person drew."""
    size = (image.shape[0], image.shape[1])
    panels = [Panel("the part", image, can_mark=True)]
    try:
        found = load_map(item.map) if item.map is not None and item.map.is_file() else None
    except DataError as error:  # the image is there to be looked at
        st.caption(f"Its heat map cannot be shown: {plain(str(error))}")
        found = None
    if found is not None:
        small, pixel_threshold = found
        score_map = resize_map(small, size)
        regions: tuple[Region, ...] = ()
        if item.verdict != "normal":
            regions = find_regions(score_map, threshold=pixel_threshold, min_area_px=_MIN_AREA_PX)
        heat = draw_heat(image, score_map, pixel_threshold=pixel_threshold)
        panels.append(Panel("heat map", image, heat=heat, regions=regions))
    said = [one for one in queue.history(item=item.id) if one.mask and not one.undone_by]
    if said and said[0].mask is not None and said[0].mask.is_file():
        try:
            marked = load_mask(said[0].mask).astype(np.uint8) * 255
            panels.append(Panel(f"marked by {said[0].by}", marked))
        except ImageError as error:
            st.caption(f"What was marked cannot be shown: {plain(error.reason)}")
    nearest = _find_nearest(item.category, image)
    if nearest is not None:
        panels.append(Panel("a normal part, the most alike prompt", resize_image(nearest, size)))
    return draw_viewer(item.id, panels)


def _find_nearest(category: str, image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The prompt that looks most like an image; None where the category has no model."""
    try:
        candidate = load_candidates(category)[0]
        prompts = candidate.detector.prompt_images(category)
    except OneNIPError as error:
        st.caption(f"No normal part to compare with: {plain(str(error))}")
        return None
    small = resize_image(image, _SMALL).astype(np.float32)
    gaps = [np.abs(resize_image(one, _SMALL) - small).mean() for one in prompts]
    nearest: NDArray[np.uint8] = prompts[int(np.argmin(gaps))]
    return nearest


def _say(
    queue: ReviewQueue,
    item: Item,
    label: Label,
    by: str,
    kind: str = "",
    boxes: Sequence[Sequence[int]] = (),
) -> None:
    """Record an opinion; what is missing is said on the page."""
    try:
        (now,) = queue.decide([item.id], label, by=by, kind=kind, boxes=boxes)
    except OneNIPError as error:
        st.error(plain(str(error)))
        return
    latest = queue.history(item=item.id, limit=1)[0]
    st.session_state[_SKIPPED].append(item.id)
    words = {"good": "good", "defect": f"a defect ({now.kind or kind or 'not named'})"}
    st.session_state[_DONE] = (
        latest.id,
        by,
        f"{item.category}: {words.get(label, 'nobody can say')}",
    )


def _undo(queue: ReviewQueue, opinion: int, by: str) -> None:
    try:
        item = queue.undo(opinion, by=by)
    except OneNIPError as error:
        st.error(plain(str(error)))
        return
    st.session_state.pop(_DONE, None)
    skipped = st.session_state.get(_SKIPPED, [])
    if item.id in skipped:
        skipped.remove(item.id)


def _draw_many(queue: ReviewQueue, items: Sequence[Item], person: Person | None) -> None:
    st.caption("Tick the images, then say what all of them are.")
    rows = [
        {
            "image": find_thumbnail(item.image),
            "category": item.category,
            "reason": item.reason,
            "verdict": item.verdict,
            "score": item.score,
            "detail": item.detail,
            "state": item.state,
        }
        for item in items
    ]
    chosen = st.dataframe(
        rows,
        hide_index=True,
        row_height=90,
        on_select="rerun",
        selection_mode="multi-row",
        column_config={"image": st.column_config.ImageColumn(width="small")},
        key="many",
    )
    picked = [items[at] for at in chosen["selection"]["rows"] if at < len(items)]
    if not may(person, "inspector", {one.category for one in picked}) or person is None:
        return
    by, ids = person.name, [one.id for one in picked]
    kind = st.text_input("Kind, if they are defects", width=260)
    with st.container(horizontal=True):
        for label, word in (
            ("good", "All good"),
            ("defect", "All defects"),
            ("unsure", "Cannot say"),
        ):
            if st.button(f"{word} ({len(ids)})", disabled=not ids, key=f"many/{label}"):
                named = kind if label == "defect" else ""
                queue.decide(ids, label, by=by, kind=named)  # type: ignore[arg-type]
                st.rerun()


def _draw_record(queue: ReviewQueue) -> None:
    if not OUTPUTS.review.is_dir():
        return
    opinions = queue.history(limit=_SHOWN_OPINIONS)
    if not opinions:
        st.caption("Nobody has reviewed anything yet.")
        return
    rows = [
        {
            "when (UTC)": f"{one.at:%Y-%m-%d %H:%M}",
            "by": one.by,
            "said": f"{one.label} {one.kind}".strip(),
            "category": queue.find(one.item).category,
            "note": one.note,
            "taken back": f"by {one.undone_by}" if one.undone_by else "",
        }
        for one in opinions
    ]
    st.dataframe(rows, hide_index=True)
