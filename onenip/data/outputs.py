"""Paths of everything that the pipeline writes below `artifacts/`.

Knows the names only; what a file holds is said where it is written.
"""

from __future__ import annotations

from pathlib import Path


class Outputs:
    """Paths of the outputs of one workspace.

    Args:
        root: the workspace; paths are relative to it as it is given.
    """

    def __init__(self, root: Path = Path()) -> None:
        self.folder = folder = root / "artifacts"
        # outputs of the stages, in the order of the pipeline
        self.download_record = folder / "download" / "origin.json"
        self.validation = folder / "validation"
        self.manifest = self.validation / "manifest.csv"
        self.data_docs = self.validation / "data_docs" / "index.html"
        self.synthesis = folder / "synthesis"
        self.contact_sheet = self.synthesis / "contact_sheet.png"
        self.model = folder / "model"
        self.curves = folder / "training"
        self.evaluation = folder / "evaluation"
        self.metrics = self.evaluation / "metrics.json"
        self.report = self.evaluation / "report.html"
        # further results
        self.champion_report = folder / "champion_report"
        self.export = folder / "export"
        self.recent = folder / "recent"
        # state that a stage or a flow keeps between runs
        self.checkpoint = folder / "checkpoint"
        self.cache = folder / "cache"
        self.tracking = folder / "tracking"
        self.warm_start = folder / "warm_start"
        self.retraining = root / "retrain.yaml"  # tracked by Git, and a param of the stage `train`
        self.provisional = folder / "provisional"
        self.ingestion = folder / "ingestion"
        # by the gate and for drift, so that nothing is judged twice
        self.judged = folder / "judged"
        self.notices = root / ".onenip" / "notices.json"  # sent of late
        self.people = root / ".onenip" / "people.json"  # who may review and decide
        self.review = root / ".onenip" / "review"  # what people said: outlives artifacts/


OUTPUTS = Outputs()  # of the workspace that is the current folder
