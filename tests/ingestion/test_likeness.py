"""Another product is noticed by a pretrained backbone where no model knows the category."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from onenip.images import load_image
from onenip.ingestion.likeness import Likeness
from tests.paths import SHARED
from tests.tiny import draw_normal


@pytest.fixture(scope="module")
def inspection():
    """Real categories; skips where they are not at hand."""
    folder = SHARED / "data/inspection"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def test_each_real_category_knows_its_own_images(inspection):
    """Every third normal image of a category is enough to separate its others from those of all others."""
    folders = sorted(path for path in inspection.iterdir() if path.is_dir())
    likeness = Likeness(lambda name: load_image(inspection / name))
    own = {
        folder.name: [load_image(path) for path in sorted((folder / "test/good").glob("*"))[:4]]
        for folder in folders
    }
    for folder in folders:
        found = sorted((folder / "train/good").glob("*"))[::3]
        names = [path.relative_to(inspection).as_posix() for path in found]
        held = {
            name: sum(likeness.is_foreign(folder.name, image, names) for image in images)
            for name, images in own.items()
        }
        assert held == {name: 0 if name == folder.name else 4 for name in own}


def test_other_light_is_not_another_product(inspection):
    """Parts that are photographed darker or brighter still look like themselves."""
    likeness = Likeness(lambda name: load_image(inspection / name))
    found = sorted((inspection / "bottle/train/good").glob("*"))
    names = [path.relative_to(inspection).as_posix() for path in found[:20]]
    for path in found[20:24]:
        image = load_image(path)
        for gain in (0.7, 1.3):
            other = (image * gain).clip(0, 255).astype(np.uint8)
            assert not likeness.is_foreign("bottle", other, names)


def test_a_damaged_image_and_too_few_images_say_nothing(tmp_path):
    """What cannot be read is left out; below five images everything may belong."""
    rng = np.random.default_rng(3)
    images = {f"disc/train/good/{i}.png": draw_normal("disc", rng) for i in range(5)}
    for name, image in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    likeness = Likeness(lambda name: load_image(tmp_path / name))
    stripes = draw_normal("stripes", rng)

    assert not likeness.is_foreign("disc", stripes, ["disc/train/good/gone.png", *list(images)[:4]])
    assert likeness.is_foreign("disc", stripes, list(images))
