import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onenip.data.manifest import (
    GOOD,
    MANIFEST_COLUMNS,
    Sample,
    assign_subset,
    list_categories,
    load_manifest,
    select,
)
from onenip.errors import DataError


def write_manifest(path, *rows):
    lines = [",".join(MANIFEST_COLUMNS)]
    for name, subset, label, mask, status in rows:
        values = dict.fromkeys(MANIFEST_COLUMNS, "") | {
            "path": name,
            "category": name.split("/")[0],
            "label": label,
            "subset": subset,
            "mask": mask,
            "status": status,
        }
        lines.append(",".join(values.values()))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_manifest_gives_usable_samples_only(tmp_path):
    """Quarantined rows are left out; paths are under the data root; an empty mask is None."""
    path = write_manifest(
        tmp_path / "manifest.csv",
        ("nut/test/bent/ä 1.png", "test", "bent", "nut/ground_truth/bent/ä 1_mask.png", "ok"),
        ("nut/train/good/0.png", "fit", GOOD, "", "ok"),
        ("nut/train/good/1.png", "fit", GOOD, "", "quarantined"),
    )

    bent, plain = load_manifest(path, tmp_path / "data")

    assert bent.is_defective
    assert bent.mask == tmp_path / "data/nut/ground_truth/bent/ä 1_mask.png"
    assert (plain.is_defective, plain.mask, plain.name) == (False, None, "nut/train/good/0.png")


def test_missing_or_foreign_manifest_is_refused(tmp_path):
    """No manifest, and one with other columns, are told apart."""
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")

    with pytest.raises(DataError, match="run `onenip validate` first"):
        load_manifest(tmp_path / "none.csv", tmp_path)
    with pytest.raises(DataError, match="not a manifest of this version"):
        load_manifest(tmp_path / "other.csv", tmp_path)


def test_subsets_have_their_shares():
    """Over many contents, subsets come near their fractions."""
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    count = Counter(
        assign_subset(d, calibration_fraction=0.2, holdout_fraction=0.1) for d in digests
    )

    assert abs(count["calibration"] / 4000 - 0.2) < 0.03
    assert abs(count["holdout"] / 4000 - 0.1) < 0.03


@given(st.binary(max_size=20), st.floats(0, 0.4), st.floats(0, 0.4))
def test_holdout_fraction_moves_nothing_into_calibration(content, calibration, holdout):
    """Asking for a held-out part takes images from `fit` alone."""
    digest = hashlib.sha256(content).hexdigest()
    without = assign_subset(digest, calibration_fraction=calibration, holdout_fraction=0.0)
    with_it = assign_subset(digest, calibration_fraction=calibration, holdout_fraction=holdout)

    assert with_it == without or (without, with_it) == ("fit", "holdout")


def test_select_and_list(tmp_path):
    """Selecting narrows by category and subset and keeps the order."""
    samples = [
        Sample(tmp_path, name, name[0], GOOD, subset, None, "")
        for name, subset in (("b1", "fit"), ("a1", "test"), ("a2", "fit"))
    ]

    assert list_categories(samples) == ["a", "b"]
    assert [s.name for s in select(samples, category="a")] == ["a1", "a2"]
    assert [s.name for s in select(samples, subset="fit")] == ["b1", "a2"]
