"""How many synthetic anomalies a core draws a second, for each kind.

    python -m benchmarks.synthesis [--images 200]

One thread, images of the demo set at 224 x 224. A drawing is all that training asks of it: telling the
foreground, drawing, checking, and drawing again where nothing would be seen. Times are processor time, so
that other work on a shared machine hardly counts.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Spread, choose_clock, print_heading
from onenip.images import resize_image
from onenip.params import SynthesizeParams
from onenip.sources.demo import CATEGORIES, TRAIN
from onenip.sources.demo.scene import Camera
from onenip.synthesis.anomalies import KINDS, Synthesizer
from onenip.synthesis.textures import load_textures

SIZE = (224, 224)
_WARMUP = 5


def load_normals(count: int = TRAIN) -> dict[str, list[NDArray[np.uint8]]]:
    """The first normal images of the demo set, [224, 224, 3] uint8, so many for each category."""
    normals = {}
    for number, (name, (draw, _)) in enumerate(CATEGORIES.items()):
        generators = [np.random.default_rng([0, number, index]) for index in range(count)]
        products = [(draw(rng), Camera.draw(rng)) for rng in generators]
        photos = (camera.photograph(product) for product, camera in products)
        normals[name] = [resize_image(photo, SIZE) for photo in photos]
    return normals


def measure(
    params: SynthesizeParams,
    textures: list[NDArray[np.uint8]],
    normals: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    count: int,
) -> list[float]:
    """Seconds of each drawing; `normals` are images with a donor of their category each."""
    synthesizer = Synthesizer(params, textures=textures)
    rng, clock, seconds = np.random.default_rng(0), choose_clock(1), []
    for number in range(count + _WARMUP):
        image, donor = normals[number % len(normals)]
        started_at = clock()
        synthesizer.draw(image, rng, donors=[donor])
        seconds.append(clock() - started_at)
    return seconds[_WARMUP:]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="drawings of each kind")
    options = parser.parse_args()
    print_heading("benchmarks.synthesis", threads=1, packages=["numpy", "scipy", "pillow"])
    textures = load_textures(None, size=SIZE, rng=np.random.default_rng(0))
    pairs = [
        (image, images[number - 1])
        for images in load_normals().values()
        for number, image in enumerate(images)
    ]
    shares = {kind: SynthesizeParams(kinds={kind: 1.0}) for kind in KINDS}
    print("| kind | ms, median | 10-90 % | a second, median |")
    print("|---|---|---|---|")
    for name, params in (shares | {"all, as in the preset `cpu`": SynthesizeParams()}).items():
        spread = Spread.of(measure(params, textures, pairs, count=options.images))
        print(f"| {name} | {spread.show(scale=1e3, digits=2)} | {1 / spread.median:.0f} |")


if __name__ == "__main__":
    main()
