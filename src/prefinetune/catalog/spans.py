"""Reading with spans: the answer is a piece of the context, or nothing.

Sets that give answers without their place are read by a function: an answer is taken where it first stands as words of its
own, and a row none of whose answers is there is left out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prefinetune.catalog.record import HIDDEN, record, superglue
from prefinetune.families import Span
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task


def place(context: str, text: str) -> int | None:
    """Where the text first stands in the context as words of its own."""
    if text not in context:  # asked first, since it is quick: TriviaQA's answers have many names and its documents are long
        return None
    first, last = (r"\b" if letter.isalnum() else "" for letter in (text[0], text[-1]))
    found = re.search(first + re.escape(text) + last, context)
    return found.start() if found else None


def standing(context: str, texts: Iterable[str]) -> Mapping[str, Any] | None:
    """Those texts that stand in the context, in SQuAD's form; None where none does."""
    found = {text: start for text in texts if text and (start := place(context, text)) is not None}
    return {"text": list(found), "answer_start": list(found.values())} if found else None


def natural_answers(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of Natural Questions' rows among the shared task's; a span there holds its last character too."""
    if row["subset"] != "NaturalQuestionsShort":
        return None
    spans = [(span["start"][0], span["end"][0] + 1) for span in row["detected_answers"]["char_spans"]]
    return {"text": [row["context"][start:end] for start, end in spans], "answer_start": [start for start, _ in spans]}


def drop_answers(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """None for numbers and dates, which are to be reckoned. The first answer is the official one."""
    answers = row["answers_spans"]
    if answers["types"][:1] != ["span"]:
        return None
    pairs = zip(answers["spans"], answers["types"], strict=True)
    return standing(row["passage"], (text for text, kind in pairs if kind == "span"))


def cloze_answers(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return standing(row["passage"], row["answers"])


def paragraphs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """HotpotQA's (title, text with its title) one after the other."""
    context = row["context"]
    pairs = zip(context["title"], context["sentences"], strict=True)
    return [(title, f"{title}: {''.join(sentences)}") for title, sentences in pairs]


def joined_paragraphs(row: Mapping[str, Any]) -> str:
    return "\n".join(text for _, text in paragraphs(row))


def hotpot_answers(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """In a paragraph that the answer rests on, if it stands in one. None for yes and no."""
    answer, rests_on = row["answer"], row["supporting_facts"]["title"]
    found, at = [], 0
    for title, text in paragraphs(row):
        start = place(text, answer)
        if start is not None:
            found.append((title not in rests_on, at + start))
        at += len(text) + 1
    if answer in ("yes", "no") or not found:
        return None
    return {"text": [answer], "answer_start": [min(found)[1]]}


def evidence(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """TriviaQA's first document in which the answer stands under one of its names, and where; Wikipedia before the web."""
    names = [row["answer"]["value"], *row["answer"]["aliases"]]
    for document in (*row["entity_pages"]["wiki_context"], *row["search_results"]["search_context"]):
        if found := standing(document, names):
            return document, found
    return "", None


def evidence_text(row: Mapping[str, Any]) -> str:
    return evidence(row)[0]


def evidence_answers(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return evidence(row)[1]


def squad_form(name: str, hub: Hub, tags: str = "reading", **more: Any) -> Task:
    return record(name, hub, Span("question", "context"), tags, **more)


def squadshifts(config: str) -> tuple[Task, Task]:
    cite = "Miller et al. 2020, arXiv 2004.14444"
    return (
        squad_form(f"squadshifts/{config}", Hub("ludwigschmidt/squadshifts", config, PARQUET), cite=cite, evaluation_only=True,
                   note="test rows only"),
        squad_form(f"squadshifts/{config}-resplit", Hub(None), cite=cite,
                   note="from ludwigschmidt/squadshifts: official test rows, split again by context"),
    )  # fmt: skip


def subjqa(config: str) -> Task:
    return squad_form(
        f"subjqa/{config}", Hub("megagonlabs/subjqa", config), "reading reviews",
        license="as the underlying review data sets (README)", cite="Bjerva et al. 2020, arXiv 2004.14283",
        note="many questions have no answer",
    )  # fmt: skip


WIKIPEDIA = "CC BY-SA 4.0 (stated on the site page in the repository)"

# fmt: off
TASKS = [
    squad_form("squad", Hub("rajpurkar/squad", "plain_text", "7b6d24c440a36b6815f21b70d25016731768db1f"),
               license=WIKIPEDIA, cite="Rajpurkar et al. 2016, arXiv 1606.05250"),
    squad_form("squad/resplit", Hub(None), license=WIKIPEDIA, cite="Rajpurkar et al. 2016, arXiv 1606.05250",
               note="from rajpurkar/squad: official validation rows, split again by article as in squad_v2/resplit"),
    squad_form("squad_v2", Hub("rajpurkar/squad_v2", "squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412"),
               license=WIKIPEDIA, cite="Rajpurkar et al. 2018, arXiv 1806.03822",
               note="squad and questions without an answer"),
    squad_form("squad_v2/resplit", Hub(None), license=WIKIPEDIA, cite="Rajpurkar et al. 2018, arXiv 1806.03822",
               note="half the questions have no answer; from rajpurkar/squad_v2: official validation rows, split again by "
                    "article"),
    record("mrqa/natural_questions", Hub("mrqa-workshop/mrqa", "plain_text", "f3178d9888471dfb2b67c93de14f0ddf499a8d9f"),
           Span("question", "context", natural_answers), "reading", splits=HIDDEN,
           cite="Kwiatkowski et al. 2019, Q19-1026; Fisch et al. 2019, arXiv 1910.09753",
           note="Natural Questions in the form of the MRQA shared task: short answers, contexts of up to 800 tokens; rows of the "
                "five other sets are left out, and its test rows are all of others"),
    record("drop", Hub("ucinlp/drop"), Span("question", "passage", drop_answers),
           "reading mathematics", license="CC BY-SA 4.0", cite="Dua et al. 2019, arXiv 1903.00161",
           note="only questions answered by a piece of the passage; where the answer has several, each is right"),
    superglue("record", Span("query", "passage", cloze_answers), "reading commonsense",
              cite="Zhang et al. 2018, arXiv 1810.12885",
              note="@placeholder in the query stands for the answer, an entity of the passage"),
    record("hotpot_qa/distractor", Hub("hotpotqa/hotpot_qa", "distractor", "1908d6afbbead072334abe2965f91bd2709910ab"),
           Span("question", joined_paragraphs, hotpot_answers),
           "reading multi-hop", license="CC BY-SA 4.0", cite="Yang et al. 2018, arXiv 1809.09600",
           note="ten paragraphs, of which two matter; questions answered by yes or no are left out"),
    record("trivia_qa/rc", Hub("mandarjoshi/trivia_qa", "rc", "0f7faf33a3908546c6fd5b73a660e0f8ff173c2f"),
           Span("question", evidence_text, evidence_answers), "reading", cite="Joshi et al. 2017, arXiv 1705.03551",
           splits=HIDDEN,
           note="read with one of its documents, the first that holds the answer: nobody checked that it answers the question"),
    *squadshifts("amazon"),
    *squadshifts("new_wiki"),
    *squadshifts("reddit"),
    *map(subjqa, ("electronics", "grocery", "restaurants", "tripadvisor")),
    squad_form("quoref/contrast_sets-resplit", Hub(None), "reading coreference",
               cite="Dasigi et al. 2019, arXiv 1908.05803; Gardner et al. 2020, arXiv 2004.02709",
               note="the contrast set with its original test questions, split again by article"),
    squad_form("ropes/contrast_sets-resplit", Hub(None),
               cite="Lin et al. 2019, arXiv 1908.05852; Gardner et al. 2020, arXiv 2004.02709",
               note="the contrast set with its originals, split again by context; background and situation joined"),
    squad_form("qamr/resplit", Hub(None), license="MIT", cite="Michael et al. 2018, arXiv 1711.05885",
               note="training rows are the official test split"),
    squad_form("tweet_qa/extractive", Hub(None), "reading tweets", cite="Xiong et al. 2019, arXiv 1907.06292",
               note="only rows whose answer stands in the tweet; form of its own (from ucsbnlp/tweet_qa)"),
    squad_form("fairytale_qa/extractive", Hub(None), "reading fiction", license="Apache-2.0",
               cite="Xu et al. 2022, arXiv 2203.13947",
               note="only rows whose answer stands in the text; form of its own (from WorkInTheDark/FairytaleQA)"),
    squad_form("bipar/en-resplit", Hub(None), "reading fiction", license="CC BY-NC 4.0",
               cite="Jing et al. 2019, D19-1249", note="training rows are the official test split"),
    squad_form("friendsqa/resplit", Hub(None), "reading dialogue", license="Apache-2.0",
               cite="Yang and Choi 2019, W19-5923", note="training rows are the official test split"),
    squad_form("policy_qa", Hub("alzoubi36/policy_qa"), "reading legal", license="MIT",
               cite="Ahmad et al. 2020, arXiv 2010.02557"),
    squad_form("policy_qa/resplit", Hub(None), "reading legal", license="MIT", cite="Ahmad et al. 2020, arXiv 2010.02557",
               note="from alzoubi36/policy_qa: training rows are the official test split"),
]
