"""Sections about images: where they come from, what is usable, what is made of them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self
from unicodedata import normalize

from pydantic import AfterValidator, Field, model_validator

from onenip.params.reading import Section

SYNTHETIC_KINDS = frozenset(
    {"cutpaste", "scar", "perlin", "misplaced", "stain", "scratch", "erased"}
)


def _check_texture_folder(folder: str) -> str:
    """The same folder, if the pipeline notices what changes in it."""
    parts = PurePosixPath(folder).parts
    if parts[:1] != ("textures",) or ".." in parts:
        raise ValueError(
            "must be textures/ or a folder in it, on which stages depend; a link there may lead elsewhere"
        )
    return folder


TextureFolder = Annotated[str, AfterValidator(_check_texture_folder)]


class DataParams(Section):
    """The data set and how its normal images are divided."""

    calibration_fraction: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="share of normal training images used for thresholds and scales, chosen by hash",
    )
    holdout_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of normal training images held out from all fitting, chosen by hash; the gate "
        "counts false alarms on them and on test/good",
    )

    sample_range: Literal["auto"] | tuple[float, float] = Field(
        "auto",
        description="values of black and of white of samples of more than 8 bits, such as [0, 4095]; auto: "
        "decided by `onenip validate` for each category, on all its normal training images together",
    )
    sample_ranges: dict[str, tuple[float, float]] = Field(
        {}, description="black and white by category, where they differ from sample_range"
    )

    def declared_range(self, category: str) -> tuple[float, float] | None:
        """Values of black and of white of a category; None where they are to be decided."""
        usual = None if self.sample_range == "auto" else self.sample_range
        own = {normalize("NFC", name): one for name, one in self.sample_ranges.items()}
        return own.get(category, usual)

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        ranges = dict(self.sample_ranges)
        if self.sample_range != "auto":
            ranges[""] = self.sample_range
        for name, (black, white) in ranges.items():
            key = f"data.sample_ranges.{name}" if name else "data.sample_range"
            if black == white:
                raise ValueError(f"{key}: black and white must differ")
        return self

    @model_validator(mode="after")
    def _leave_images_to_fit(self) -> Self:
        if self.calibration_fraction + self.holdout_fraction >= 1:
            raise ValueError("data.calibration_fraction + data.holdout_fraction must be below 1")
        return self


class DownloadParams(Section):
    """Limits of `onenip download`."""

    workers: int = Field(8, ge=1, description="parallel transfers")
    max_unpacked_gib: float = Field(
        100.0, gt=0, description="maximum size of an unpacked archive in GiB"
    )
    max_unpacked_ratio: float = Field(
        200.0,
        gt=1,
        description="maximum ratio of an archive's unpacked to its packed size, from 64 MiB on",
    )
    textures: TextureFolder = Field(
        "textures/dtd", description="folder of downloaded textures (dtd), in textures/"
    )
    urls: dict[str, str] = Field(
        {},
        description="addresses that replace those of mvtec, visa, btad, dtd, magnetic-tile, such as mirrors",
    )


class CacheParams(Section):
    """What is kept from run to run, so that an image is decoded and embedded once."""

    max_gib: float = Field(
        50.0,
        gt=0,
        description="maximum size of artifacts/cache in GiB; what was used longest ago is deleted, and made "
        "again when it is needed; an image takes about 1 MB, and 5 MB more with a zoom of 2",
    )


class ValidateParams(Section):
    """Rules that usable images satisfy."""

    min_side_px: int = Field(16, ge=1, description="minimum side of an image in px")
    min_contrast: float = Field(
        0.004, ge=0, le=1, description="minimum standard deviation of grey values, 0..1"
    )
    brightness_range: tuple[float, float] = Field(
        (0.004, 0.996),
        description="mean grey value between those of black and of white images, 0..1",
    )
    max_deviation: float = Field(
        8.0,
        gt=0,
        description="maximum deviation of size, aspect, brightness and sharpness from the median, "
        "in robust standard deviations",
    )
    near_duplicate_bits: int = Field(
        2,
        ge=0,
        le=64,
        description="maximum distance of the perceptual hashes of near-duplicates, in bits of 64",
    )
    min_train_images: int = Field(
        8, ge=1, description="minimum number of normal training images per category"
    )
    excluded: list[str] = Field(
        [],
        description="normal training images to leave out, such as outliers that training named: names as "
        "bottle/train/good/017.png, or patterns as bottle/train/good/batch7-*",
    )
    severities: dict[str, Literal["error", "quarantine", "warning", "off"]] = Field(
        {}, description="severity by name of the rule, where it differs from the built-in one"
    )


class SynthesizeParams(Section):
    """Synthetic anomalies on normal images; lengths in px refer to a side of 224 px."""

    per_image: int = Field(
        2,
        ge=1,
        description="synthetic anomalies per held-out normal image, for thresholds; training draws its own",
    )
    kinds: dict[str, float] = Field(
        {
            "cutpaste": 0.1,
            "scar": 0.1,
            "perlin": 0.2,
            "misplaced": 0.2,
            "stain": 0.15,
            "scratch": 0.15,
            "erased": 0.1,
        },
        description="relative frequency of each kind of anomaly",
    )
    textures: TextureFolder | None = Field(
        None,
        description="folder of texture photos, in textures/; null: built-in procedural textures",
    )
    foreground_only: bool = Field(
        True, description="keep anomalies off a plain background, where one is recognised"
    )
    mask_visible_only: bool = Field(True, description="mask only the pixels that visibly changed")
    grey_stays_grey: bool = Field(True, description="give grey images grey anomalies")
    min_change: int = Field(
        8, ge=1, le=255, description="minimum visible change of a pixel in grey levels"
    )
    min_area_px: int = Field(
        12,
        ge=1,
        description="minimum number of visibly changed pixels; below it the anomaly is drawn again",
    )
    colour_jitter: float = Field(
        0.4,
        ge=0,
        le=1,
        description="jitter of brightness, contrast and saturation of a pasted patch",
    )
    hue_jitter: float = Field(
        0.1, ge=0, le=0.5, description="jitter of the hue of a pasted patch, in turns"
    )
    cutpaste_area_fraction: tuple[float, float] = Field(
        (0.02, 0.15), description="area of a pasted patch, share of the image"
    )
    cutpaste_aspect: tuple[float, float] = Field(
        (0.3, 3.3), description="width over height of a patch: first..1 as often as 1..second"
    )
    scar_width_px: tuple[float, float] = Field((2.0, 16.0), description="width of a scar in px")
    scar_length_px: tuple[float, float] = Field((10.0, 25.0), description="length of a scar in px")
    scar_angle_degrees: tuple[float, float] = Field((-45.0, 45.0), description="rotation of a scar")
    perlin_period_powers: tuple[int, int] = Field(
        (1, 5), description="noise periods per axis, powers of 2"
    )
    perlin_angle_degrees: tuple[float, float] = Field(
        (-5.0, 5.0), description="rotation of the noise"
    )
    perlin_threshold: float = Field(
        0.5, gt=-1, lt=1, description="noise above this level is anomalous"
    )
    perlin_image_share: tuple[float, float] = Field(
        (0.0, 0.8), description="opacity of the image below the texture"
    )
    blob_area_fraction: tuple[float, float] = Field(
        (0.0008, 0.06), description="area of irregular spots, share of the image"
    )
    shade_levels: tuple[float, float] = Field(
        (12.0, 120.0), description="grey levels by which stains and scratches darken or lighten"
    )
    scratch_length_fraction: tuple[float, float] = Field(
        (0.05, 0.7), description="length of a scratch, share of the image's shorter side"
    )
    scratch_width_px: tuple[float, float] = Field(
        (1.0, 5.0), description="width of a scratch in px"
    )

    @model_validator(mode="after")
    def _order_ranges(self) -> Self:
        for key, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"synthesize.{key}: the first number is above the second")
        unknown = set(self.kinds) - SYNTHETIC_KINDS
        if (
            unknown
            or not self.kinds
            or min(self.kinds.values()) < 0
            or not any(self.kinds.values())
        ):
            known = ", ".join(sorted(SYNTHETIC_KINDS))
            raise ValueError(f"synthesize.kinds: shares above 0 of {known}; got {self.kinds}")
        return self
