"""Build backend: setuptools, with all dependencies for an editable install.

An editable install is a checkout, where the pipeline runs: it needs everything. A built distribution is
light, so that `onenip[edge]` runs exported files without torch; the rest is its extra `full`: docs/adr/0007.
"""

from __future__ import annotations

import os

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  # every other hook as it is

_KEY = "ONENIP_IS_CHECKOUT"  # read by setup.py, which setuptools runs in this very process


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: dict[str, str] | None = None
) -> str:
    """Metadata of a checkout."""
    os.environ[_KEY] = "1"
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, str] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Editable wheel of a checkout."""
    os.environ[_KEY] = "1"
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
