import os

import numpy as np
import pytest

from onenip.data.labels import GOOD
from onenip.data.loading import load_resized
from onenip.data.manifest import Sample
from onenip.errors import ImageError
from onenip.images import hash_file, load_image, resize_image


def list_samples(root, category="disc"):
    return [
        Sample(p, p.relative_to(root).as_posix(), category, GOOD, "fit", None, hash_file(p))
        for p in sorted((root / category / "train/good").iterdir())
    ]


def load(samples, cache_dir=None, size=(32, 40)):
    return load_resized(samples, size, cache_dir=cache_dir, workers=3, progress=False)


def test_same_pixels_as_one_by_one(tiny_data):
    """Loading many in parallel gives what loading each alone gives, in order."""
    samples = list_samples(tiny_data)
    images = load(samples)

    for sample, image in zip(samples, images, strict=True):
        assert (image == resize_image(load_image(sample.path), (32, 40))).all()


def test_cache_gives_the_same_without_the_files(tiny_data, tmp_path):
    """A second load comes from the cache, bit-equal, and another size does not."""
    samples = list_samples(tiny_data)
    first = load(samples, tmp_path)
    moved = [
        Sample(tmp_path / "gone", s.name, s.category, GOOD, "fit", None, s.sha256) for s in samples
    ]

    assert (load(moved, tmp_path) == first).all()
    with pytest.raises(ImageError, match="no such file"):
        load(moved, tmp_path, size=(16, 16))


def test_damaged_cache_is_rebuilt(tiny_data, tmp_path):
    """A cut-off, an empty and a foreign cache file are decoded anew."""
    samples = list_samples(tiny_data)
    first = load(samples, tmp_path)
    files = sorted(tmp_path.rglob("*.npy"))
    files[0].write_bytes(files[0].read_bytes()[:200])
    files[1].write_bytes(b"")
    np.save(files[2], np.zeros(3))

    assert (load(samples, tmp_path) == first).all()
    assert not list(tmp_path.rglob("*.partial*"))


def test_old_folders_of_the_cache_are_deleted(tiny_data, tmp_path):
    """Of the folders of other sizes and older code, those used last are kept, and today's."""
    for age, name in enumerate(["newest", "newer", "new", "late", "later", "old", "older"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, -age))
    load(list_samples(tiny_data), tmp_path)

    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 6
    assert kept > {"newest", "newer", "new", "late", "later"}


def test_nothing_to_load(tmp_path):
    """No samples give an empty array of the right shape."""
    assert load([], tmp_path).shape == (0, 32, 40, 3)
