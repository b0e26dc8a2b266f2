"""Requests and answers of the HTTP interface, as the page at `/docs` describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from onenip.data.labels import clean_name
from onenip.detector.prediction import Verdict
from onenip.review.items import Label

Box = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=4, max_length=4)]

MAX_NAME = 255  # characters of a category


class ImageRequest(BaseModel):
    """An image to judge."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(
        description="base64 of an image file (PNG, JPEG, BMP, TIFF, WebP); line breaks, a `data:` prefix and "
        "the URL-safe alphabet are accepted"
    )
    category: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_NAME,
        description="product category; inferred if left out",
    )


class RegionAnswer(BaseModel):
    """One connected defective region; px of the image, origin top-left."""

    x: int = Field(description="left edge of its box, px")
    y: int = Field(description="top edge of its box, px")
    width: int = Field(description="width of its box, px")
    height: int = Field(description="height of its box, px")
    area_px: int = Field(description="pixels above the pixel threshold")
    score: float = Field(description="highest value of the map inside")


class ImageAnswer(BaseModel):
    """The answer to an image."""

    id: str = Field(description="of this answer, for `POST /feedback`")
    category: str = Field(description="category that the image was judged as")
    category_inferred: bool = Field(description="whether it was inferred, because none was given")
    score: float = Field(description="image score; higher is more anomalous")
    threshold: float = Field(description="an image scoring above it is anomalous")
    verdict: Verdict = Field(
        description="normal, review or anomalous; unsure while the category has too few normal images"
    )
    provisional: bool = Field(description="whether the model was never trained on the category")
    normals_needed: int = Field(description="further normal images that a verdict needs")
    regions: list[RegionAnswer] = Field(
        description="defective regions, highest score first; none where the verdict is normal"
    )
    seconds: float = Field(description="time to judge the image")
    version: int = Field(description="version of the category's model; 0 for a folder")
    digest: str = Field(description="sha256 of the model")
    warning: str = Field(description="why a newer champion may not have answered; else empty")
    map: str = Field(
        "", description="base64 of a PNG, the heat map over the image: with `?map=png`"
    )


class FeedbackRequest(BaseModel):
    """What a part that was judged really is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(max_length=MAX_NAME, description="of the answer")
    label: Label = Field(description="good, defect or unsure")
    by: str = Field(
        "", max_length=MAX_NAME, description="who says so; whoever is logged in counts instead"
    )
    kind: str = Field("", max_length=MAX_NAME, description="of the defect, such as scratch")
    boxes: list[Box] = Field([], max_length=100, description="x, y, width, height in px, each")
    mask: str = Field("", description="base64 of a PNG at the image's size, instead of boxes")
    note: str = Field("", description="further words")


# as it is kept, however it was typed
CategoryName = Annotated[
    str, AfterValidator(clean_name), StringConstraints(min_length=1, max_length=MAX_NAME)
]


class RollbackRequest(BaseModel):
    """A wish to undo the last threshold of a category, else its last approval."""

    model_config = ConfigDict(extra="forbid", strict=True)

    category: CategoryName = Field(description="product category")
    reason: str = Field(description="why; kept")


class DecisionRequest(RollbackRequest):
    """A decision about a challenger."""

    version: int | None = Field(None, description="that was looked at; null: whichever waits")
    override: bool = Field(False, description="approve although the gate rejected it")


class ThresholdRequest(BaseModel):
    """A decision about a threshold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    category: CategoryName = Field(description="product category")
    value: float | None = Field(description="image score; null: the model's own")
    reason: str = Field(description="why; kept")
    challenger: bool = Field(False, description="of the challenger, not of the champion")


class VersionAnswer(BaseModel):
    """A version of a category's model."""

    category: str = Field(description="product category")
    version: int = Field(description="its number")
    aliases: list[str] = Field(description="champion, challenger, previous")
    approval: str = Field(description="pending, approved, rejected or provisional")
    digest: str = Field(description="sha256 of the model")
    threshold: float | None = Field(description="that was decided on; null: the model's own")
    approver: str = Field(description="who decided about it")
    reason: str = Field(description="why")
    gate: str = Field(description="the gate's verdict")
    gate_reasons: list[str] = Field(description="the gate's reasons")


class FeedbackAnswer(BaseModel):
    """Feedback that was taken."""

    id: str = Field(description="of the answer")
    label: Label = Field(description="as it was taken")
    by: str = Field(description="who said so")
    at: str = Field(description="when, UTC")


class CategoryAnswer(BaseModel):
    """The champion of a category."""

    category: str = Field(description="product category")
    version: int = Field(description="its version; 0 for a folder")
    digest: str = Field(description="sha256 of the model")
    threshold: float = Field(description="threshold of image scores")
    provisional: bool = Field(description="whether the model was never trained on the category")
    warning: str = Field(description="why a newer champion is not served; else empty")


class Readiness(BaseModel):
    """Whether images can be judged, and whether the registry is followed."""

    ready: bool = Field(description="whether a champion is loaded")
    fresh: bool = Field(description="whether the registry was read of late")
    age_seconds: float | None = Field(
        description="time since the registry was last read; null: never, or a folder is served"
    )
    problem: str = Field(description="why it is not fresh; else empty")


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="one sentence that names the problem")


REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Refusal, "description": text}
    for code, text in {
        401: "The key, or the name and password, is missing or wrong",
        403: "This person may not do that",
        404: "The category has no champion, or the image looks like none that has one",
        409: "The registry refuses; the answer says why",
        408: "The body came too slowly",
        411: "The request does not give its length",
        413: "The request or the image is too large",
        415: "The body is of the wrong kind",
        422: "The body or the image is unusable",
        503: "There is no champion yet, or too many requests wait",
    }.items()
}


def describe_json(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body for the page at `/docs`."""
    schema = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": schema}}


FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "an image file",
                        },
                        "category": {
                            "type": "string",
                            "description": "product category; inferred if left out",
                        },
                    },
                }
            }
        },
    }
}
