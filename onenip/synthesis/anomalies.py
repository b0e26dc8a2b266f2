"""Synthetic anomalies: (normal image, rng) to (anomalous image, exact mask).

Outside the mask the image is bit-identical; inside, every kind really changes it. The paper's kinds
are CutPaste, its scar, and Perlin texture; the others stay nearer to what real defects look like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from onenip.errors import ParamsError
from onenip.params import SynthesizeParams
from onenip.synthesis.noise import Field, Mask, draw_blob, draw_perlin, draw_stroke, soften

Pixels = NDArray[np.uint8]

_TRIES = 20  # draws of one anomaly before another kind is drawn
_ROUNDS = 20  # kinds drawn before giving up
_MIN_SHOWN = 0.2  # share of what was pasted that must visibly change, else redrawn
_BACKGROUND_SPREAD = 14.0  # levels: a border that varies more is no background


@dataclass(frozen=True)
class SyntheticAnomaly:
    """A synthetic anomaly.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        mask: [H, W] bool, True where the image differs from the normal one it was made from.
        kind: how it was made, a key of `KINDS`.
    """

    image: Pixels
    mask: Mask
    kind: str


class Synthesizer:
    """Draws anomalies into normal images.

    Args:
        params: kinds, their shares, and every range.
        textures: [h, w, 3] uint8 each, for the kind `perlin`; at least one, of the images' size.

    Source: OneNIP section 3.4 (CutPaste and DRAEM's Perlin anomalies).
    """

    def __init__(self, params: SynthesizeParams, *, textures: Sequence[Pixels]) -> None:
        self.params = params
        self.textures = textures
        self._kinds = list(params.kinds)
        shares = np.array(list(params.kinds.values()), np.float64)
        self._shares = shares / shares.sum()

    def draw(
        self, image: Pixels, rng: np.random.Generator, *, donors: Sequence[Pixels] = ()
    ) -> SyntheticAnomaly:
        """One synthetic anomaly in one normal image.

        Args:
            image: [H, W, 3] uint8.
            rng: source of every choice; the same state gives the same anomaly.
            donors: further normal images of the category, the same size, that patches may come from.

        Returns:
            The anomaly, with a mask of at least `min_area_px` pixels.

        Raises:
            ParamsError: if no kind changes the image visibly, however often it is drawn.
        """
        allowed = find_foreground(image) if self.params.foreground_only else None
        for _ in range(_ROUNDS):
            kind = self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]
            for _ in range(_TRIES):
                changed, region = KINDS[kind](self, image, rng, donors)
                drawn = self._finish(image, changed, region, allowed)
                if drawn is not None:
                    return SyntheticAnomaly(drawn[0], drawn[1], kind)
            allowed = None  # nothing fits the foreground: the whole image then
        raise ParamsError(
            f"{_ROUNDS * _TRIES} draws of {', '.join(self._kinds)} changed too little; lower "
            "synthesize.min_change or synthesize.min_area_px, or allow more synthesize.kinds",
            key="synthesize.min_change",
        )

    def _finish(
        self, image: Pixels, changed: Pixels, region: Mask, allowed: Mask | None
    ) -> tuple[Pixels, Mask] | None:
        """Anomalous image and mask, or None where the mask would be degenerate."""
        if self.params.grey_stays_grey and _is_grey(image):
            changed = np.repeat(np.asarray(Image.fromarray(changed).convert("L"))[:, :, None], 3, 2)
        if allowed is not None:
            region = region & allowed
        difference = _widest(np.abs(changed.astype(np.int16) - image.astype(np.int16)))
        visible = (difference >= self.params.min_change) & region
        pasted = int(region.sum())
        if self.params.mask_visible_only:
            region = ndimage.binary_closing(visible, iterations=1) & region | visible
        shown = int(visible.sum())
        if shown < self.params.min_area_px or shown < _MIN_SHOWN * pasted or region.mean() > 0.6:
            return None
        return np.where(region[:, :, None], changed, image), region

    # -- the paper's kinds ------------------------------------------------------------------------

    def _draw_cutpaste(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """A colour-jittered rectangle from elsewhere."""
        height, width = image.shape[:2]
        area = rng.uniform(*self.params.cutpaste_area_fraction) * height * width
        low, high = self.params.cutpaste_aspect
        aspect = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        h = int(np.clip(round(np.sqrt(area / aspect)), 1, height - 1))
        w = int(np.clip(round(np.sqrt(area * aspect)), 1, width - 1))
        patch = _crop(self._donor(image, rng, donors), (h, w), rng)
        patch = _jitter_colour(patch, rng, self.params.colour_jitter, self.params.hue_jitter)
        return _paste(image, patch, np.ones((h, w), bool), rng)

    def _draw_scar(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """A thin, turned, colour-jittered rectangle from elsewhere."""
        scale = min(image.shape[:2]) / 224
        w = max(round(rng.uniform(*self.params.scar_width_px) * scale), 1)
        h = max(round(rng.uniform(*self.params.scar_length_px) * scale), 2)
        patch = _crop(self._donor(image, rng, donors), (h, w), rng)
        patch = _jitter_colour(patch, rng, self.params.colour_jitter, self.params.hue_jitter)
        angle = float(rng.uniform(*self.params.scar_angle_degrees))
        rotated = Image.fromarray(patch).rotate(angle, Image.Resampling.BILINEAR, expand=True)
        shape = Image.new("L", (w, h), 255).rotate(angle, expand=True)
        return _paste(image, np.asarray(rotated), np.asarray(shape) > 127, rng)

    def _draw_perlin(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """A texture photo, blended in where Perlin noise is high."""
        del donors
        size = image.shape[:2]
        low, high = self.params.perlin_period_powers
        periods = [2 ** int(rng.integers(low, high + 1)) for _ in range(2)]
        field = draw_perlin((size[0], size[1]), (periods[0], periods[1]), rng)
        turn = float(rng.uniform(*self.params.perlin_angle_degrees))
        field = np.asarray(Image.fromarray(field).rotate(turn, Image.Resampling.BILINEAR))
        region = field > self.params.perlin_threshold
        texture = self.textures[int(rng.integers(len(self.textures)))]
        if texture.shape != image.shape:
            texture = np.asarray(Image.fromarray(texture).resize((size[1], size[0])))
        texture = _augment_texture(texture, rng)
        beta = rng.uniform(*self.params.perlin_image_share)
        blended = (1 - beta) * texture.astype(np.float32) + beta * image.astype(np.float32)
        return _to_pixels(blended), region

    # -- nearer to real defects -------------------------------------------------------------------

    def _draw_misplaced(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """An irregular piece of the category's own surface, where it does not belong."""
        shape = self._draw_shape(image, rng)
        patch = _crop(self._donor(image, rng, donors), shape.shape, rng)
        if rng.random() < 0.5:
            patch = np.ascontiguousarray(np.rot90(patch, 2))
        if rng.random() < 0.5:
            patch = _jitter_colour(patch, rng, self.params.colour_jitter / 2, 0.0)
        return _paste(image, patch, shape, rng, edge_px=float(rng.uniform(0, 1.5)))

    def _draw_stain(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """An irregular spot that is darker, lighter or of another tint; often faint."""
        del donors
        shape = self._draw_shape(image, rng)
        return self._shade(image, shape, rng, edge_px=float(rng.uniform(0.3, 3)))

    def _draw_scratch(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """A thin wandering line that is darker or lighter."""
        del donors
        side = min(image.shape[:2])
        length = rng.uniform(*self.params.scratch_length_fraction) * side
        width = rng.uniform(*self.params.scratch_width_px) * side / 224
        box = min(int(length * 1.2) + 4, side)
        shape = draw_stroke((box, box), length, width, rng)
        return self._shade(image, shape, rng, edge_px=float(rng.uniform(0, 0.8)))

    def _draw_erased(
        self, image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]
    ) -> tuple[Pixels, Mask]:
        """An irregular spot where structure is missing: filled with one colour of the image."""
        del donors
        shape = self._draw_shape(image, rng)
        colour = image[int(rng.integers(image.shape[0])), int(rng.integers(image.shape[1]))]
        grain = rng.normal(0, rng.uniform(0, 5), (*shape.shape, 1))
        patch = _to_pixels(colour.astype(np.float32) + grain)
        return _paste(image, patch, shape, rng, edge_px=float(rng.uniform(0, 1.5)))

    def _draw_shape(self, image: Pixels, rng: np.random.Generator) -> Mask:
        height, width = image.shape[:2]
        low, high = self.params.blob_area_fraction
        area = np.exp(rng.uniform(np.log(low), np.log(high))) * height * width
        aspect = float(np.exp(rng.uniform(0, np.log(4))))
        side = int(np.ceil(np.sqrt(area * aspect) * 1.8)) + 2
        box = (min(side, height), min(side, width))
        shape = draw_blob(box, float(area), rng, aspect=aspect, roughness=rng.uniform(0.1, 0.8))
        if rng.random() < 0.3:
            periods = (int(rng.integers(2, 6)), int(rng.integers(2, 6)))
            shape &= draw_perlin((box[0], box[1]), periods, rng) > -0.1
        return shape

    def _shade(
        self, image: Pixels, shape: Mask, rng: np.random.Generator, *, edge_px: float
    ) -> tuple[Pixels, Mask]:
        top, left = _place(image, shape.shape, rng)
        h, w = shape.shape
        window = image[top : top + h, left : left + w].astype(np.float32)
        strength = rng.uniform(*self.params.shade_levels) * rng.choice([-1.0, 1.0], p=[0.65, 0.35])
        tint = strength * (1 + rng.normal(0, 0.15, 3) * (rng.random() < 0.5))
        texture = 1 + rng.normal(0, 0.15, shape.shape)[:, :, None]
        alpha = soften(shape, edge_px)[:, :, None]
        patch = _to_pixels(window + alpha * tint * texture)
        changed, region = image.copy(), np.zeros(image.shape[:2], bool)
        changed[top : top + h, left : left + w] = patch
        region[top : top + h, left : left + w] = shape
        return changed, region

    @staticmethod
    def _donor(image: Pixels, rng: np.random.Generator, donors: Sequence[Pixels]) -> Pixels:
        pick = int(rng.integers(len(donors) + 1))
        return image if pick == len(donors) else donors[pick]


KINDS: dict[str, Callable[..., Any]] = {
    "cutpaste": Synthesizer._draw_cutpaste,
    "scar": Synthesizer._draw_scar,
    "perlin": Synthesizer._draw_perlin,
    "misplaced": Synthesizer._draw_misplaced,
    "stain": Synthesizer._draw_stain,
    "scratch": Synthesizer._draw_scratch,
    "erased": Synthesizer._draw_erased,
}


def find_foreground(image: Pixels) -> Mask | None:
    """Mask of the product, if its surroundings are plain.

    Args:
        image: [H, W, 3] uint8.

    Returns:
        [H, W] bool, or None if the border is not of one colour or nothing stands out from it.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.float32)
    background = np.median(border, axis=0)
    spread = np.quantile(np.abs(border - background).max(axis=1), 0.9)
    if spread > _BACKGROUND_SPREAD:
        return None
    distance = _widest(np.abs(image.astype(np.float32) - background))
    product = ndimage.binary_opening(distance > max(3 * float(spread), 12.0), iterations=1)
    product = ndimage.binary_fill_holes(product)
    return product if 0.05 < product.mean() < 0.95 else None


def _widest(difference: NDArray[Any]) -> NDArray[Any]:
    """Largest of three channels, [H, W, 3] to [H, W]; `max(axis=2)` takes five times as long."""
    return np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])


def _is_grey(image: Pixels) -> bool:
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all())


def _crop(image: Pixels, size: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    top, left = _place(image, size, rng)
    return image[top : top + size[0], left : left + size[1]]


def _place(image: Pixels, size: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
    top = int(rng.integers(0, image.shape[0] - size[0] + 1))
    left = int(rng.integers(0, image.shape[1] - size[1] + 1))
    return top, left


def _paste(
    image: Pixels, patch: Pixels, shape: Mask, rng: np.random.Generator, *, edge_px: float = 0.0
) -> tuple[Pixels, Mask]:
    h, w = min(shape.shape[0], image.shape[0]), min(shape.shape[1], image.shape[1])
    patch, shape = patch[:h, :w], shape[:h, :w]
    top, left = _place(image, (h, w), rng)
    changed, region = image.copy(), np.zeros(image.shape[:2], bool)
    window = image[top : top + h, left : left + w].astype(np.float32)
    alpha: Field = soften(shape, edge_px)[:, :, None]
    changed[top : top + h, left : left + w] = _to_pixels(window * (1 - alpha) + patch * alpha)
    region[top : top + h, left : left + w] = shape
    return changed, region


def _jitter_colour(patch: Pixels, rng: np.random.Generator, strength: float, hue: float) -> Pixels:
    """Random brightness, contrast, saturation (each by up to `strength`) and hue (share of a turn).

    Differs: hue is turned in YIQ, one matrix product, where the authors' code goes through HSV.
    """
    x = patch.astype(np.float32)
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    x = x * brightness
    x = (x - x.mean()) * contrast + x.mean()
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
    x = grey[..., None] + (x - grey[..., None]) * saturation
    if hue > 0:
        x = x @ _hue_matrix(float(rng.uniform(-hue, hue)) * 2 * np.pi).T
    return _to_pixels(x)


def _hue_matrix(angle: float) -> Field:
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    turn = np.array(
        [
            [1, 0, 0],
            [0, np.cos(angle), -np.sin(angle)],
            [0, np.sin(angle), np.cos(angle)],
        ]
    )
    return (np.linalg.inv(to_yiq) @ turn @ to_yiq).astype(np.float32)


def _augment_texture(texture: Pixels, rng: np.random.Generator) -> Pixels:
    """Three different random photometric changes.

    Source: DRAEM (ICCV 2021), section 3.3.
    """
    image = Image.fromarray(texture)
    for pick in rng.choice(len(_AUGMENTATIONS), 3, replace=False):
        image = _AUGMENTATIONS[int(pick)](image, rng)
    return np.asarray(image)


def _scale_levels(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gain, offset = rng.uniform(0.8, 1.2, 3), rng.uniform(-30, 30)
    table = np.clip(np.arange(256) * gain[:, None] + offset, 0, 255).astype(int)  # [3, 256]
    return image.point(table.ravel().tolist())


def _change_gamma(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gamma = rng.uniform(0.5, 2.0)
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(int).tolist()
    return image.point(table * 3)


def _turn_hue(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    matrix = _hue_matrix(rng.uniform(-0.25, 0.25) * 2 * np.pi)
    flat = np.concatenate([matrix, np.zeros((3, 1), np.float32)], axis=1).ravel().tolist()
    return image.convert("RGB", matrix=tuple(flat))


_AUGMENTATIONS: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    _scale_levels,
    _change_gamma,
    _turn_hue,
    lambda image, rng: ImageOps.posterize(image, int(rng.integers(2, 7))),
    lambda image, rng: ImageOps.solarize(image, int(rng.integers(32, 224))),
    lambda image, _rng: ImageOps.invert(image),
    lambda image, _rng: ImageOps.autocontrast(image),
    lambda image, _rng: ImageOps.equalize(image),
    lambda image, rng: image.rotate(float(rng.uniform(-45, 45)), Image.Resampling.BILINEAR),
    lambda image, rng: image.filter(ImageFilter.UnsharpMask(2, int(rng.integers(50, 200)), 2)),
)


def _to_pixels(values: NDArray[np.floating[Any]]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
