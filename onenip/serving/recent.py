"""The latest answers with their images, kept in a folder so that a person can look at them.

The oldest are deleted first. Knows nothing of models.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_KEPT = 200


@dataclass(frozen=True)
class Recent:
    """One answer.

    Attributes:
        image: file with the bytes of the image, as they came.
        answer: as `onenip predict` prints it.
    """

    image: Path
    answer: dict[str, Any]

    @property
    def title(self) -> str:
        """Time, category, verdict and score, for a list."""
        when = time.strftime("%H:%M:%S", time.gmtime(int(self.image.stem) / 1e9))
        return (
            f"{when} {self.answer['category']}: {self.answer['verdict']} {self.answer['score']:.2f}"
        )


def remember(
    folder: Path, content: bytes, answer: dict[str, Any], *, max_kept: int = MAX_KEPT
) -> None:
    """Keep an image's bytes and its answer; delete the oldest above `max_kept`.

    Raises:
        OSError: if the disk refuses; nothing of this answer is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.time_ns():020}"
    image, draft = folder / f"{name}.image", folder / f"{name}.draft"
    try:
        image.write_bytes(content)
        draft.write_text(json.dumps(answer), encoding="utf-8")
        draft.replace(folder / f"{name}.json")  # complete from the moment that it can be seen
    except OSError:
        for path in (image, draft):
            path.unlink(missing_ok=True)
        raise
    for path in sorted(folder.glob("*.json"))[: -max_kept or None]:
        path.unlink(missing_ok=True)
        path.with_suffix(".image").unlink(missing_ok=True)


def list_recent(folder: Path, category: str | None = None) -> list[Recent]:
    """Answers that are kept, the latest first; of one category, if it is given."""
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            answer = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # deleted meanwhile, or damaged
            continue
        if category is None or answer["category"] == category:
            found.append(Recent(path.with_suffix(".image"), answer))
    return found
