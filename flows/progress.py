"""What a person sees of a run: a line for each step with its time, and how far the present one is."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

STEPS = logging.getLogger("onenip.steps")

_QUIET_SECONDS = 30.0  # between lines of progress, where no line can be rewritten
_SAID = re.compile(r"(?P<level>[A-Z]+) onenip[\w.]*: (?P<text>.*)")  # how a stage's own log looks
_INFO, _BAD = "INFO", ("WARNING", "ERROR")


def note_start(step: str) -> None:
    """Log that a step begins."""
    STEPS.info("%s begins", step, extra={"step": step})


def note_end(step: str, seconds: float, text: str, *, is_failed: bool = False) -> None:
    """Log that a step ended, with what came of it."""
    level = logging.ERROR if is_failed else logging.INFO
    STEPS.log(level, "%s: %s", step, text, extra={"step": step, "seconds": seconds})


def read_line(line: str) -> tuple[str, str]:
    """Level and text of a line of a stage's log; both empty for what is none, such as DVC's advice."""
    found = _SAID.fullmatch(line.strip())
    return (found["level"], found["text"]) if found else ("", "")


@contextmanager
def showing_steps() -> Iterator[None]:
    """Show the steps of a run, and warnings, instead of all log lines of Prefect, DVC and stages."""
    handler = _StepHandler(Console(highlight=False, soft_wrap=True))
    root, prefect = logging.getLogger(), logging.getLogger("prefect")
    before = root.handlers[:]
    root.handlers[:] = [handler]
    if not prefect.propagate:  # as it configures itself when it is imported
        prefect.addHandler(handler)
    try:
        yield
    finally:
        handler.finish()
        prefect.removeHandler(handler)
        root.handlers[:] = before


class _StepHandler(logging.Handler):
    """Writes the lines; one that is rewritten shows what runs, where there is a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._status: Status | None = None
        self._step, self._started_at, self._said_at = "", 0.0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, if a person should see it."""
        step = getattr(record, "step", None)
        if step is None:
            self._show(record)
        elif hasattr(record, "seconds"):
            self.finish()
            text = record.getMessage().removeprefix(f"{step}: ")
            word = "failed" if record.levelno >= logging.ERROR else text
            self._console.print(
                f"{step:22} {_describe_time(record.seconds):>10}   {word}", markup=False
            )
        else:
            self._step, self._started_at = step, time.monotonic()
            self._said_at = self._started_at
            if self._console.is_terminal:
                self._status = self._console.status(step)
                self._status.start()

    def finish(self) -> None:
        """Remove the line that is rewritten."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _show(self, record: logging.LogRecord) -> None:
        level, text = read_line(record.getMessage())
        if not level and record.levelno >= logging.WARNING and record.name.startswith("onenip"):
            level, text = record.levelname, record.getMessage()
        if level in _BAD:
            self._console.print(f"{'':22} {'':10}   {level.lower()}: {text}", markup=False)
        elif level == _INFO and " onenip.stages." not in record.getMessage():  # a stage's last word
            self._say(text)

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if self._status is not None:
            self._status.update(f"{self._step}  {text}")
        elif now - self._said_at >= _QUIET_SECONDS:
            self._said_at = now
            passed = _describe_time(now - self._started_at)
            self._console.print(f"{'  ' + self._step:22} {passed:>10}   {text}", markup=False)


def _describe_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
