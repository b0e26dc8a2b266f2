"""A printed paper label on a carton."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from onenip.sources.demo.scene import SIZE, Plane, Product, draw_cloud, draw_spot, make_grid

WIDTH, HEIGHT = 400, 300  # px, of the label on the canvas
INK = (28, 30, 36)
GREEN = (22, 112, 84)
PAPER = (240, 237, 228)
# Print that can go missing: (left, top, right, bottom) on the label.
PRINTED = ((24, 22, 120, 98), (134, 22, 376, 66), (134, 70, 376, 96), (26, 196, 250, 274))


def draw(rng: np.random.Generator) -> Product:
    """A normal label, whose lot number differs from one to the next."""
    turn = rng.normal(0, 0.03)
    centre = (SIZE / 2 + rng.normal(0, 5), SIZE / 2 + rng.normal(0, 6))
    print_ = _place(_print_label(rng), turn, centre)
    rough = 1 + 0.012 * draw_cloud(rng, 200) + 0.01 * draw_cloud(rng, 10)
    return Product(
        _draw_carton(rng),
        (print_[:, :, :3] * rough[:, :, None]).astype(np.float32),
        print_[:, :, 3],
        thickness_px=3.0,
        turn=turn,
        centre=centre,
    )


def missing_print(product: Product, rng: np.random.Generator) -> Product:
    """A part of the print is not there."""
    left, top, right, bottom = PRINTED[int(rng.integers(len(PRINTED)))]
    width = rng.uniform(0.3, 0.75) * (right - left)
    start = rng.uniform(left, right - width)
    y, x = _label_coordinates(product)
    fade = np.minimum.reduce([x - start, start + width - x, y - top + 3, bottom + 3 - y])
    weight = (np.clip(fade / 4, 0, 1) * rng.uniform(0.8, 1.0))[:, :, None]
    paper = np.array(PAPER, np.float32) / 255 * (1 + 0.012 * draw_cloud(rng, 200))[:, :, None]
    return product.with_surface(product.surface * (1 - weight) + paper * weight)


def smear(product: Product, rng: np.random.Generator) -> Product:
    """Wet ink dragged over the label."""
    left, top, right, bottom = PRINTED[int(rng.integers(len(PRINTED)))]
    y, x = _label_coordinates(product)
    at_y, at_x = rng.uniform(top + 10, bottom - 10), rng.uniform(left + 20, right - 20)
    distance = np.hypot((y - at_y) / rng.uniform(20, 34), (x - at_x) / rng.uniform(34, 60))
    weight = np.clip((1.1 - distance + 0.15 * draw_cloud(rng, 40)) * 3, 0, 1)[:, :, None]
    dragged = ndimage.uniform_filter1d(product.surface, 41, axis=1, origin=12)
    streaks = 1 - 0.25 * np.clip(draw_cloud(rng, (90, 5)) + 0.5, 0, 1)[:, :, None]
    return product.with_surface(product.surface * (1 - weight) + dragged * streaks * weight)


def torn_corner(product: Product, rng: np.random.Generator) -> Product:
    """A corner or a piece of the edge torn off."""
    y, x = _label_coordinates(product)
    right, low = rng.integers(0, 2, 2)
    across = (WIDTH - x if right else x) / rng.uniform(0.8, 1.3)
    down = HEIGHT - y if low else y
    distance = across + down - rng.uniform(45, 85) + 7 * draw_cloud(rng, 40)
    kept = np.clip(distance + 0.5, 0, 1).astype(np.float32)
    fibre = np.clip(1 - np.abs(distance - 4) / 5, 0, 1)[:, :, None]
    surface = product.surface * (1 - fibre) + 0.9 * fibre
    return product.with_surface(surface).with_alpha(product.alpha * kept)


def stain(product: Product, rng: np.random.Generator) -> Product:
    """A dried brown splash."""
    half_y, half_x = HEIGHT / 2 - 40, WIDTH / 2 - 40
    at = (
        product.centre[0] + rng.uniform(-half_y, half_y),
        product.centre[1] + rng.uniform(-half_x, half_x),
    )
    spot = draw_spot(rng, at, rng.uniform(18, 38))
    rim = np.clip(spot - ndimage.gaussian_filter(spot, 6), 0, 1)
    weight = (np.clip(0.55 * spot + 1.2 * rim, 0, 1))[:, :, None]
    tint = np.array([0.78, 0.58, 0.34], np.float32)
    return product.with_surface(product.surface * (1 - weight + weight * tint))


DEFECTS = {
    "missing_print": missing_print,
    "smear": smear,
    "torn_corner": torn_corner,
    "stain": stain,
}


def _print_label(rng: np.random.Generator) -> Image.Image:
    label = Image.new("RGBA", (WIDTH, HEIGHT), (*PAPER, 0))
    ink = ImageDraw.Draw(label)
    ink.rounded_rectangle((1, 1, WIDTH - 2, HEIGHT - 2), 12, fill=(*PAPER, 255))
    ink.rounded_rectangle((24, 22, 120, 98), 10, fill=GREEN)
    ink.polygon([(72, 32), (104, 88), (40, 88)], fill=PAPER)
    ink.ellipse((60, 58, 84, 82), fill=GREEN)
    ink.text((134, 16), "NORDHAVN", font=ImageFont.load_default(44), fill=INK)
    ink.text((135, 68), "bearing grease NLGI 2", font=ImageFont.load_default(22), fill=INK)
    ink.line((24, 112, WIDTH - 24, 112), fill=GREEN, width=4)
    small = ImageFont.load_default(19)
    for line, text in enumerate(("keep dry and below 40 °C", "for plain and roller bearings")):
        ink.text((26, 122 + 26 * line), text, font=small, fill=INK)
    ink.text((268, 196), "400 g", font=ImageFont.load_default(38), fill=INK)
    ink.text((268, 248), f"LOT {rng.integers(1000, 9999)}", font=small, fill=INK)
    bars = np.random.default_rng(7).integers(1, 4, 80)  # the same bar code on every label
    x = 26
    for index, width in enumerate(bars):
        if x + 2 * width > 250:
            break
        if index % 2 == 0:
            ink.rectangle((x, 196, x + 2 * int(width) - 1, 274), fill=INK)
        x += 2 * int(width)
    return label


def _place(label: Image.Image, turn: float, centre: tuple[float, float]) -> Plane:
    cos, sin = np.cos(turn), np.sin(turn)
    y, x = centre
    back = (
        cos, sin, WIDTH / 2 - cos * x - sin * y,
        -sin, cos, HEIGHT / 2 + sin * x - cos * y,
    )  # fmt: skip
    canvas = label.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC
    )
    return (np.asarray(canvas) / 255).astype(np.float32)


def _label_coordinates(product: Product) -> tuple[Plane, Plane]:
    y, x = make_grid()
    dy, dx = y - product.centre[0], x - product.centre[1]
    cos, sin = np.cos(product.turn), np.sin(product.turn)
    return HEIGHT / 2 - sin * dx + cos * dy, WIDTH / 2 + cos * dx + sin * dy


def _draw_carton(rng: np.random.Generator) -> Plane:
    _, x = make_grid()
    flutes = 0.015 * np.sin(x * 2 * np.pi / 22 + rng.uniform(0, 6))
    fibres = 0.025 * draw_cloud(rng, (256, 60)) + 0.02 * draw_cloud(rng, 12)
    value = 0.55 + flutes + fibres + rng.normal(0, 0.015)
    carton: Plane = (value[:, :, None] * np.array([1.0, 0.79, 0.56])).astype(np.float32)
    return carton
