"""Navigation between the pages; run by Streamlit from top to bottom at every change."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from PIL import Image

from onenip.errors import OneNIPError
from onenip.pages import data, decide, inspect, operator, overview, review
from onenip.pages.common import plain

_PAGES = (
    ("Overview", "grid_view", overview.draw),
    ("Review", "rate_review", review.draw),
    ("Inspect", "search", inspect.draw),
    ("Decide", "gavel", decide.draw),
    ("Data", "database", data.draw),
    ("Operator", "tv", operator.draw),
)
_ICON = Image.new("RGB", (32, 32), (29, 78, 216))  # an icon by name is fetched from the internet
_STYLE = """
<style>
.block-container {padding-top: 3.2rem; padding-bottom: 3rem; max-width: 1500px}
@media (max-width: 640px) {.block-container {padding-left: .8rem; padding-right: .8rem}}
</style>
"""


def main() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="onenip", page_icon=_ICON, layout="wide")
    st.html(_STYLE)
    pages = {
        title: st.Page(
            _guard(draw),
            title=title,
            icon=f":material/{icon}:",
            url_path=title.lower(),
            default=title == "Overview",
        )
        for title, icon, draw in _PAGES
    }
    st.session_state["pages"] = pages
    st.navigation(list(pages.values())).run()


def _guard(draw: Callable[[], None]) -> Callable[[], None]:
    """The page, with an error as a sentence on it."""

    def guarded() -> None:
        try:
            draw()
        except OneNIPError as error:
            st.error(plain(str(error)))

    return guarded


main()
