"""Sphinx configuration; warnings are errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from troth import __version__

project = "troth"
author = "the troth developers"
copyright = "2026, the troth developers"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"troth {__version__}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
suppress_warnings = ["myst.header"]
napoleon_attr_annotations = False


def _guarantees_as_a_list(app, what, name, thing, options, lines):
    """Set the list of guarantees apart from its heading, as reStructuredText wants it."""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].strip() == "Guarantees:":
            lines.insert(index + 1, "")


def setup(app):
    app.connect("autodoc-process-docstring", _guarantees_as_a_list, priority=100)
