"""Text in: files, folders, hub ids and Python objects become tables whose columns are named by role."""

from troth.data.fingerprint import row_hashes
from troth.data.home import home
from troth.data.raw import LONGEST_ROW
from troth.data.read import load, read
from troth.data.roles import REQUIRED
from troth.data.table import ROLES, Splits, Table, concatenated, from_rows
from troth.data.units import Units, privacy_units

__all__ = [
    "LONGEST_ROW",
    "REQUIRED",
    "ROLES",
    "Splits",
    "Table",
    "Units",
    "concatenated",
    "from_rows",
    "home",
    "load",
    "privacy_units",
    "read",
    "row_hashes",
]
