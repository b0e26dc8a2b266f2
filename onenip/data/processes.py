"""DVC and Git as processes: what they print, and their refusals as one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from onenip.errors import OneNIPError, UnreachableError

QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true", "GIT_TERMINAL_PROMPT": "0"}
_TAIL_LINES = 15


class VersioningError(OneNIPError):
    """DVC or Git refused; the message ends with what they said."""


class RemoteError(VersioningError, UnreachableError):
    """A remote of DVC or Git did not take or give what it was asked for; it may be down."""


def call(command: Sequence[str], root: Path, name: str, env: dict[str, str]) -> str:
    """What a command prints.

    Args:
        command: program and arguments.
        root: folder that it runs in.
        name: of the program, for errors.
        env: added to this process's environment.

    Raises:
        VersioningError: if it is not installed or exits non-zero; the message ends with what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | QUIET | env,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise VersioningError(f"{name}: not installed, or no folder {root}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        words = " ".join([word for word in command if not word.startswith(sys.prefix)][:4])
        problem = next((line for line in said if line.startswith(("ERROR", "fatal"))), "")
        problem = problem or (said[-1] if said else f"status {done.returncode}")
        raise VersioningError(f"{name}: `{words}`: {problem}")
    return done.stdout


def stream(
    command: Sequence[str], root: Path, on_line: Callable[[str], None] | None
) -> tuple[int, str]:
    """Exit status and last lines of a command whose lines are handed on as they come, if anybody listens."""
    if on_line is None:
        return subprocess.run(command, cwd=root, env=os.environ | QUIET, check=False).returncode, ""
    tail: list[str] = []
    env = os.environ | QUIET | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            on_line(text)
            tail = [*tail, text][-_TAIL_LINES:]
    return process.returncode, "\n".join(tail)
