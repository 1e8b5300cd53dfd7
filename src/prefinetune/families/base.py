"""What a family is: everything that follows from the kind of problem, and nothing about a dataset or a run.

A family is a frozen dataclass whose fields say where in a row its parts are. The spine (store, mixture, loop, evaluation) calls
the methods below and never asks which family it holds. Torch is imported inside the methods that need it, so that reading
records (`prefinetune tasks list`) stays instant.

Letters: b rows of a micro-batch, r rows of one segment, e examples of one segment, l tokens of the longest row, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from prefinetune.errors import FieldError, InputError, listing, nearest

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from prefinetune.model import Backbone, Head, States
    from prefinetune.tokenizer import Tokenizer

# A column name, a dotted path into nested columns, a function of the row, or several of these whose texts are joined by a space.
Field = str | Callable[[Mapping[str, Any]], Any] | tuple


class Example(NamedTuple):
    """One row after its task's adapter, with columns gone."""

    texts: tuple[tuple[str, str | None], ...]  # one (first, second) pair per sequence the model reads
    target: Any
    reference: Any = None  # what only scoring needs: gold answers, say


@dataclass(slots=True)
class Encoded:
    """One example as the model reads it: a sequence for most families, one per option for choice, one per window for spans."""

    sequences: list[np.ndarray]  # token ids, special tokens included
    first: list[int]  # per sequence: how many leading tokens have type 0 (the rest have type 1)
    target: np.ndarray
    source: int = 0  # index of the example it came from, then of its row
    truncated: int = 0  # how many of its texts were cut to fit
    reference: Any = None
    offsets: list[np.ndarray] | None = None  # per sequence [l, 2]: characters of the second text under each token, -1 elsewhere
    # Token ids [t] that a decoder is to write, special tokens included; empty where it shall write them by itself (evaluation);
    # None where it reads the sequence again, which is how encoder-decoders answer with a head.
    output: np.ndarray | None = None
    output_cut: bool = False  # whether that text was cut to fit

    @property
    def length(self) -> int:
        return max(len(sequence) for sequence in self.sequences)

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences) + (0 if self.output is None else len(self.output))


