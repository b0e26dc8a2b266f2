"""The report in a real browser: it loads, says nothing on the console, and shows every picture."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onenip.evaluation.report import charts, write_report
from tests.evaluation.test_evaluation import evaluated, tiny_model  # noqa: F401 - fixtures

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def page_file(evaluated, tiny_model, tmp_path_factory) -> Path:  # noqa: F811 - a fixture
    """A report with everything in it: champion, prompts, synthetic anomalies, training."""
    folder = tmp_path_factory.mktemp("report")
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "contact_sheet.png")
    with (folder / "curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), (1, 2.0), (2, 1.5), (3, 1.0)])
    write_report(
        evaluated / "evaluation",
        folder / "report.html",
        model_dir=tiny_model[1],
        synthesis_dir=folder,
        training_dir=folder,
        champion=[evaluated / "evaluation"],
    )
    return folder / "report.html"


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("width", "media"),
    [(1280, "screen"), (390, "screen"), (703, "print")],
    ids=["desktop", "phone", "paper"],
)
def test_the_report_is_whole_in_a_browser(page_file, width, media):
    """No console error, no request, every picture shown, nothing wider than screen or paper."""
    sync_api = pytest.importorskip("playwright.sync_api")
    errors, requests = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.emulate_media(media=media)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        hidden = page.evaluate("[...document.images].filter(one => !one.naturalWidth).length")
        images = page.evaluate("document.images.length")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()

    assert not errors
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert hidden == 0
    assert images > 10
    assert overflow <= 0


def test_names_from_the_data_are_text_not_markup():
    """A category named like a tag cannot change the page."""
    axis = charts.Axis("<b>", 0, 1)

    drawn = charts.draw_curves([("<script>", [(0, 0), (1, 1)])], x=axis, y=axis)

    assert "<script>" not in drawn
    assert "<b>" not in drawn


def test_a_histogram_holds_its_threshold_even_outside_all_scores():
    """The threshold is drawn where it is, and the axis grows to hold it."""
    drawn = charts.draw_histogram(
        [(0.0, 1.0, 2, 0), (1.0, 2.0, 0, 3)], threshold=5.0, label="score"
    )

    assert "threshold 5" in drawn
    assert ">5</text>" in drawn


def test_the_page_says_what_is_compared(page_file):
    """Champion, prompts, synthetic anomalies, training and the data version are on the page."""
    text = page_file.read_text()

    for part in (
        "with the champion",
        "judges every one of these images alike",
        'id="prompts"',
        'id="synthesis"',
        'id="training"',
    ):
        assert part in text
    assert "Data version" in text
