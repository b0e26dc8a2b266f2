"""`validate`: every image measured and judged, before anything is trained on it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from onenip.data.validation import ValidationResult, validate
from onenip.params import Params

log = logging.getLogger(__name__)


def run(params: Params, *, data_dir: Path, out_dir: Path) -> ValidationResult:
    """Write the manifest, the quarantine, the summary and the Data Docs.

    Args:
        params: of which the sections `data` and `validate` matter.
        data_dir: folder in MVTec layout; only read.
        out_dir: replaced as a whole; untouched on an error.

    Raises:
        DataError: if nothing usable is left, or a rule of severity `error` is broken.
    """
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
