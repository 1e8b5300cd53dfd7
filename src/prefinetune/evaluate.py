"""Predictions and scores of a model on encoded examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefinetune.batch import Drawn, micro_batches
from prefinetune.families import Encoded, Family
from prefinetune.model import MultiTask
from prefinetune.tokenizer import Tokenizer


@torch.no_grad()
def predict(
    model: MultiTask, tokenizer: Tokenizer, task: str, examples: Sequence[Encoded], token_budget: int = 8192
) -> list[Any]:
    """One prediction per example, in their order; the form is the family's."""
    family = model.families[task]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, Any] = {}
    places = {id(example): index for index, example in enumerate(examples)}
    drawn = [Drawn(example, task, family, 1.0) for example in examples]
    for batch in micro_batches(drawn, token_budget, tokenizer.pad_id, tokenizer.token_types):
        for segment, output in model(batch.to(device)):
            for example, prediction in zip(segment.examples, family.predict(output, segment), strict=True):
                found[places[id(example)]] = prediction
    model.train(was_training)
    return [found[index] for index in range(len(examples))]


def score(
    model: MultiTask, tokenizer: Tokenizer, task: str, examples: Sequence[Encoded], token_budget: int = 8192
) -> dict[str, float]:
    """Scores of one task by metric name; its family's `metric` is the one it is judged by."""
    return model.families[task].score(predict(model, tokenizer, task, examples, token_budget), examples)


def score_all(
    model: MultiTask,
    tokenizer: Tokenizer,
    validation: Mapping[str, Sequence[Encoded]],
    token_budget: int = 8192,
) -> dict[str, dict[str, float]]:
    return {task: score(model, tokenizer, task, examples, token_budget) for task, examples in validation.items()}


def mean_score(scores: Mapping[str, Mapping[str, float]], families: Mapping[str, Family]) -> float:
    """The mean over tasks of the score each is judged by: what early stopping watches."""
    return sum(scores[task][families[task].metric] for task in scores) / len(scores)
