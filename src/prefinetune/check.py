"""Whether tasks can be used at all: every row of every split through its adapter, without a model.

What stops a run is an error, what a person should know before it is a remark; one bad task does not stop the others. Memory does
not grow with the texts: of each row a few bytes are kept, to find those that stand twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.errors import FieldError, InputError, listing
from prefinetune.families import Example, Family
from prefinetune.quarantine import BAD_ROWS
from prefinetune.splits import OpenTask, Split, open_task, spread_rows
from prefinetune.task import Task

if TYPE_CHECKING:
    from rich.console import Console

    from prefinetune.tokenizer import Tokenizer

SHOWN = 3  # messages about bad rows of a split
IMBALANCE = 0.9  # share of one label from which on it is worth a remark
SAMPLED = 2000  # rows whose tokens are counted


@dataclass(frozen=True)
class SplitReport:
    """What the rows of one role are.

    Attributes:
        place: its file.
        rows: how many there are; each is an example, skipped (as its task's `skip` says) or bad.
        problems: the first few bad rows, with the reason.
        labels: label -> number of rows that have it; empty for families without labels. A choice counts the places of its right
            options, from 0; tagging counts words.
        duplicates: examples that equal an earlier one, answer included.
        contradictions: examples whose texts stand with another answer too.
        seen_in_training: examples whose texts also stand in a training row.
    """

    role: str
    place: str
    rows: int
    examples: int = 0
    skipped: int = 0
    bad: int = 0
    problems: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    contradictions: int = 0
    seen_in_training: int = 0


@dataclass(frozen=True)
class Report:
    """What was found about one task; it can be trained on where there are no errors."""

    task: str
    family: str
    splits: tuple[SplitReport, ...]
    labels: tuple[str, ...]  # declared by the record, or read from its training rows
    errors: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.errors


def check_suite(
    suite: Iterable[Task], data_root: str | Path | None = None, tokenizer: Tokenizer | None = None, bad_rows: float = BAD_ROWS
) -> list[Report]:
    """A report on every task, in order.

    Args:
        suite: a Suite, or any tasks.
        data_root: a mirror of hub datasets.
        tokenizer: with one, also whether its model can learn each task, and how many texts it would cut.
        bad_rows: the share of a split that may be unusable before that is an error.
    """
    return [check_task(task, data_root, tokenizer, bad_rows) for task in suite]


def check_task(
    task: Task, data_root: str | Path | None = None, tokenizer: Tokenizer | None = None, bad_rows: float = BAD_ROWS
) -> Report:
    """A report on one task; never raises for what is wrong with it."""
    errors: list[str] = []
    splits: list[SplitReport] = []
    remarks: list[str] = []
    labels: tuple[str, ...] = ()
    try:
        if tokenizer is not None:
            task.family.check(tokenizer)
        opened = open_task(task, data_root, bad_rows=1.0)  # all of them are to be counted
        family = opened.family  # labels and ranges, from the training rows
        labels = tuple(getattr(family, "labels", None) or ())
        train: np.ndarray | None = None
        for role in opened.roles:
            try:
                report, texts = check_split(opened, role, family, train)
            except InputError as error:
                errors.append(str(error))
                continue
            train = texts if role == "train" else train
            splits.append(report)
        if tokenizer is not None and splits and "train" in opened.roles:
            remarks.extend(cut_texts(opened.split("train"), family, tokenizer))
    except InputError as error:
        errors.append(str(error))
    for split in splits:
        errors.extend(split_errors(split, bad_rows))
        remarks.extend(split_remarks(split, bad_rows))
    more_errors, more_remarks = label_problems(splits, labels)
    return Report(task.name, task.family.kind, tuple(splits), labels, (*errors, *more_errors), (*remarks, *more_remarks))


def check_split(opened: OpenTask, role: str, family: Family, train: np.ndarray | None) -> tuple[SplitReport, np.ndarray]:
    """The report on a role, and a number per example that is equal where texts are [examples]."""
    split = opened.split(role)
    labels: Counter[str] = Counter()
    texts: list[int] = []
    answers: list[int] = []
    problems = [str(fault) for fault in split.faults[:SHOWN]]
    skipped, bad = 0, len(split.faults)
    for start, rows in split.chunks():
        for index, row in enumerate(rows, start):
            try:
                if family.skips(row):
                    skipped += 1
                    continue
                example = family.example(row)
            except FieldError as error:
                bad += 1
                if len(problems) < SHOWN:
                    problems.append(str(error.at(*split.locate(index))))
                continue
            labels.update(family.label_names(example))
            texts.append(short_digest(example.texts))
            answers.append(short_digest(example))
    by_text, whole = np.array(texts, dtype=np.uint64), np.array(answers, dtype=np.uint64)
    distinct, first = np.unique(whole, return_index=True)
    _, times = np.unique(by_text[first], return_counts=True)  # of each text: with how many answers it stands
    count = len(by_text)
    report = SplitReport(
        role, split.place, len(split.kept), count, skipped, bad, tuple(problems), dict(labels.most_common()),
        duplicates=count - len(distinct), contradictions=0 if family.open_ended else int(times[times > 1].sum()),
        seen_in_training=0 if train is None else int(np.isin(by_text, train).sum()),
    )  # fmt: skip
    return report, by_text


def short_digest(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def split_errors(split: SplitReport, allowed: float) -> list[str]:
    found = []
    if split.bad > allowed * split.rows:
        more = f"; and {split.bad - len(split.problems):,} more" if split.bad > len(split.problems) else ""
        first = "; ".join(split.problems)
        found.append(
            f"{split.role}: {rows(split.bad)} of {split.rows:,} cannot be used, more than data.bad_rows={allowed:g} allows: "
            f"{first}{more}"
        )
    elif not split.examples:
        found.append(f"{split.role}: no row can be used ({split.skipped:,} without a label, {split.bad:,} bad)")
    return found


def split_remarks(split: SplitReport, allowed: float) -> list[str]:
    """Things to know about a split that do not stop a run."""
    found = []
    if 0 < split.bad <= allowed * split.rows:
        found.append(f"{rows(split.bad)} cannot be used and will be set aside; the first: {split.problems[0]}")
    if split.skipped:
        found.append(f"{rows(split.skipped)} without a label {'is' if split.skipped == 1 else 'are'} skipped")
    if split.duplicates:
        found.append(f"{rows(split.duplicates)} {'repeats an earlier one' if split.duplicates == 1 else 'repeat earlier ones'}")
    if split.contradictions:
        found.append(f"{rows(split.contradictions)} have a text that also stands with another answer")
    if split.seen_in_training and split.role != "train":
        have = "has" if split.seen_in_training == 1 else "have"
        found.append(f"{rows(split.seen_in_training)} of {split.examples:,} {have} a text that is also in the training rows")
    return [f"{split.role}: {remark}" for remark in found]


def label_problems(splits: list[SplitReport], labels: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(errors, remarks) about which labels occur where. Places of right options are counted too, without being labels."""
    errors: list[str] = []
    remarks: list[str] = []
    trained: Mapping[str, int] = {}
    for split in splits:
        if not split.labels:
            continue
        total = sum(split.labels.values())
        most, count = max(split.labels.items(), key=lambda item: item[1])
        if split.role == "train":
            trained = split.labels
            absent = [label for label in labels if label not in trained]
            if len(trained) == 1 and total >= split.examples:
                errors.append(f"train: every row has the answer {most!r}; there is nothing to tell apart")
            elif count > IMBALANCE * total and total == split.examples:  # one for each
                what = "label is" if labels else "right option is number"
                remarks.append(f"train: in {count / total:.1%} of the rows the {what} {most!r}")
            if absent:
                remarks.append(f"train: no row has the label {listing(map(repr, absent))}")
            rare = [label for label, times in trained.items() if times < 3]
            if rare and labels:
                remarks.append(f"train: fewer than three rows have the label {listing(map(repr, rare), 6)}")
        elif trained and labels:
            unseen = [label for label in split.labels if label not in trained]
            if unseen:
                remarks.append(f"{split.role}: never trained on: {listing(map(repr, unseen), 6)}")
    return errors, remarks


def cut_texts(split: Split, family: Family, tokenizer: Tokenizer) -> list[str]:
    """Remarks on how many examples the model cannot read, or write, as a whole."""
    examples = spread_examples(split, family, SAMPLED)
    encoded = family.encode(examples, tokenizer) if examples else []
    cut = len({one.source for one in encoded if one.truncated})
    written = len({one.source for one in encoded if one.output_cut})
    found = []
    if cut:
        found.append(
            f"train: {cut / len(examples):.1%} of the examples are longer than {tokenizer.max_length} tokens, and are cut"
        )
    if written and tokenizer.decoder:
        most = tokenizer.decoder.max_length
        found.append(f"train: {written / len(examples):.1%} of the targets are longer than {most} tokens, and are cut")
    return found


def spread_examples(split: Split, family: Family, most: int) -> list[Example]:
    """Examples of at most `most` rows, spread evenly over the split, without those that are skipped or bad."""
    found = []
    for _, chunk in split.take(spread_rows(len(split), most)).chunks():
        for row in chunk:
            try:
                if not family.skips(row):
                    found.append(family.example(row))
            except FieldError:
                continue  # counted where every row is checked
    return found


def rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


# ---- on a terminal


def show_reports(reports: Sequence[Report], console: Console) -> None:
    """Print a line per task and split, then what is wrong (x) and what to know (!); last the sum of it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "family", "split"):
        table.add_column(heading, overflow="fold")
    for heading in ("rows", "skipped", "bad", "labels"):
        table.add_column(heading, justify="right")
    for one in reports:
        for split in one.splits:
            seen = str(len(split.labels)) if split.labels else "-"
            seen += f" of {len(one.labels)}" if one.labels and len(split.labels) != len(one.labels) else ""
            numbers = (f"{split.rows:,}", f"{split.skipped:,}", f"{split.bad:,}", seen)
            table.add_row(Text(one.task), one.family, split.role, *numbers)
    console.print(table)
    for one in reports:
        for mark, told in (("x", one.errors), ("!", one.remarks)):
            for message in told:
                console.print(f"{mark} {one.task}: {message}", markup=False, highlight=False)
    wrong = [one.task for one in reports if not one.ok]
    tasks = "1 task" if len(reports) == 1 else f"{len(reports)} tasks"
    end = f"{len(wrong)} cannot be used: {listing(wrong)}" if wrong else "all can be used"
    console.print(f"{tasks} checked, {end}", markup=False, highlight=False)
