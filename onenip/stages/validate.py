"""`validate`: every image measured and judged, before anything is trained on it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from onenip.data import dvc
from onenip.data.manifest import DATA_DIR
from onenip.data.validation import ValidationResult, validate
from onenip.errors import DataError
from onenip.params import Params

log = logging.getLogger(__name__)


def run(params: Params, *, data_dir: Path, out_dir: Path) -> ValidationResult:
    """Write the manifest, the quarantine, the summary and the Data Docs.

    Args:
        params: of which the sections `data` and `validate` matter.
        data_dir: folder in MVTec layout; only read.
        out_dir: replaced as a whole; untouched on an error.

    Raises:
        DataError: if DVC laid out damaged files, no image is usable, or a rule of severity `error` broke.
    """
    damaged = dvc.find_damaged() if data_dir == DATA_DIR else {}
    if damaged:
        name, kept = next(iter(damaged.items()))
        raise DataError(
            f"{data_dir / name}: it came from a damaged file of DVC's cache, as {len(damaged)} in all; "
            f"delete both it and {kept}, then run `dvc pull`",
            path=data_dir / name,
        )
    result = validate(
        data_dir,
        out_dir,
        data=params.data,
        params=params.validation,
        progress=sys.stderr.isatty(),
    )
    log.info(
        "%d of %d images usable, in %s",
        result.summary["usable"],
        result.summary["images"],
        result.manifest,
    )
    return result
