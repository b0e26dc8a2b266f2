"""The dashboard and the alert rules for Grafana: whole, and about figures that the server gives."""

import json
import re

from fastapi.testclient import TestClient

from onenip.serving.champions import Follower
from onenip.serving.web import ServeSettings, build_app
from tests.paths import ROOT

FOLDER = ROOT / "docs/grafana"


def list_queries():
    """Every PromQL expression in both files."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    alerts = json.loads((FOLDER / "alerts.json").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [rule["data"][0]["model"]["expr"] for rule in rules]


def test_queries_ask_for_figures_that_exist():
    """No panel or rule waits for a figure that the server does not give."""
    with TestClient(build_app(Follower(), ServeSettings(refresh_seconds=0))) as client:
        text = client.get("/metrics").text
    given = set(re.findall(r"^# TYPE (\w+)", text, re.M))
    asked = {name for query in list_queries() for name in re.findall(r"onenip_\w+", query)}

    assert {re.sub("_bucket$", "", name) for name in asked} <= given
    assert all(query.count("(") == query.count(")") for query in list_queries())


def test_files_have_the_form_of_grafana():
    """A dashboard of schema 39 and a provisioned group of rules: the keys that Grafana needs, ids once."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    (group,) = json.loads((FOLDER / "alerts.json").read_text())["groups"]

    assert dashboard["schemaVersion"] == 39
    for panel in dashboard["panels"]:
        assert {"id", "type", "title", "gridPos", "targets", "fieldConfig"} <= panel.keys()
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for rule in group["rules"]:
        assert {"uid", "title", "condition", "for", "noDataState", "annotations"} <= rule.keys()
        assert {one["refId"] for one in rule["data"]} >= {rule["condition"]}
    for rows, key in ((dashboard["panels"], "id"), (group["rules"], "uid")):
        assert len({row[key] for row in rows}) == len(rows)
