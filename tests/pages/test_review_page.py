"""The page *Review* as Streamlit runs it, without a browser."""

import io
import sys

from PIL import Image
from streamlit.testing.v1 import AppTest

from onenip.review.items import Candidate
from onenip.review.queue import ReviewQueue


def draw():
    from onenip.pages import review

    review.draw()


def make_image(level):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_no_key_meets_an_image_that_was_not_asked_for(tmp_path, monkeypatch):
    """When the last image of a reason was decided, the page says so instead of showing another reason's."""
    monkeypatch.chdir(tmp_path)
    # Streamlit puts the page there, and new processes of later tests would run it
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    queue = ReviewQueue()
    reasons = {1: "feedback", 2: "near"}
    queue.add([Candidate("disc", why, make_image(at), ".png") for at, why in reasons.items()])
    told = queue.list_items(reason="feedback")[0]
    queue.decide([told.id], "good", by="Ada")

    page = AppTest.from_function(draw, default_timeout=60)
    page.query_params["reason"] = "feedback"
    page.run()

    assert not page.exception
    assert [one.value for one in page.selectbox] == ["all", "feedback"]
    assert page.tabs[0].label == "One by one (0)"
    assert any("You went through all of them" in one.value for one in page.info)
