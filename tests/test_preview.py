"""What rows become, for eyes: raw row, example, tokens, answer; and what many rows look like together."""

import itertools
import json

import numpy as np
import pytest
from rich.console import Console

import microworld
from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Generation, Regression, Span
from prefinetune.preview import length_statistics, preview_task, show_preview
from prefinetune.sources import Files, Rows
from prefinetune.task import Task
from prefinetune.tokenizer import Decoder, Tokenizer

ROWS = [{"id": at, "text": "the cat " * (1 + at % 3), "label": "aab"[at % 3], "more": "x" * 500} for at in range(30)]


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Tables are kept beside the test."""


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(microworld.tokenizer(), 16)


def task(family, rows=ROWS, **splits) -> Task:
    return Task("mine", Rows({"train": rows, "validation": rows[:3], **splits}), family)


def test_a_row_is_shown_raw_as_example_and_as_tokens_with_special_ones(tokenizer):
    found = preview_task(task(Classification("text")), 2, tokenizer)
    first = found["examples"][0]
    assert first["raw"] == {"id": 0, "text": "the cat ", "label": "a", "more": "x" * 199 + "… (500 characters)"}
    assert first["texts"] == (("the cat ", None),)
    assert first["target"] == "a"
    assert first["tokens"] == [tokenizer.tokenizer.decode(tokenizer.tokenizer("the cat ")["input_ids"])]
    assert any(special in first["tokens"][0] for special in tokenizer.tokenizer.all_special_tokens)
    assert found["unused"] == ["id", "more"]
    assert found["rows"] == {"train": 30, "validation": 3}
    assert [example["row"] for example in found["examples"]] == [0, 1]


def test_the_raw_row_is_that_of_the_example_also_where_rows_are_held_out_skipped_or_bad(tmp_path):
    lines = [json.dumps({"text": f"text {at}", "label": "xab"[at % 3], "at": at}) for at in range(200)]
    lines[3] = "broken"
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = preview_task(Task("mine", Files(str(tmp_path / "rows.jsonl")), Classification("text", skip=("x",))), 30)
    assert len(found["examples"]) == 30
    for example in found["examples"]:
        assert example["raw"]["at"] == example["row"]
        assert example["texts"] == ((f"text {example['row']}", None),)
        assert example["raw"]["label"] == example["target"] != "x"


def test_a_bad_first_row_is_named_with_its_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "", "label": "a"}\n' + '{"text": "t", "label": "b"}\n{"text": "t", "label": "a"}\n' * 9
    )
    with pytest.raises(InputError, match=r"rows\.jsonl, row 0: field 'text'"):
        preview_task(
            Task(
                "mine",
                Files({"train": str(tmp_path / "rows.jsonl"), "validation": str(tmp_path / "rows.jsonl")}),
                Classification("text"),
            ),
            2,
        )


def test_class_balance_is_that_of_a_plain_count():
    found = preview_task(task(Classification("text")), 0)
    numbers = found["statistics"]
    assert (numbers["role"], numbers["rows"]) == ("train", 30)
    assert numbers["labels"] == {"a": 20, "b": 10}
    assert numbers["majority"] == pytest.approx(2 / 3)
    assert found["examples"] == []


def test_statistics_are_of_at_most_2000_rows_spread_over_all():
    rows = [{"text": "t", "label": "early" if at < 5000 else "late"} for at in range(10_000)]
    numbers = preview_task(task(Classification("text"), rows), 1)["statistics"]
    assert numbers["rows"] == 2000
    assert numbers["labels"]["early"] == pytest.approx(1000, abs=2)


def test_numbers_have_their_quartiles():
    rows = [{"text": f"t {at}", "label": float(at)} for at in range(41)]
    numbers = preview_task(task(Regression("text"), rows), 1)["statistics"]
    assert numbers["numbers"] == pytest.approx({"minimum": 0, "25%": 10, "median": 20, "75%": 30, "maximum": 40}, abs=1e-4)


def test_lengths_are_those_of_the_tokenizer(tokenizer):
    rows = [{"text": "the cat " * count, "label": "ab"[count % 2]} for count in range(1, 31)]
    numbers = preview_task(task(Classification("text"), rows), 1, tokenizer)["statistics"]["lengths"]
    lengths = [len(tokenizer.tokenizer("the cat " * count)["input_ids"]) for count in range(1, 31)]
    assert numbers["limit"] == 16
    assert numbers["cut"] == pytest.approx(sum(length > 16 for length in lengths) / 30)
    assert numbers["percentiles"]["100"] == 16
    assert numbers["percentiles"]["50"] == sorted(min(length, 16) for length in lengths)[14]


def test_every_option_and_every_window_is_shown(tokenizer):
    rows = [{"text": "the cat", "o": ["a", "b", "c"], "label": 1, "c": "the cat " * 40, "a": "cat"} for _ in range(9)]
    assert len(preview_task(task(Choice("text", "o"), rows), 1, tokenizer)["examples"][0]["tokens"]) == 3
    numbers = preview_task(task(Span("text", "c", answer="a"), rows), 1, tokenizer)["statistics"]
    assert numbers["lengths"]["cut"] == 1
    assert numbers["labels"] == {}


def test_what_is_to_be_written_has_lengths_of_its_own():
    fast = microworld.tokenizer()
    tokenizer = Tokenizer(fast, 16, decoder=Decoder(max_length=8, most=64, start=2, writes_sentinels=False))
    rows = [{"text": "the cat", "target": "the cat " * (1 if at < 15 else 9)} for at in range(30)]
    found = preview_task(task(Generation("text", "target"), rows), 1, tokenizer)
    assert found["statistics"]["written"]["limit"] == 8
    assert found["statistics"]["written"]["cut"] == pytest.approx(0.5)
    assert found["examples"][0]["written"] == [fast.decode(fast("the cat ")["input_ids"])]


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], list(range(1, 100)), [3, 512, 512], [1, 2]])
def test_a_histogram_counts_every_sequence_once_in_few_bins_of_equal_width(lengths):
    found = length_statistics(lengths, 512, 0.0)["histogram"]
    assert 1 <= len(found) <= 8
    assert (found[0][0], found[-1][1]) == (min(lengths), max(lengths))
    assert all(second[0] == first[1] + 1 for first, second in itertools.pairwise(found))
    assert len({last - first for first, last, _ in found[:-1]}) <= 1
    for first, last, count in found:
        assert count == np.sum((np.array(lengths) >= first) & (np.array(lengths) <= last))


def test_what_is_found_can_be_written_as_json(tokenizer):
    found = preview_task(task(Classification("text")), 2, tokenizer)
    assert json.loads(json.dumps(found))["statistics"]["labels"] == {"a": 20, "b": 10}


def test_it_prints_within_80_columns_without_colour(tokenizer, capsys):
    rows = [{**row, "a_column_with_a_rather_long_name": "word " * 60, "label": f"{row['label']}[bold]"} for row in ROWS]
    show_preview(preview_task(task(Classification("text"), rows), 2, tokenizer), Console(width=80, force_terminal=False))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "a[bold]" in text
    assert "66.7%" in text
    for heading in (
        "mine: classification, 30 training, 3 validation rows",
        "row 0",
        "reads",
        "answer",
        "labels in 30 training rows",
        "tokens read",
    ):
        assert heading in text
