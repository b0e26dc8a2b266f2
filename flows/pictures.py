"""Small pictures for the artifacts of a flow run."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

_SIDE_PX = 420


def to_data_uri(path: Path) -> str:
    """A picture as a JPEG `data:` address, longer side at most 420 px."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE_PX, _SIDE_PX))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
