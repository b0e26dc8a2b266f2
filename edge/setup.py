"""Packages the few modules of ../onenip that run exported files; everything else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).resolve().parent.parent / "onenip"
MODULES = {
    "onenip": {
        "__init__",
        "__main__",
        "edge",
        "errors",
        "images",
        "predicting",
        "prediction",
        "regions",
        "version",
    },
    "onenip.cli": {"__init__", "predict"},
}


class SelectModules(build_py):
    """Takes only the modules that run exported files."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """(package, module, file) of each module that is wanted."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] in MODULES[package]]


def read_version() -> str:
    """Version of the package that the modules come from."""
    text = (SOURCE / "version.py").read_text(encoding="utf-8")
    return re.findall(r'__version__ = "([^"]+)"', text)[0]


setup(
    version=read_version(),
    packages=sorted(MODULES),
    package_dir={"onenip": "../onenip"},
    include_package_data=False,
    cmdclass={"build_py": SelectModules},
)
