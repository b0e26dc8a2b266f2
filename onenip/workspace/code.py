"""Code and libraries of each stage as they are installed, so that an update makes anew what it changes."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onenip.version import __version__

STAGES = ("validate", "synthesize", "train", "evaluate")

_ROOT = Path(__file__).parents[2]
# what these say about a run changes nothing in what the stage writes
_ASIDE = ("onenip.registry", "onenip.data.dvc", "onenip.data.git", "onenip.cli", "onenip.stages")
_NEUTRAL = {"onenip", "pydantic", "ruamel.yaml", "ruamel.yaml.clib", "tqdm"}  # decide no number
_VERSION = _ROOT / "onenip/version.py"  # changes with each release, and nothing else


@functools.cache
def describe_code() -> dict[str, Any]:
    """Content of `onenip.yaml`: the version, and for each stage a digest of its code and its libraries."""
    distributions = importlib.metadata.packages_distributions()
    described: dict[str, Any] = {"version": __version__}
    for stage in STAGES:
        digest = hashlib.sha256()
        libraries = set()
        modules = list_modules(stage)
        for path in sorted({*modules, *_list_data(modules)} - {_VERSION}):
            digest.update(path.relative_to(_ROOT).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for path in modules:
            tops = {
                name.partition(".")[0] for name in _list_imports(path)
            } - sys.stdlib_module_names
            libraries |= {d for top in tops for d in distributions.get(top, ())}
        described[stage] = {
            "code": digest.hexdigest()[:16],
            "libraries": {
                name: importlib.metadata.version(name).partition("+")[0]  # one for CPU and GPU
                for name in sorted(libraries - _NEUTRAL)
            },
        }
    return described


def list_modules(stage: str) -> set[Path]:
    """Modules that a stage's code consists of: its own, and what they import, one after another."""
    waiting, seen = [_ROOT / f"onenip/stages/{stage}.py"], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or path == _ROOT / "onenip/__init__.py":
            continue
        seen.add(path)
        for name in _list_imports(path):
            is_ours = name.startswith("onenip")
            if is_ours and not any(f"{name}.".startswith(f"{aside}.") for aside in _ASIDE):
                waiting += _find_module(name)
    return seen


def _list_data(modules: set[Path]) -> Iterator[Path]:
    """Files beside the modules that are no code: templates, style sheets."""
    for folder in {path.parent for path in modules}:
        yield from (
            p for p in folder.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc", ".typed")
        )


def _list_imports(path: Path) -> Iterator[str]:
    """Names that a module imports; `from a import b` gives both a and a.b, since b may be a module."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find_module(name: str) -> list[Path]:
    path = _ROOT.joinpath(*name.split("."))
    return [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()][:1]
