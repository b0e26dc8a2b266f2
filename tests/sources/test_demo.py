import hashlib

import numpy as np
import pytest
from PIL import Image

from onenip.sources.demo import CATEGORIES, TEST_DEFECTIVE, TEST_GOOD, TRAIN, draw_demo
from onenip.sources.demo.scene import VISIBLE_LEVELS, Camera, photograph_defect
from onenip.sources.layout import arrange


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    draw_demo(folder)
    return folder


def test_its_layout_is_taken_as_it_is(demo):
    """No name in it is taken for another thing, though one of its products is called label."""
    names = {
        path.relative_to(demo).as_posix()
        for path in demo.rglob("*.*")
        if "/" in str(path.parent.relative_to(demo))
    }

    assert {place.target for place in arrange(names, name="demo", origin="demo")} == names


def test_layout_is_complete(demo):
    """Every category has its normal and defective images, and a mask for each defective one."""
    for category in CATEGORIES:
        root = demo / category
        tests = list((root / "test").rglob("*.png"))
        masks = list((root / "ground_truth").rglob("*_mask.png"))

        assert len(list((root / "train/good").iterdir())) == TRAIN
        assert len(tests) == TEST_GOOD + TEST_DEFECTIVE
        assert len(masks) == TEST_DEFECTIVE


def test_masks_are_binary_and_small(demo):
    """A mask is 0/255, as large as its image, not empty and far from everything."""
    for path in demo.rglob("*_mask.png"):
        mask = np.asarray(Image.open(path))

        assert set(np.unique(mask)) == {0, 255}
        assert 0 < (mask > 0).mean() < 0.2


def test_same_seed_same_pixels():
    """A category drawn twice from one seed is bit-equal, and differs from another seed's."""

    def digest(seed):
        rng = np.random.default_rng(seed)
        product = CATEGORIES["gear"][0](rng)
        return hashlib.sha256(Camera.draw(rng).photograph(product).tobytes()).hexdigest()

    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize(
    ("category", "defect"), [(c, d) for c in CATEGORIES for d in CATEGORIES[c][1]]
)
def test_mask_is_exactly_what_changed(category, defect):
    """Outside the mask the photo equals the normal one bit for bit; inside it visibly differs."""
    rng = np.random.default_rng(3)
    draw, defects = CATEGORIES[category]
    product, camera = draw(rng), Camera.draw(rng)
    normal = camera.photograph(product)

    photo, mask = photograph_defect(camera, product, defects[defect](product, rng))

    change = np.abs(photo.astype(int) - normal).max(axis=2)
    assert mask.any()
    assert (change[~mask] == 0).all()
    assert (change[mask] >= VISIBLE_LEVELS).all()
