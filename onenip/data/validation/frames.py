"""The tables that rules judge: measurements, and what follows from comparing files with one another."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from onenip.data.labels import GOOD, hints_at
from onenip.data.validation.measuring import Row
from onenip.errors import ParamsError

TEXT_COLUMNS = (
    "path", "category", "split", "label", "mask", "mode", "sha256", "phash", "problem", "stray", "excluded",
    "wrong_suffix", "mask_problem", "defect_in_train", "empty_mask", "good_mask", "leak",
    "duplicate_in_train", "duplicate_in_test", "near_duplicate", "missing_mask",
    "mask_doubt", "mask_classes", "sample_range",
    "size_doubt", "aspect_doubt", "brightness_doubt", "sharpness_doubt",
)  # fmt: skip
NUMBER_COLUMNS = (
    "width", "height", "bytes", "short_side", "brightness", "contrast", "sharpness",
    "mask_coverage",
)  # fmt: skip
_REPEATED = ("category", "split", "label", "mode", "sample_range")  # their text is kept once
_PART = 10_000  # rows that are made a table at once: as a table they take a fraction of the memory
MIN_USUAL = 5  # images of a category that a usual range needs
NEAR_LEVEL = 0.003  # brightness and contrast of near-duplicates differ by less
_ROWS, _COLUMNS = 512, 8192  # images that are compared at once


def make_file_frame(
    rows: Iterable[Row], *, near_duplicate_bits: int, max_deviation: float, excluded: Sequence[str]
) -> pd.DataFrame:
    """A row per file, sorted by path, with every column that the rules judge.

    Raises:
        ParamsError: if a pattern of `excluded` matches no training image.
    """
    remaining, parts = iter(rows), []
    while part := list(islice(remaining, _PART)):
        parts.append(_make_part(part))
    frame = pd.concat(parts).sort_values("path", ignore_index=True)
    _exclude(frame, excluded)
    _compare_labels(frame)
    _compare_with_usual(frame, max_deviation)
    _find_duplicates(frame)
    _find_near_duplicates(frame, near_duplicate_bits)
    return frame


def _make_part(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*TEXT_COLUMNS, *NUMBER_COLUMNS])
    for column in TEXT_COLUMNS:
        frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    for column in _REPEATED:
        frame[column] = [value and sys.intern(value) for value in frame[column]]
    for column in NUMBER_COLUMNS:
        frame[column] = pd.to_numeric(frame[column]).astype(float)
    return frame


def _exclude(frame: pd.DataFrame, patterns: Sequence[str]) -> None:
    """Mark the training images that a person leaves out; tests are not theirs to thin."""
    names = frame.loc[frame["split"].eq("train"), "path"]
    for pattern in patterns:
        matched = names[[name == pattern or fnmatchcase(name, pattern) for name in names]]
        if matched.empty:
            raise ParamsError(
                f"validate.excluded: no training image matches {pattern!r}", key="validate.excluded"
            )
        frame.loc[matched.index, "excluded"] = f"left out by validate.excluded: {pattern}"


def make_category_frame(
    names: Sequence[str], usable: pd.DataFrame, range_doubts: Mapping[str, str]
) -> pd.DataFrame:
    """A row per category: its usable images for training and tests, and what is doubtful about it.

    Args:
        names: of the categories.
        usable: rows of usable files.
        range_doubts: by category, what is to be known about the range of its samples.
    """
    rows = []
    for name in names:
        part = usable[usable["category"] == name]
        tests = part[part["split"] == "test"]
        good = int(tests["label"].eq(GOOD).sum())
        doubt = None
        if good == 0 and len(tests):
            labels = ", ".join(sorted(set(tests["label"])))
            doubt = f"its tests hold no normal image: {len(tests)} are called {labels}"
        elif named := sorted(
            {one for one in tests["label"] if one != GOOD and hints_at(one) == "normal"}
        ):
            doubt = (
                f"{', '.join(named)} counts as a kind of defect; normal images lie in test/good/"
            )
        rows.append(
            {
                "path": name,
                "train_images": int((part["split"].eq("train") & part["label"].eq(GOOD)).sum()),
                "test_images": len(tests),
                "test_doubt": doubt,
                "range_doubt": range_doubts.get(name),
            }
        )
    doubts = ["test_doubt", "range_doubt"]
    frame = pd.DataFrame(rows, columns=["path", "train_images", "test_images", *doubts])
    for column in doubts:
        frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    return frame


def _compare_labels(frame: pd.DataFrame) -> None:
    defective = frame["label"].fillna(GOOD).ne(GOOD)
    train, test = frame["split"].eq("train"), frame["split"].eq("test")
    has_mask = frame["mask"].fillna("").ne("")
    covered = frame["mask_coverage"].fillna(0) > 0
    frame.loc[train & defective & ~has_mask, "defect_in_train"] = (
        "defective image under train/, without a mask to learn from"
    )
    empty = defective & frame["mask_coverage"].eq(0)
    frame.loc[empty, "empty_mask"] = "label is a defect, but its mask is empty"
    frame.loc[test & ~defective & has_mask & covered, "good_mask"] = (
        "label is good, but its mask is not empty"
    )
    frame.loc[test & defective & ~has_mask, "missing_mask"] = (
        "no mask: counts for image metrics only"
    )


def _compare_with_usual(frame: pd.DataFrame, max_deviation: float) -> None:
    """Name what is unlike its category's training normals by so many robust standard deviations."""
    measures = {  # name: (values, least spread, whether defective images are compared too, sentence)
        "size": (np.log(frame["width"] * frame["height"]), 0.1, True,
                 "{width:.0f}x{height:.0f} px, {ratio:.0%} of the usual area"),
        "aspect": (np.log(frame["width"] / frame["height"]), 0.05, True,
                   "{width:.0f}x{height:.0f} px, {ratio:.2f} times as wide as usual for its height"),
        "brightness": (frame["brightness"], 0.01, False,
                       "its mean is {value:.0%} of white; usual are {low:.0%} to {high:.0%}"),
        "sharpness": (np.log(frame["sharpness"] + 1e-7), 0.1, False,
                      "its details have {ratio:.0%} of the usual contrast"),
    }  # fmt: skip
    good = frame["label"].eq(GOOD)
    for _, part in frame[frame["width"].notna()].groupby("category"):
        usual = part.index[part["split"].eq("train") & part["label"].eq(GOOD)]
        if len(usual) < MIN_USUAL:
            continue
        for name, (values, least, with_defects, sentence) in measures.items():
            rows = part.index if with_defects else part.index[good[part.index]]
            median = values[usual].median()
            reach = max_deviation * max(1.4826 * (values[usual] - median).abs().median(), least)
            for row in rows[(values[rows] - median).abs() > reach]:
                frame.loc[row, f"{name}_doubt"] = sentence.format(
                    width=frame.loc[row, "width"],
                    height=frame.loc[row, "height"],
                    value=values[row],
                    ratio=np.exp((values[row] - median) / (2 if name == "sharpness" else 1)),
                    low=max(median - reach, 0),
                    high=min(median + reach, 1),
                )


