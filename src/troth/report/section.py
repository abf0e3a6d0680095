"""One part of the page: what it says, its tables and figures, and what is folded away below them."""

from __future__ import annotations

from dataclasses import dataclass

from troth.report.methods import Method
from troth.report.plots import Plot
from troth.report.tables import Table

__all__ = ["DETAILED_RUNS", "Fold", "Listing", "Section"]

DETAILED_RUNS = 4  # on a page; of more, curves, histograms and slices stand on a page of their own


@dataclass(frozen=True)
class Listing:
    """A text shown as it is, folded away."""

    title: str
    text: str


@dataclass(frozen=True)
class Fold:
    """Tables, figures and methods of a part that not every reader wants to see: folded away under a title."""

    title: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    methods: tuple[Method, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    listings: tuple[Listing, ...] = ()
    methods: tuple[Method, ...] = ()
    folds: tuple[Fold, ...] = ()
