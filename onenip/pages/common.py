"""What several pages draw: the category, cached detectors, verdicts, pictures; and where they read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from streamlit.delta_generator import DeltaGenerator

from onenip.detector.prediction import Verdict
from onenip.errors import DataError, ImageError
from onenip.images import load_preview
from onenip.pages.models import Candidate, find_candidates, list_known_categories
from onenip.pages.viewer import encode
from onenip.printing import plain as plain  # the pages' word, too
from onenip.registry.versions import Snapshot, read_snapshot
from onenip.review.answers import Answer, Answers

VERDICT_COLOURS: dict[Verdict, str] = {
    "normal": "#15803d",
    "review": "#b45309",
    "anomalous": "#b91c1c",
    "unsure": "#64748b",
}
CACHE_SECONDS = 60
_PLACES = 8  # for an answer

_BADGES: dict[Verdict, Literal["green", "orange", "red", "gray"]] = {
    "normal": "green",
    "review": "orange",
    "anomalous": "red",
    "unsure": "gray",
}
CATEGORY = "category"  # of the address, and of the session's state
_KEPT = "kept category"  # of the session's state: what the last page showed
_THUMBNAIL_PX = 240


@dataclass(frozen=True)
class Settings:
    """What `onenip inspect` was started with.

    Attributes:
        model: folder of the model to show; None: the registry's.
        folder: images to browse.
        answers: where the server keeps its answers; empty: nowhere.
    """

    model: Path | None
    folder: Path
    answers: str


def read_settings() -> Settings:
    """The settings, from the environment of the process."""
    model = os.environ.get("ONENIP_INSPECT_MODEL", "")
    return Settings(
        model=Path(model) if model else None,
        folder=Path(os.environ.get("ONENIP_INSPECT_FOLDER", "data")),
        answers=os.environ.get("ONENIP_INSPECT_RECENT", ""),
    )


@st.cache_resource(ttl=CACHE_SECONDS / 3, show_spinner="Reading the registry…")
def read_registry() -> Snapshot:
    """The registry as all pages see it; asked again after 20 seconds, and when a person decided here.

    Raises:
        RegistryError: if it cannot be reached.
    """
    return read_snapshot()


def choose_category(place: DeltaGenerator | None = None) -> str | None:
    """The category of the page, chosen in a place or the sidebar, kept in the address; None without any."""
    place = place or st.sidebar
    categories, problem = _list_categories(str(read_settings().model or ""))
    if problem:
        place.warning(f"The registry cannot be reached: {plain(problem)}")
    if not categories:
        st.info(
            "There is no model yet. Run the pipeline with `onenip run`, or show a model folder with "
            "`onenip inspect --model FOLDER`."
        )
        return None
    state = st.session_state
    if CATEGORY not in state and CATEGORY not in st.query_params and state.get(_KEPT) in categories:
        state[CATEGORY] = state[_KEPT]  # Streamlit forgets a page's widgets on the way to another
    state[_KEPT] = place.selectbox("Category", categories, key=CATEGORY, bind="query-params")
    return str(state[_KEPT])


@st.cache_data(ttl=CACHE_SECONDS, show_spinner="Reading the registry…")
def _list_categories(model: str) -> tuple[list[str], str]:
    return list_known_categories(Path(model) if model else None, read_registry)


def load_candidates(category: str) -> list[Candidate]:
    """Detectors of a category, read from the registry at most once a minute.

    Raises:
        OneNIPError: as `find_candidates`.
    """
    return _load_candidates(category, str(read_settings().model or ""))


@st.cache_resource(ttl=CACHE_SECONDS, show_spinner="Loading the model…")
def _load_candidates(category: str, model: str) -> list[Candidate]:
    return find_candidates(category, Path(model) if model else None, read_registry)


def forget() -> None:
    """Read the registry anew: a person just decided."""
    st.cache_resource.clear()
    st.cache_data.clear()


def list_answers(*, category: str | None = None, limit: int = 200) -> list[Answer]:
    """The server's latest answers, the latest first; none where it keeps none."""
    address = read_settings().answers
    if not address or ("://" not in address and not Path(address).is_dir()):
        return []
    return Answers(address).list_latest(category=category, limit=limit)


def read_answer_image(answer: Answer) -> bytes | None:
    """The bytes of an answer's image; None if it is not kept any more."""
    return Answers(read_settings().answers).read_image(answer.id)


def open_answer(*keys: str) -> DeltaGenerator:
    """The place for an answer; that to another question is gone from it at once, instead of fading.

    Call it before anything names the new question. Each question takes the next of a few places, and the
    others become empty. (Two would not do: a run that a click interrupts may never reach the browser, and
    the run after the next would write below the old answer again.)

    Args:
        keys: of the session's state, that together are the question.
    """
    state = st.session_state
    question = _read_question(keys)
    if state.get("question") != question:
        state["question"], state["place"] = question, (state.get("place", -1) + 1) % _PLACES
    return [st.container() if i == state["place"] else st.empty() for i in range(_PLACES)][
        state["place"]
    ]


def keep_question(*keys: str) -> None:
    """Remember which question the open place answers, once the widgets have their values."""
    st.session_state["question"] = _read_question(keys)


def _read_question(keys: Sequence[str]) -> list[str]:
    return [str(st.session_state.get(key)) for key in keys]


def draw_link(page: str, label: str, **query: str) -> None:
    """A link to another page, by its title."""
    st.page_link(st.session_state["pages"][page], label=label, query_params=query)


def draw_verdict(verdict: Verdict, text: str, who: str = "") -> None:
    """The verdict as a bar of its colour, with figures and whose it is."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(verdict.upper(), color=_BADGES[verdict])
        st.markdown(text)
        if who:
            st.caption(who)


def take_image(content: bytes | Path) -> NDArray[np.uint8] | None:
    """An image [H, W, 3] uint8, or a line on the page that says why there is none."""
    try:
        return load_preview(content)
    except ImageError as error:
        st.error(f"This image cannot be shown: {plain(error.reason)}")
        return None


@st.cache_data(max_entries=2000, show_spinner=False)
def make_thumbnail(path: Path, stamp: float) -> str:  # noqa: ARG001  # part of the cache's key
    """A small picture as a data address; empty if it cannot be read."""
    try:
        return encode(load_preview(path), longest_px=_THUMBNAIL_PX)
    except (DataError, OSError):
        return ""


def find_thumbnail(path: Path | None) -> str:
    """A small picture of a file as a data address, made once; empty without a file."""
    if path is None or not path.is_file():
        return ""
    return make_thumbnail(path, path.stat().st_mtime)


def draw_pictures(pictures: Sequence[tuple[Path, str]], *, empty: str) -> None:
    """Small pictures in a row that wraps, each with its caption; `empty` says what to do without any."""
    if not pictures:
        st.info(empty)
    with st.container(horizontal=True):
        for path, caption in pictures:
            with st.container(width=190):
                if source := find_thumbnail(path):
                    st.image(source, alt=caption)
                st.caption(plain(caption))
