"""`onenip try`: a first answer without training or a workspace."""

import shutil

from typer.testing import CliRunner

from onenip.cli import app


def test_a_first_look_needs_images_alone(tiny_data, tmp_path, monkeypatch, caplog):
    """Counts of the category that has both kinds of images, a picture of each test image, nothing else."""
    monkeypatch.chdir(tmp_path)
    for label, count in (("train/good", 4), ("test/good", 1), ("test/spot", 1)):
        for path in sorted((tiny_data / "disc" / label).iterdir())[:count]:
            (tmp_path / "images/disc" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "images/disc" / label)
    shutil.copytree(tiny_data / "stripes/train", tmp_path / "images/stripes/train")
    for label in ("train/good", "test/good"):
        (tmp_path / "images/disc" / label / "damaged.png").write_bytes(b"no image")

    result = CliRunner().invoke(app, ["try", "images"], catch_exceptions=False)

    assert result.exit_code == 0
    assert "0 of 1" in next(line for line in result.output.splitlines() if " disc " in line)
    assert "without test images: stripes" in caplog.text
    assert caplog.text.count("damaged.png") == 2  # one among each kind, which stops no other
    pictures = sorted(
        p.relative_to(tmp_path / "onenip-try") for p in tmp_path.rglob("onenip-try/**/*.png")
    )
    assert [p.parts[2] for p in pictures] == ["good", "spot"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "onenip-try"]
