"""What runs and comparisons left, for eyes: one self-contained page, and a list of what is there. Imports no torch."""

from prefinetune.report.runs import RunLine, list_runs
from prefinetune.report.write import write_report

__all__ = ["RunLine", "list_runs", "write_report"]
