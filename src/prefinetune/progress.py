"""What a loop must remember between updates, and a line of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefinetune.mixture import Mixture
from prefinetune.update import Update


@dataclass
class Progress:
    """All that a run must remember beside weights and optimizer; small, and written with every checkpoint."""

    updates: int = 0
    examples: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # spent in updates
    best_score: float | None = None
    best_update: int = 0
    evaluations_since_best: int = 0
    stopped: bool = False
    window: dict[str, Any] = field(default_factory=dict)  # sums since the last line of metrics

    def add(self, report: Update, seconds: float) -> None:
        self.updates += 1
        self.examples += report.examples
        self.tokens += report.tokens
        self.seconds += seconds
        self.skipped += report.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if report.skipped else 0

    def judge(self, score: float, patience: int | None) -> bool:
        """Take note of an evaluation's mean score; whether it is the best so far."""
        better = self.best_score is None or score > self.best_score
        if better:
            self.best_score, self.best_update = score, self.updates
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        self.stopped = patience is not None and self.evaluations_since_best >= patience
        return better


@dataclass
class Window:
    """Sums over the updates since the last line of metrics."""

    updates: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    diverging: int = 0  # updates that had one
    grad_norm: float = 0.0
    examples: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    by_task: dict[str, list[Any]] = field(default_factory=dict)  # task -> sums of [loss, updates it was in, examples, tokens]
    weights: dict[str, list[Any]] = field(default_factory=dict)  # task -> sums of [weight, updates that gave one]

    def add(self, report: Update, seconds: float) -> None:
        self.updates += 1
        self.loss += report.loss
        if report.divergence is not None:
            self.divergence += report.divergence
            self.diverging += 1
        self.grad_norm += report.grad_norm
        self.examples += report.examples
        self.tokens += report.tokens
        self.padded += report.padded
        self.seconds += seconds
        for task, loss in report.loss_by_task.items():
            sums = self.by_task.setdefault(task, [0.0, 0, 0, 0])
            added = (loss, 1, report.examples_by_task[task], report.tokens_by_task[task])
            self.by_task[task] = [old + new for old, new in zip(sums, added, strict=True)]
        for task, weight in report.weight_by_task.items():
            total, count = self.weights.get(task, (0.0, 0))
            self.weights[task] = [total + weight, count + 1]

    def record(self, progress: Progress, mixture: Mixture, rate: float) -> dict[str, Any]:
        """One line of metrics.jsonl: means over the window, counters over the run; by task, what the window added."""
        count, seconds = max(self.updates, 1), max(self.seconds, 1e-9)
        return {
            "step": progress.updates,
            "epoch": round(progress.updates / mixture.updates_per_epoch, 4),
            "loss": self.loss / count if self.updates else None,  # None: every update of the window was skipped
            **({"divergence": self.divergence / self.diverging} if self.diverging else {}),  # only with R3F
            "loss_by_task": {task: sums[0] / sums[1] for task, sums in sorted(self.by_task.items())},
            "examples_by_task": {task: sums[2] for task, sums in sorted(self.by_task.items())},
            "tokens_by_task": {task: sums[3] for task, sums in sorted(self.by_task.items())},
            **(
                {"weight_by_task": {task: sums[0] / sums[1] for task, sums in sorted(self.weights.items())}}
                if self.weights
                else {}
            ),
            "lr": rate,
            "grad_norm": self.grad_norm / count,
            "examples": progress.examples,
            "tokens": progress.tokens,
            "padding": 1 - self.tokens / self.padded if self.padded else 0.0,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "skipped": progress.skipped,
        }
