"""Images at model size: the pixels of one by one, from the cache the second time."""

import pytest

from onenip.data.cache import Cache
from onenip.data.labels import GOOD
from onenip.data.loading import ResizedImages
from onenip.data.manifest import Sample
from onenip.errors import ImageError
from onenip.images import hash_file, load_image, resize_image


def list_samples(root, category="disc"):
    return [
        Sample(p, p.relative_to(root).as_posix(), category, GOOD, "fit", None, hash_file(p))
        for p in sorted((root / category / "train/good").iterdir())
    ]


def load(samples, folder=None, size=(32, 40)):
    images = ResizedImages(samples, {"disc": size}, Cache(folder))
    images.prepare(workers=3, progress=False)
    return images


def test_same_pixels_as_one_by_one(tiny_data):
    """Loading many in parallel gives what loading each alone gives, in order."""
    samples = list_samples(tiny_data)
    images = load(samples)

    assert len(images) == len(samples) > 0
    for sample, image in zip(samples, images, strict=True):
        assert (image == resize_image(load_image(sample.path), (32, 40))).all()


def test_cache_gives_the_same_without_the_files(tiny_data, tmp_path):
    """A second load comes from the cache, bit-equal, and another size does not."""
    samples = list_samples(tiny_data)
    first = load(samples, tmp_path)
    moved = [
        Sample(tmp_path / "gone", s.name, s.category, GOOD, "fit", None, s.sha256) for s in samples
    ]

    for ours, theirs in zip(load(moved, tmp_path), first, strict=True):
        assert (ours == theirs).all()
    with pytest.raises(ImageError, match="no such file"):
        load(moved, tmp_path, size=(16, 16))
