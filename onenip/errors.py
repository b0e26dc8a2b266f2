"""Every error that onenip raises on purpose.

OneNIPError
├── ParamsError(ValueError)     params missing, malformed or contradictory
├── DataError                   image, mask or manifest not as promised
│   ├── ImageError              one image file cannot be used
│   │   ├── ForeignImageError       it shows no product that has a model
│   │   └── RangeError              its samples are beyond their range, or have none that is known
│   └── UnknownCategoryError    no such category
├── SourceError                 a data source could not be read, or is unsafe
│   └── ArrivalError                one object of the inbox could not be; its neighbours can
├── CheckpointError             model or checkpoint missing, foreign, damaged, or made by other params
├── DivergedError               a loss or a feature stopped being finite
├── RegistryError               the model registry refused, or does not hold what was asked for
├── UnreachableError            a server is down or broke off: trying again may help
│   ├── SourceUnreachableError      (also a SourceError)
│   └── RegistryUnreachableError    (also a RegistryError)
├── VersioningError             DVC or Git refused
│   └── RemoteError                 (also an UnreachableError) a remote of DVC or Git did
├── StageError                  a pipeline stage exited non-zero
└── BusyError                   another command holds this checkout

The command line prints one of these as one line and exits with status 2; anything else is a bug and
keeps its traceback:

    try:
        ...
    except OneNIPError as error:
        ...
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class OneNIPError(Exception):
    """Base of all errors that a user can act on."""


class ParamsError(OneNIPError, ValueError):
    """Params are missing, malformed or contradict one another.

    Args:
        message: what is wrong, naming the key.
        key: the dotted key, such as `train.epochs`.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class DataError(OneNIPError):
    """An image set, mask or manifest is not as promised.

    Args:
        message: what is wrong, naming the file.
        path: the offending file or folder, if there is one.
    """

    def __init__(self, message: str, *, path: Path | str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ImageError(DataError):
    """One image file cannot be used; `reason` says why in a few words."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}", path=path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path | str, str]]:
        return type(self), (self.path or "", self.reason)  # it crosses processes


class ForeignImageError(ImageError):
    """An image looks like no category that has a champion; `reason` says like which."""


class RangeError(ImageError):
    """Samples of an image are beyond their category's range, or none is known; `reason` says what to do."""


class UnknownCategoryError(DataError):
    """There is no such category; the message names the closest one and all that there are.

    Args:
        name: the unknown one.
        known: names of all categories.
        kind: of the categories, such as "served".
    """

    def __init__(self, name: str, known: Iterable[str], *, kind: str = "known") -> None:
        names = sorted(known)
        folded = {other.casefold(): other for other in names}
        close = difflib.get_close_matches(name.casefold(), folded, n=1)
        hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
        listed = ", ".join(names) or "none"
        super().__init__(f"unknown category {name!r}; {kind} categories: {listed}{hint}")


class SourceError(OneNIPError):
    """A data source could not be read completely, or holds something unsafe."""


class CheckpointError(OneNIPError):
    """A model or checkpoint is missing, damaged, foreign, or made by other params."""


class DeviceError(OneNIPError):
    """This machine has no such device."""


class DivergedError(OneNIPError):
    """A loss or a feature stopped being finite; the last good checkpoint was kept."""


class RegistryError(OneNIPError):
    """The model registry refused, or does not hold what was asked for."""


class UnreachableError(OneNIPError):
    """A server is down, broke off, or answered with a fault of its own: trying again may help."""


class ArrivalError(SourceError):
    """One object of the inbox cannot be read, judged or moved now; its neighbours can."""


class SourceUnreachableError(SourceError, UnreachableError):
    """The server of a data source is down or broke off; what came so far is kept."""


class RegistryUnreachableError(RegistryError, UnreachableError):
    """The model registry's server is down or broke off."""


class VersioningError(OneNIPError):
    """DVC or Git refused; the message ends with what they printed."""


class RemoteError(VersioningError, UnreachableError):
    """A remote of DVC or Git did not take or give what it was asked for; it may be down."""


class StageError(OneNIPError):
    """A pipeline stage exited non-zero."""


class BusyError(OneNIPError):
    """Another command is at work in this checkout."""
