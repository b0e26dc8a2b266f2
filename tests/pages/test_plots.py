"""The page of `dvc plots show`."""

import subprocess
import sys

import pytest

from onenip.workspace import files


@pytest.mark.slow
def test_plots_without_a_network_say_what_is_missing(tmp_path, browser):
    """Without scripts the page names the report; a blank page would say nothing."""
    workspace = tmp_path / "plant"
    files.init(workspace)
    (workspace / "loss.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    command = [sys.executable, "-m", "dvc", "plots", "show", "loss.csv", "--out", "page"]
    subprocess.run(command, cwd=workspace, check=True, capture_output=True)

    page = browser.new_page()
    page.goto((workspace / "page/index.html").as_uri())

    assert page.get_by_text("artifacts/evaluation/report.html").is_visible()
