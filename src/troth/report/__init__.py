"""One self-contained page and a model card, made from runs only."""

from troth.report.model_card import write_model_card
from troth.report.page import render, write_report
from troth.report.writer import ReportWriter

__all__ = ["ReportWriter", "render", "write_model_card", "write_report"]
