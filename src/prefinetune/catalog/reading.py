"""Reading with options or verdicts: the answer is chosen or judged, not pointed at (for that see spans.py).

Where question and passage are one text the question comes first, since a text that is too long is cut at its end.
"""

from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import record, superglue
from prefinetune.families import Choice, Classification
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task


def dialogue(row: Mapping[str, Any]) -> str:
    return "\n".join(row["dialogue"])


def verdict(row: Mapping[str, Any]) -> Any:
    return row["label"] if row["answer"].strip() else "no answer"


def mctest(config: str) -> Task:
    return record(
        f"mctest/{config}", Hub("sagnikrayc/mctest", config),
        Choice(("question", "story"), tuple(f"answer_options.{key}" for key in "ABCD"), label="answer"),
        "reading", license="Microsoft Research license (LICENSE.pdf)", cite="Richardson et al. 2013, D13-1020",
    )  # fmt: skip


# fmt: off
TASKS = [
    superglue("boolq", Classification("question", "passage", labels=("False", "True"), skip=(-1,)),
              "reading", cite="Clark et al. 2019, arXiv 1905.10044",
              note="questions of the kind, and partly the rows, that Natural Questions has"),
    superglue("multirc", Classification("paragraph", ("question", "answer"), label=verdict, labels=("False", "True"),
                                        skip=(-1, "no answer")),
              "reading", cite="Khashabi et al. 2018, N18-1023",
              note="one row per answer, several of a question may be right; two training rows have no answer text"),
    record("eraser_multi_rc", Hub("CogComp/eraser_multi_rc", "default", PARQUET),
           Classification("query_and_answer", "passage", labels=("False", "True")),
           "reading", cite="DeYoung et al. 2020, arXiv 1911.03429; Khashabi et al. 2018, N18-1023",
           note="MultiRC once more, split otherwise: its test rows are as many as super_glue/multirc's validation rows; "
                "evidences, the rationale, is no input"),
    record("wiki_qa", Hub("microsoft/wiki_qa", None, "3f104672b5de699878fe7907afc486f0de325eb5"),
           Classification("question", "answer", labels=("no answer", "answer")),
           "reading", license="Microsoft Research WikiQA license (research and technology development only)",
           cite="Yang et al. 2015, D15-1237", note="does the sentence answer the question; few do"),
    record("race/all", Hub("ehovy/race", "all"), Choice(("question", "article"), "options", label="answer"),
           "reading exam", cite="Lai et al. 2017, arXiv 1704.04683",
           note="English examinations of middle and high schools; in cloze questions '_' stands for the gap"),
    record("pubmed_qa/pqa_labeled-resplit", Hub(None),
           Classification("question", "context", label="final_decision", labels=("yes", "no", "maybe")),
           "reading medical", license="unknown (repository: Apache-2.0)", cite="Jin et al. 2019, arXiv 1909.06146",
           note="form of its own (from qiaojin/PubMedQA: contexts joined), split again"),
    record("dream", Hub("dataset-org/dream"), Choice(("question", dialogue), "choice", label="answer", keys="choice"),
           "reading dialogue", license="non-commercial research only (license.txt)",
           cite="Sun et al. 2019, arXiv 1902.00164"),
    record("mutual", Hub("tasksource/mutual"), Choice("article", "options", label="answers"),
           "dialogue logic", cite="Cui et al. 2020, arXiv 2004.04494", note="which turn comes next"),
    record("quail", Hub("textmachinelab/quail", "quail"),
           Choice(("question", "context"), "answers", label="correct_answer_id"),
           "reading", license="CC BY-NC-SA 4.0", cite="Rogers et al. 2020", splits={"test": "challenge"}),
    record("quail/resplit", Hub(None), Choice(("question", "context"), "answers", label="correct_answer_id"),
           "reading", license="CC BY-NC-SA 4.0", cite="Rogers et al. 2020",
           note="from textmachinelab/quail: official validation rows, split again by context; test is the official challenge "
                "split"),
    mctest("mc160"),
    mctest("mc500"),
]
