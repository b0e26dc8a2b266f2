"""Public data sets by name: where they live, their terms, and how their layout becomes ours.

An address can be replaced, for a mirror, by `download.urls` in the params or by the environment, as in
ONENIP_URL_MAGNETIC_TILE. `#sha256=…` at its end replaces the pinned checksum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onenip.addresses import hide_secrets
from onenip.data.labels import GOOD
from onenip.errors import SourceError
from onenip.images import IMAGE_SUFFIXES, hash_file
from onenip.sources.folder import fetch_archive, place_folder
from onenip.sources.items import Fetched, Item, Origin, Workspace
from onenip.sources.layout import mask_target
from onenip.sources.manifest_files import convert_visa

Convert = Callable[[Path], list[Item]]

_TILE_TEST_FRACTION = 0.2  # of normal tiles; the original has no split of its own


@dataclass(frozen=True)
class Entry:
    """One public data set; `sha256` is "" where none is published, then the first download's counts."""

    name: str
    url: str
    sha256: str
    licence: str
    citation: str
    convert: Convert
    needs_consent: bool = False
    is_texture: bool = False
    sign: bool = True


@dataclass(frozen=True)
class CatalogSource:
    """A public data set."""

    entry: Entry
    url: str
    sha256: str
    has_consent: bool = False
    endpoint_url: str | None = None
    sign: bool = True

    @property
    def name(self) -> str:
        """What the user named."""
        return self.entry.name

    def fetch(self, workspace: Workspace) -> Fetched:
        """Fetch, check, unpack and convert the data set."""
        entry = self.entry
        if entry.needs_consent and not self.has_consent:
            raise SourceError(
                f"{entry.name}: its licence is {entry.licence}: no commercial use. "
                "If you may use it so, say --accept-license"
            )
        known, address = workspace.previous(entry.name), hide_secrets(self.url)
        done, folder = fetch_archive(
            workspace,
            self.url,
            source=entry.name,
            sha256=self.sha256,
            endpoint_url=self.endpoint_url,
            sign=self.sign and (entry.sign or self.url != entry.url),  # a mirror has its own rights
        )
        first = str(known.get("sha256", "")) if known.get("address") == address else ""
        sha256 = done.sha256 or first
        if not self.sha256 and first and sha256 != first:
            raise SourceError(
                f"{entry.name}: {address} is not the file of the first download any more: sha256 {sha256} "
                f"instead of {first}; if that is right, add #sha256={sha256} in download.urls"
            )
        items = workspace.reuse_all(entry.name) if folder is None else entry.convert(folder)
        origin = Origin(
            entry.name,
            address,
            entry.licence,
            entry.citation,
            sha256,
            bool(self.sha256),
            done.tag,
        )
        return Fetched(items or [], origin)


def convert_mvtec(folder: Path) -> list[Item]:
    """MVTec AD is the layout itself."""
    return place_folder(folder, name="mvtec", origin="mvtec")


def convert_btad(folder: Path) -> list[Item]:
    """BTAD: categories 01 to 03 become btad_01 to btad_03, ok becomes good, masks become PNG."""
    return [
        Item(f"btad_{item.target}", item.file, item.is_mask)
        for item in place_folder(folder, name="btad", origin="btad")
    ]


def convert_magnetic_tile(folder: Path) -> list[Item]:
    """Magnetic tiles: MT_Free is normal, a fifth of it, by content, for testing."""
    items = []
    for image in sorted(folder.rglob("MT_*/Imgs/*.jpg")):
        label = image.parent.parent.name.removeprefix("MT_").lower()
        if label == "free":
            is_test = int(hash_file(image)[:8], 16) / 16**8 < _TILE_TEST_FRACTION
            split = "test" if is_test else "train"
            items.append(Item(f"magnetic_tile/{split}/{GOOD}/{image.name}", image))
            continue
        items.append(Item(f"magnetic_tile/test/{label}/{image.name}", image))
        mask = image.with_suffix(".png")
        if mask.is_file():
            place = mask_target("magnetic_tile", label, image.stem)
            items.append(Item(place, mask, is_mask=True))
    if not items:
        raise SourceError("magnetic-tile: the archive lacks MT_*/Imgs/*.jpg")
    return items


def convert_dtd(folder: Path) -> list[Item]:
    """DTD: `<texture>/<image>`, to be a folder of textures, not of products."""
    items = [
        Item(f"{image.parent.name}/{image.name}", image)
        for image in sorted(folder.rglob("images/*/*"))
        if image.suffix.lower() in IMAGE_SUFFIXES and not image.name.startswith(".")
    ]
    if not items:
        raise SourceError("dtd: the archive lacks images/<texture>/<image>")
    return items


CATALOG = {
    entry.name: entry
    for entry in (
        Entry(
            "mvtec",
            "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
            "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
            "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            "CC BY-NC-SA 4.0",
            "Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 129, 2021",
            convert_mvtec,
            needs_consent=True,
        ),
        Entry(
            "visa",
            "s3://amazon-visual-anomaly/VisA_20220922.tar",
            "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            "CC BY 4.0",
            "Zou et al., SPot-the-Difference Self-Supervised Pre-training, ECCV 2022",
            convert_visa,
            sign=False,
        ),
        Entry(
            "btad",
            "https://avires.dimi.uniud.it/papers/btad/btad.zip",
            "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            "CC BY-NC-SA 4.0",
            "Mishra et al., VT-ADL, ISIE 2021",
            convert_btad,
        ),
        Entry(
            "dtd",
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            "for research",
            "Cimpoi et al., Describing Textures in the Wild, CVPR 2014",
            convert_dtd,
            is_texture=True,
        ),
        Entry(
            "magnetic-tile",
            "https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip",
            "",
            "for research, citation asked",
            "Huang et al., Surface Defect Saliency of Magnetic Tile, The Visual Computer 36, 2020",
            convert_magnetic_tile,
        ),
    )
}
