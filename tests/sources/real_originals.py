"""Archives in the exact layout of public data sets, from real images where they are at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onenip.images import load_image, load_mask
from tests.paths import SHARED
from tests.sources.originals import encode, pack_tar, pack_zip

IMAGES = SHARED / "data"
TRAIN, TEST, TEXTURES = 9, 2, 4  # images taken of a kind


def _pick(category: str, folder: str, count: int) -> list[Path]:
    return sorted((IMAGES / "inspection" / category / folder).iterdir())[:count]


def _image(path: Path, kind: str) -> bytes:
    return encode(load_image(path), kind)


def _defects(category: str) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Label, image and mask 0/1 of defective images."""
    root = IMAGES / "inspection" / category
    for folder in sorted((root / "test").iterdir()):
        if folder.name == "good":
            continue
        for image in _pick(category, f"test/{folder.name}", TEST):
            mask = load_mask(root / "ground_truth" / folder.name / f"{image.stem}_mask.png")
            yield folder.name, image, mask.astype(np.uint8)


def mvtec() -> bytes:
    """mvtec_anomaly_detection.tar.xz with the category bottle, as PNG."""
    files = {"readme.txt": b"MVTec", "license.txt": b"CC", "bottle/readme.txt": b"x"}
    for split, count in (("train", TRAIN), ("test", TEST)):
        for i, image in enumerate(_pick("bottle", f"{split}/good", count)):
            files[f"bottle/{split}/good/{i:03}.png"] = _image(image, "png")
    for label, image, mask in _defects("bottle"):
        files[f"bottle/test/{label}/{image.stem}.png"] = _image(image, "png")
        files[f"bottle/ground_truth/{label}/{image.stem}_mask.png"] = encode(mask * 255, "png")
    return pack_tar(files, "xz")


def visa() -> bytes:
    """VisA_20220922.tar with cashew and pcb1; masks have the values 0 and 1."""
    rows, files = ["object,split,label,image,mask"], {}
    for name, category in (("cashew", "cookie"), ("pcb1", "pcb")):
        normals = [("train", p) for p in _pick(category, "train/good", TRAIN)]
        normals += [("test", p) for p in _pick(category, "test/good", TEST)]
        for i, (split, image) in enumerate(normals):
            target = f"{name}/Data/Images/Normal/{i:03}.JPG"
            files[target] = image.read_bytes()
            rows.append(f"{name},{split},normal,{target},")
        for i, (_, image, mask) in enumerate(_defects(category)):
            target, truth = (f"{name}/Data/{part}/Anomaly/{i:03}" for part in ("Images", "Masks"))
            files |= {f"{target}.JPG": image.read_bytes(), f"{truth}.png": encode(mask, "png")}
            rows.append(f"{name},test,anomaly,{target}.JPG,{truth}.png")
        files[f"{name}/image_anno.csv"] = b"image,label,mask\n"
    files["split_csv/1cls.csv"] = "\n".join(rows).encode() + b"\n"
    return pack_tar(files)


def btad() -> bytes:
    """btad.zip: ok and ko, images as BMP or PNG, masks as PNG or BMP."""
    files = {}
    kinds = (
        ("cookie", "bmp", "png"),
        ("ball_screw", "png", "png"),
        ("magnetic_tile", "bmp", "bmp"),
    )
    for number, (category, kind, truth) in enumerate(kinds, 1):
        root = f"BTech_Dataset_transformed/{number:02}"
        for split, count in (("train", TRAIN), ("test", TEST)):
            for i, image in enumerate(_pick(category, f"{split}/good", count)):
                files[f"{root}/{split}/ok/{i:04}.{kind}"] = _image(image, kind)
        for i, (_, image, mask) in enumerate(_defects(category)):
            files[f"{root}/test/ko/{i:04}.{kind}"] = _image(image, kind)
            files[f"{root}/ground_truth/ko/{i:04}.{truth}"] = encode(mask * 255, truth)
    return pack_zip(files)


def magnetic_tile() -> bytes:
    """GitHub's zip: image and mask side by side; MT_Free comes without defects."""
    root, files = "Magnetic-tile-defect-datasets.-master", {}
    for i, image in enumerate(_pick("magnetic_tile", "train/good", 4 * TRAIN)):
        files[f"{root}/MT_Free/Imgs/exp1_num_{i}.jpg"] = image.read_bytes()
        height, width = load_image(image).shape[:2]
        blank = np.zeros((height, width), np.uint8)
        files[f"{root}/MT_Free/Imgs/exp1_num_{i}.png"] = encode(blank, "png")
    for label, image, mask in _defects("magnetic_tile"):
        target = f"{root}/MT_{label.capitalize()}/Imgs/exp2_num_{image.stem}"
        files |= {f"{target}.jpg": image.read_bytes(), f"{target}.png": encode(mask * 255, "png")}
    return pack_zip(files)


def dtd() -> bytes:
    """dtd-r1.0.1.tar.gz: textures by class, with labels beside."""
    files = {"dtd/imdb/imdb.mat": b"x", "dtd/labels/train1.txt": b"banded/banded_0002.jpg\n"}
    for image in sorted((IMAGES / "textures").iterdir())[:: 12 // TEXTURES]:
        texture, _, name = image.name.partition("_")
        files[f"dtd/images/{texture}/{name}"] = image.read_bytes()
    return pack_tar(files, "gz")


REAL_ORIGINALS = {
    "mvtec": mvtec,
    "visa": visa,
    "btad": btad,
    "magnetic-tile": magnetic_tile,
    "dtd": dtd,
}
