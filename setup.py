"""Dependencies: `tool.onenip.base`, and in a checkout those of `serve` and `full` too: docs/adr/0007."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from setuptools import setup

settings = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))
base = settings["tool"]["onenip"]["base"]
extras = settings["project"]["optional-dependencies"]
full = [line for line in extras["serve"] + extras["full"] if not line.startswith("onenip[")]
setup(install_requires=base + full if os.environ.get("ONENIP_IS_CHECKOUT") else base)