def _find_duplicates(frame: pd.DataFrame) -> None:
    readable = frame[frame["width"].notna()]
    for _, same in readable[readable.duplicated("sha256", keep=False)].groupby("sha256"):
        train, test = same[same["split"].eq("train")], same[same["split"].eq("test")]
        if len(test):
            frame.loc[train.index, "leak"] = f"same bytes as the test image {test['path'].iloc[0]}"
        elif len(train):
            frame.loc[train.index[1:], "duplicate_in_train"] = (
                f"same bytes as {train['path'].iloc[0]}"
            )
        if len(test):
            frame.loc[test.index[1:], "duplicate_in_test"] = f"same bytes as {test['path'].iloc[0]}"


def _find_near_duplicates(frame: pd.DataFrame, bits: int) -> None:
    readable = frame[frame["phash"].notna()]
    for _, part in readable.groupby("category"):
        others = find_alike(
            np.array([int(text, 16) for text in part["phash"]], np.uint64),
            part[["brightness", "contrast"]].to_numpy(),
            pd.factorize(part["sha256"])[0],
            bits,
        )
        has_other = others < len(part)
        names = part["path"].to_numpy()[others[has_other]]
        frame.loc[part.index[has_other], "near_duplicate"] = [
            f"nearly the same picture as {name}" for name in names
        ]


def find_alike(
    hashes: NDArray[np.uint64],
    tone: NDArray[np.float64],
    files: NDArray[np.intp],
    bits: int,
) -> NDArray[np.intp]:
    """For each of N images the first after it that looks like it, and is another file; N if none does.

    Only images of nearly its brightness are compared with it, so many at a time.
    """
    count = len(hashes)
    found = np.full(count, count)
    order = np.argsort(tone[:, 0], kind="stable")
    levels = tone[order, 0]
    for start in range(0, count, _ROWS):
        rows = order[start : start + _ROWS, None]
        low, high = levels[start] - NEAR_LEVEL, levels[start + len(rows) - 1] + NEAR_LEVEL
        first, last = np.searchsorted(levels, low), np.searchsorted(levels, high, "right")
        for left in range(first, last, _COLUMNS):
            columns = order[None, left : min(left + _COLUMNS, last)]
            near = np.bitwise_count(hashes[rows] ^ hashes[columns]) <= bits
            near &= columns > rows
            for values in tone.T:
                near &= np.abs(values[rows] - values[columns]) < NEAR_LEVEL
            near &= files[rows] != files[columns]
            best = np.where(near, columns, count).min(axis=1)
            found[rows[:, 0]] = np.minimum(found[rows[:, 0]], best)
    return found
