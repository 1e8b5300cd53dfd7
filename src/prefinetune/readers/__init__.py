"""Files to tables, read once and by one parser: every row of a file is in its table or among its faults.

What a row is:
- A table (CSV, TSV): a record, as Python's `csv` reads it in its strict form; a text in quotes may span lines. Everything is
  text, and nothing is guessed: a label "NA" or "007" is what its author wrote. A record with more or fewer cells than the header
  is a fault. One whose quotes are wrong is a fault per line that it spans: nobody can say which of them belong together.
- JSON lines: a line. In a .json file that begins with a bracket: an element of the list. It must be an object without a key that
  stands twice. A column has one type, that of the rows before; numbers may widen to fractions, and objects gain keys. NaN, which
  JSON does not know but Python writes for what is missing, is missing.
- Parquet, Arrow: a row. These files hold checks of their own, and one that fails them is refused.

A line that holds nothing is no row; such lines are counted. What a file holds is written to an Arrow file in the cache, piece
by piece: memory does not grow with the number of rows. The copy is named by the file's content and opened again in no time.
"""

from prefinetune.readers.cached import read_file
from prefinetune.readers.kinds import COMPRESSED, KINDS, delimiter, file_digest, file_kind
from prefinetune.readers.objects import collect
from prefinetune.readers.table import Table, join, make_table, without
from prefinetune.readers.text import Text

__all__ = [
    "COMPRESSED", "KINDS", "Table", "Text", "collect", "delimiter", "file_digest", "file_kind", "join", "make_table", "read_file",
    "without",
]  # fmt: skip
