"""Arrays that are kept from run to run: the same again, made anew where damaged, bounded."""

import os

import numpy as np
import pytest

from onenip.data.cache import Cache


def fail():
    raise AssertionError("made again")


def keep(cache, key, value=0):
    return cache.get("kind", key, lambda: {"image": np.full(1024, value, np.uint8)})["image"]


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_was_made_is_not_made_again(tmp_path, on_disk):
    """The first asker makes it, the next gets the same bits; another key is another entry."""
    cache = Cache(tmp_path if on_disk else None)
    first = keep(cache, "aa1", 7)

    assert (cache.get("kind", "aa1", fail)["image"] == first).all()
    assert keep(cache, "aa2", 8)[0] == 8
    assert cache.made == {"kind": 2}


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda _: b"", lambda b: b"x" + b[1:]])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    """A file that was cut off, emptied or overwritten is not trusted."""
    first = keep(Cache(tmp_path), "aa", 7)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))

    assert (keep(Cache(tmp_path), "aa", 7) == first).all()
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_what_was_used_longest_ago_is_deleted(tmp_path):
    """The folder is as large as it may be at most; what a run used counts as new."""
    for age, key in enumerate(["d", "c", "b", "a"]):
        keep(Cache(tmp_path), key)
        (file,) = tmp_path.rglob(f"{key}.safetensors")
        os.utime(file, (0, 10_000 - 4000 * age))
    Cache(tmp_path).get("kind", "a", fail)
    Cache(tmp_path, max_gib=2.5 * file.stat().st_size / 2**30).prune()

    assert {path.stem for path in tmp_path.rglob("*.safetensors")} == {"a", "d"}


def test_a_run_does_not_outgrow_the_limit(tmp_path):
    """Old entries go while new ones come, not only between runs."""
    cache = Cache(tmp_path, max_gib=20_000 / 2**30)
    for number in range(100):
        keep(cache, str(number))

    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 25_000
