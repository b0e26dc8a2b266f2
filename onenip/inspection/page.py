"""The page of `onenip inspect`, run by Streamlit from top to bottom at every change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from onenip.errors import OneNIPError
from onenip.images import IMAGE_SUFFIXES, load_image
from onenip.inspection.drawing import draw_heat, draw_score
from onenip.inspection.models import Candidate, find_candidates, list_known_categories
from onenip.regions import find_regions
from onenip.registry import approval

_UPLOAD_TYPES = sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_MAX_LISTED = 500
_CACHE_SECONDS = 60


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="onenip", layout="wide")
    named = os.environ.get("ONENIP_INSPECT_MODEL", "")
    folder = Path(named) if named else None
    try:
        _draw(folder, Path(os.environ.get("ONENIP_INSPECT_FOLDER", "data")))
    except OneNIPError as error:
        st.error(str(error))


def _draw(model: Path | None, images: Path) -> None:
    categories, problem = list_known_categories(model)
    st.sidebar.title("onenip")
    if problem:
        st.sidebar.warning(f"The registry cannot be asked: {problem}")
    if not categories:
        st.info("There is no model yet: run the pipeline, or name a folder with --model.")
        return
    category = st.sidebar.selectbox("Category", categories)
    candidates = _load_candidates(category, str(model or ""))
    chosen = _choose_images(category, images)
    if not chosen:
        st.info("Drop images on the left, or choose some of the folder.")
    for name, content in chosen:
        _draw_image(name, content, category, candidates)
    _draw_prompts(category, candidates)
    _draw_decision(category, candidates)


@st.cache_resource(ttl=_CACHE_SECONDS, show_spinner="Loading the model…")
def _load_candidates(category: str, model: str) -> list[Candidate]:
    return find_candidates(category, Path(model) if model else None)


def _choose_images(category: str, folder: Path) -> list[tuple[str, bytes]]:
    uploads = st.sidebar.file_uploader("Drop images", _UPLOAD_TYPES, accept_multiple_files=True)
    own = folder / category / "test"
    root = own if own.is_dir() else folder
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:_MAX_LISTED]
    names = {p.relative_to(root).as_posix(): p for p in files}
    picked = st.sidebar.multiselect(f"Or from {root}", list(names), default=list(names)[:1])
    found = [(upload.name, upload.getvalue()) for upload in uploads or []]
    return found + [(name, names[name].read_bytes()) for name in picked]


def _draw_image(name: str, content: bytes, category: str, candidates: list[Candidate]) -> None:
    st.subheader(name, divider="gray")
    try:
        image = load_image(content)
    except OneNIPError as error:
        st.error(f"{name}: {error}")
        return
    for candidate, column in zip(candidates, st.columns(len(candidates)), strict=True):
        with column:
            _draw_answer(name, image, category, candidate)


def _draw_answer(name: str, image: NDArray[np.uint8], category: str, candidate: Candidate) -> None:
    detector = candidate.detector
    found = detector.predict([image], category=category)[0]
    verdict = ":red[**anomalous**]" if found.is_anomalous else ":green[**normal**]"
    st.markdown(
        f"{candidate.title}: {verdict}, score {found.score:.2f}, threshold {found.threshold:.2f}"
    )
    if found.is_provisional:
        st.warning(
            "Provisional: the model was never trained on this category, only shown its prompts."
        )
    highest = max(float(found.map.max()), 2 * found.pixel_threshold, 0.1)
    threshold = st.slider(
        "Pixel threshold",
        0.0,
        highest,
        min(max(found.pixel_threshold, 0.0), highest),
        key=f"{name}/{candidate.role}",
    )
    regions = find_regions(found.map, threshold=threshold, min_area_px=4)
    left, right = st.columns(2)
    left.image(image, caption="image", width="stretch")
    heat = draw_heat(image, found.map, regions, threshold=threshold)
    right.image(heat, caption="heat map", width="stretch")
    st.pyplot(
        draw_score(found.score, found.threshold, detector.spec.categories[category].normal_scores)
    )
    if regions:
        rows = [
            {
                "x": r.x,
                "y": r.y,
                "width": r.width,
                "height": r.height,
                "area px": r.area_px,
                "score": round(r.score, 2),
            }
            for r in regions
        ]
        st.dataframe(rows, hide_index=True)


def _draw_prompts(category: str, candidates: list[Candidate]) -> None:
    with st.expander("What the model was told is normal: its prompts"):
        for candidate in candidates:
            st.caption(candidate.title)
            st.image(list(candidate.detector.prompt_images(category)), width=140)


def _draw_decision(category: str, candidates: list[Candidate]) -> None:
    """The form with which a person decides about the challenger."""
    waiting = next((c.version for c in candidates if c.role == "challenger"), None)
    if waiting is None:
        return
    st.subheader(f"Version {waiting.number} of {category} waits for a decision", divider="gray")
    serving = next((c.version for c in candidates if c.role == "champion"), None)
    st.dataframe(
        [
            {"": f"{role} {version.number}", **{k: round(v, 3) for k, v in version.metrics.items()}}
            for role, version in (("champion", serving), ("challenger", waiting))
            if version is not None
        ],
        hide_index=True,
    )
    if waiting.gate is not None:
        st.markdown(f"The gate says **{waiting.gate.verdict}**: {'; '.join(waiting.gate.reasons)}")
    with st.form("decision"):
        by = st.text_input("Your name")
        reason = st.text_input("Reason")
        left, right = st.columns(2)
        approved = left.form_submit_button("Approve", type="primary")
        rejected = right.form_submit_button("Reject")
    if not (approved or rejected):
        return
    decide = approval.approve if approved else approval.reject
    now = decide(category, by=by, reason=reason, version=waiting.number)
    _load_candidates.clear()
    st.success(f"Version {now.number} was {now.approval} by {by}.")


main()
