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
        reason: sentence with the value as `{value}`.
        limits: bounds (min, max), the allowed values, or None where the column should be null.
    """

    name: str
    severity: Severity
    column: str
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
    usual = (-params.max_deviation, params.max_deviation)
    rules = [
        Rule("not_excluded", "quarantine", "excluded"),
        Rule("readable", "quarantine", "problem"),
        Rule("large_enough", "quarantine", "short_side", "shortest side is {value:.0f} px",
             (params.min_side_px, None)),
        Rule("not_black_or_white", "quarantine", "brightness",
             "nearly black or white: mean grey {value:.4f}", params.brightness_range),
        Rule("not_constant", "quarantine", "contrast",
             "nearly constant: contrast {value:.5f}", (params.min_contrast, None)),
        Rule("no_defect_in_train", "quarantine", "defect_in_train"),
        Rule("mask_usable", "quarantine", "mask_problem"),
        Rule("mask_not_empty", "quarantine", "empty_mask"),
        Rule("good_without_mask", "quarantine", "good_mask"),
        Rule("no_leak", "quarantine", "leak"),
        Rule("no_duplicate_in_train", "quarantine", "duplicate_in_train"),
        Rule("no_duplicate_in_test", "warning", "duplicate_in_test"),
        Rule("no_near_duplicate", "warning", "near_duplicate"),
        Rule("mask_present", "warning", "missing_mask"),
        Rule("mask_plausible", "warning", "mask_doubt"),
        Rule("mask_of_one_class", "warning", "mask_classes"),
        Rule("known_mode", "warning", "mode", "unusual colour mode {value}", KNOWN_MODES),
        Rule("suffix_tells_format", "warning", "wrong_suffix"),
        Rule("usual_size", "warning", "area_deviation",
             "area is {value:+.1f} robust deviations off", usual),
        Rule("usual_aspect", "warning", "aspect_deviation",
             "aspect is {value:+.1f} robust deviations off", usual),
        Rule("usual_brightness", "warning", "brightness_deviation",
             "brightness is {value:+.1f} robust deviations off", usual),
        Rule("usual_sharpness", "warning", "sharpness_deviation",
             "sharpness is {value:+.1f} robust deviations off", usual),
        Rule("no_stray_file", "warning", "stray"),
    ]  # fmt: skip
    return _override(rules, params)


def category_rules(params: ValidateParams) -> list[Rule]:
    """Rules about whole categories."""
    rules = [
        Rule("has_training_images", "quarantine", "train_images",
             "no usable normal training image", (1, None)),
        Rule("enough_training_images", "warning", "train_images",
             "only {value:.0f} normal training images", (params.min_train_images, None)),
        Rule("has_tests", "warning", "test_images", "no usable test image", (1, None)),
        Rule("tests_have_normals", "warning", "test_doubt"),
        Rule("samples_declared", "warning", "range_doubt"),
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
