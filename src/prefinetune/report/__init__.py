"""What runs and comparisons left, for eyes: one self-contained page, and a list of what is there. Imports no torch."""

from prefinetune.report.page import write_report
from prefinetune.report.runs import RunLine, list_runs

__all__ = ["RunLine", "list_runs", "write_report"]
