"""What a run was made with: machine, interpreter, packages, source code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onenip.version import __version__

_PACKAGE = Path(__file__).parents[1]
_NOTABLE = ("torch", "timm", "numpy", "mlflow")


def describe_environment() -> dict[str, str]:
    """Short facts for tags: versions of onenip, Python and the packages that decide numbers."""
    facts = {
        "onenip.version": __version__,
        "onenip.python": platform.python_version(),
        "onenip.platform": platform.platform(),
        "onenip.host": platform.node(),
        "onenip.accelerator": _accelerator(),
    }
    return facts | {f"onenip.{name}": importlib.metadata.version(name) for name in _NOTABLE}


def list_packages() -> str:
    """Every installed package with its version, one a line, as pip would take it."""
    installed = {
        (dist.metadata["Name"] or "").lower(): dist.version
        for dist in importlib.metadata.distributions()
    }
    return "".join(f"{name}=={version}\n" for name, version in sorted(installed.items()) if name)


def hash_code() -> str:
    """sha256 over the sources of the package, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Nested params as dotted keys and text: {"a": {"b": 3}} gives {"a.b": "3"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, prefix=f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def _accelerator() -> str:
    """Name of the GPU if torch was imported and sees one; torch is not imported for this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "cpu"
    return str(torch.cuda.get_device_name(0))
