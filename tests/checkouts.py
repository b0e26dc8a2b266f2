"""A checkout with the tiny data under Git and DVC, and images that arrive."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny import draw_tiny_data


def make_checkout(folder: Path, *, remote: bool = False) -> Path:
    """A Git and DVC checkout with the tiny data in its first commit."""
    folder.mkdir(parents=True)
    draw_tiny_data(folder / "data", train=4, test_good=2, defective=2)
    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "config", "user.email", "a@example.com"],
        ["git", "config", "user.name", "A"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        [sys.executable, "-m", "dvc", "add", "-q", "data"],
        *(
            [
                [
                    sys.executable,
                    "-m",
                    "dvc",
                    "remote",
                    "add",
                    "-d",
                    "-q",
                    "r",
                    str(folder) + "-remote",
                ]
            ]
            * remote
        ),
        ["git", "add", ".gitignore", "data.dvc", ".dvc"],
        ["git", "commit", "-q", "-m", "Start"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def drop(inbox: Path, key: str, image: np.ndarray, **options) -> Path:
    """Put an image into a folder that serves as inbox."""
    path = inbox / key
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path
