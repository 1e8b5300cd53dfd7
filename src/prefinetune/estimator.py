"""A door for scikit-learn: a classifier of texts that fine-tunes when it is fitted, for pipelines, cross-validation and searches.

It is the loop of `loop.py` on rows in memory: nothing is written, and nothing is held out, as scikit-learn's own tools do that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from safetensors.torch import load, save
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from prefinetune.config import Config, make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.evaluate import predict
from prefinetune.export import save_task_model
from prefinetune.families import Classification, Encoded, Family
from prefinetune.families.base import Example, Segment
from prefinetune.finetune import DEFAULTS, with_length
from prefinetune.loop import fit
from prefinetune.model import MultiTask
from prefinetune.pretrained import backbone_class, load_backbone
from prefinetune.sources import Rows
from prefinetune.start import model_folder, model_tokenizer
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer
from prefinetune.update import TaskData

TASK = "texts"  # what the only task is called


@dataclass(frozen=True)
class Probabilities(Classification):
    """Classification that answers with the probability of every label."""

    def predict(self, output: torch.Tensor, segment: Segment) -> list[Any]:
        return list(output.float().softmax(-1).cpu().numpy())


class PrefinetunedClassifier(ClassifierMixin, BaseEstimator):
    """A model that is fine-tuned on texts and their labels, as a scikit-learn estimator.

    X is a list, an array or a Series of n texts, or an array or a DataFrame [n, 2] of pairs of texts; y has n labels: strings,
    whole numbers or booleans. An empty text is a text. A fitted one can be pickled, but a pickle is code: what shall be kept or
    given away is better written with `save`.

    Args:
        start: a run's folder, a hub name or a model folder, as for `finetune`.
        epochs: passes over the rows; where neither these nor updates are given, 10, and at least 200 updates.
        updates: optimizer steps, of 32 examples each, instead of epochs.
        learning_rate: its peak; 3e-5 when None.
        max_length: tokens per text or pair; what the model takes, at most 512, when None.
        random_state: the seed of head, order and dropout: the same one gives the same model. None draws one.
        config: further settings by section, as `prefinetune settings` lists them: {"mixture": {"sub_batches": 4}}.
        verbose: whether progress is shown on standard error.

    Attributes:
        classes_: the labels, sorted; the columns of `predict_proba`.
        n_features_in_: how many texts a row has, 1 or 2.
        feature_names_in_: what the columns of a DataFrame were called.
        model_: the fine-tuned MultiTask.
        tokenizer_: its Tokenizer.
    """

    def __init__(
        self,
        start: str | Path,
        *,
        epochs: float | None = None,
        updates: int | None = None,
        learning_rate: float | None = None,
        max_length: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        config: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.start = start
        self.epochs = epochs
        self.updates = updates
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.random_state = random_state
        self.config = config
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> Self:
        """Fine-tune from `start`, on all rows.

        Raises:
            InputError: the model cannot be loaded, a setting is out of its range, X has a value that is no text or more than two
                columns, or y has only one class. It is a ValueError, as are scikit-learn's own complaints about X and y.
        """
        X, y = validate_data(self, X, y, dtype=object, ensure_2d=False)
        self.n_features_in_ = num_texts(X)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y has one class, {self.classes_[0]!s}; a classifier needs at least two")
        family = Probabilities("text", "pair" if self.n_features_in_ == 2 else None, labels=tuple(map(str, self.classes_)))

        given = self._settings().model_dump(exclude_unset=True)
        config = with_length(make_config(DEFAULTS, given), given, len(X))
        name = str(model_folder(self.start))
        self.tokenizer_ = model_tokenizer(name, [Task(TASK, Rows({}), family)], config.data)
        examples = encode(X, targets.tolist(), family, self.tokenizer_)
        backbone = load_backbone(name, config.model.attention_dropout, config.objective.spectral_norm)
        self.model_ = MultiTask(backbone, {TASK: family}, config.seed)
        with torch.random.fork_rng(devices=[]):  # the seeds of updates are no business of whoever calls
            fit(self.model_, self.tokenizer_, [TaskData(TASK, family, examples)], {}, config, display=Display(not self.verbose))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class for each row, [n, c] in the order of `classes_`.

        Raises:
            InputError: X has a value that is no text, or a row has not as many as when this was fitted.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=object, ensure_2d=False)
        if num_texts(X) != self.n_features_in_:
            expected = f"{type(self).__name__} is expecting {self.n_features_in_} features as input"  # as scikit-learn puts it
            raise InputError(f"X has {num_texts(X)} features, but {expected}: texts per row")
        examples = encode(X, [0] * len(X), self.model_.families[TASK], self.tokenizer_)
        return np.stack(predict(self.model_, self.tokenizer_, TASK, examples))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, [n]. Raises what `predict_proba` does."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def save(self, folder: str | Path) -> None:
        """Write a plain Transformers folder, which `pipeline("text-classification", folder)` loads; its labels are texts.

        Raises:
            InputError: it cannot be written.
        """
        check_is_fitted(self)
        save_task_model(self.model_, TASK, self.tokenizer_, Path(folder))

    def _settings(self) -> Config:
        own: dict[str, dict[str, Any]] = {
            "train": {"epochs": self.epochs, "updates": self.updates},
            "optimizer": {"learning_rate": self.learning_rate},
            "data": {"max_length": self.max_length},
        }
        said = {section: {name: value for name, value in own[section].items() if value is not None} for section in own}
        state = self.random_state
        seed = int(state) if isinstance(state, Integral) else check_random_state(state).randint(2**31 - 1)
        config = make_config(self.config or {}, said, {"seed": seed})
        for setting, given in (("lora.rank", config.lora.rank), ("train.track", config.train.track)):
            if given:
                raise InputError(
                    f"config: {setting}={given!r} is not for {type(self).__name__}; use `finetune`, which writes a run"
                )
        return config

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """With the weights as safetensors, on no device: what was fitted on a GPU is loaded where there is none."""
        state = dict(super().__getstate__())
        if "model_" in state:
            model: MultiTask = state["model_"]
            backbone, weights = model.backbone, model.unique_state()
            weights = {name: weights[name].cpu().contiguous() for name in weights if not name.startswith("balancing.")}
            state["model_"] = {
                "config": backbone.own_config(backbone.config), "spectral_norm": backbone.spectral_norm,
                "families": model.families, "weights": save(weights),
            }  # fmt: skip
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            kept = state["model_"]
            with torch.random.fork_rng(devices=[]):  # weights are drawn, and replaced
                trunk = transformers.AutoModel.from_config(kept["config"], dtype=torch.float32)
                backbone = backbone_class(kept["config"])(trunk, "", None, kept["spectral_norm"])
                model = MultiTask(backbone, kept["families"])
            model.load_unique_state(load(kept["weights"]))
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            state = {**state, "model_": model}
        super().__setstate__(state)


def num_texts(X: np.ndarray) -> int:
    """How many texts a row of X [n] or [n, c] has.

    Raises:
        InputError: neither one nor two.
    """
    count = 1 if X.ndim == 1 else X.shape[1]
    if count > 2:
        raise InputError(f"X has {count} columns; expected texts, or two columns for pairs of texts")
    return count


def encode(X: np.ndarray, targets: Sequence[int], family: Family, tokenizer: Tokenizer) -> list[Encoded]:
    """Rows of X [n], [n, 1] or [n, 2] as the model reads them.

    Raises:
        InputError: a value is no text.
    """
    rows = X.reshape(len(X), -1).tolist()
    for number, row in enumerate(rows):
        for value in row:
            if not isinstance(value, str):
                raise InputError(f"X, row {number}: {value!r} is not accepted; expected a text, not {type(value).__name__}")
    texts = [(row[0], row[1] if len(row) == 2 else None) for row in rows]
    return family.encode([Example((pair,), target) for pair, target in zip(texts, targets, strict=True)], tokenizer)
