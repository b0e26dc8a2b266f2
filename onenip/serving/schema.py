"""What is sent and answered over HTTP, as the page at `/docs` describes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from onenip.detector.prediction import Verdict


class ImageRequest(BaseModel):
    """An image to judge."""

    image: str = Field(description="base64 of an image file: PNG, JPEG, BMP, TIFF or WebP")
    category: str | None = Field(None, description="product category; left out, it is told")


class RegionAnswer(BaseModel):
    """One connected defective region; px of the image, origin top-left."""

    x: int = Field(description="left edge of its box, px")
    y: int = Field(description="top edge of its box, px")
    width: int = Field(description="of the box, px")
    height: int = Field(description="of the box, px")
    area_px: int = Field(description="pixels above the pixel threshold")
    score: float = Field(description="highest value of the map inside")


class ImageAnswer(BaseModel):
    """What is said of an image."""

    category: str = Field(description="that the image was judged as")
    category_inferred: bool = Field(description="told from the prompts, because none was given")
    score: float = Field(description="of the image; higher is more anomalous")
    threshold: float = Field(description="an image scoring above it is anomalous")
    verdict: Verdict = Field(description="what the score means")
    provisional: bool = Field(description="whether the model was never trained on the category")
    regions: list[RegionAnswer] = Field(description="highest score first")
    seconds: float = Field(description="that the image took")
    version: int = Field(description="of the category's model that answered; 0 for a folder")
    digest: str = Field(description="sha256 of the model that answered")
    warning: str = Field(description="why a newer champion may not have answered; else empty")


class CategoryAnswer(BaseModel):
    """What answers for a category."""

    category: str = Field(description="product category")
    version: int = Field(description="that serves; 0 for a folder")
    digest: str = Field(description="sha256 of the model")
    threshold: float = Field(description="of image scores")
    provisional: bool = Field(description="whether the model was never trained on the category")
    warning: str = Field(description="why a newer champion is not served; else empty")


class Readiness(BaseModel):
    """Whether anything can be answered, and whether the registry is followed."""

    ready: bool = Field(description="whether a champion is loaded")
    fresh: bool = Field(description="whether the last look into the registry worked")
    problem: str = Field(description="why it did not; else empty")


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one sentence that names what is wrong")


REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refusal, "description": "The key is missing or wrong"},
    404: {"model": Refusal, "description": "The category has no approved model"},
    411: {"model": Refusal, "description": "The request does not say its length"},
    413: {"model": Refusal, "description": "The request or the image is too large"},
    503: {"model": Refusal, "description": "Nothing serves yet, or too many requests wait"},
}
