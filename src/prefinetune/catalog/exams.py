"""Exam questions with options: school science, mathematics, law school admission, logic.

As in reading.py a question stands before its passage, so that a cut takes the passage's end.
"""

from prefinetune.catalog.record import record
from prefinetune.families import Choice
from prefinetune.sources import Hub
from prefinetune.task import Task


def arc(config: str) -> Task:
    return record(
        f"ai2_arc/{config}", Hub("allenai/ai2_arc", config),
        Choice("question", "choices.text", label="answerKey", keys="choices.label"),
        "science exam", license="unknown (repositories: Apache-2.0, MIT)", cite="Clark et al. 2018, arXiv 1803.05457",
    )  # fmt: skip


def lsat(part: str, tags: str, note: str = "") -> Task:
    return record(
        f"lsat-{part}", Hub(f"tasksource/lsat-{part.partition('/')[0]}"), Choice(("question", "context"), "answers"),
        tags, license="MIT (repository)", cite="Wang et al. 2022, arXiv 2108.00648", note=note,
    )  # fmt: skip


# fmt: off
TASKS = [
    arc("ARC-Challenge"),
    arc("ARC-Easy"),
    record("openbookqa/main", Hub("allenai/openbookqa", "main"),
           Choice("question_stem", "choices.text", label="answerKey", keys="choices.label"),
           "science exam", license="unknown (repository: Apache-2.0)", cite="Mihaylov et al. 2018, arXiv 1809.02789"),
    record("mmlu/all", Hub("cais/mmlu", "all"), Choice("question", "choices", label="answer"),
           "exam", license="MIT (repository copy of the MMLU license file)",
           cite="Hendrycks et al. 2021, arXiv 2009.03300", evaluation_only=True),
    record("aqua_rat/raw", Hub("deepmind/aqua_rat", "raw"), Choice("question", "options", label="correct"),
           "mathematics exam", license="Apache-2.0", cite="Ling et al. 2017, arXiv 1705.04146", evaluation_only=True,
           note="the mirror has validation and test rows only"),
    record("logiqa/resplit", Hub("lucasmccabe/logiqa"),
           Choice(("query", "context"), "options", label="correct_option"),
           "logic exam", cite="Liu et al. 2020, arXiv 2007.08124",
           note="mirror: training rows are the official test split"),
    lsat("ar", "logic exam"),
    lsat("lr/resplit", "logic exam", "mirror: training rows are the official test split"),
    lsat("rc/resplit", "reading exam", "mirror: training rows are the official test split"),
]
