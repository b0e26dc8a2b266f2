"""Parts of the documentation that are made from code, when the site is built.

A page says `<!-- from code: params -->` where the section of that name belongs; an unknown name stops
the build.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from onenip import errors
from onenip.cli import COMMANDS, app
from onenip.evaluation import summary
from onenip.evaluation.metrics import NAMES
from onenip.model.file import CategorySpec, DetectorSpec, OperatingPoint
from onenip.operation.notices import ARRIVED_EVENT, DRIFT_EVENT, Kind
from onenip.params import Params
from onenip.params.presets import list_presets
from onenip.registry.audit import Action
from onenip.serving.web import ServeSettings, build_app

ROOT = Path(__file__).parent.parent
_MARK = re.compile(r"<!-- from code: (\w+) -->")
_METHODS = ("get", "put", "post", "patch", "delete")


def on_config(config: Any) -> Any:
    """The configuration with all decisions in its navigation: called by mkdocs once."""
    decisions = sorted(path.name for path in (ROOT / "docs/adr").glob("*.md"))
    config["nav"].append({"Decisions": [f"adr/{name}" for name in decisions[1:]]})  # 0 is the form
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its marks replaced: called by mkdocs for each page."""
    return _MARK.sub(lambda found: SECTIONS[found[1]](), markdown)


