"""The page of `onenip inspect`, run by Streamlit from top to bottom at every change."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from streamlit.delta_generator import DeltaGenerator

from onenip.detector.heatmaps import draw_heat
from onenip.detector.prediction import Prediction, Region, find_regions
from onenip.errors import ImageError, OneNIPError
from onenip.images import IMAGE_SUFFIXES, find_images
from onenip.review.answers import Answers
from onenip.serving.page.decision import draw_decision
from onenip.serving.page.drawing import (
    VERDICT_COLOURS,
    draw_score,
)
from onenip.serving.page.models import (
    Candidate,
    JudgedUpload,
    find_candidates,
    judge_upload,
    list_known_categories,
)

_UPLOAD_TYPES = sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_MAX_LISTED = 500
_MIN_AREA_PX = 4
_CACHE_SECONDS = 60
_KEPT_ANSWERS = 16
_STYLE = """
<style>
.block-container {padding-top: 2.5rem; max-width: 1500px}
.verdict {border-radius: .5rem; color: white; padding: .5rem .9rem; display: flex; flex-wrap: wrap;
  align-items: baseline; gap: .2rem 1rem; margin-bottom: .4rem}
.verdict b {font-size: 1.35rem; letter-spacing: .03em}
.verdict .who {margin-left: auto; opacity: .9}
</style>
"""


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="onenip inspect", layout="wide")
    st.html(_STYLE)
    named = os.environ.get("ONENIP_INSPECT_MODEL", "")
    try:
        _draw(Path(named) if named else None)
    except OneNIPError as error:
        st.error(str(error))


def _draw(model: Path | None) -> None:
    answers = _open_answers()
    categories, problem = list_known_categories(model)
    st.sidebar.title("onenip")
    if problem:
        st.sidebar.warning(f"The registry cannot be reached: {problem}")
    if not categories:
        st.info("There is no model yet. Run the pipeline, or give a model folder with --model.")
        return
    category = st.sidebar.selectbox("Category", categories, key="category")
    chosen = _choose_images(category)
    with answers:
        candidates = _load_candidates(category, str(model or ""))
        if not chosen:
            st.info("Drop images on the left, or choose some from the folder or the recent ones.")
        for name, content in chosen:
            _draw_image(name, content, category, candidates)
        with st.expander("Prompts: the normal images that the model compares with"):
            for candidate in candidates:
                st.caption(candidate.title)
                st.image(list(candidate.detector.prompt_images(category)), width=140)
        is_decided = draw_decision(category, candidates)
    st.session_state["asked"] = _read_question()
    if is_decided:
        _load_candidates.clear()
        st.rerun()


def _open_answers() -> DeltaGenerator:
    """The place for answers; those to another question are gone from it at once, instead of fading.

    There are two places. When the question changes, the one with the old answers becomes empty.
    """
    state = st.session_state
    if state.get("asked") != _read_question():
        state["uses_second"] = not state.get("uses_second", False)
    if state.get("uses_second", False):
        st.empty()
        return st.container()
    place = st.container()
    st.empty()
    return place


def _read_question() -> list[object]:
    """Category and images that are chosen now, as the browser sent them."""
    state = st.session_state
    category = state.get("category")
    uploads = [upload.file_id for upload in state.get("uploads") or []]
    return [category, uploads, *(state.get(f"{one}/{category}") for one in ("folder", "recent"))]


@st.cache_resource(ttl=_CACHE_SECONDS, show_spinner="Loading the model…")
def _load_candidates(category: str, model: str) -> list[Candidate]:
    return find_candidates(category, Path(model) if model else None)


def _choose_images(category: str) -> list[tuple[str, bytes]]:
    """Name and bytes of each image that was dropped, picked from the folder or from recent answers."""
    side = st.sidebar
    uploads = side.file_uploader(
        "Drop images", _UPLOAD_TYPES, accept_multiple_files=True, key="uploads"
    )
    folder = Path(os.environ.get("ONENIP_INSPECT_FOLDER", "data"))
    own = folder / category / "test"
    root = own if own.is_dir() else folder
    files = find_images(root)[0]
    names = {p.relative_to(root).as_posix(): p for p in files[:_MAX_LISTED]}
    first = [] if uploads else list(names)[:1]
    picked = side.multiselect(
        "Or browse the folder", list(names), default=first, key=f"folder/{category}"
    )
    side.caption(
        f"{root}"
        + (f": the first {_MAX_LISTED} of {len(files)}" if len(files) > len(names) else "")
    )
    answers = Answers(os.environ.get("ONENIP_INSPECT_RECENT", ""))
    recent = answers.list_latest(category=category)
    titles = {one.title: one.id for one in recent}
    asked = side.multiselect(
        "Or recent predictions", list(titles), placeholder="latest first", key=f"recent/{category}"
    )
    if not recent:
        side.caption("None yet. They are kept by `onenip serve --recent artifacts/recent`.")
    return (
        [(upload.name, upload.getvalue()) for upload in uploads]
        + [(name, names[name].read_bytes()) for name in picked]
        + [(t, content) for t in asked if (content := answers.read_image(titles[t])) is not None]
    )


@st.cache_data(max_entries=_KEPT_ANSWERS, show_spinner="Looking…")
def _judge(
    content: bytes,
    category: str,
    digests: tuple[str, ...],  # noqa: ARG001  # part of the cache's key
    _candidates: list[Candidate],
) -> JudgedUpload:
    return judge_upload(content, category, _candidates)


def _draw_image(name: str, content: bytes, category: str, candidates: list[Candidate]) -> None:
    st.subheader(name, divider="gray")
    try:
        digests = tuple(one.detector.digest for one in candidates)
        found = _judge(content, category, digests, candidates)
    except ImageError as error:
        st.error(f"{name} cannot be judged: {error.reason}")
        return
    if found.looks_like != category:
        st.warning(f"It looks like {found.looks_like}, not like {category}: is the category right?")
    image = found.image
    left, *columns = st.columns(1 + len(candidates))
    with left:
        st.image(image, caption=f"{image.shape[1]} x {image.shape[0]} px", width="stretch")
    for candidate, prediction, column in zip(candidates, found.predictions, columns, strict=True):
        with column:
            _draw_answer(name, image, candidate, prediction)


def _draw_answer(
    name: str, image: NDArray[np.uint8], candidate: Candidate, found: Prediction
) -> None:
    _draw_verdict(candidate, found)
    place = st.empty()
    highest = max(float(found.map.max()), 2 * found.pixel_threshold, 0.1)
    threshold = st.slider(
        "Pixel threshold",
        0.0,
        highest,
        min(max(found.pixel_threshold, 0.0), highest),
        key=f"{name}/{candidate.role}",
        help="Changes the boxes below and the colours, not the verdict.",
    )
    regions: tuple[Region, ...] = ()
    if found.verdict != "normal" or threshold != found.pixel_threshold:  # a normal image has no box
        regions = find_regions(found.map, threshold=threshold, min_area_px=_MIN_AREA_PX)
    heat = draw_heat(image, found.map, pixel_threshold=threshold, regions=regions)
    place.image(heat, caption=f"heat map, {_count(len(regions), 'region')}", width="stretch")
    known = candidate.detector.spec.categories[found.category]
    st.pyplot(draw_score(found.score, found.threshold, known.normal_scores, verdict=found.verdict))
    if regions:
        st.dataframe([_to_row(region) for region in regions], hide_index=True)


def _draw_verdict(candidate: Candidate, found: Prediction) -> None:
    colour = VERDICT_COLOURS[found.verdict]
    st.html(
        f'<div class="verdict" style="background: {colour}"><b>{found.verdict}</b>'
        f"<span>score {found.score:.2f}, threshold {found.threshold:.2f}</span>"
        f'<span class="who">{candidate.title}</span></div>'
    )
    if found.is_provisional:
        st.warning(
            "Provisional: the model was never trained on this category, only shown its prompts."
        )
    if found.normals_needed:
        st.warning(
            "The score ranks images; it cannot judge one yet. A verdict needs "
            f"{_count(found.normals_needed, 'more normal image')}."
        )


def _to_row(region: Region) -> dict[str, float]:
    return {name.replace("_", " "): round(value, 2) for name, value in asdict(region).items()}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


main()