class Examples(Protocol):
    """What training asks of a store; a list of encoded examples will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Encoded: ...


@dataclass(slots=True)
class Segment:
    """The rows of one micro-batch that belong to one task."""

    task: str
    family: Family
    examples: list[Encoded]
    rows: torch.Tensor  # [r] which rows of the micro-batch
    sizes: torch.Tensor  # [e] how many rows each example has
    lengths: torch.Tensor  # [r] real tokens of each row
    targets: torch.Tensor  # whatever the family's `collate` made
    weights: torch.Tensor  # [e] each example's weight in the whole update
    tokens: int = 0  # real ones that the model reads of them, by encoder and decoder
    noised: Segment | None = None  # the same examples once more, in rows whose embeddings are noised (R3F)

    def to(self, device: torch.device | str) -> Segment:
        from prefinetune.ops import move

        names = ("rows", "sizes", "lengths", "targets", "weights")
        tensors: dict[str, Any] = {name: move(getattr(self, name), device) for name in names}
        return replace(self, **tensors, noised=self.noised and self.noised.to(device))


@dataclass(frozen=True)
class Family:
    """Base of all families. Subclasses state their fields and override what differs.

    `skip` lists label values that mean "no label": such rows are left out and counted.
    """

    skip: tuple[Any, ...] = field(default=(), kw_only=True)

    kind: ClassVar[str] = ""  # the family's name in YAML, results and logs
    hub_task: ClassVar[str] = ""  # what the Hugging Face hub calls such problems
    shared_head: ClassVar[bool] = False  # one head for the whole family (MUPPET 3.1: choice and span), or one per task
    metric: ClassVar[str] = "accuracy"  # the score by which a task is judged; higher is better
    head_kind: ClassVar[str] = ""  # what it reads off the states: a sentence, an option, a span, or language (see Backbone)
    any_order: ClassVar[bool] = False  # whether lists among its inputs, such as options, mean the same in any order
    open_ended: ClassVar[bool] = False  # whether a text may well stand with other answers too
    label_words: ClassVar[str] = "labels"  # what `label_names` names, in words
    target_type: ClassVar[type] = np.int64  # of the arrays `stored_target` makes
    draws: ClassVar[bool] = False  # whether `draw` changes what is stored
    reads: ClassVar[tuple[str, ...]] = ("text", "pair")  # the names of those of its fields that the model reads
    answer_type: ClassVar[Any] = str  # of what `reply` gives for a row: str, float or list[str]
    probability_type: ClassVar[Any] = None  # how its probabilities are given: dict (by label) or list; None: it has none

    @property
    def reads_one_token(self) -> bool:
        """Whether its head needs the state of one token per sequence, in models that do not average."""
        return self.head_kind in ("sentence", "option")

    # ---- rows -> examples -> tokens

    def check(self, tokenizer: Tokenizer) -> None:
        """Whether a model with this tokenizer can learn such a task at all; asked before any data is read.

        Raises:
            InputError: it cannot, and why.
        """
        if tokenizer.decoder and not tokenizer.ends_sentences:
            raise InputError(
                f"{self.kind} on an encoder-decoder is read off the end-of-sequence token, and this tokenizer does not end a "
                "text with one; expected a tokenizer that adds eos_token"
            )

    def fields(self) -> tuple[Field, ...]:
        """The fields of a row this record reads."""
        raise NotImplementedError

    def inputs(self) -> tuple[Field, ...]:
        """Those of the fields that the model reads, one per text of its own: a context and its question are two. By them leaked
        rows are found."""
        raise NotImplementedError

    def outputs(self) -> tuple[Field, ...]:
        """Those of the fields that hold texts to be written."""
        return ()

    def columns(self) -> list[str]:
        """The top-level columns those fields name (functions name none)."""
        flat: list[Any] = []
        for value in self.fields():
            flat.extend(value if isinstance(value, tuple) else [value])
        return list(dict.fromkeys(part.split(".")[0] for part in flat if isinstance(part, str)))

    @property
    def is_frozen(self) -> bool:
        """Whether the record leaves nothing open that `freeze` would read from rows."""
        return type(self).freeze is Family.freeze

    def freeze(self, rows: Dataset, place: str) -> Family:
        """This family with what the record left open (labels, a range) read from training rows.

        Raises:
            InputError: the rows cannot be a task of this family (a single label, for one).
        """
        return self

    def label_field(self) -> Field:
        """The field with the label.

        Raises:
            InputError: this family has none.
        """
        where = getattr(self, "label", None)
        if where is None:
            raise InputError(f"skip: a {self.kind} task has no label whose values could be skipped")
        return where

    def skips(self, row: Mapping[str, Any]) -> bool:
        """Whether the record declares this row as one without a label."""
        return bool(self.skip) and read(row, self.label_field()) in self.skip

    def example(self, row: Mapping[str, Any]) -> Example:
        """Adapt one row. Raises FieldError naming the field, the value and what is accepted."""
        raise NotImplementedError

    def texts(self, row: Mapping[str, Any]) -> tuple[tuple[str, str | None], ...]:
        """What the model reads of a row; see Example. Raises FieldError."""
        record: Any = self
        pair = None if record.pair is None else read_text(row, record.pair)
        return ((read_text(row, record.text), pair),)

    def unanswered(self, row: Mapping[str, Any]) -> Example:
        """Adapt a row that has no answer yet; the target is a stand-in. Raises FieldError."""
        return Example(self.texts(row), 0)

    def encode_unanswered(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Encoded]:
        """Tokenize what `unanswered` gave, one for each."""
        return self.encode(examples, tokenizer, for_training=False)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, for_training: bool = True) -> list[Encoded]:
        """Tokenize; `source` is the index into `examples`. With `for_training` false, keep what scoring needs."""
        pairs = [pair for example in examples for pair in example.texts]
        sequences = tokenizer.pairs(pairs)
        encoded, at = [], 0
        for index, example in enumerate(examples):
            mine = sequences[at : at + len(example.texts)]
            at += len(example.texts)
            encoded.append(
                Encoded(
                    sequences=[ids for ids, _, _ in mine],
                    first=[first for _, first, _ in mine],
                    target=self.stored_target(example),
                    source=index,
                    truncated=sum(cut for _, _, cut in mine),
                    reference=None if for_training else example.reference,
                )
            )
        return encoded

    def stored_target(self, example: Example) -> np.ndarray:
        """The target as the store keeps it: a one-dimensional array of `target_type`."""
        return np.array([example.target], dtype=self.target_type)

    def draw(self, encoded: Encoded, tokenizer: Tokenizer, generator: np.random.Generator) -> Encoded:
        """What training sees of a stored example this time; only self-supervised families change it."""
        return encoded

    def collate(self, examples: Sequence[Encoded]) -> torch.Tensor:
        """Targets of a segment's examples as one tensor; [e] unless a family says otherwise."""
        import torch

        return torch.from_numpy(np.concatenate([example.target for example in examples]))

    def name_target(self, example: Example) -> Any:
        """The target as people read it."""
        return example.target

    def label_names(self, example: Example) -> tuple[str, ...]:
        """What is counted to see whether a split is balanced; nothing, unless a family has labels."""
        return ()

    def num_labelled(self, example: Example) -> int:
        """Of how many things those counts are shares: an example is one, unless a family labels parts of it."""
        return 1

    # ---- head, loss, scores

    def head_key(self, task: str, separate: bool = False) -> str:
        """Tasks with equal keys share a head. With `separate`, families whose tasks share one have one per task."""
        return self.kind if self.shared_head and not separate else f"{self.kind}/{task}"

    def head(self, backbone: Backbone) -> Head:
        """A new head: Transformers' own for this backbone and family."""
        return backbone.new_head(self.head_kind)

    def apply(self, head: Head, states: States, segment: Segment) -> torch.Tensor:
        """The head's output for a segment, given the states of its micro-batch."""
        raise NotImplementedError

    def loss(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Unscaled loss per example [e]."""
        raise NotImplementedError

    def outcomes(self, output: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Per example [e]: among how many answers a uniform guess chooses (MUPPET 3.3)."""
        raise NotImplementedError

    def divergence(self, output: torch.Tensor, noised: torch.Tensor, segment: Segment) -> torch.Tensor:
        """Symmetric KL divergence per example [e] between the predictions of two passes over the same rows (R3F, Aghajanyan et
        al. 2020, arXiv 2008.03156, section 3)."""
        return symmetric_kl(output, noised)

    def respond(self, head: Head, states: States, segment: Segment, tokenizer: Tokenizer) -> list[Any]:
        """One prediction per example from the states of its micro-batch."""
        return self.predict(self.apply(head, states, segment), segment)

    def predict(self, output: torch.Tensor, segment: Segment) -> list[Any]:
        """One prediction per example, in the form `score` and people read."""
        raise NotImplementedError

    def readable(self, prediction: Any, example: Encoded) -> dict[str, Any]:
        """A prediction beside its reference, for eyes."""
        return {"prediction": prediction, "reference": example.target.tolist()}

    def reply(self, head: Head, states: States, segment: Segment, tokenizer: Tokenizer) -> list[Any]:
        """One per example, of `answer_type`: what someone is told who asks."""
        return self.named(self.respond(head, states, segment, tokenizer), segment)

    def named(self, predictions: Sequence[Any], segment: Segment) -> list[Any]:
        """Predictions as answers, labels by their names."""
        pairs = zip(predictions, segment.examples, strict=True)
        return [self.readable(prediction, example)["prediction"] for prediction, example in pairs]

    def choices(self, output: torch.Tensor, segment: Segment) -> list[np.ndarray]:
        """Per example the logits [c, n] of its c choices among n outcomes, in float64: a softmax makes them probabilities. NaN
        for a choice that the model was not asked. Only where there is a `probability_type`."""
        raise NotImplementedError

    def chosen(self, example: Encoded) -> np.ndarray:
        """The true outcome of each of an example's choices [c]."""
        return example.target

    def named_probabilities(self, probabilities: np.ndarray) -> Any:
        """Those of an example's choices [c, n], as `probability_type` says."""
        raise NotImplementedError

    def finished(self) -> Family:
        """This family on a model that has been through `finish`."""
        return self

    def score(self, predictions: Sequence[Any], examples: Sequence[Encoded]) -> dict[str, float]:
        """Scores over a whole split, by metric name; the family's `metric` among them."""
        raise NotImplementedError

    def row_statistics(self, predictions: Sequence[Any], examples: Sequence[Encoded]) -> np.ndarray:
        """Per row what the score is made of, [e, k]: `score_of_means` of their mean over rows is the score of `metric`. With
        that, a bootstrap over rows scores thousands of resamples without a metric library."""
        raise NotImplementedError

    @classmethod
    def score_of_means(cls, means: np.ndarray) -> np.ndarray:
        """The score [...] that means of row statistics [..., k] stand for; for most families the mean itself."""
        return means[..., 0]

    def strata(self, targets: Sequence[np.ndarray]) -> np.ndarray:
        """To which of the groups that a small subset must represent each target, as stored, belongs; one group, unless a family
        has labels."""
        return np.zeros(len(targets), dtype=np.int64)

    def head_identity(self) -> dict[str, Any]:
        """What a saved head must share with a new one to take its place."""
        return {"family": self.kind}

    def finish(self, model: Any, tokenizer: Tokenizer | None = None) -> None:
        """Make an assembled Transformers model speak in the task's labels or units."""

    # ---- records in YAML

    def settings(self) -> dict[str, Any]:
        """The record's fields that differ from their defaults, as YAML can hold them."""
        from dataclasses import fields as dataclass_fields

        return {
            item.name: plain(getattr(self, item.name))
            for item in dataclass_fields(self)
            if getattr(self, item.name) != item.default
        }

    def identity(self) -> dict[str, Any]:
        """What a token store of this family depends on: its settings, without what only heads and scores use."""
        return {"family": self.kind, **self.settings()}


def symmetric_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(p || q) + KL(q || p) in float32, for logits [..., n] of p and q; -inf (in both) is no answer. Returns [...].

    The sum of both directions is one sum of (p - q) (log p - log q): no term is negative, and swapping changes nothing.
    """
    absent = first.isneginf()
    log_p = first.float().log_softmax(-1).masked_fill(absent, 0.0)
    log_q = second.float().log_softmax(-1).masked_fill(absent, 0.0)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def is_right(predictions: Sequence[int], examples: Sequence[Encoded]) -> np.ndarray:
    """[e, 1]: 1 where the predicted index is the target; the row statistics of accuracy."""
    return np.array([[found == int(example.target[0])] for found, example in zip(predictions, examples, strict=True)], np.float64)


def plain(value: Any) -> Any:
    """A field as YAML and JSON can hold it; a function is named, with a digest of its code so that a change is seen."""
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if callable(value):
        import hashlib

        digest = hashlib.blake2b(function_text(value, []).encode(), digest_size=4).hexdigest()
        return f"function {getattr(value, '__qualname__', repr(value))} {digest}"
    return value


def function_text(function: Any, seen: list[Any]) -> str:
    """What a function does, the same in every process: its code, and the values it was made with and finds around it; of the
    functions among these the same, as far as they are not `seen`."""
    code = getattr(function, "__code__", None)
    if any(function is one for one in seen) or code is None:
        return getattr(function, "__qualname__", None) or stable(function)
    seen.append(function)
    values = [getattr(function, "__self__", None), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    values += [cell.cell_contents for cell in function.__closure__ or ()]
    values += [function.__globals__[name] for name in names_in(code) if name in function.__globals__]
    return "|".join(
        [code_text(code), *(function_text(one, seen) if isinstance(one, FunctionType) else stable(one) for one in values)]
    )


def names_in(code: CodeType) -> list[str]:
    """The names of what a function looks for around it, and those of the functions in it."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return [*code.co_names, *chain.from_iterable(map(names_in, inner))]


def stable(value: Any) -> str:
    """What a value is, without where in memory it lies."""
    if isinstance(value, (ModuleType, type)):
        return value.__name__
    text = code_text(frozenset(value) if isinstance(value, set) else value)
    return type(value).__qualname__ if " at 0x" in text else text


def code_text(code: Any) -> str:
    """What a function does, the same in every process: its bytecode, the names and constants in it, and functions inside it."""
    if not isinstance(code, CodeType):
        return repr(sorted(map(repr, code))) if isinstance(code, frozenset) else repr(code)
    return "|".join([code.co_code.hex(), repr(code.co_names), *map(code_text, code.co_consts)])


# ---- reading fields


def read(row: Mapping[str, Any], where: Field) -> Any:
    """The value of a field in a row.

    Raises:
        FieldError: the row has no such column, or the path ends early.
    """
    if callable(where):
        try:
            return where(row)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise FieldError(where, dict(row), f"a row that this function can read ({type(error).__name__}: {error})") from error
    if isinstance(where, str) and where in row:  # also a column whose own name holds a dot
        return row[where]
    if isinstance(where, tuple):
        return tuple(read(row, part) for part in where)
    value: Any = row
    for part in where.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping):
            raise FieldError(where, None, f"one of the columns {listing(value)}{nearest(part, value)}")
        else:
            raise FieldError(where, value, f"a value with a part {part!r} in it")
    return value


