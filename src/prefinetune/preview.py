"""What a task's rows become, for eyes: row, example, tokens, target; and what many of them look like together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefinetune.check import spread_examples
from prefinetune.errors import FieldError, listing
from prefinetune.families import FAMILIES, Example, Family
from prefinetune.families.base import plain
from prefinetune.splits import OpenTask, open_task
from prefinetune.task import Task
from prefinetune.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SAMPLED = 2000  # rows that statistics are made of
BINS = 8  # of a histogram of lengths
SHORT = 200  # characters of a value of the raw row
SHOWN_LABELS = 12
BAR = 24  # characters of the longest bar
WORDS = {"train": "training"}  # what the rows of a role are called


def preview_task(task: Task, num_rows: int, tokenizer: Tokenizer | None = None, data_root: Path | None = None) -> dict[str, Any]:
    """The first rows of a task through its adapter, with a tokenizer as the model reads them, and statistics of at most SAMPLED
    rows that are spread evenly over the same split.

    Returns plain values:
        task, family, fields: the record.
        rows: role -> number of rows.
        unused: columns that the task does not read.
        examples: of each row its number `row`, `raw` (column -> value, long ones shortened), `texts` and `target`; with a
            tokenizer `tokens` and `written`, decoded with their special tokens.
        statistics: see `statistics`.

    Raises:
        InputError: the rows cannot be found or used.
    """
    opened = open_task(task, data_root)
    role = opened.roles[0]
    split, family = opened.split(role), opened.family
    whole = opened.source.read(opened.names.get(role, "train")).rows
    examples: list[dict[str, Any]] = []
    _, rows = next(iter(split.chunks(max(num_rows * 4, 8))))
    for index, row in enumerate(rows):
        if len(examples) == num_rows:
            break
        if family.skips(row):
            continue
        try:
            example = family.example(row)
        except FieldError as error:
            raise error.at(*split.locate(index)) from None
        shown: dict[str, Any] = {
            "row": split.number(index),
            "raw": {column: shortened(value) for column, value in whole[int(split.positions[index])].items()},
            "texts": example.texts, "target": family.name_target(example),
        }  # fmt: skip
        if tokenizer:
            encoded = family.encode([example], tokenizer)
            shown["tokens"] = [tokenizer.tokenizer.decode(ids) for one in encoded for ids in one.sequences]
            shown["written"] = [tokenizer.tokenizer.decode(one.output) for one in encoded if one.output is not None]
        examples.append(shown)
    return {
        "task": task.name, "family": task.family.kind, "fields": plain(family.settings()),
        "rows": {role: len(opened.split(role)) for role in opened.roles},
        "unused": [column for column in whole.column_names if column not in family.columns()], "examples": examples,
        "statistics": statistics(opened, role, tokenizer),
    }  # fmt: skip


def shortened(value: Any) -> Any:
    """A value for eyes: texts, and whatever else is long when written out, are cut."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= SHORT:
        return value
    return f"{text[: SHORT - 1]}… ({len(text):,} characters)"


