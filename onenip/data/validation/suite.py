"""Great Expectations: rules in, breaches and Data Docs out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path

import great_expectations as gx
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig

from onenip.data.validation.docs import Breach
from onenip.data.validation.rules import Rule

SITE = "data_docs"


class Judge:
    """Runs rules over tables and renders what they found.

    Args:
        docs_dir: folder of the Data Docs.
    """

    def __init__(self, docs_dir: Path) -> None:
        self.broken: dict[str, int] = {}  # expectations, by table
        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        for site in list(self._context.get_site_names()):
            self._context.delete_data_docs_site(site)
        self._context.add_data_docs_site(
            SITE,
            {
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(docs_dir.resolve()),
                },
            },
        )
        self._source = self._context.data_sources.add_pandas("data")

    def judge(self, name: str, frame: pd.DataFrame, rules: Sequence[Rule]) -> list[Breach]:
        """Breaches of the rules, in the rules' order and then the table's.

        Args:
            name: of the table, for the Data Docs.
            frame: the table; its column `path` names the rows.
            rules: what to judge.
        """
        if frame.empty or not rules:
            return []
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(name=name, expectations=[r.to_expectation() for r in rules])
        definition = gx.ValidationDefinition(
            name=name, data=batch, suite=self._context.suites.add(suite)
        )
        self._context.validation_definitions.add(definition)
        checkpoint = self._context.checkpoints.add(
            gx.Checkpoint(
                name=name,
                validation_definitions=[definition],
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": ["path"],
                },
            )
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": _escape(frame)})
        (judged,) = outcome.run_results.values()
        self.broken[name] = sum(not result.success for result in judged.results)
        by_path = frame.set_index("path")
        by_name = {rule.name: rule for rule in rules}
        breaches = []
        for result in judged.results:
            config, trouble = result.expectation_config, result.exception_info
            assert config is not None
            assert config.meta is not None
            rule = by_name[config.meta["rule"]]
            if trouble and trouble.get("raised_exception", True):
                raise RuntimeError(f"rule {rule.name}: {trouble}")
            for entry in result.result.get("unexpected_index_list") or []:
                path = unescape(str(entry["path"]))
                reason = rule.reason.format(value=by_path.loc[path, rule.column])
                breaches.append(Breach(path, rule.name, rule.severity, reason))
        order = {rule.name: index for index, rule in enumerate(rules)}
        breaches.sort(key=lambda breach: (order[breach.rule], breach.path))
        return breaches

    def write_docs(self) -> None:
        """Render the Data Docs of everything judged so far."""
        self._context.build_data_docs()


def _escape(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its text as HTML, because Great Expectations does not escape names of files."""
    shown = frame.copy()
    for column in shown.select_dtypes([object, "str"]):
        shown[column] = [escape(v) if isinstance(v, str) else v for v in shown[column]]
    return shown
