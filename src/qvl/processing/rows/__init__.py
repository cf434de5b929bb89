"""Files of conversations (JSON lines or a JSON array) as messages of the chat format, row by row."""

from qvl.errors import RowError
from qvl.processing.rows.files import RowFile
from qvl.processing.rows.objects import Objects
from qvl.processing.rows.row import Row, each_row, parse_row, read_rows

__all__ = ["Objects", "Row", "RowError", "RowFile", "each_row", "parse_row", "read_rows"]
