"""Pre-finetuning: many labelled datasets in, a better language model out. Importing this loads no torch and no network."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefinetune.catalog import catalog
    from prefinetune.check import check_suite
    from prefinetune.compare import compare
    from prefinetune.config import Config
    from prefinetune.embedding import save_sentence_transformer, sentence_transformer
    from prefinetune.errors import InputError
    from prefinetune.estimator import PrefinetunedClassifier
    from prefinetune.evidence import Comparison, read_comparison
    from prefinetune.families import Choice, Classification, Denoising, Generation, MultiLabel, Regression, Span, Tagging
    from prefinetune.finetune import Tuned, finetune
    from prefinetune.infer import infer_suite, infer_task
    from prefinetune.leaks import Leaks, find_leaks
    from prefinetune.load import Loaded, load
    from prefinetune.mirror import mirror
    from prefinetune.publish import export
    from prefinetune.recipes import Recipe, recipe
    from prefinetune.sources import Files, Hub, Rows
    from prefinetune.splits import open_tasks
    from prefinetune.study import study
    from prefinetune.study_results import StudyResults, read_study
    from prefinetune.task import Suite, Task, read_suite
    from prefinetune.tasksource import tasksource_task
    from prefinetune.train import Run, train

HOMES = {
    "catalog": "catalog", "compare": "compare", "Config": "config", "InputError": "errors", "Comparison": "evidence",
    "read_comparison": "evidence", "Choice": "families", "Classification": "families", "Denoising": "families",
    "Generation": "families", "MultiLabel": "families", "Regression": "families", "Span": "families", "Tagging": "families",
    "Tuned": "finetune", "finetune": "finetune", "Recipe": "recipes", "recipe": "recipes", "Files": "sources",
    "Hub": "sources", "Rows": "sources", "Suite": "task", "Task": "task", "read_suite": "task", "Run": "train", "train": "train",
    "mirror": "mirror", "tasksource_task": "tasksource", "check_suite": "check", "infer_suite": "infer", "infer_task": "infer",
    "Leaks": "leaks", "find_leaks": "leaks", "open_tasks": "splits",
    "export": "publish", "load": "load", "Loaded": "load",
    "PrefinetunedClassifier": "estimator", "sentence_transformer": "embedding", "save_sentence_transformer": "embedding",
    "study": "study", "StudyResults": "study_results", "read_study": "study_results",
}  # fmt: skip

__version__ = "0.1.0"
__all__ = [
    "Choice", "Classification", "Comparison", "Config", "Denoising", "Files", "Generation", "Hub", "InputError", "Leaks",
    "Loaded", "MultiLabel", "PrefinetunedClassifier", "Recipe", "Regression", "Rows", "Run", "Span",
    "StudyResults", "Suite", "Tagging", "Task", "Tuned", "catalog", "check_suite",
    "compare", "export", "find_leaks", "finetune", "infer_suite", "infer_task", "load",
    "mirror", "open_tasks", "read_comparison", "read_study", "read_suite", "recipe", "save_sentence_transformer",
    "sentence_transformer", "study", "tasksource_task", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module 'prefinetune' has no attribute {name!r}")
    # An import makes objects by the hundred thousand and drops next to none: looking for dropped ones takes a fifth of its time.
    collects = gc.isenabled()
    gc.disable()
    try:
        value = getattr(import_module(f"prefinetune.{HOMES[name]}"), name)
    finally:
        if collects:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class Package(ModuleType):
    """This package; its `train`, `finetune`, `load` and the like stay functions when the files of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
