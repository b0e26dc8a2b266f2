"""The page *Operator*: the latest part of one category, for a screen three metres away."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

import streamlit as st

from onenip.detector.prediction import Verdict
from onenip.pages.common import (
    VERDICT_COLOURS,
    choose_category,
    draw_link,
    list_answers,
    read_answer_image,
    take_image,
)
from onenip.pages.viewer import encode

_EVERY_SECONDS = 1.0
_OLD_SECONDS = 60
_WORDS: dict[Verdict, str] = {
    "normal": "GOOD",
    "review": "LOOK",
    "anomalous": "DEFECT",
    "unsure": "LOOK",
}
_STYLE = """
<style>
[data-testid="stHeader"], [data-testid="stSidebar"] {display: none}
[data-stale] {opacity: 1 !important}
.block-container {padding: .6rem 1rem 0; max-width: none}
.part {display: flex; flex-direction: column; height: calc(100vh - 7rem); border-radius: 1rem; color: #fff;
  padding: 1rem; gap: 1rem}
.part b {font-size: min(16vw, 22vh); line-height: 1; text-align: center; letter-spacing: .04em}
.part img {flex: 1; min-height: 0; object-fit: contain; border-radius: .6rem}
.part span {font-size: max(1.2rem, 3vh); text-align: center}
</style>
"""


def draw() -> None:
    """Draw the page."""
    st.html(_STYLE)
    part = st.container()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        draw_link("Overview", "Leave this page")
        category = choose_category(st.container(width=260))
        if category is not None:
            served = {"category": category, "from": "served"}
            draw_link("Inspect", "Say what a part really was", **served)
    if category is not None:
        with part:
            _draw_latest(category)


@st.fragment(run_every=_EVERY_SECONDS)
def _draw_latest(category: str) -> None:
    answers = list_answers(category=category, limit=1)
    if not answers:
        st.info(
            f"No part of {category} was judged yet, or its answers are not kept where this page looks. "
            "Start the server with `onenip serve --recent FOLDER` and this page with the same folder."
        )
        return
    latest = answers[0]
    verdict: Verdict = latest.facts["verdict"]
    seconds = (datetime.now(tz=UTC) - latest.at).total_seconds()
    is_old = seconds > _OLD_SECONDS
    colour = VERDICT_COLOURS["unsure" if is_old else verdict]
    content = read_answer_image(latest)
    image = None if content is None else take_image(content)
    picture = "" if image is None else f'<img src="{encode(image)}" alt="the part">'
    ago = f"{latest.at:%H:%M:%S} UTC" + (", no part since" if is_old else "")
    st.html(
        f'<div class="part" style="background:{colour}"><b>{_WORDS[verdict]}</b>{picture}'
        f"<span>{escape(category)}, score {latest.facts['score']:.2f}, {ago}</span></div>"
    )
