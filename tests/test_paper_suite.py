"""The paper's datasets: that all are there in their official form, and that what is odd about each is handled. Rows are those of
tests/hub, made up in the hub's form; what is expected of them is written here by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefinetune.catalog import catalog
from prefinetune.catalog.muppet import EVALUATION, SETS, listing
from prefinetune.catalog.spans import place, standing
from prefinetune.errors import FieldError, InputError
from prefinetune.families import Classification, Span
from prefinetune.sources import PARQUET, Hub, Rows
from prefinetune.splits import open_task
from prefinetune.task import Task

HUB = Path(__file__).parent / "hub"
PAGE = Path(__file__).parents[1] / "docs" / "catalog.md"


@pytest.fixture(autouse=True)
def own_cache(cache):
    """What is kept of files that were read is thrown away."""


def read(name: str, role: str = "train") -> tuple[list[Any], int]:
    """(the examples of a role, how many of its rows were left out), by way of the files."""
    opened, examples, left_out = open_task(catalog()[name], data_root=HUB), [], 0
    for row in opened.source.read(opened.names[role]).rows:
        if opened.family.skips(row):
            left_out += 1
        else:
            examples.append(opened.family.example(row))
    return examples, left_out


def targets(name: str, role: str = "train") -> list[Any]:
    """As people read them."""
    family = open_task(catalog()[name], data_root=HUB).family
    return [family.name_target(example) for example in read(name, role)[0]]


def pointed_at(name: str, role: str = "train") -> list[tuple[str, str]]:
    """(what a target's characters are, the text before them) of a span task."""
    found = []
    for example in read(name, role)[0]:
        context, (start, end) = example.texts[0][1], example.target
        found.append((context[start:end], context[:start]))
    return found


# ---- which sets


def test_there_are_46_sets_and_encoders_learn_those_that_are_not_written():
    suite = catalog().select("muppet")
    assert len(suite) == 46
    assert {task.name for task in suite} == {name for sets in SETS.values() for name in sets}
    assert catalog().select("muppet-bart").tasks == suite.tasks
    assert catalog().select("muppet-roberta").tasks == suite.without("generation").tasks
    assert not any(task.evaluation_only for task in suite)


def test_counts_per_family_are_the_papers_list_and_ours():
    assert {family: len(sets) for family, sets in SETS.items()} == {
        "classification": 25, "commonsense": 10, "reading": 6, "summarization": 5,
    }  # fmt: skip
    kinds = Counter(task.family.kind for task in catalog().select("muppet"))
    assert kinds == {"classification": 23, "regression": 1, "choice": 11, "span": 6, "generation": 5}


def test_every_set_is_read_in_its_official_form_from_the_hub():
    for task in catalog().select("muppet", "muppet-evaluation"):
        assert task.source.id is not None
        assert "resplit" not in task.name
    for task in catalog():
        if task.name.endswith("resplit"):
            assert task.source == Hub(None)


def test_row_counts_add_up_to_those_that_the_page_compares_with_the_papers():
    sums = {family: tuple(map(sum, zip(*sets.values(), strict=True))) for family, sets in SETS.items()}
    assert sums["summarization"] == (524_543 + 44_972, 29_929 + 5_622)  # the paper's four sets, and Multi-News
    assert sums["classification"][1] == 188_154 + 158  # SNLI's rows without a label
    assert (sums["commonsense"][0] + 33_410 + 40_398, sums["commonsense"][1] + 1_954 + 1_267) == (359_971, 49_206)
    text = PAGE.read_text(encoding="utf-8")
    for train, evaluation in sums.values():
        assert f"**{train:,}** | **{evaluation:,}** |" in text


def test_sets_that_scores_are_reported_on_are_marked_and_some_are_never_trained_on():
    marked = catalog().select("muppet-evaluation")
    assert {task.name for task in marked} == set(EVALUATION)
    kept_out = {"gigaword", "reddit_tifu/long", "big_patent/all", "hyperpartisan_news_detection/byarticle"}
    kept_out |= {"scientific_papers/arxiv", "scientific_papers/pubmed", "anli/r1", "anli/r2", "anli/r3"}
    assert {task.name for task in marked if task.evaluation_only} == kept_out
    assert {task.name for task in marked if not task.evaluation_only} <= {task.name for task in catalog().select("muppet")}


def test_the_page_lists_the_records_as_they_are():
    assert listing() in PAGE.read_text(encoding="utf-8"), (
        "write it anew: python -c 'from prefinetune.catalog.muppet import listing; print(listing())'"
    )


# ---- where rows come from


def test_the_hubs_parquet_branch_is_asked_for_a_folder_and_others_for_a_name(monkeypatch):
    import datasets

    asked, rows = [], datasets.Dataset.from_list([{"text": "t"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: asked.append((args, more)) or rows)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *args, **more: asked.append((args, more)) or ["train"])
    for hub in (Hub("a/b", "c", PARQUET), Hub("a/b", "c", "0" * 40), Hub("a/b")):
        assert hub.splits() == ["train"]
        hub.read("train")
    parquet, commit, plain = (("a/b", None), {"revision": PARQUET, "data_dir": "c"}), (("a/b", "c"), {"revision": "0" * 40}), (
        ("a/b", None), {"revision": None},
    )  # fmt: skip
    assert asked == [
        call for args, more in (parquet, commit, plain) for call in ((args, more), (args, {**more, "split": "train"}))
    ]


def test_splits_are_named_for_the_hub_and_a_mirror_has_the_roles_own_names(monkeypatch):
    monkeypatch.setattr(
        Hub, "splits", lambda hub: ["train", "validation_matched", "validation_mismatched", "test", "test_r2", "dev_r2"]
    )
    assert open_task(catalog()["glue/mnli"]).names == {"train": "train", "validation": "validation_matched"}
    assert open_task(catalog()["glue/mnli"], data_root=HUB).names == {"train": "train", "validation": "validation"}
    with pytest.raises(InputError, match=r"no split 'train_r2' \(wanted for train\)"):
        _ = open_task(catalog()["anli/r2"]).names


def test_a_split_without_answers_is_no_test_split():
    rows = [{"text": f"t{index}", "label": index % 2} for index in range(30)]
    table = Rows({"train": rows, "validation": rows, "test": [{"text": "t", "label": -1}]})
    family = Classification("text", labels=("a", "b"), skip=(-1,))
    assert open_task(Task("mine", table, family, splits={"test": None})).roles == ["train", "validation"]
    assert open_task(Task("mine", table, family)).roles == ["train", "validation", "test"]


# ---- the traps


@pytest.mark.parametrize(
    "name",
    [
        "glue/mnli", "glue/qqp", "glue/rte", "super_glue/boolq", "super_glue/cb", "super_glue/copa", "hellaswag", "swag/regular",
        "commonsense_qa", "piqa", "winogrande/winogrande_xl", "cosmos_qa",
    ],
)  # fmt: skip
def test_a_row_whose_answer_is_kept_back_is_left_out(name: str):
    examples, left_out = read(name)
    assert (len(examples), left_out) == (3 + (name == "glue/mnli"), 1)
    assert catalog()[name].splits["test"] is None


def test_labels_stand_in_the_order_of_each_set():
    assert targets("glue/mnli") == ["entailment", "neutral", "contradiction", "entailment"]
    assert targets("super_glue/cb") == ["entailment", "contradiction", "neutral"]
    assert targets("hans") == ["non-entailment", "entailment", "non-entailment"]
    assert targets("scitail") == ["entailment", "neutral", "entailment"]
    assert targets("glue/qqp") == ["duplicate", "not_duplicate", "duplicate"]
    assert targets("glue/rte") == ["entailment", "not_entailment", "entailment"]
    assert targets("anli/r2", "validation") == ["entailment", "neutral", "contradiction"]
    assert targets("super_glue/boolq") == ["False", "True", "False"]
    assert targets("eraser_multi_rc") == ["True", "False", "True"]
    assert targets("wiki_qa") == ["answer", "no answer", "no answer"]
    assert targets("trec") == ["ABBR", "ENTY", "DESC", "HUM", "NUM"]
    assert targets("tweet_eval/sentiment") == ["negative", "neutral", "positive"]
    assert targets("hyperpartisan_news_detection/byarticle", "validation")[:2] == ["not hyperpartisan", "hyperpartisan"]


def test_yelps_second_label_is_not_taken_for_its_first_although_the_hub_calls_that_one_1():
    assert targets("yelp_polarity") == ["negative", "positive", "negative"]


def test_a_passage_is_read_with_its_question():
    [(question, passage)] = read("super_glue/boolq")[0][0].texts
    assert question == "is the harbour of vell open in winter"
    assert passage.startswith("Harbour of Vell -- ")


def test_a_rationale_is_no_input():
    assert catalog()["eraser_multi_rc"].family.columns() == ["query_and_answer", "passage", "label"]
    assert not {"Rationale", "annotated_formula", "linear_formula"} & set(catalog()["math_qa"].family.columns())
    assert "reason" not in catalog()["anli/r1"].family.columns()


def test_an_option_index_is_read_as_the_set_counts():
    assert targets("hellaswag") == ["puts it in a bowl to rise.", "Close it after ten minutes.", "runs after it."]
    assert targets("social_i_qa") == ["generous", "for fear of being scolded", "go swimming"]
    assert targets("winogrande/winogrande_xl") == ["the trunk", "the car", "Una"]
    assert targets("commonsense_qa") == ["line", "a lamp", "snow"]
    assert targets("race/all") == ["On Friday", "a tree", "a teacher"]
    assert targets("cosmos_qa")[2] == "None of the above choices ."
    assert read("swag/regular")[0][0].texts[0] == ("A man stands at a bench with a saw. He", "cuts a board in two.")
    assert read("super_glue/copa")[0][0].texts[0] == ("The candle went out. cause", "Somebody opened the window.")
    assert targets("super_glue/copa") == ["Somebody opened the window.", "The beans dried up.", "The neighbours slept badly."]


def test_the_right_answer_of_sciq_stands_anywhere_but_always_in_the_same_place():
    examples = read("sciq")[0] + read("sciq", "validation")[0] + read("sciq", "test")[0]
    assert [example.target for example in examples] == [2, 0, 1, 2, 1, 3, 0, 2]  # CRC-32 of the question, modulo 4
    assert targets("sciq") == ["carbon dioxide", "magma", "heart", "gravity"]
    assert {option for _, option in examples[0].texts} == {"carbon dioxide", "helium", "oxygen", "neon"}
    assert examples[0].texts[0][0] == "What gas do plants take in? Leaves take in carbon dioxide through small openings."
    assert examples[1].texts[0][0] == "What do we call molten rock below the ground?", "there is no support"


def test_mathqas_options_are_parted_where_a_letter_begins_one():
    assert [[option for _, option in example.texts] for example in read("math_qa")[0]] == [
        ["19", "20", "21", "22", "none of these"],
        ["1 , 200", "120", "12 , 000", "700", "34"],
        ["1", "1 / 2", "2 p ( a ) + 1", "2", "data inadequate"],
    ]
    assert targets("math_qa") == ["21", "1 , 200", "1 / 2"]


def test_squad_2_has_questions_without_an_answer():
    examples, left_out = read("squad_v2")
    assert ([example.target is None for example in examples], left_out) == ([False, True, False], 0)
    assert all(example.target for example in read("squad")[0])


def test_only_natural_questions_are_read_out_of_the_shared_task_and_a_span_holds_its_last_character():
    assert read("mrqa/natural_questions")[1] == 1
    assert [text for text, _ in pointed_at("mrqa/natural_questions")] == ["1902", "Anna Reuss", "the sea"]
    assert pointed_at("mrqa/natural_questions")[1][1].endswith("first lit in 1902 , and "), "the first of two places"
    assert read("mrqa/natural_questions", "validation")[0][1].reference == ("in 1902", "1902")


def test_drops_numbers_and_dates_and_what_is_not_in_the_passage_are_left_out():
    examples, left_out = read("drop")
    assert [example.reference for example in examples] == [("Ilya Tarn",), ("Max Weil", "Jon Reuss"), ("yards",)]
    assert left_out == 2  # a number, a date
    assert pointed_at("drop")[2] == ("yards", "A 12-yardstick lay 2 "), "not the beginning of a longer word"
    examples, left_out = read("drop", "validation")
    assert [example.reference for example in examples] == [("Max Weil", "Weil"), ("Orlo",)]
    assert left_out == 2  # an answer that is nowhere; one that is a number first and a span by another annotator only


def test_a_cloze_is_answered_by_the_passages_own_entity():
    examples, left_out = read("super_glue/record")
    assert left_out == 1, "the test split's rows have no answers"
    assert examples[0].texts[0][0] == "It took @placeholder three years to build the bridge."
    assert examples[0].reference == ("Hanna Weil", "Weil")
    assert [text for text, _ in pointed_at("super_glue/record")] == ["Hanna Weil", "Orlo", "Tom Reuss"]


def test_hotpotqa_points_into_a_paragraph_that_the_answer_rests_on_and_leaves_out_yes_and_no():
    _, left_out = read("hotpot_qa/distractor")
    assert left_out == 2, "a no, and a number that has to be reckoned"
    (where, _), (year, before) = pointed_at("hotpot_qa/distractor")
    assert (where, year) == ("Tarn", "1873")
    assert before.endswith("The Brenn is a river. Its bridge was built by Hanna Weil in "), (
        "Vell's 1873 comes first, and is another"
    )
    context = read("hotpot_qa/distractor")[0][0].texts[0][1]
    assert context.splitlines()[0] == "Vell: Vell is a cape. A sculptor of Vell carved it in 1873."
    assert read("hotpot_qa/distractor", "validation")[1] == 1, "a yes"


def test_triviaqa_is_read_with_the_first_document_that_holds_the_answer_under_one_of_its_names():
    examples, left_out = read("trivia_qa/rc")
    assert left_out == 1, "no document holds it"
    assert examples[0].texts[0][1] == "The lighthouse was drawn by A. Reuss, a painter."
    assert examples[0].reference == ("A. Reuss",)
    assert pointed_at("trivia_qa/rc")[1] == ("Brenn", "Brenner Lane is in Orlo. The "), "not in Brenner"
    assert examples[2].reference == ("boring holes",), "an alias in the letters of the document"
    assert read("trivia_qa/rc", "validation")[1] == 1, "a test row, whose answer is <unk>"


def test_texts_are_found_as_words_of_their_own():
    assert place("Brenner Lane, Brenn", "Brenn") == 14
    assert place("a (b) c", "(b)") == 2
    assert place("unbroken", "broken") is None
    assert place("price: $5", "$5") == 7
    assert place("52 or 5", "5") == 6
    assert standing("one two", ["two", "", "one", "three", "two"]) == {"text": ["two", "one"], "answer_start": [4, 0]}
    assert standing("one two", ["three"]) is None


def test_a_span_without_an_answer_is_another_thing_than_one_that_cannot_be_pointed_at():
    family = Span("question", "context", answers=lambda row: row["found"])
    nothing = {"text": [], "answer_start": []}
    assert family.skips({"found": None})
    assert not family.skips({"found": nothing})
    assert family.example({"question": "q", "context": "c", "found": nothing}).target is None
    plain = Span("question", "context")
    assert not plain.skips({"answers": None}), "a column that lacks its answer is a bad row, which is not passed over in silence"
    with pytest.raises(FieldError, match="answers"):
        plain.example({"question": "q", "context": "c", "answers": None})


def test_what_is_to_be_written_is_the_sets_own_summary():
    assert targets("cnn_dailymail")[0] == "Tram of Orlo stops after its last journey .\nBuses run from Monday ."
    assert targets("xsum")[1] == "A stolen statue has turned up in a pond."
    assert targets("billsum")[1] == "Requires libraries to open on Sundays."
    assert targets("multi_news")[1] == "– A stolen statue was found by divers."
    assert targets("gigaword", "validation")[0] == "tram of orlo makes last journey"
    assert targets("reddit_tifu/long", "validation")[0] == "salted my sister's pancakes"
    assert targets("scientific_papers/pubmed", "validation")[0] == "we study sleep once more ."
    assert targets("big_patent/all", "validation")[1] == "a hinge ."


def test_every_row_of_the_papers_sets_is_read_or_left_out_by_rule():
    for task in catalog().select("muppet", "muppet-evaluation"):
        files = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (HUB / task.slug).glob("*.jsonl")}
        assert files, f"{task.name} has no rows"
        for role, lines in files.items():
            examples, left_out = read(task.name, role)
            assert len(examples) + left_out == len([json.loads(line) for line in lines])
            assert len(examples) >= 2
