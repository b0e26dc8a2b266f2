"""`synthesize`: a bank of synthetic anomalies from normal training images, and a contact sheet."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onenip.data.cache import Cache
from onenip.data.loading import ResizedImages, count_cores
from onenip.data.manifest import load_manifest
from onenip.data.outputs import OUTPUTS
from onenip.detector.zoom import choose_zooms
from onenip.errors import DataError
from onenip.folders import replace_folder
from onenip.params import Params
from onenip.synthesis import bank as synthetic_bank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SynthesizeResult:
    """The number of stored anomalies, and the file of the contact sheet."""

    count: int
    contact_sheet: Path


def run(params: Params, *, data_dir: Path, manifest: Path, out_dir: Path) -> SynthesizeResult:
    """Write the bank of synthetic anomalies, for calibration and for people to look at.

    Training draws new ones in every step with the same `Synthesizer`.
    """
    samples = [s for s in load_manifest(manifest, data_dir) if s.subset in ("fit", "calibration")]
    if not samples:
        raise DataError(f"{manifest}: no normal training images", path=manifest)
    show = sys.stderr.isatty()
    zooms = choose_zooms(samples, params.model)
    sizes = {name: params.model.zoomed_size(zoom) for name, zoom in zooms.items()}
    cache = Cache(out_dir.parent / OUTPUTS.cache.name, max_gib=params.cache.max_gib)
    images = ResizedImages(samples, sizes, cache)
    chosen = synthetic_bank.choose_normals(samples)
    made_from = ResizedImages([samples[i] for i in chosen], sizes, cache)
    made_from.prepare(workers=count_cores(), progress=show)
    entries = synthetic_bank.draw_entries(
        params.synthesize, images, chosen, seed=params.seed, progress=show
    )
    with replace_folder(out_dir) as draft:
        synthetic_bank.write(draft, entries)
        bank = synthetic_bank.read(draft)
        sheet = Image.fromarray(synthetic_bank.draw_contact_sheet(bank, made_from))
        sheet.save(draft / "contact_sheet.png")
    cache.prune()
    log.info("%d synthetic anomalies of %d normal images in %s", len(bank), len(chosen), out_dir)
    return SynthesizeResult(len(bank), out_dir / "contact_sheet.png")
