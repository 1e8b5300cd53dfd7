"""A folder of files to a suite file: which files are one task, which family each poses, and why."""

from prefinetune.infer.proposals import Inferred, LeftOut, Proposal
from prefinetune.infer.propose import infer_suite, infer_task

__all__ = ["Inferred", "LeftOut", "Proposal", "infer_suite", "infer_task"]
