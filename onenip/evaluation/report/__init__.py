"""The report of an evaluation: one HTML file that needs nothing else, made from its folder.

- `charts`: curves and histograms as inline SVG
- `content`: the content of the page, gathered from the folders
- `pictures`: pictures as data addresses
- `champion_side`: the champion's figures and the changed verdicts
- `page.html.j2`: the page; no script, no address, readable on a phone and on paper
"""

from onenip.evaluation.report.content import Decision, write_report

__all__ = ["Decision", "write_report"]
