"""Predictions and scores of a model on encoded examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    for batch in micro_batches(drawn, token_budget, model.layout(tokenizer)):
        for segment, predictions in model.respond(batch.to(device), tokenizer):
            for example, prediction in zip(segment.examples, predictions, strict=True):
                found[places[id(example)]] = prediction
    model.train(was_training)
    return [found[index] for index in range(len(examples))]


@dataclass
class Evaluation:
    """Scores by task and metric name, a family's own `metric` among them, and the predictions they are of."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    predictions: dict[str, list[Any]] = field(default_factory=dict)


def evaluate(
    model: MultiTask, tokenizer: Tokenizer, validation: Mapping[str, Sequence[Encoded]], token_budget: int = 8192
) -> Evaluation:
    """Predict and score the examples of every task."""
    predictions = {task: predict(model, tokenizer, task, examples, token_budget) for task, examples in validation.items()}
    scores = {task: model.families[task].score(predictions[task], examples) for task, examples in validation.items()}
    return Evaluation(scores, predictions)


def readable(family: Family, examples: Sequence[Encoded], predictions: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Predictions beside their references, with the number of the row they are of."""
    for example, prediction in zip(examples, predictions, strict=True):
        yield {"row": example.source, **family.readable(prediction, example)}


def mean_score(scores: Mapping[str, Mapping[str, float]], families: Mapping[str, Family]) -> float:
    """The mean over tasks of the score each is judged by: what early stopping watches."""
    return sum(scores[task][families[task].metric] for task in scores) / len(scores)
