"""Presets by name: overlays over the defaults, and params written out with their explanations."""

from __future__ import annotations

import io
import re
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from onenip.errors import ParamsError
from onenip.folders import write_whole
from onenip.params import Params
from onenip.params.reading import read_yaml

_PAPER_SETS = {
    "mvtec": "MVTec AD (15 categories)",
    "visa": "VisA (12 categories)",
    "btad": "BTAD (3 categories)",
    "all": "MVTec AD, VisA and BTAD together (30 categories)",
}
_PAPER_SIZES = (224, 256, 320)  # px; the first is meant where a name gives none
_PLANT = (
    "download",
    "register",
    "gate",
    "retrain",
    "drift",
    "review",
    "notify",
)  # no preset sets them
_COMMENT_COLUMN = 40
_HEADER = "Every number that a person may turn. `onenip preset` lists ready-made sets of them."


def list_presets() -> dict[str, str]:
    """Names of all presets, with what each one is for."""
    presets = {}
    for file in sorted(_folder().iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0]
            presets[file.name.removesuffix(".yaml")] = first.removeprefix("# ")
    for data_set, title in _PAPER_SETS.items():
        presets[f"paper-{data_set}"] = f"The paper's model on {title}, at {_PAPER_SIZES[0]} px."
        for side in _PAPER_SIZES:
            presets[f"paper-{data_set}-{side}"] = f"The paper's model on {title}, at {side} px."
    return presets


def load_preset(name: str) -> Params:
    """Params of a preset: the defaults with its overlay, and its base's below that.

    Raises:
        ParamsError: if there is no such preset.
    """
    return Params.parse(merge(Params().dump(), _read_overlay(name)), origin=f"preset {name}")


def merge(values: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Params with those of an overlay on top, key by key in each section."""
    merged = dict(values)
    for key, value in overlay.items():
        is_section = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = {**merged[key], **value} if is_section else value
    return merged


def render(params: Params) -> str:
    """YAML text of params, each value with its description as a comment."""
    yaml = YAML()
    yaml.width = 1000
    document = _comment(params)
    document.yaml_set_start_comment(_HEADER)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def apply_preset(name: str, path: Path, *, force: bool = False) -> None:
    """Write a preset to a params file, which keeps its sections about the plant (inbox, webhook, gate, ...).

    Args:
        name: the preset.
        path: made if absent.
        force: replace the other sections even if somebody changed them.

    Raises:
        ParamsError: if there is no such preset, or the file has other values than any preset; it names them.
    """
    params = load_preset(name)
    if path.is_file():
        present = Params.load(path)
        kept = {section: present.dump()[section] for section in _PLANT}
        changed = _list_changes(present)
        if changed and not force:
            raise ParamsError(
                f"{path}: would lose {', '.join(changed)}; save them, or say --force",
                key=changed[0],
            )
        params = Params.parse({**params.dump(), **kept}, origin=str(path))
    with write_whole(path) as draft:
        draft.write_text(render(params), encoding="utf-8")


def _list_changes(params: Params) -> list[str]:
    """Keys, outside the plant's sections, by which params differ from the preset that they are nearest to."""
    ours = _flatten(params)
    presets = (_flatten(load_preset(name)) for name in list_presets())
    return min(([key for key in ours if ours[key] != preset[key]] for preset in presets), key=len)


def _flatten(params: Params) -> dict[str, Any]:
    return {
        f"{section}.{key}" if key else section: value
        for section, values in params.dump().items()
        if section not in _PLANT
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _folder() -> Any:
    return resources.files("onenip.params.presets")


def _read_overlay(name: str) -> dict[str, Any]:
    if name not in list_presets():
        known = ", ".join(list_presets())
        raise ParamsError(f"no preset {name!r}; there are {known}", key="preset")
    variant = re.fullmatch(r"paper-(mvtec|visa|btad|all)(?:-(\d+))?", name)
    if variant:
        side = int(variant[2] or _PAPER_SIZES[0])
        return merge(_read_overlay("paper"), {"model": {"input_size": [side, side]}})
    with resources.as_file(_folder() / f"{name}.yaml") as path:
        overlay = read_yaml(path)
    base = overlay.pop("base", None)
    if base is None:
        return overlay
    merged = _read_overlay(base)
    return merge(merged, overlay)


def _comment(section: BaseModel) -> CommentedMap:
    document = CommentedMap()
    plain = section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        value = getattr(section, name)
        document[key] = _comment(value) if isinstance(value, BaseModel) else _flow(plain[key])
        if field.description and not isinstance(value, BaseModel):
            document.yaml_add_eol_comment(field.description, key, column=_COMMENT_COLUMN)
        if isinstance(value, BaseModel):
            doc = (type(value).__doc__ or "").strip().splitlines()[0]
            document.yaml_set_comment_before_after_key(key, before=f"\n{doc}")
    return document


def _flow(value: Any) -> Any:
    """Lists and tables on one line."""
    if isinstance(value, list):
        sequence = CommentedSeq(value)
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, dict):
        mapping = CommentedMap(value)
        mapping.fa.set_flow_style()
        return mapping
    return value
