"""Data Docs that need no other host: their own style, no scripts, and an index that is plain HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

# what a page would fetch from elsewhere, and what does nothing without it
_NOT_OURS = re.compile(
    r"<link\b[^>]*>|<script\b.*?</script>|<style\b.*?</style>|<img\b[^>]*>|<footer\b.*?</footer>",
    re.IGNORECASE | re.DOTALL,
)


_SEVERITIES = ("error", "quarantine", "warning")


def make_offline(
    folder: Path, broken: Mapping[str, int], breaches: Sequence[tuple[str, str, str, str]] = ()
) -> None:
    """Rewrite the Data Docs of a folder so that they are readable without a network.

    Args:
        folder: of the Data Docs, just rendered.
        broken: number of broken expectations by table, in the order of the index.
        breaches: severity, rule, path and reason of each, for the index.
    """
    css = files("onenip.data.validation").joinpath("docs_style.css").read_text(encoding="utf-8")
    style = f"<style>\n{css}</style>\n"
    for page in folder.rglob("*.html"):
        text = _NOT_OURS.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", f"{style}</head>", 1), encoding="utf-8")
    rows = "".join(_make_row(folder, name, count) for name, count in broken.items())
    (folder / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data Docs</title>\n{style}</head>\n<body>\n<h1>What is wrong with the images</h1>\n"
        f"{_list_breaches(breaches)}<h2>The rules</h2>\n"
        f"<table><thead><tr><th>table</th><th>result</th><th>what is expected</th></tr></thead>\n"
        f"<tbody>{rows}</tbody></table>\n"
        f"<p>File and reason of every breach: <code>summary.json</code>; what was left out: "
        f"<code>quarantine.csv</code>, beside this folder.</p>\n</body></html>\n",
        encoding="utf-8",
    )


def _list_breaches(breaches: Sequence[tuple[str, str, str, str]]) -> str:
    """A row per rule and category: how many files broke it, and one of them with its reason."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for severity, rule, path, reason in breaches:
        groups.setdefault((severity, rule, path.split("/")[0]), []).append((path, reason))
    if not groups:
        return "<p>Nothing: every image is as it should be.</p>\n"
    rows = "".join(
        f"<tr><td>{escape(severity)}</td><td>{escape(rule.replace('_', ' '))}</td>"
        f"<td>{escape(category)}</td><td>{len(found)}</td>"
        f"<td><code>{escape(found[0][0])}</code></td><td>{escape(found[0][1])}</td></tr>\n"
        for (severity, rule, category), found in sorted(
            groups.items(), key=lambda group: _SEVERITIES.index(group[0][0])
        )
    )
    heads = ("severity", "rule", "category", "files", "for example", "what is wrong with it")
    head = "".join(f"<th>{word}</th>" for word in heads)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>\n"


def _make_row(folder: Path, name: str, count: int) -> str:
    (result,) = sorted((folder / "validations" / name).rglob("*.html"))
    page = escape(result.relative_to(folder).as_posix())
    verdict = f"{count} broken" if count else "all hold"
    look = "broken" if count else "holds"
    return (
        f'<tr><td>{escape(name)}</td><td><a class="{look}" href="{page}">{verdict}</a></td>'
        f'<td><a href="expectations/{escape(name)}.html">expectations</a></td></tr>\n'
    )
