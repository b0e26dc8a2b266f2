"""Text of others (names of files, reasons, categories), on a terminal or in Markdown: shown, never obeyed."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show(text: str) -> str:
    """A text in which characters that a terminal would obey are written out as codes."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
        for letter in text
    )


def plain(text: str) -> str:
    """A text of others as it is, where Markdown is read: neither a picture from elsewhere nor a link."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def open_console() -> Console:
    """A console for tables: brackets in cells are brackets, and no instructions to it.

    A pipe or a log has no width of its own, so tables are not folded there.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else max(160, shutil.get_terminal_size()[0])
    return Console(width=width, markup=False, emoji=False, highlight=False)


class LineFormatter(logging.Formatter):
    """Log lines as `show` writes them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, with its traceback."""
        return show(super().format(record))