def statistics(opened: OpenTask, role: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Of at most SAMPLED rows of a role.

    Returns plain values:
        role, rows: of how many examples of which role.
        labels: label -> count (see Family.label_names). Empty where there are none.
        labelled, majority: of how many these are, and the share of the most frequent one.
        numbers: for numbers their minimum, quartiles and maximum.
        lengths, written: see `length_statistics`; tokens that are read, and that are to be written.
    """
    family = opened.family
    examples = spread_examples(opened.split(role), family, SAMPLED)
    labels = Counter(label for example in examples for label in family.label_names(example))
    found: dict[str, Any] = {"role": role, "rows": len(examples), "labels": dict(labels.most_common())}
    if labels:
        found["labelled"] = sum(map(family.num_labelled, examples))
        found["majority"] = max(labels.values()) / found["labelled"]
    numbers = [family.name_target(example) for example in examples]
    if numbers and all(isinstance(number, float) for number in numbers):
        found["numbers"] = dict(
            zip(
                ("minimum", "25%", "median", "75%", "maximum"), np.percentile(numbers, [0, 25, 50, 75, 100]).tolist(), strict=True
            )
        )
    if tokenizer and examples:
        found |= lengths_of(family, examples, tokenizer)
    return found


def lengths_of(family: Family, examples: Sequence[Example], tokenizer: Tokenizer) -> dict[str, Any]:
    encoded = family.encode(examples, tokenizer)
    sources = {one.source for one in encoded}
    cut = {one.source for one in encoded if one.truncated}
    lengths = [len(ids) for one in encoded for ids in one.sequences]
    found = {"lengths": length_statistics(lengths, tokenizer.max_length, len(cut) / max(len(sources), 1))}
    written = [one for one in encoded if one.output is not None]
    if written and tokenizer.decoder and family.outputs():
        outputs = [len(one.output) for one in written if one.output is not None]
        share = sum(one.output_cut for one in written) / len(written)
        found["written"] = length_statistics(outputs, tokenizer.decoder.max_length, share)
    return found


def length_statistics(lengths: Sequence[int], limit: int, cut: float) -> dict[str, Any]:
    """Of sequences, in tokens, after what is too long was cut.

    Returns plain values:
        limit: most tokens of a sequence.
        cut: the share of examples of which something was cut away.
        percentiles: 50, 90, 95, 99 and 100 -> tokens.
        histogram: (first length, last length, number of sequences) of each of at most BINS bins, equally wide.
    """
    shortest, longest = min(lengths), max(lengths)
    width = -(-(longest - shortest + 1) // BINS)
    counts = np.bincount([(length - shortest) // width for length in lengths]).tolist()
    starts = [shortest + at * width for at in range(len(counts))]
    percentiles = np.percentile(lengths, [50, 90, 95, 99, 100], method="inverted_cdf")
    return {
        "limit": limit, "cut": cut,
        "percentiles": dict(zip(("50", "90", "95", "99", "100"), map(int, percentiles), strict=True)),
        "histogram": [(at, min(at + width - 1, longest), count) for at, count in zip(starts, counts, strict=True)],
    }  # fmt: skip


# ---- on a terminal


def show_preview(found: Mapping[str, Any], console: Console) -> None:
    """Print what `preview_task` found; readable at 80 columns and without colours."""
    rows = ", ".join(f"{count:,} {WORDS.get(role, role)}" for role, count in found["rows"].items())
    say(console, f"{found['task']}: {found['family']}, {rows} rows", "bold")
    fields = [f"{name} = {shown(value)}" for name, value in found["fields"].items() if name != "labels"]
    say(console, "  " + "; ".join(fields))
    if found["unused"]:
        say(console, f"  columns that are not used: {listing(found['unused'])}")
    for example in found["examples"]:
        say(console, f"\n  row {example['row']}", "bold")
        lines: list[tuple[str, str]] = [(column, shown(value)) for column, value in example["raw"].items()]
        read = example.get("tokens") or [
            first if second is None else f"{first}  |  {second}" for first, second in example["texts"]
        ]
        lines += [("", "")]
        lines += [(f"reads {at + 1}" if len(read) > 1 else "reads", text) for at, text in enumerate(read)]
        lines += [("writes", text) for text in example.get("written", ()) if text]
        lines += [] if example["target"] is None else [("answer", shown(example["target"]))]
        console.print(grid(lines))
    numbers = found["statistics"]
    about = f"{numbers['rows']:,} {WORDS.get(numbers['role'], numbers['role'])} rows" + (
        ", spread evenly" if numbers["rows"] < found["rows"].get(numbers["role"], 0) else ""
    )
    if numbers["labels"]:
        say(
            console,
            f"\n  {FAMILIES[found['family']].label_words} in {about}; the most frequent one has {numbers['majority']:.1%}",
            "bold",
        )
        console.print(bars(numbers["labels"].items(), numbers["labelled"]))
        if (more := len(numbers["labels"]) - SHOWN_LABELS) > 0:
            say(console, f"    and {more:,} more")
    if "numbers" in numbers:
        say(console, f"\n  numbers in {about}", "bold")
        say(console, "    " + ", ".join(f"{name} {value:g}" for name, value in numbers["numbers"].items()))
    for key, verb in (("lengths", "read"), ("written", "written")):
        if key in numbers:
            show_lengths(numbers[key], verb, about, console)
    say(console, "")


def show_lengths(lengths: Mapping[str, Any], verb: str, about: str, console: Console) -> None:
    say(console, f"\n  tokens {verb}, in {about}; {lengths['cut']:.1%} are longer than {lengths['limit']}, and cut", "bold")
    half, *most, longest = lengths["percentiles"].items()
    say(console, f"    half have {half[1]} at most, " + ", ".join(f"{p} % {count}" for p, count in most) + f", all {longest[1]}")
    total = sum(count for _, _, count in lengths["histogram"])
    console.print(
        bars([(f"{first}-{last}" if first < last else str(first), count) for first, last, count in lengths["histogram"]], total)
    )


def say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, highlight=False, style=style)


def shown(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, (list, tuple)) and all(isinstance(one, (str, int)) for one in value):
        return ", ".join(map(str, value))
    return " ".join(str(value).split())


def grid(lines: Iterable[tuple[str, str]]) -> Table:
    """Names and values side by side, values wrapped."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(max_width=20, overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for name, value in lines:
        table.add_row(Text(f"    {name}"), Text(value))
    return table


def bars(counts: Iterable[tuple[str, int]], total: int) -> Table:
    """A line per count with its share and a bar."""
    from rich.table import Table
    from rich.text import Text

    counts = list(counts)[: max(SHOWN_LABELS, BINS)]
    most = max((count for _, count in counts), default=1)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(max_width=32, overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, count in counts:
        table.add_row(
            Text(f"    {name}"), f"{count:,}", f"{count / max(total, 1):.1%}", Text("█" * round(BAR * count / max(most, 1)))
        )
    return table
