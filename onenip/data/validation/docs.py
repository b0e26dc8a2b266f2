"""The page of what is wrong with the images, and Data Docs of the rules, readable without a network."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from onenip.data.validation.rules import Rule, Severity
from onenip.errors import ImageError
from onenip.images import load_preview

# what a page would fetch from elsewhere, and what does nothing without it
_NOT_OURS = re.compile(
    r"<link\b[^>]*>|<script\b.*?</script>|<style\b.*?</style>|<img\b[^>]*>|<footer\b.*?</footer>",
    re.IGNORECASE | re.DOTALL,
)
# of the rules, in this order, and of the columns of counts
HEADINGS: dict[Severity, str] = {
    "error": "This stops the run",
    "quarantine": "Left out of training and tests",
    "warning": "Used, but please look at it",
}
COUNTS = {
    "fit": "training",
    "calibration": "thresholds",
    "holdout": "false alarms",
    "defect": "defects to learn from",
    "test": "test, normal",
    "test_defective": "test, defective",
    "quarantined": "left out",
}
_SHOWN = 3  # examples of a problem that have a picture
_SIDE_PX = 72  # of a picture


@dataclass(frozen=True)
class Breach:
    """A file, or a category, that broke a rule."""

    path: str
    rule: str
    severity: Severity
    reason: str


@dataclass(frozen=True)
class Problem:
    """A rule that was broken, by one file or category or more."""

    rule: Rule
    breaches: tuple[Breach, ...]

    @property
    def places(self) -> str:
        """How many files of each category, such as `bottle: 3, pcb: 1`; names alone where it is they."""
        counts = Counter(breach.path.split("/")[0] for breach in self.breaches)
        is_category = all("/" not in breach.path for breach in self.breaches)
        shown = [
            name if is_category else f"{name}: {count}" for name, count in sorted(counts.items())
        ]
        return ", ".join(shown)


def group_breaches(breaches: Sequence[Breach], rules: Sequence[Rule]) -> list[Problem]:
    """Problems, those of the gravest severity first, then in the order of the rules."""
    by_rule: dict[str, list[Breach]] = {}
    for breach in breaches:
        by_rule.setdefault(breach.rule, []).append(breach)
    found = [Problem(r, tuple(by_rule[r.name])) for r in rules if r.name in by_rule]
    return sorted(found, key=lambda problem: list(HEADINGS).index(problem.rule.severity))


def write_pages(
    folder: Path,
    *,
    data_dir: Path,
    broken: Mapping[str, int],
    problems: Sequence[Problem],
    summary: Mapping[str, Any],
) -> None:
    """Write the page, and rewrite the Data Docs of the folder so that they need no other host.

    Args:
        folder: of the Data Docs, just rendered.
        data_dir: where the pictures of the examples are.
        broken: number of broken expectations by table.
        problems: what is wrong.
        summary: contents of `summary.json`.
    """
    css = files("onenip.data.validation").joinpath("docs_style.css").read_text(encoding="utf-8")
    style = f"<style>\n{css}</style>\n"
    for page in folder.rglob("*.html"):
        text = _NOT_OURS.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"{style}</head>", 1), encoding="utf-8")
    sections = [
        f"<h2>{heading}</h2>\n{_make_table(('what', 'where', 'for example', 'what to do'), rows)}"
        for severity, heading in HEADINGS.items()
        if (rows := [_describe(p, data_dir) for p in problems if p.rule.severity == severity])
    ]
    counts = [
        [escape(name), *(str(found.get(kind, 0)) for kind in COUNTS)]
        for name, found in summary["categories"].items()
    ]
    rules = [_link(folder, name, count) for name, count in broken.items()]
    (folder / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Check of the images</title>\n{style}</head>\n<body>\n<h1>Check of the images</h1>\n"
        f"<p><strong>{summary['usable']} of {summary['images']} images are used.</strong> "
        f"{'' if problems else 'Nothing is wrong with any of them.'}</p>\n"
        f"{_make_table(('category', *COUNTS.values()), counts)}{''.join(sections)}"
        f"<h2>All rules, as Great Expectations judged them</h2>\n{_make_table((), rules)}"
        "<p>The same as tables, beside this folder: <code>summary.json</code>, <code>quarantine.csv</code>. "
        "Copies of what is left out: <code>quarantine/</code>. The data folder is never changed. In "
        "<code>params.yaml</code>, <code>validate.severities</code> makes a rule an error, a quarantine or a "
        "warning, or turns it off, by the name in brackets.</p>\n</body></html>\n",
        encoding="utf-8",
    )


def _describe(problem: Problem, data_dir: Path) -> list[str]:
    """Cells of a problem: its title, its places, its files with their reasons, its remedy."""
    shown, rest = problem.breaches[:_SHOWN], problem.breaches[_SHOWN:]
    examples = "".join(f"{_draw(data_dir / one.path)}{_name(one)}" for one in shown)
    if rest:
        examples += (
            f"<details><summary>and {len(rest)} more</summary>{''.join(map(_name, rest))}</details>"
        )
    title = f"<strong>{escape(problem.rule.title)}</strong><br><small>({escape(problem.rule.name)})</small>"
    return [title, escape(problem.places), examples, escape(problem.rule.remedy)]


def _name(breach: Breach) -> str:
    return f"<p><code>{escape(breach.path)}</code><br>{escape(breach.reason)}</p>"


def _draw(path: Path) -> str:
    """A small picture of an image file; empty if it is none that can be shown."""
    buffer = io.BytesIO()
    with suppress(ImageError):
        picture = Image.fromarray(load_preview(path))
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        picture.save(buffer, "JPEG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{content}">' if content else ""


def _make_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{word}</th>" for word in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"


def _link(folder: Path, name: str, count: int) -> list[str]:
    (result,) = sorted((folder / "validations" / name).rglob("*.html"))
    page = escape(result.relative_to(folder).as_posix())
    look, verdict = ("broken", f"{count} broken") if count else ("holds", "all hold")
    return [
        escape(name),
        f'<a class="{look}" href="{page}">{verdict}</a>',
        f'<a href="expectations/{escape(name)}.html">what is expected</a>',
    ]
