"""Text in: files, folders, hub ids and Python objects become tables whose columns are named by role."""

from troth.data.fingerprint import row_hashes
from troth.data.table import ROLES, Splits, Table, from_rows

__all__ = ["ROLES", "Splits", "Table", "from_rows", "row_hashes"]