def read_text(row: Mapping[str, Any], where: Field) -> str:
    """A text field; several fields are joined by a space.

    Raises:
        FieldError: missing, not a text, or nothing but white space.
    """
    if isinstance(where, tuple):
        return " ".join(read_text(row, part) for part in where)
    value = read(row, where)
    if isinstance(value, str):
        if value.strip():
            return value
        raise FieldError(where, value, "a text that is not empty")
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise FieldError(where, value, "a text that is not empty (this one is missing)")
    raise FieldError(where, value, f"a text, not {type(value).__name__}")


def distinct_rows(rows: Dataset, where: Field) -> Iterator[dict[str, Any]]:
    """Rows as far as a field reads them. Where it is a column of plain values, each different one comes once: Arrow finds them
    among millions in no time."""
    import pyarrow as pa

    if not isinstance(where, str):
        for piece in rows.iter(batch_size=1000):
            yield from (dict(zip(piece, values, strict=True)) for values in zip(*piece.values(), strict=True))
        return
    name = where if where in rows.column_names else where.split(".")[0]
    column = rows.data.column(name)
    if rows._indices is not None:  # only some of them; going through `rows` itself takes seconds per million
        column = column.take(rows._indices.column(0))
    if not pa.types.is_nested(column.type):
        column = column.unique()
    for start in range(0, len(column), 1000):
        yield from ({name: value} for value in column.slice(start, 1000).to_pylist())


def apart(*fields: Field | None) -> tuple[Field, ...]:
    """The fields that are given, with those that are joined from several taken apart."""
    given = [field for field in fields if field is not None]
    return tuple(part for field in given for part in (field if isinstance(field, tuple) else (field,)))


def check_fields(**parts: Any) -> None:
    """Refuse a record whose field is not a column name, a function or a sequence of them."""
    for name, value in parts.items():
        for part in value if isinstance(value, tuple) else (value,):
            if not (part is None or (isinstance(part, str) and part) or callable(part)):
                raise InputError(
                    f"{name}: {part!r} is not a field; expected a column name, a dotted path or (in Python) a function"
                )
