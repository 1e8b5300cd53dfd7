"""Predictions and scores of a model on encoded examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from prefinetune.batch import Drawn, deal, micro_batches
from prefinetune.families import Encoded, Family, Segment
from prefinetune.model import Head, MultiTask, States
from prefinetune.ranks import gathered, merged
from prefinetune.tokenizer import Tokenizer


@torch.no_grad()
def predict(
    model: MultiTask, tokenizer: Tokenizer, task: str, examples: Sequence[Encoded], token_budget: int = 8192
) -> list[Any]:
    """One prediction per example, in their order; the form is the family's."""
    family = model.families[task]
    respond = lambda head, states, segment: family.respond(head, states, segment, tokenizer)  # noqa: E731
    return ask(model, tokenizer, task, examples, respond, token_budget)


@torch.no_grad()
def answer(
    model: MultiTask, tokenizer: Tokenizer, task: str, examples: Sequence[Encoded], temperature: float | None, token_budget: int
) -> list[tuple[Any, Any]]:
    """(answer, probabilities) of examples, labels by their names; probabilities None where `temperature` is."""
    from scipy.special import softmax

    family = model.families[task]

    def both(head: Head, states: States, segment: Segment) -> list[tuple[Any, Any]]:
        if temperature is None:
            return [(one, None) for one in family.reply(head, states, segment, tokenizer)]
        output = family.apply(head, states, segment)
        named = family.named(family.predict(output, segment), segment)
        logits = family.choices(output, segment)
        return [
            (one, family.named_probabilities(softmax(z / temperature, axis=-1))) for one, z in zip(named, logits, strict=True)
        ]

    return ask(model, tokenizer, task, examples, both, token_budget)


@torch.no_grad()
def choices(model: MultiTask, tokenizer: Tokenizer, task: str, examples: Sequence[Encoded]) -> list[np.ndarray]:
    """The logits [c, n] of each example's choices; see `Family.choices`."""
    family = model.families[task]
    return ask(model, tokenizer, task, examples, lambda head, *given: family.choices(family.apply(head, *given), given[1]))


def ask(
    model: MultiTask,
    tokenizer: Tokenizer,
    task: str,
    examples: Sequence[Encoded],
    what: Callable[[Head, States, Segment], list[Any]],
    token_budget: int = 8192,
) -> list[Any]:
    """What a function of head, states and segment gives for each example, in their order."""
    family = model.families[task]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, Any] = {}
    places = {id(example): index for index, example in enumerate(examples)}
    drawn = [Drawn(example, task, family, 1.0) for example in examples]
    for batch in micro_batches(drawn, token_budget, model.layout(tokenizer)):
        batch = batch.to(device)
        states = model.backbone(batch)
        for segment in batch.segments:
            for example, one in zip(segment.examples, what(model.head(task), states, segment), strict=True):
                found[places[id(example)]] = one
    model.train(was_training)
    return [found[index] for index in range(len(examples))]


@dataclass
class Evaluation:
    """Scores by task and metric name, a family's own `metric` among them, and the predictions they are of (of those tasks that
    this process scored)."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    predictions: dict[str, list[Any]] = field(default_factory=dict)


def evaluate(
    model: MultiTask,
    tokenizer: Tokenizer,
    validation: Mapping[str, Sequence[Encoded]],
    token_budget: int,
    accelerator: Accelerator,
) -> Evaluation:
    """Predict and score the examples of every task; several processes share the tasks."""
    dealt = deal(np.array([len(examples) for examples in validation.values()]), accelerator.num_processes)
    mine = [list(validation)[index] for index in dealt[accelerator.process_index]]
    with gathered(model.backbone):
        predictions = {task: predict(model, tokenizer, task, validation[task], token_budget) for task in mine}
    scores = merged({task: model.families[task].score(predictions[task], validation[task]) for task in mine}, accelerator)
    return Evaluation({task: scores[task] for task in validation}, predictions)


def readable(family: Family, examples: Sequence[Encoded], predictions: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Predictions beside their references, with the number of the row they are of."""
    for example, prediction in zip(examples, predictions, strict=True):
        yield {"row": example.source, **family.readable(prediction, example)}


def mean_score(scores: Mapping[str, Mapping[str, float]], families: Mapping[str, Family]) -> float:
    """The mean over tasks of the score each is judged by: what early stopping watches."""
    return sum(main_scores(scores, families).values()) / len(scores)


def main_scores(scores: Mapping[str, Mapping[str, float]], families: Mapping[str, Family]) -> dict[str, float]:
    """The score that each task is judged by."""
    return {task: scores[task][families[task].metric] for task in scores}
