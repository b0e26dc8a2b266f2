"""Validation finds what was planted, says which file and why, and leaves good data alone."""

import csv
import json
import re
import shutil
from html import escape

import numpy as np
import pytest
from PIL import Image, ImageFilter

from onenip.data.manifest import MANIFEST_COLUMNS, load_manifest
from onenip.data.validation import validate
from onenip.data.validation.frames import NEAR_LEVEL, find_alike
from onenip.errors import DataError, ParamsError
from onenip.params import DataParams, ValidateParams
from tests.tiny import draw_tiny_data


def run(data_dir, out_dir, **params):
    return validate(
        data_dir, out_dir, data=DataParams(), params=ValidateParams(**params), workers=1
    )


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_noise_image(path, seed, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(60, 190, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def data(tiny_data, tmp_path):
    return shutil.copytree(tiny_data, tmp_path / "data")


def plant_faults(root):
    """Break files of the tiny set; returns {path: rule} of what must be found."""
    train, good = root / "disc/train/good", root / "disc/test/good"
    spot, masks = root / "disc/test/spot", root / "disc/ground_truth/spot"
    (train / "text.png").write_text("not an image")
    (train / "empty.jpg").write_bytes(b"")
    add_noise_image(train / "cut off.png", 1)
    whole = (train / "cut off.png").read_bytes()
    (train / "cut off.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), "red").save(train / "pixel.png")
    Image.new("RGB", (64, 64), "black").save(train / "black.png")
    Image.new("RGB", (64, 64), "white").save(train / "white.png")
    Image.new("RGB", (64, 64), (90, 120, 100)).save(train / "constant ü.png")
    noise = np.random.default_rng(0).integers(20, 28, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(train / "covered.png")
    Image.new("L", (12000, 9000)).save(train / "huge.png")
    add_noise_image(root / "disc/train/scratch/000.png", 2)
    shutil.copy(good / "000.png", train / "leak.png")
    shutil.copy(train / "000.png", train / "twin.png")
    Image.new("L", (32, 32), 255).save(masks / "000_mask.png")
    Image.new("L", (64, 64)).save(masks / "001_mask.png")
    (masks / "002_mask.png").unlink()
    inverted = np.full((64, 64), 255, np.uint8)
    inverted[20:30, 20:30] = 0
    add_noise_image(spot / "010.png", 3)
    Image.fromarray(inverted).save(masks / "010_mask.png")
    Image.new("L", (64, 64), 255).save(masks / "099_mask.png")
    (root / "disc/ground_truth/good").mkdir()
    Image.new("L", (64, 64), 255).save(root / "disc/ground_truth/good/001_mask.png")
    Image.open(train / "001.png").save(root / "x.jpg", "JPEG", quality=95)
    (root / "x.jpg").rename(train / "jpeg.png")
    add_noise_image(root / "x.png", 5)
    Image.open(root / "x.png").convert("CMYK").save(train / "for print.jpg")
    (root / "x.png").unlink()
    (root / "disc/notes.txt").write_text("hello")
    (root / "hollow/train/good").mkdir(parents=True)
    add_noise_image(root / "only tests/test/good/000.png", 4)
    return {
        "disc/train/good/text.png": "readable",
        "disc/train/good/empty.jpg": "readable",
        "disc/train/good/cut off.png": "readable",
        "disc/train/good/huge.png": "readable",
        "disc/train/good/pixel.png": "large_enough",
        "disc/train/good/black.png": "not_black_or_white",
        "disc/train/good/white.png": "not_black_or_white",
        "disc/train/good/constant ü.png": "not_constant",
        "disc/train/good/covered.png": "not_constant",
        "disc/train/scratch/000.png": "no_defect_in_train",
        "disc/train/good/leak.png": "no_leak",
        "disc/train/good/twin.png": "no_duplicate_in_train",
        "disc/test/spot/000.png": "mask_usable",
        "disc/test/spot/001.png": "mask_not_empty",
        "disc/test/spot/002.png": "mask_present",
        "disc/test/spot/010.png": "mask_plausible",
        "disc/ground_truth/spot/099_mask.png": "no_stray_file",
        "disc/test/good/001.png": "good_without_mask",
        "disc/train/good/jpeg.png": "suffix_tells_format",
        "disc/train/good/for print.jpg": "known_mode",
        "disc/notes.txt": "no_stray_file",
        "hollow": "has_training_images",
        "only tests/test/good/000.png": "has_training_images",
    }


WARNINGS = {"mask_present", "mask_plausible", "no_stray_file", "suffix_tells_format", "known_mode"}


def test_every_planted_fault_is_reported(data, tmp_path):
    """Faults of every kind are each found under their rule, with a reason, and nothing else is lost."""
    planted = plant_faults(data)
    result = run(data, tmp_path / "out")
    found = {(b.path, b.rule): b for b in result.breaches}
    listed = {
        (r["file"], r["rule"]): r["reason"] for r in read_rows(tmp_path / "out/quarantine.csv")
    }
    lost = {r["path"] for r in read_rows(result.manifest) if r["status"] != "ok"}

    for path, rule in planted.items():
        assert found[path, rule].reason
        assert (rule in WARNINGS) or listed[path, rule]
    expected = {p for p, rule in planted.items() if rule not in WARNINGS and (data / p).is_file()}
    assert lost == expected
    for path in expected:
        assert (tmp_path / "out/quarantine" / path).is_file()


def test_a_defect_with_a_mask_may_lie_beside_the_training_images(data, tmp_path):
    """It is a confirmed defect to learn from: no normal image, no test image, and not in quarantine."""
    (data / "disc/train/spot").mkdir()
    (data / "disc/test/spot/000.png").rename(data / "disc/train/spot/000.png")

    result = run(data, tmp_path / "out")

    rows = {r["path"]: r for r in read_rows(result.manifest)}
    row = rows["disc/train/spot/000.png"]
    assert (row["status"], row["subset"]) == ("ok", "defect")
    assert row["mask"] == "disc/ground_truth/spot/000_mask.png"
    assert result.summary["categories"]["disc"]["defect"] == 1
    assert {b.rule for b in result.breaches} == set()


def test_good_data_passes_whole(tiny_data, tmp_path):
    """The tiny set has nothing in quarantine; its manifest has every image, sorted, with its subset."""
    result = run(tiny_data, tmp_path / "out")
    rows = read_rows(result.manifest)

    assert tuple(rows[0]) == MANIFEST_COLUMNS
    assert [r["path"] for r in rows] == sorted(r["path"] for r in rows)
    assert len(rows) == result.summary["usable"] == len(list(tiny_data.glob("*/t*/*/*.png")))
    assert {r["subset"] for r in rows if r["split"] == "test"} == {"test"}
    assert {r["subset"] for r in rows if r["split"] == "train"} <= {"fit", "calibration"}
    assert len(load_manifest(result.manifest, tiny_data)) == len(rows)
    assert read_rows(tmp_path / "out/quarantine.csv") == []
    assert (tmp_path / "out/data_docs/index.html").is_file()


def test_same_data_same_bytes(data, tmp_path):
    """Manifest, quarantine and summary are the same bytes each time, with one process or two."""
    plant_faults(data)
    run(data, tmp_path / "a")
    validate(data, tmp_path / "b", data=DataParams(), params=ValidateParams(), workers=2)

    for name in ("manifest.csv", "quarantine.csv", "summary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_adding_images_moves_none(data, tmp_path):
    """An image stays in its subset when others arrive."""
    before = read_rows(run(data, tmp_path / "out").manifest)
    for index in range(10):
        add_noise_image(data / f"disc/train/good/9{index}.png", index)
    after = {r["path"]: r["subset"] for r in read_rows(run(data, tmp_path / "out").manifest)}

    assert all(after[row["path"]] == row["subset"] for row in before)


def test_unusual_and_near_duplicate_images_are_warned_of(data, tmp_path):
    """Brighter, larger, blurred and re-encoded images, and a small category, are reported and still used."""
    train = data / "disc/train/good"
    Image.open(train / "000.png").save(train / "again.webp", quality=98)
    bright = np.asarray(Image.open(train / "001.png")).astype(int) // 2 + 127
    Image.fromarray(bright.astype(np.uint8)).save(train / "bright.png")
    Image.open(train / "002.png").resize((400, 200)).save(train / "wide.png")
    blurred = Image.open(train / "003.png").filter(ImageFilter.GaussianBlur(4))
    blurred.save(train / "blurred.png")
    add_noise_image(data / "few/train/good/000.png", 8)
    result = run(data, tmp_path / "out")
    found = {(b.path.split("/")[-1], b.rule) for b in result.breaches}
    assert all(b.reason for b in result.breaches)

    assert ("bright.png", "usual_brightness") in found
    assert {("wide.png", "usual_size"), ("wide.png", "usual_aspect")} <= found
    assert ("blurred.png", "usual_sharpness") in found
    assert {("few", "enough_training_images"), ("few", "has_tests")} <= found
    assert any(rule == "no_near_duplicate" for _, rule in found)
    assert result.summary["usable"] == result.summary["images"]


def test_images_alike_are_those_that_a_comparison_of_all_finds():
    """However many are compared at once: each image gets the first after it, in the order of paths."""
    rng, count, bits = np.random.default_rng(0), 1500, 4
    hashes = rng.integers(2**63, size=40, dtype=np.uint64)[rng.integers(40, size=count)]
    hashes ^= np.uint64(1) << rng.integers(64, size=count, dtype=np.uint64)
    tone = rng.uniform(0.4, 0.42, (count, 2))
    files = rng.integers(1200, size=count)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= bits
    near &= (np.abs(tone[:, None] - tone) < NEAR_LEVEL).all(axis=2)
    near &= (files[:, None] != files) & (np.arange(count) > np.arange(count)[:, None])
    first = np.where(near.any(axis=1), near.argmax(axis=1), count)

    assert 100 < (first < count).sum() < count
    np.testing.assert_array_equal(find_alike(hashes, tone, files, bits), first)


def test_error_keeps_the_previous_manifest(data, tmp_path):
    """A rule made an error stops with file and reason, and what was there stays."""
    manifest = run(data, tmp_path / "out").manifest
    before = manifest.read_bytes()
    shutil.copy(data / "disc/test/good/000.png", data / "disc/train/good/leak.png")

    with pytest.raises(DataError, match=r"leak\.png: no_leak: same bytes as the test image"):
        run(data, tmp_path / "out", severities={"no_leak": "error"})
    assert manifest.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


def test_a_kill_in_the_swap_loses_no_output(data, tmp_path):
    """Outputs that a killed run had set aside come back, even when the next run stops on an error."""
    manifest = run(data, tmp_path / "out").manifest
    before = manifest.read_bytes()
    (tmp_path / "out").rename(tmp_path / ".out.previous")
    shutil.copy(data / "disc/test/good/000.png", data / "disc/train/good/leak.png")

    with pytest.raises(DataError, match="no_leak"):
        run(data, tmp_path / "out", severities={"no_leak": "error"})
    assert manifest.read_bytes() == before
    (tmp_path / ".out.previous").mkdir()
    run(data, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


def test_names_of_files_are_text_in_every_page(data, tmp_path):
    """A file named like a script is quarantined under its own name, and runs in no page."""
    name = "<img src=x onerror=alert(1)>&.png"
    (data / "disc/train/good" / name).write_text("no image")

    result = run(data, tmp_path / "out")

    assert any(breach.path == f"disc/train/good/{name}" for breach in result.breaches)
    for page in (tmp_path / "out/data_docs").rglob("*.html"):
        assert "<img src=x" not in page.read_text(encoding="utf-8")
    index = (tmp_path / "out/data_docs/index.html").read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;.png" in index


def test_data_docs_need_no_network(data, tmp_path):
    """No page of the Data Docs loads anything from elsewhere; index and results name what is broken."""
    shutil.copy(data / "disc/test/good/000.png", data / "disc/train/good/leak.png")
    run(data, tmp_path / "out")
    docs = tmp_path / "out/data_docs"
    pages = {page: page.read_text(encoding="utf-8") for page in docs.rglob("*.html")}
    (result,) = (docs / "validations/files").rglob("*.html")

    for text in pages.values():
        assert "<style>" in text
        assert not re.search(r'<(script|link|img(?! alt="" src="data:))\b|url\(|@import', text)
    index = pages[docs / "index.html"]
    for link in re.findall(r'href="([^"]+)"', index):
        assert (docs / link).is_file()
    assert result.relative_to(docs).as_posix() in index
    assert "disc/train/good/leak.png" in pages[result]


def test_a_quality_engineer_reads_what_is_wrong(data, tmp_path):
    """Each problem once, the gravest first, in plain words, with its files, a picture and what to do."""
    plant_faults(data)
    result = run(data, tmp_path / "out")
    index = (tmp_path / "out/data_docs/index.html").read_text(encoding="utf-8")

    titles = [problem.rule.title for problem in result.problems]
    assert titles == re.findall(r"<strong>([^<]*)</strong><br>", index)
    assert len(set(titles)) == len(titles)
    assert all(escape(problem.rule.remedy) in index for problem in result.problems)
    severities = [problem.rule.severity for problem in result.problems]
    assert severities == sorted(severities)  # quarantine, warning
    assert all(escape(breach.path) in index for breach in result.breaches)
    (unreadable,) = [one for one in result.problems if one.rule.name == "readable"]
    assert unreadable.places == "disc: 4"
    lost = {one.path for one in result.breaches if one.severity == "quarantine"}
    assert not [one for one in result.breaches if one.severity == "warning" and one.path in lost]
    assert "data:image/jpeg;base64," in index
    assert "robust" not in index


def test_rules_can_be_switched_off(data, tmp_path):
    """A rule that is off is neither judged nor listed."""
    shutil.copy(data / "disc/train/good/000.png", data / "disc/train/good/twin.png")
    result = run(data, tmp_path / "out", severities={"no_duplicate_in_train": "off"})

    assert "no_duplicate_in_train" not in result.summary["rules"]
    assert result.summary["usable"] == result.summary["images"]


def test_unknown_rule_is_refused(data, tmp_path):
    """A misspelt rule is an error that names the rules there are."""
    with pytest.raises(
        ParamsError, match=r"severities\.no_leaks: no such rule; there are .*no_leak"
    ):
        run(data, tmp_path / "out", severities={"no_leaks": "error"})


def test_summary_counts(tiny_data, tmp_path):
    """The summary counts images per category and subset, and names every rule."""
    run(tiny_data, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))

    assert set(summary["categories"]) == {"disc", "stripes"}
    assert sum(summary["categories"]["disc"].values()) * 2 == summary["images"]
    assert summary["rules"]["no_leak"] == {"severity": "quarantine", "breaches": 0}


@pytest.mark.parametrize("kind", ["missing", "empty", "all broken"])
def test_nothing_usable_is_an_error(tmp_path, kind):
    """No folder, no images or only broken ones: one line that names where and why."""
    root = tmp_path / "data"
    if kind != "missing":
        (root / "disc/train/good").mkdir(parents=True)
    if kind == "all broken":
        (root / "disc/train/good/a.png").write_bytes(b"x")
    reason = {
        "missing": "no such folder",
        "empty": "no images",
        "all broken": r"a\.png: not an image",
    }

    with pytest.raises(DataError, match=reason[kind]):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_permission_to_write(tiny_data, tmp_path):
    """An output place that cannot be written is one line, not a traceback."""
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DataError, match="cannot be written"):
        run(tiny_data, tmp_path / "file/out")


def test_a_person_leaves_out_training_images(tmp_path):
    """Excluded images stay in the data set and out of the manifest; what matches none, or a test, is told."""
    data = draw_tiny_data(tmp_path / "data")
    names = ["disc/train/good/000.png", "stripes/train/good/00[12].png"]

    result = run(data, tmp_path / "out", excluded=names)

    rows = read_rows(tmp_path / "out/quarantine.csv")
    assert [row["file"] for row in rows if row["rule"] == "not_excluded"] == [
        "disc/train/good/000.png",
        "stripes/train/good/001.png",
        "stripes/train/good/002.png",
    ]
    used = {sample.name for sample in load_manifest(result.manifest, data)}
    assert used.isdisjoint(row["file"] for row in rows)
    for nothing in ("disc/train/good/99.png", "disc/test/good/*"):
        with pytest.raises(ParamsError, match="no training image matches"):
            run(data, tmp_path / "out", excluded=[nothing])
