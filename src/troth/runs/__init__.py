"""Run folders and their index, comparison, gates and grids; `troth.runs.pipeline` executes run files.

What stands here loads no model library; the pipeline does.
"""

from troth.runs.comparison import compare
from troth.runs.folders import RunFolder, create, find_finished, find_unfinished, open_run, run_folders
from troth.runs.gates import GateResult, check, parse_rule
from troth.runs.grid import GridPoint, expand
from troth.runs.index import RunRow, list_runs, rebuild

__all__ = [
    "GateResult",
    "GridPoint",
    "RunFolder",
    "RunRow",
    "check",
    "compare",
    "create",
    "expand",
    "find_finished",
    "find_unfinished",
    "list_runs",
    "open_run",
    "parse_rule",
    "rebuild",
    "run_folders",
]
