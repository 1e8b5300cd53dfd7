"""Exam questions with options: school science, mathematics, law school admission, logic.

As in reading.py a question stands before its passage, so that a cut takes the passage's end.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import record
from prefinetune.families import Choice
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task


def supported(row: Mapping[str, Any]) -> str:
    """SciQ's question and, where there is one, the paragraph that holds the answer."""
    return " ".join(filter(None, (row["question"], row["support"].strip())))


def right_place(row: Mapping[str, Any]) -> int:
    """Where SciQ's right answer stands among the options: anywhere, but in every run in the same place."""
    return zlib.crc32(row["question"].encode()) % 4


def four_options(row: Mapping[str, Any]) -> list[str]:
    options = [row["distractor1"], row["distractor2"], row["distractor3"]]
    options.insert(right_place(row), row["correct_answer"])
    return options


def lettered_options(row: Mapping[str, Any]) -> list[str]:
    """MathQA's 'a ) 38 , b ) 1 , 000 , c ) ...' taken apart."""
    return [option.strip() for option in re.split(r"(?:^|,)\s*[a-e] \)", row["options"])[1:]]


def arc(config: str) -> Task:
    return record(
        f"ai2_arc/{config}", Hub("allenai/ai2_arc", config),
        Choice("question", "choices.text", label="answerKey", keys="choices.label"),
        "science exam", license="unknown (repositories: Apache-2.0, MIT)", cite="Clark et al. 2018, arXiv 1803.05457",
    )  # fmt: skip


def lsat(part: str, tags: str, hub: Hub | None = None, note: str = "") -> Task:
    return record(
        f"lsat-{part}", hub or Hub(f"tasksource/lsat-{part}"), Choice(("question", "context"), "answers"),
        tags, license="MIT (repository)", cite="Wang et al. 2022, arXiv 2108.00648", note=note,
    )  # fmt: skip


# fmt: off
TASKS = [
    arc("ARC-Challenge"),
    arc("ARC-Easy"),
    record("openbookqa/main", Hub("allenai/openbookqa", "main"),
           Choice("question_stem", "choices.text", label="answerKey", keys="choices.label"),
           "science exam", license="unknown (repository: Apache-2.0)", cite="Mihaylov et al. 2018, arXiv 1809.02789"),
    record("sciq", Hub("allenai/sciq"), Choice(supported, four_options, label=right_place),
           "science exam", license="CC BY-NC 3.0", cite="Welbl et al. 2017, arXiv 1707.06209",
           note="the right answer is a column of its own: its place among the options is drawn from the question; the support "
                "nearly always holds it"),
    record("math_qa", Hub("allenai/math_qa", "default", PARQUET), Choice("Problem", lettered_options, label="correct"),
           "mathematics exam", license="Apache-2.0", cite="Amini et al. 2019, arXiv 1905.13319",
           note="made from AQuA-RAT; the rationale and the formulas are no input"),
    record("mmlu/all", Hub("cais/mmlu", "all"), Choice("question", "choices", label="answer"),
           "exam", license="MIT (repository copy of the MMLU license file)",
           cite="Hendrycks et al. 2021, arXiv 2009.03300", evaluation_only=True),
    record("aqua_rat/raw", Hub("deepmind/aqua_rat", "raw"), Choice("question", "options", label="correct"),
           "mathematics exam", license="Apache-2.0", cite="Ling et al. 2017, arXiv 1705.04146", evaluation_only=True,
           note="the mirror has validation and test rows only"),
    record("logiqa", Hub("lucasmccabe/logiqa", "default", PARQUET),
           Choice(("query", "context"), "options", label="correct_option"),
           "logic exam", cite="Liu et al. 2020, arXiv 2007.08124"),
    record("logiqa/resplit", Hub(None), Choice(("query", "context"), "options", label="correct_option"),
           "logic exam", cite="Liu et al. 2020, arXiv 2007.08124",
           note="from lucasmccabe/logiqa: training rows are the official test split"),
    lsat("ar", "logic exam"),
    lsat("lr", "logic exam"),
    lsat("lr/resplit", "logic exam", Hub(None), "from tasksource/lsat-lr: training rows are the official test split"),
    lsat("rc", "reading exam"),
    lsat("rc/resplit", "reading exam", Hub(None), "from tasksource/lsat-rc: training rows are the official test split"),
]
