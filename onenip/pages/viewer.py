"""Pictures of one image side by side that zoom together, and boxes that a person draws on them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from PIL import Image

from onenip.detector.prediction import Region

_HERE = Path(__file__).parent
_LONGEST_PX = 1600  # of a picture that is sent
_QUALITY = 88


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: what stands below it.
        image: [H, W, 3] or [H, W] uint8.
        heat: [H, W, 3] uint8 over it, with an opacity that is chosen there; None if there is none.
        regions: numbered boxes over it.
        can_mark: whether boxes can be drawn on it.
    """

    title: str
    image: NDArray[np.uint8]
    heat: NDArray[np.uint8] | None = None
    regions: Sequence[Region] = ()
    can_mark: bool = False


def draw_viewer(name: str, panels: Sequence[Panel]) -> list[list[int]]:
    """Draw panels of one size.

    Args:
        name: of the image, unique on the page; marks belong to it.
        panels: of the same height and width.

    Returns:
        Boxes that a person drew: (x, y, width, height) in px of the image.
    """
    height, width = panels[0].image.shape[:2]
    data = {
        "height": height,
        "width": width,
        "panels": [
            {
                "title": panel.title,
                "image": encode(panel.image),
                "heat": "" if panel.heat is None else encode(panel.heat),
                "boxes": [[r.x, r.y, r.width, r.height] for r in panel.regions],
                "canMark": panel.can_mark,
            }
            for panel in panels
        ],
    }
    mount = st.components.v2.component(
        "onenip_viewer",
        html='<div class="viewer"></div>',
        css=(_HERE / "viewer.css").read_text(encoding="utf-8"),
        js=(_HERE / "viewer.js").read_text(encoding="utf-8"),
    )
    found = mount(key=f"viewer/{name}", data=data, on_boxes_change=lambda: None)
    return list(found.boxes or [])


def encode(image: NDArray[np.uint8], *, longest_px: int = _LONGEST_PX) -> str:
    """A picture as a data address, JPEG, no side longer than `longest_px`."""
    picture = Image.fromarray(image)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