def _table(*columns: str, rows: Iterable[Iterable[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        texts = (str(cell).replace("|", "\\|").replace("\n", " ").strip() for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(columns), line("-" for _ in columns), *map(line, rows)])


def _code(value: Any) -> str:
    return f"`{value}`" if value not in ("", None) else ""


def list_commands() -> str:
    """Every command with its help, arguments and options, as its parser has them."""
    root = typer.main.get_command(app)
    texts = []
    for panel, commands in COMMANDS.items():
        texts.append(f"## {panel}")
        for title, (_, example) in commands.items():
            command: Any = root
            for name in title.split():
                command = command.commands[name]
            context = command.make_context(f"onenip {title}", [], resilient_parsing=True)
            records = [
                found for p in command.params if (found := p.get_help_record(context)) is not None
            ]
            usage = " ".join(command.collect_usage_pieces(context))
            texts += [
                f"### onenip {title}",
                inspect.cleandoc(command.help or "").replace("\b\n", ""),
                f"```text\nonenip {title} {usage}\n```",
                f"Example: `{example}`",
                _table("option", "", rows=((_code(name), text) for name, text in records)),
            ]
    return "\n\n".join(texts)


def list_params() -> str:
    """Every key of `params.yaml` with its type, default and description."""
    texts = []
    for name, field in Params.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            texts.append(f"`{name}`: {field.description}; default `{field.default}`.")
            continue
        title = inspect.cleandoc(section.__doc__ or "").splitlines()[0]
        texts += [f"## {field.alias or name}", title, _describe_model(section, defaults=True)]
    return "\n\n".join(texts)


def _describe_model(model: type[BaseModel], *, defaults: bool = False) -> str:
    """Fields of a pydantic model as a table."""
    plain = model().model_dump(mode="json", by_alias=True) if defaults else {}
    rows = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        default = [_code("null" if plain[key] is None else plain[key])] if defaults else []
        rows.append((_code(key), *default, field.description or ""))
    return _table("key", *(["default"] if defaults else []), "meaning", rows=rows)


def list_presets_table() -> str:
    """Presets and what each one is for."""
    return _table(
        "preset", "for", rows=((_code(name), text) for name, text in list_presets().items())
    )


def describe_http() -> str:
    """Routes, bodies and answers of `onenip serve`, from its OpenAPI description."""
    schema = build_app(None, ServeSettings()).openapi()  # type: ignore[arg-type]
    texts = []
    for path, methods in schema["paths"].items():
        for method in filter(methods.__contains__, _METHODS):
            route = methods[method]
            texts += [f"## {method.upper()} {path}", route.get("description", "")]
            for kind, body in route.get("requestBody", {}).get("content", {}).items():
                texts += [f"Body, `{kind}`:", _describe_schema(body["schema"], schema)]
            rows = [
                (code, answer["description"], _name_schema(answer))
                for code, answer in sorted(route["responses"].items())
            ]
            texts.append(_table("status", "when", "body", rows=rows))
    texts.append("## Bodies")
    for name, part in schema["components"]["schemas"].items():
        if not name.startswith(("HTTPValidation", "Validation")):
            texts += [f"### {name}", part.get("description", ""), _describe_schema(part, schema)]
    return "\n\n".join(texts)


def _name_schema(answer: dict[str, Any]) -> str:
    """Link to the description of an answer's body."""
    found = re.search(r"schemas/(\w+)'", str(answer.get("content", {})))
    return f"[{found[1]}](#{found[1].lower()})" if found else ""


def _describe_schema(part: dict[str, Any], whole: dict[str, Any]) -> str:
    if "$ref" in part:
        part = whole["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    required = part.get("required", ())
    rows = [
        (_code(name), _name_type(field), field.get("description", ""))
        if name in required
        else (_code(name), f"{_name_type(field)}, optional", field.get("description", ""))
        for name, field in part.get("properties", {}).items()
    ]
    return _table("field", "type", "meaning", rows=rows)


def _name_type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(map(_name_type, field["anyOf"]))
    if "items" in field:
        return f"list of {_name_type(field['items'])}"
    return ", ".join(map(repr, field["enum"])) if "enum" in field else field.get("type", "any")


def list_metrics() -> str:
    """Metrics of `/metrics`, with their labels, as the server registers them."""
    from onenip.serving import web

    registry = web._Metrics().registry
    rows = [
        (
            _code(found.name + ("_total" if found.type == "counter" else "")),
            found.type,
            found.documentation,
        )
        for found in registry.collect()
    ]
    return _table("metric", "type", "meaning", rows=rows)


def list_figures() -> str:
    """Names of the figures of an evaluation, and the layout of `metrics.json`."""
    names = ", ".join(map(_code, NAMES))
    layout = inspect.cleandoc(summary.__doc__ or "").partition("\n\n")[2]
    return f"Figures: {names}.\n\n{layout}"


def list_events() -> str:
    """Events, kinds of notices and actions of the audit trail."""
    return _table(
        "what",
        "names",
        rows=(
            ("events of Prefect", f"{_code(ARRIVED_EVENT)}, {_code(DRIFT_EVENT)}"),
            ("`kind` of a notice", ", ".join(map(_code, get_args(Kind)))),
            ("`action` of an audit entry", ", ".join(map(_code, get_args(Action)))),
        ),
    )


def describe_model_file() -> str:
    """Content of `detector.json`."""
    parts = (
        ("detector.json", DetectorSpec),
        ("a category", CategorySpec),
        ("an operating point", OperatingPoint),
    )
    return "\n\n".join(f"### {title}\n\n{_describe_model(model)}" for title, model in parts)


def list_errors() -> str:
    """The tree of errors."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    return f"```text\n{tree}\n```"


def list_packages() -> str:
    """Packages by layer, from the top, with the first line of their docstrings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = []
    for number, layer in enumerate(layers, 1):
        for name in layer.split(" | "):
            path = ROOT.joinpath(*name.split("."))
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            rows.append((number, _code(name), doc.partition("\n\n")[0]))
    return _table("layer", "package", "what", rows=rows)


def show_deployment() -> str:
    """How to install with containers and systemd, as the folder of those files says."""
    return (ROOT / "deploy/README.md").read_text(encoding="utf-8").partition("\n\n")[2]


SECTIONS = {
    "commands": list_commands,
    "params": list_params,
    "presets": list_presets_table,
    "http": describe_http,
    "metrics": list_metrics,
    "figures": list_figures,
    "events": list_events,
    "model_file": describe_model_file,
    "errors": list_errors,
    "packages": list_packages,
    "deployment": show_deployment,
}
