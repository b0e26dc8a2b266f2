"""A figure is a number, or not defined for a reason that a person can read; never a silent 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

IMAGE_NAMES = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05")
VERDICT_NAMES = ("accuracy", "recall", "false_alarm_rate")
NAMES = (*IMAGE_NAMES, *PIXEL_NAMES, *VERDICT_NAMES)


@dataclass(frozen=True)
class Undefined:
    """A figure that these data cannot give; `reason` says why in a few words."""

    reason: str


Figure = float | Undefined


def mean_figure(figures: Mapping[str, Figure]) -> tuple[Figure, str]:
    """Mean over the categories in which a figure is defined.

    Args:
        figures: one figure per category.

    Returns:
        The mean, and a sentence that names the categories left out; empty if there are none.
    """
    defined = {name: value for name, value in figures.items() if not isinstance(value, Undefined)}
    missing = sorted(set(figures) - set(defined))
    if not defined:
        reason = "not defined for any category" if figures else "no categories"
        return Undefined(reason), reason
    if not missing:
        return fmean(defined.values()), ""
    note = f"mean over {len(defined)} of {len(figures)} categories; not defined for "
    return fmean(defined.values()), note + ", ".join(missing)
