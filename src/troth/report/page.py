"""The page: sections made from records, rendered by one template with every text escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from troth import __version__
from troth.files import write_text
from troth.report.sections import Section, build
from troth.results import now
from troth.runs.folders import RunFolder

__all__ = ["render", "write_report"]

_NAMED, _LISTED = 8, 3  # runs that a title names at most, and how many of more


def _resource(name: str) -> str:
    return resources.files("troth.report").joinpath("templates", name).read_text(encoding="utf-8")


def _pieces(name: str) -> list[str]:
    """Return a dotted name in pieces that may stand on lines of their own, cut behind dots and underscores."""
    return re.split(r"(?<=[._])(?=[A-Za-z])", name)


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML: self-contained, no script, no external request, everything escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pieces"] = _pieces
    template = environment.from_string(_resource("report.html.jinja"))
    return template.render(
        title=title, sections=sections, css=_resource("report.css"), created=now(), version=__version__
    )


def write_report(folders: Sequence[RunFolder], path: Path) -> Path:
    """Write one page about the given finished runs and return its path.

    Raises:
        RunError: a run is not finished, or the page cannot be written.
    """
    sections = build(folders)
    names = list(dict.fromkeys(f.record().name for f in folders))
    told = names if len(names) <= _NAMED else [*names[:_LISTED], f"and {len(names) - _LISTED} more"]
    title = f"troth report: {', '.join(told)}"
    write_text(path, render(title, sections))
    return path
