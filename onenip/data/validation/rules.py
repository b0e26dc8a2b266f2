"""The rules that a data set must meet, to be read and extended.

A rule is an expectation of Great Expectations on one column of a table, a severity and a sentence. The
table of files has a row per file, the table of categories a row per category; a cell without a value is
not judged. To add a rule, add a column in `frames.py` if it needs one, and the rule here.

Severities: `error` stops the run; `quarantine` keeps the file out of every later stage; `warning` only
reports. `validate.severities` in the params overrides them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from great_expectations.expectations.core.expect_column_values_to_be_between import (
    ExpectColumnValuesToBeBetween,
)
from great_expectations.expectations.core.expect_column_values_to_be_in_set import (
    ExpectColumnValuesToBeInSet,
)
from great_expectations.expectations.core.expect_column_values_to_be_null import (
    ExpectColumnValuesToBeNull,
)

from onenip.errors import ParamsError
from onenip.params import ValidateParams

Severity = Literal["error", "quarantine", "warning", "off"]
KNOWN_MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N"]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: the word for it in params and reports.
        severity: what a breach does.
        column: the column that it judges; text in a column that should be null is the reason itself.
        title: what is wrong where it is broken, in a few words for people.
        remedy: what to do about it.
        reason: sentence with the value as `{value}`.
        limits: bounds (min, max), the allowed values, or None where the column should be null.
    """

    name: str
    severity: Severity
    column: str
    title: str
    remedy: str = ""
    reason: str = "{value}"
    limits: tuple[float | None, float | None] | list[str] | None = None

    def to_expectation(self) -> Any:
        """The expectation of Great Expectations."""
        meta = {"rule": self.name, "severity": self.severity}
        if self.limits is None:
            return ExpectColumnValuesToBeNull(column=self.column, meta=meta)
        if isinstance(self.limits, list):
            return ExpectColumnValuesToBeInSet(column=self.column, value_set=self.limits, meta=meta)
        low, high = self.limits
        return ExpectColumnValuesToBeBetween(
            column=self.column, min_value=low, max_value=high, meta=meta
        )


def file_rules(params: ValidateParams) -> list[Rule]:
    """Rules about single files, the gravest first."""
    rules = [
        Rule("not_excluded", "quarantine", "excluded", "left out by a person"),
        Rule("readable", "quarantine", "problem", "cannot be read",
             "save it anew, or take the photograph again"),
        Rule("large_enough", "quarantine", "short_side", "too small",
             "delete it, or lower validate.min_side_px",
             "its shortest side is {value:.0f} px", (params.min_side_px, None)),
        Rule("not_black_or_white", "quarantine", "brightness", "black or white",
             "delete it: was the light off, or the lens covered?",
             "its mean is {value:.1%} of white", params.brightness_range),
        Rule("not_constant", "quarantine", "contrast", "nothing to be seen",
             "delete it: was the lens covered?",
             "its grey levels differ by {value:.2%} of white", (params.min_contrast, None)),
        Rule("no_defect_in_train", "quarantine", "defect_in_train", "defective part among training images",
             "move it to test/, or draw a mask for training to learn from"),
        Rule("mask_usable", "quarantine", "mask_problem", "mask does not fit its image",
             "draw the mask anew, at the size of the image"),
        Rule("mask_not_empty", "quarantine", "empty_mask", "defect with an empty mask",
             "draw the defect, or delete the mask"),
        Rule("good_without_mask", "quarantine", "good_mask", "normal part with a mask of a defect",
             "delete the mask, or move the image to its kind of defect"),
        Rule("no_leak", "quarantine", "leak", "training image that is a test image, too",
             "delete one: a test on what was trained on shows nothing"),
        Rule("no_duplicate_in_train", "quarantine", "duplicate_in_train", "the same file twice in training",
             "delete one"),
        Rule("no_duplicate_in_test", "warning", "duplicate_in_test", "the same file twice in the tests",
             "delete one: it counts twice"),
        Rule("no_near_duplicate", "warning", "near_duplicate", "nearly the same picture twice",
             "delete one if they are two photographs of one part"),
        Rule("mask_present", "warning", "missing_mask", "defect without a mask",
             "draw masks where you want to know whether defects are found in the right place"),
        Rule("mask_plausible", "warning", "mask_doubt", "mask covers most of its image",
             "turn black and white of the mask round if so"),
        Rule("mask_of_one_class", "warning", "mask_classes", "mask of several kinds of defects",
             "nothing, if each of them is a defect"),
        Rule("known_mode", "warning", "mode", "unusual kind of colours",
             "save it as the camera's other images are", "its colours are stored as {value}", KNOWN_MODES),
        Rule("suffix_tells_format", "warning", "wrong_suffix", "name of another format",
             "rename it; it is read as what it is"),
        Rule("usual_size", "warning", "size_doubt", "unusual size",
             "look whether it is of the same camera, and uncropped"),
        Rule("usual_aspect", "warning", "aspect_doubt", "unusual proportions",
             "look whether it was turned or cropped"),
        Rule("usual_brightness", "warning", "brightness_doubt", "unusually dark or bright",
             "look at lighting and exposure"),
        Rule("usual_sharpness", "warning", "sharpness_doubt", "unusually blurred or sharp",
             "look at the focus"),
        Rule("no_stray_file", "warning", "stray", "file that is not used",
             "move it where it belongs, or delete it"),
    ]  # fmt: skip
    return _override(rules, params)


def category_rules(params: ValidateParams) -> list[Rule]:
    """Rules about whole categories."""
    rules = [
        Rule("has_training_images", "quarantine", "train_images", "no normal image to train on",
             "put images of normal parts into train/good/", "no usable normal training image", (1, None)),
        Rule("enough_training_images", "warning", "train_images", "few normal images",
             "add images of normal parts: thresholds rest on them",
             "only {value:.0f} normal training images", (params.min_train_images, None)),
        Rule("has_tests", "warning", "test_images", "no tests",
             "add images of normal and of defective parts to test/: nobody knows how good the model is",
             "no usable test image", (1, None)),
        Rule("tests_have_normals", "warning", "test_doubt", "tests without normal images",
             "add images of normal parts to test/good/, or else nobody knows the false alarms"),
        Rule("samples_declared", "warning", "range_doubt", "images of more than 8 bits",
             "see that the range is that of the camera"),
    ]  # fmt: skip
    return _override(rules, params)


def check_names(params: ValidateParams) -> None:
    """Refuse severities of rules that do not exist.

    Raises:
        ParamsError: naming the unknown rule.
    """
    plain = params.model_copy(update={"severities": {}})
    known = {rule.name for rule in [*file_rules(plain), *category_rules(plain)]}
    for name in params.severities:
        if name not in known:
            raise ParamsError(
                f"validate.severities.{name}: no such rule; there are {', '.join(sorted(known))}",
                key=f"validate.severities.{name}",
            )


def _override(rules: list[Rule], params: ValidateParams) -> list[Rule]:
    chosen = [
        replace(rule, severity=params.severities.get(rule.name, rule.severity)) for rule in rules
    ]
    return [rule for rule in chosen if rule.severity != "off"]
