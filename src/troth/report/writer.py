"""The writer that a pipeline is handed: pages and model cards, from records only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from troth.report.model_card import write_model_card
from troth.report.page import write_report
from troth.results import Record
from troth.runs.folders import RunFolder

__all__ = ["ReportWriter"]


class ReportWriter:
    """Implements `troth.runs.pipeline.Finisher`."""

    def write_report(self, folders: Sequence[RunFolder], path: Path) -> Path:
        """Write one page about the given runs."""
        return write_report(folders, path)

    def write_model_card(self, record: Record, folder: Path) -> Path:
        """Write the model card of a run into its exported model folder."""
        return write_model_card(record, folder)
