"""The records that ship with us: well formed, and true to the rows they describe where a mirror of the data is at hand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from prefinetune.catalog import catalog
from prefinetune.errors import FieldError
from prefinetune.families import FAMILIES
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task

MIRROR = Path(os.environ.get("PREFINETUNE_DATA_ROOT") or Path(__file__).parents[2] / "shared" / "data")
SPLITS = ("train", "validation", "test")
KNOWN_BAD = {  # (task, split) -> rows in which the text of the right option is also that of a wrong one
    ("social_i_qa/resplit", "validation"): {145},
    ("com_ve/validation", "train"): {4074, 4120, 4312, 6394, 7696},
    ("com_ve/explanation", "train"): {1947},
    ("mmlu/all", "validation"): {802},
    ("mmlu/all", "test"): {1924},
    ("logiqa/resplit", "validation"): {160, 201, 555},
    ("mutual", "train"): {1461, 4912, 5489},
    ("mutual", "validation"): {375},
}
SKIPPED = {("hate_speech18", "train"): 73, ("super_glue/multirc", "train"): 2}  # rows that a record leaves out
UNSEEN_LABELS = {"atis/intent": 5}  # how many labels do not occur in training rows; the note says so

# The right option as the row itself names it, found by another road than the record's.
RIGHT_OPTION = {
    "ai2_arc/ARC-Challenge": lambda row: row["choices"]["text"]["ABCDE".index(row["answerKey"])],
    "ai2_arc/ARC-Easy": lambda row: row["choices"]["text"]["ABCDE".index(row["answerKey"])],
    "openbookqa/main": lambda row: row["choices"]["text"]["ABCD".index(row["answerKey"])],
    "aqua_rat/raw": lambda row: next(option for option in row["options"] if option.startswith(row["correct"] + ")")),
    "dream": lambda row: row["answer"],
    "mctest/mc160": lambda row: row["answer_options"][row["answer"]],
    "mctest/mc500": lambda row: row["answer_options"][row["answer"]],
    "com_ve/explanation": lambda row: row["Option" + row["label"]],
    "com_ve/validation": lambda row: row[f"sent{row['label']}"],
    "commonsense_qa": lambda row: row["choices"]["text"]["ABCDE".index(row["answerKey"])],
    "cosmos_qa": lambda row: row[f"answer{row['label']}"],
    "e_care": lambda row: row[f"choice{row['label'] + 1}"],
    "hellaswag": lambda row: row["endings"][int(row["label"])],
    "math_qa": lambda row: re.search(rf"{row['correct']} \) (.*?)( , [b-e] \)|$)", row["options"])[1],
    "mutual": lambda row: row["options"]["ABCD".index(row["answers"])],
    "piqa": lambda row: row[f"sol{row['label'] + 1}"],
    "race/all": lambda row: row["options"]["ABCD".index(row["answer"])],
    "sciq": lambda row: row["correct_answer"],
    "social_i_qa": lambda row: row["answer" + " ABC"[int(row["label"])]],
    "super_glue/copa": lambda row: row[f"choice{row['label'] + 1}"],
    "swag/regular": lambda row: row[f"ending{row['label']}"],
    "winogrande/winogrande_xl": lambda row: row["option" + row["answer"]],
    "logiqa": lambda row: row["options"][row["correct_option"]],
    "lsat-ar": lambda row: row["answers"][row["label"]],
    "lsat-lr": lambda row: row["answers"][row["label"]],
    "lsat-rc": lambda row: row["answers"][row["label"]],
    "mmlu/all": lambda row: row["choices"][row["answer"]],
    "quail": lambda row: row["answers"][row["correct_answer_id"]],
}
RIGHT_OPTION |= {name + "/resplit": find for name, find in RIGHT_OPTION.items()}
RIGHT_OPTION["winogrande/winogrande_xl-resplit"] = RIGHT_OPTION["winogrande/winogrande_xl"]
# What may be pointed at, where it does not stand in SQuAD's form.
POINTED_AT = {
    "drop": lambda row: row["answers_spans"]["spans"],
    "hotpot_qa/distractor": lambda row: [row["answer"]],
    "mrqa/natural_questions": lambda row: row["detected_answers"]["text"],
    "super_glue/record": lambda row: row["answers"],
    "trivia_qa/rc": lambda row: [row["answer"]["value"], *row["answer"]["aliases"]],
}
# What a row gives and what is to be written of it, by the row's own columns: the source must hold the former in this order and
# nothing else but what stands between them.
WRITTEN = {
    "aeslc": lambda row: ([row["email_body"]], row["subject_line"]),
    "bbc_news_summary": lambda row: ([row["document"]], row["summary"]),
    "big_patent/all": lambda row: ([row["description"]], row["abstract"]),
    "billsum": lambda row: ([row["text"]], row["summary"]),
    "cnn_dailymail": lambda row: ([row["article"]], row["highlights"]),
    "common_gen": lambda row: (row["concepts"], row["target"]),
    "dart": lambda row: ([part for triple in row["tripleset"] for part in triple], row["annotations"]["text"][0]),
    "dialogsum": lambda row: ([row["dialogue"]], row["summary"]),
    "e2e_nlg": lambda row: ([row["meaning_representation"]], row["human_reference"]),
    "e_care/explanation": lambda row: ([row["cause"], row["effect"]], row["conceptual_explanation"]),
    "gigaword": lambda row: ([row["document"]], row["summary"]),
    "meqsum": lambda row: ([row["CHQ"]], row["Summary"]),
    "mts_dialog": lambda row: ([row["dialogue"]], row["section_text"]),
    "multi_news": lambda row: ([row["document"]], row["summary"]),
    "qmsum/specific_spans": lambda row: ([row["query"], row["document"]], row["summary"]),
    "reddit_tifu/long": lambda row: ([row["documents"]], row["tldr"]),
    "scientific_papers/arxiv": lambda row: ([row["article"]], row["abstract"]),
    "scientific_papers/pubmed": lambda row: ([row["article"]], row["abstract"]),
    "squad_qg/nqg-resplit": lambda row: ([row["source"]], row["target"]),
    "web_nlg/webnlg_challenge_2017": lambda row: ([part for fact in row["input"] for part in fact.split(" | ")], row["target"]),
    "xsum": lambda row: ([row["document"]], row["summary"]),
}
WRITTEN |= {name + "/resplit": WRITTEN[name] for name in ("dart", "e2e_nlg", "meqsum", "xsum")}
# All texts that a right answer may be, where a row has more than the one to write.
REFERENCES = {
    "dart": lambda row: row["annotations"]["text"],
    "dart/resplit": lambda row: row["annotations"]["text"],
    "web_nlg/webnlg_challenge_2017": lambda row: row["references"],
}
BETWEEN = {" ", " | ", " && "}  # the parts of a source
COUNTS = {  # the votes behind a label of hate_speech_offensive
    "hate speech": "hate_speech_count",
    "offensive language": "offensive_language_count",
    "neither": "neither_count",
}


# ---- offline


def test_names_and_slugs_are_unique():
    assert len({task.name for task in catalog()}) == len(catalog())
    assert len({task.slug for task in catalog()}) == len(catalog())


@pytest.mark.parametrize("task", catalog().tasks, ids=lambda task: task.name)
def test_a_record_is_well_formed(task: Task):
    assert FAMILIES[task.family.kind] is type(task.family)
    assert isinstance(task.source, Hub)
    assert task.source.id is None or re.fullmatch(r"[\w.-]+/[\w.-]+", task.source.id), "OWNER/NAME, the present form of hub names"
    assert task.source.id is not None or task.source.config is None
    assert task.family.fields()
    assert task.tags
    assert not task.tags & {*FAMILIES, "all"}, "a tag that is a family's name would select two different things"
    assert all(tag == tag.lower() for tag in task.tags)
    assert task.license.strip()
    assert not task.splits or task.source.id is not None, "in a mirror every role has its own name"
    if task.source.revision is not None:
        assert task.source.revision == PARQUET or re.fullmatch("[0-9a-f]{40}", task.source.revision), "a branch of commits moves"
    if task.source.revision == PARQUET:
        assert task.source.config, "there a configuration is a folder, also when it is the only one"
    for text in (task.note, task.cite):
        assert text == text.strip().rstrip(".")


@pytest.mark.parametrize("task", catalog().select("classification").tasks, ids=lambda task: task.name)
def test_a_classification_record_declares_its_labels(task: Task):
    labels = task.family.labels
    assert len(labels) >= 2
    assert len(set(labels)) == len(labels)
    assert not set(labels) & set(task.family.skip)


@pytest.mark.parametrize("task", catalog().select("regression").tasks, ids=lambda task: task.name)
def test_a_regression_record_declares_its_range(task: Task):
    assert task.family.low < task.family.high


def test_every_text_to_be_written_is_named_below():
    assert WRITTEN.keys() == {task.name for task in catalog().select("generation")}


def test_columns_that_give_the_label_away_are_no_inputs():
    assert catalog()["hate_speech_offensive"].family.columns() == ["tweet", "class"]
    assert catalog()["liar"].family.columns() == ["statement", "label"]
    assert not any("label_text" in task.family.columns() for task in catalog())


def test_a_skipped_class_moves_no_other_class():
    family = catalog()["hate_speech18"].family
    assert family.skips({"text": "?", "label": 2})
    assert family.name_target(family.example({"text": "he went on", "label": 3})) == "relation"


def test_an_answer_without_text_is_left_out_and_not_judged():
    family = catalog()["super_glue/multirc"].family
    assert family.skips({"paragraph": "p", "question": "q", "answer": "", "label": 0})
    assert family.skips({"paragraph": "p", "question": "q", "answer": "a", "label": -1})
    assert not family.skips({"paragraph": "p", "question": "q", "answer": "a", "label": 0})


def test_a_virtue_scenario_is_parted_from_its_trait():
    family = catalog()["ethics/virtue"].family
    example = family.example({"scenario": "Ann gave him half of it. [SEP] generous", "label": 1})
    assert example.texts == (("Ann gave him half of it.", "generous"),)


def test_facts_are_told_alike_in_both_of_their_forms():
    three, joined = catalog()["dart/resplit"].family, catalog()["web_nlg/webnlg_challenge_2017"].family
    triples = [["Mars_Hill", "LOCATION", "North Carolina"], ["Mars_Hill", "JOINED", "1973"]]
    first = three.example({"tripleset": triples, "annotations": {"source": ["?", "?"], "text": ["It did.", "So it did."]}})
    second = joined.example({"input": [" | ".join(triple) for triple in triples], "target": "It did.", "references": []})
    assert first.texts == second.texts == (("Mars_Hill | LOCATION | North Carolina && Mars_Hill | JOINED | 1973", None),)
    assert first.target == second.target == "It did."
    assert (first.reference, second.reference) == (("It did.", "So it did."), ("It did.",)), "an empty list: the target"


def test_a_question_stands_before_its_passage_where_a_cut_takes_the_end():
    for name in (
        "dream",
        "mctest/mc160",
        "quail/resplit",
        "cosmos_qa",
        "cosmos_qa/resplit",
        "race/all",
        "lsat-ar",
        "lsat-rc/resplit",
    ):
        assert catalog()[name].family.text[0] == "question"
    assert (catalog()["qmsum/specific_spans"].family.text, catalog()["qmsum/specific_spans"].family.pair) == ("query", "document")


def test_suites_are_chosen_by_tag():
    glue = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
    assert {task.name for task in catalog().select("glue")} == {f"glue/{config}" for config in glue}
    superglue = ("boolq", "cb", "copa", "multirc", "record", "wic", "wsc")
    assert {task.name for task in catalog().select("superglue")} == {"glue/rte", *(f"super_glue/{name}" for name in superglue)}
    stance = ("abortion", "atheism", "climate", "feminist", "hillary")
    tweets = ("emoji", "emotion", "hate", "irony", "offensive", "sentiment", *(f"stance_{target}" for target in stance))
    assert {task.name for task in catalog().select("tweeteval")} == {f"tweet_eval/{config}" for config in tweets}
    assert {task.family.kind for task in catalog().select("summarization", "headline", "data-to-text")} == {"generation"}


# ---- with the data

with_mirror = pytest.mark.skipif(
    not any(MIRROR.glob("manifest-*.jsonl")), reason="no mirror of the data (PREFINETUNE_DATA_ROOT or ../shared/data)"
)


def manifest() -> dict[str, dict[str, Any]]:
    lines = [line for path in sorted(MIRROR.glob("manifest-*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return {entry["slug"]: entry for entry in map(json.loads, lines)}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches(batch_size=2000):
        yield from batch.to_pylist()


MIRRORED = [task for task in catalog() if (MIRROR / task.slug).is_dir()]


@with_mirror
def test_every_folder_of_the_mirror_has_a_record():
    assert manifest().keys() == {task.slug for task in MIRRORED}
    assert manifest().keys() == {path.name for path in MIRROR.iterdir() if path.is_dir()}


@with_mirror
def test_what_is_not_in_the_mirror_can_be_had_from_the_hub():
    assert all(task.source.id for task in catalog() if task not in MIRRORED)


@with_mirror
def test_what_the_manifest_calls_summarization_is_generated():
    listed = {slug for slug, entry in manifest().items() if entry["family"] == "summarization"}
    assert {task.slug for task in MIRRORED if task.family.kind == "generation"} == listed


@with_mirror
def test_licences_are_the_publishers():
    listed = manifest()
    assert {task.name: task.license for task in MIRRORED} == {task.name: listed[task.slug]["license"] for task in MIRRORED}


@with_mirror
def test_no_hub_copy_is_named_where_none_is_known():
    listed = manifest()
    for task in MIRRORED:
        said = listed[task.slug]["hub_id"]
        if said is None or "no canonical" in said:
            assert task.source.id is None, f"{task.name}: the manifest says {said}"


@with_mirror
@pytest.mark.parametrize("task", MIRRORED, ids=lambda task: task.name)
def test_every_row_becomes_the_example_it_should_be(task: Task):
    from datasets import Dataset

    entry, problems, seen = manifest()[task.slug], [], set()
    splits = [split for split in SPLITS if (MIRROR / task.slug / f"{split}.parquet").exists()]
    assert not (task.evaluation_only and "train" in splits)
    for split in splits:
        path, known = MIRROR / task.slug / f"{split}.parquet", KNOWN_BAD.get((task.name, split), set())
        first = next(rows_of(path))
        assert set(task.family.columns()) <= set(first)
        family = task.family.freeze(Dataset.from_list([first]), str(path))
        bad, num_skipped = set(), 0
        for number, row in enumerate(rows_of(path)):
            if family.skips(row):
                num_skipped += 1
                continue
            try:
                example = family.example(row)
                check(task, row, example, entry)
            except (FieldError, AssertionError) as error:
                bad.add(number)
                if number not in known:
                    problems.append(f"{split}, row {number}: {str(error).splitlines()[0]}")
            else:
                if split == splits[0] and task.family.kind == "classification":
                    seen.add(family.name_target(example))
        problems += [f"{split}, row {number} was expected to be bad" for number in known - bad]
        assert num_skipped == SKIPPED.get((task.name, split), 0)
    if task.family.kind == "classification":
        missing = [label for label in task.family.labels if label not in seen]
        if len(missing) != UNSEEN_LABELS.get(task.name, 0) or (missing and not task.note):
            problems.append(f"labels that no training row has: {missing}")
    assert not problems, f"{task.name}: {len(problems)} problems\n" + "\n".join(problems[:20])


def check(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    """The example against what the row, or the manifest, says in other words."""
    assert all(first.strip() and (second is None or second.strip()) for first, second in example.texts), "an empty text"
    checks = {
        "classification": check_class, "regression": check_number, "choice": check_option, "span": check_span,
        "generation": check_text, "multi-label": check_classes,
    }  # fmt: skip
    checks[task.family.kind](task, row, example, entry)


def check_class(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    found, names = task.family.name_target(example), entry["label_names"]
    value = row[entry.get("label_column") or ("label" if callable(task.family.label) else task.family.label)]
    said = value if isinstance(value, str) else names[value]
    assert found == said, f"label {value!r} is {said!r} in the manifest, {found!r} here"
    assert row.get("label_text", found) == found, f"label {value!r} is {row['label_text']!r} in the row, {found!r} here"
    if task.name == "hate_speech_offensive":
        assert row[COUNTS[found]] == max(row[column] for column in COUNTS.values()), f"{found!r} has not the most votes"


def check_classes(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    found, said = task.family.name_target(example), {entry["label_names"][value] for value in row[entry["label_column"]]}
    assert set(found) == said, f"labels are {sorted(said)} in the manifest, {found} here"


def check_number(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    assert task.family.name_target(example) == pytest.approx(row[entry["label_column"]])


def check_option(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    found, said = task.family.name_target(example), RIGHT_OPTION[task.name](row)
    assert found == said, f"the right option is {said!r}, not {found!r}"
    times = [option for _, option in example.texts].count(said)
    assert times == 1, f"the right option {said!r} stands there {times} times"


def check_span(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    context, answers = example.texts[0][1], POINTED_AT.get(task.name, lambda row: row["answers"]["text"])(row)
    assert (example.target is None) == (not answers)
    if answers:
        start, end = example.target
        accepted = answers if task.name in POINTED_AT else [answers[0].strip()]
        assert context[start:end] in accepted, f"the answer is one of {accepted!r}, not {context[start:end]!r}"


def check_text(task: Task, row: Mapping[str, Any], example: Any, entry: Mapping[str, Any]) -> None:
    parts, said = WRITTEN[task.name](row)
    assert said.strip(), "there is nothing to write"
    assert example.target == said, f"to be written is {said!r}, not {example.target!r}"
    references = REFERENCES.get(task.name, lambda row: [])(row) or [said]
    assert all(text.strip() for text in references), "an empty reference"
    assert said in references
    assert list(example.reference) == references, f"references are {references!r}, not {example.reference!r}"
    [(first, second)] = example.texts
    left = f" {first}" if second is None else f" {first} {second}"
    for part in parts:
        between, found, left = left.partition(part)
        assert found, f"{part[:80]!r} is missing in the source, or not in its place"
        assert between in BETWEEN, f"the source also holds {between[:80]!r}"
    assert not left, f"the source also holds {left[:80]!r}"
