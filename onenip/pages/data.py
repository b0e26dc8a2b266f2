"""The page *Data*: versions of the data set, what came in, what was set aside, and doubtful normals."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from onenip.data.manifest import DATA_DIR
from onenip.data.outputs import OUTPUTS
from onenip.errors import ImageError, ParamsError, VersioningError
from onenip.images import load_preview
from onenip.ingestion.ingest import open_journal
from onenip.ingestion.journal import Item
from onenip.pages.common import (
    CACHE_SECONDS,
    choose_category,
    draw_pictures,
    load_candidates,
    plain,
)
from onenip.pages.viewer import encode
from onenip.params import Params
from onenip.registry.data_history import HistoryEntry, compare_versions, list_history
from onenip.sources.inbox import NOTE_SUFFIX, SHELVES, Shelf, open_inbox

_PARAMS = Path("params.yaml")
_SHOWN_FILES = 200
_SHOWN_PICTURES = 36
_SHOWN_ITEMS = 500
_THUMBNAIL_PX = 240
_VERSION_DIGITS = 10


def draw() -> None:
    """Draw the page."""
    category = choose_category()
    st.title("Data", anchor=False)
    versions, arrived, aside, doubts = st.tabs(
        ["Versions", "Arrived", "Set aside", "Doubtful normals"]
    )
    with versions:
        _draw_versions()
    with arrived:
        _draw_arrived(category)
    with aside:
        _draw_aside()
    with doubts:
        _draw_doubts(category)


def _draw_versions() -> None:
    try:
        entries = _list_history()
    except VersioningError as error:
        st.info(f"The history of the data cannot be read: {plain(str(error))}")
        return
    if not entries:
        st.info("No version of the data yet. `onenip download` brings images.")
        return
    st.dataframe([_to_row(entry) for entry in entries], hide_index=True)
    names = list(dict.fromkeys(entry.version for entry in entries))
    if len(names) < 2:
        st.caption("There is one version; with a second one the difference is shown here.")
        return
    titles = {e.version: f"{e.version[:_VERSION_DIGITS]} {e.subject}" for e in reversed(entries)}
    left, right = st.columns(2)
    new = left.selectbox("Version", names, format_func=titles.__getitem__)
    old = right.selectbox("compared with", names, index=1, format_func=titles.__getitem__)
    if new == old:
        return
    try:
        change = compare_versions(old, new, root=Path())
    except VersioningError as error:
        st.info(f"They cannot be compared: {plain(str(error))}")
        return
    parts = {"added": change.added, "removed": change.removed, "changed": change.changed}
    parts["moved"] = tuple(f"{before} → {after}" for before, after in change.moved)
    for tab, (word, paths) in zip(
        st.tabs([f"{word}: {len(paths)}" for word, paths in parts.items()]),
        parts.items(),
        strict=True,
    ):
        with tab:
            shown = [path for path in paths if "/ground_truth/" not in path]
            if len(paths) > _SHOWN_FILES:
                st.caption(f"The first {_SHOWN_FILES}; `onenip data diff` prints all.")
            if word == "added":
                here = [(DATA_DIR / path, path) for path in shown[:_SHOWN_PICTURES]]
                draw_pictures(here, empty="Nothing was added.")
            else:
                st.dataframe([{"file": path} for path in paths[:_SHOWN_FILES]], hide_index=True)


@st.cache_data(ttl=CACHE_SECONDS, show_spinner="Reading the history of the data…")
def _list_history() -> list[HistoryEntry]:
    return list_history(Path())


def _to_row(entry: HistoryEntry) -> dict[str, Any]:
    images = "not in the cache"
    if entry.images is not None:
        images = ", ".join(f"{name} {count}" for name, count in entry.images.items()) or "none"
    return {
        "date": f"{entry.date:%Y-%m-%d %H:%M}" if entry.date else "not committed",
        "version": entry.version[:_VERSION_DIGITS],
        "images": images,
        "models": ", ".join(f"{model.category} {model.number}" for model in entry.models),
        "what": entry.subject,
        "commit": entry.commit[:9],
    }


def _draw_arrived(category: str | None) -> None:
    items = _list_items()
    own = [one for one in items if category in (None, one.category)]
    if not own:
        st.info(
            "Nothing arrived for this category yet. New images in `retrain.inbox` are taken in by "
            "`onenip ingest`, or by the watch of `onenip up`."
        )
        return
    rows = [
        {
            "arrived (UTC)": one.arrived_at,
            "image": one.key,
            "became": one.outcome or one.state,
            "score": one.score,
            "why": one.reason,
            "trained with": "yes" if one.trained else "",
        }
        for one in own
    ]
    st.dataframe(rows, hide_index=True)


@st.cache_data(ttl=CACHE_SECONDS / 3, show_spinner="Reading the journal of arrivals…")
def _list_items() -> list[Item]:
    """The latest arrivals, the latest first; none where nothing was ever ingested."""
    if not OUTPUTS.ingestion.is_dir():
        return []
    with open_journal() as journal:
        last = max(journal.last_id() - _SHOWN_ITEMS, 0)
        return list(reversed(journal.list_items(after=last)))


def _draw_aside() -> None:
    shelf = st.segmented_control("Shelf", SHELVES, default=SHELVES[0], required=True)
    try:
        found = _list_shelf(shelf)
    except ParamsError as error:
        st.info(f"There is no inbox: {plain(str(error))}")
        return
    if not found:
        st.info(f"Nothing is on the shelf {shelf}: no image was set aside there.")
        return
    st.caption(
        f"{len(found)} images; with `onenip release` or on *Review* held ones become normal ones."
    )
    with st.container(horizontal=True):
        for source, key, reason in found:
            with st.container(width=220):
                if source:
                    st.image(source, alt=key)
                st.caption(f"**{plain(key)}**  \n{plain(reason)}")


@st.cache_data(ttl=CACHE_SECONDS, show_spinner="Looking at the shelf…")
def _list_shelf(shelf: Shelf) -> list[tuple[str, str, str]]:
    """Picture, name and reason of the first images on a shelf; the picture is empty if it is none."""
    retrain = Params.load(_PARAMS).retrain
    inbox = open_inbox(retrain.require_inbox(), settle_seconds=retrain.settle_seconds)
    arrivals = [a for a in inbox.list_arrivals(shelf=shelf) if not a.key.endswith(NOTE_SUFFIX)]
    found: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for arrival in arrivals[:_SHOWN_PICTURES]:
            path = Path(folder) / f"{len(found)}{Path(arrival.key).suffix}"
            source = ""
            if inbox.fetch(arrival, path):
                try:
                    source = encode(load_preview(path), longest_px=_THUMBNAIL_PX)
                except ImageError:
                    source = ""  # what is quarantined may be no image at all
            note = inbox.read_note(shelf, arrival.key) or {}
            found.append((source, arrival.key, str(note.get("reason", "no note"))))
    return found


def _draw_doubts(category: str | None) -> None:
    """Outliers and near-duplicates among the normals that are in the data."""
    if category is None:
        return
    st.markdown(
        "**Outliers**: normals that score far above the others; a defect, or another product?"
    )
    names: Sequence[str] = ()
    for candidate in load_candidates(category)[:1]:
        names = candidate.detector.spec.categories[category].outliers
    pictures = [(DATA_DIR / name, name) for name in names]
    draw_pictures(pictures, empty="None: the model found no outlier among its normals.")
    st.markdown("**Near-duplicates**: arrivals that nearly equal an image of the data")
    near = [one for one in _list_items() if one.category == category and one.reason]
    near = [one for one in near if one.outcome == "accepted"][:_SHOWN_PICTURES]
    same = [(DATA_DIR / one.name, f"{one.name}: {one.reason}") for one in near]
    draw_pictures(same, empty="None was noticed when images arrived.")
