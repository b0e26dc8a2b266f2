"""Tiny archives in the exact layout of public data sets."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image


def picture(number: int, kind: str = "png", *, grey: bool = False) -> bytes:
    """Bytes of an image that no other number has."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (16, 20) if grey else (16, 20, 3), dtype=np.uint8)
    return encode(pixels, kind)


def mask(value: int = 255, kind: str = "png") -> bytes:
    """Bytes of a mask whose defect, a rectangle of 12 px, has this value."""
    pixels = np.zeros((16, 20), np.uint8)
    pixels[2:5, 4:8] = value
    return encode(pixels, kind)


def encode(pixels: np.ndarray, kind: str) -> bytes:
    """Bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(kind.lower(), kind.upper()))
    return buffer.getvalue()


def pack_zip(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, body in files.items():
            packed.writestr(name, body)
    return buffer.getvalue()


def pack_tar(files: dict[str, bytes], compression: str = "") -> bytes:
    """A tar of these files; compression is xz, gz, bz2 or none."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as packed:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            packed.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def mvtec() -> bytes:
    """mvtec_anomaly_detection.tar.xz: categories at the top, beside readme and licence."""
    files = {"readme.txt": b"MVTec", "license.txt": b"CC"}
    for category in ("bottle", "zipper"):
        for i in range(3):
            files[f"{category}/train/good/{i:03}.png"] = picture(i + 10 * len(category))
        files[f"{category}/readme.txt"] = b"x"
        files[f"{category}/test/good/000.png"] = picture(4 + 10 * len(category))
        files[f"{category}/test/broken/000.png"] = picture(5 + 10 * len(category))
        files[f"{category}/ground_truth/broken/000_mask.png"] = mask()
    return pack_tar(files, "xz")


def visa() -> bytes:
    """VisA_20220922.tar: masks count from 1; the split is a table."""
    rows = ["object,split,label,image,mask"]
    files = {}
    for category in ("candle", "pcb1"):
        root = f"{category}/Data"
        for i, split in enumerate(("train", "train", "test")):
            name = f"{root}/Images/Normal/{i:04}.JPG"
            files[name] = picture(i + 100 * len(category), "jpg")
            rows.append(f"{category},{split},normal,{name},")
        image, truth = f"{root}/Images/Anomaly/000.JPG", f"{root}/Masks/Anomaly/000.png"
        files |= {image: picture(50 + len(category), "jpg"), truth: mask(1)}
        rows.append(f"{category},test,anomaly,{image},{truth}")
        files[f"{category}/image_anno.csv"] = b"image,label,mask\n"
    files["split_csv/1cls.csv"] = "\n".join(rows).encode() + b"\n"
    files["split_csv/2cls_highshot.csv"] = b"object,split,label,image,mask\n"
    return pack_tar(files)


def btad() -> bytes:
    """btad.zip: one folder around three categories, ok and ko, masks as PNG or BMP."""
    files = {}
    for number, (image, truth) in enumerate((("bmp", "png"), ("png", "png"), ("bmp", "bmp")), 1):
        root = f"BTech_Dataset_transformed/{number:02}"
        for i in range(2):
            files[f"{root}/train/ok/{i:04}.{image}"] = picture(300 + 10 * number + i, image)
        files[f"{root}/test/ok/0000.{image}"] = picture(305 + 10 * number, image)
        files[f"{root}/test/ko/0000.{image}"] = picture(306 + 10 * number, image)
        files[f"{root}/ground_truth/ko/0000.{truth}"] = mask(255, truth)
    return pack_zip(files)


def magnetic_tile() -> bytes:
    """GitHub's zip of Magnetic-tile-defect-datasets.: image and mask side by side."""
    root = "Magnetic-tile-defect-datasets.-master"
    files = {f"{root}/README.md": b"#", f"{root}/dataset.jpg": picture(1, "jpg")}
    for i in range(40):
        files[f"{root}/MT_Free/Imgs/exp1_num_{i}.jpg"] = picture(400 + i, "jpg", grey=True)
        files[f"{root}/MT_Free/Imgs/exp1_num_{i}.png"] = mask(0)
    for label in ("Blowhole", "Crack"):
        files[f"{root}/MT_{label}/Imgs/exp2_num_1.jpg"] = picture(len(label), "jpg", grey=True)
        files[f"{root}/MT_{label}/Imgs/exp2_num_1.png"] = mask()
    return pack_zip(files)


def dtd() -> bytes:
    """dtd-r1.0.1.tar.gz: textures by class, with labels beside."""
    files = {"dtd/imdb/imdb.mat": b"x", "dtd/labels/train1.txt": b"banded/banded_0002.jpg\n"}
    for texture in ("banded", "woven"):
        for i in range(2):
            name = f"dtd/images/{texture}/{texture}_{i:04}.jpg"
            files[name] = picture(500 + i + len(texture), "jpg")
    return pack_tar(files, "gz")


ORIGINALS = {
    "mvtec": mvtec,
    "visa": visa,
    "btad": btad,
    "magnetic-tile": magnetic_tile,
    "dtd": dtd,
}
