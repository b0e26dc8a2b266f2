"""What a person sees of a run, where it is no terminal."""

import logging

from flows.progress import note_end, note_start, read_line, showing_steps


def test_a_run_is_a_line_for_each_step(capsys):
    """Steps with their time and result, warnings as they are; nothing of DVC's and Prefect's own lines."""
    stage = logging.getLogger("prefect.task_runs")
    logging.getLogger("onenip").setLevel(logging.INFO)
    with showing_steps():
        note_start("train")
        for line in (
            "INFO onenip.training.loop: step 10 of 500, about 4 min left",
            "To track the changes with git, run:",
            "WARNING onenip.training.fit: bottle: few images",
        ):
            stage.warning(line)
        note_end("train", 75.2, "model 1f3a")
        note_start("evaluate")
        note_end("evaluate", 3, "no masks", is_failed=True)
        logging.getLogger("alembic.runtime").warning("Running upgrade")

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["warning:", "bottle:", "few", "images"],
        ["train", "1", "min", "15", "s", "model", "1f3a"],
        ["evaluate", "3", "s", "failed"],
    ]


def test_lines_of_a_stage_are_told_from_others():
    """Only what the product's own log says has a level."""
    assert read_line("INFO onenip.stages.validate: 24 of 24") == ("INFO", "24 of 24")
    assert read_line("Running stage 'train':") == ("", "")
