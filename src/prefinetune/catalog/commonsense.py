"""Common sense: what people know about objects, people, causes and right conduct without reading it anywhere."""

from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import HIDDEN, record, superglue
from prefinetune.families import Choice, Classification
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task


def against_common_sense(row: Mapping[str, Any]) -> str:
    """The options are whole sentences: the question is the same for all rows, and the shared head must hear it."""
    return "Which of these sentences is against common sense?"


def scenario(row: Mapping[str, Any]) -> str:
    return row["scenario"].partition(" [SEP] ")[0]


def trait(row: Mapping[str, Any]) -> str:
    return row["scenario"].partition(" [SEP] ")[2]


def ethics(config: str, family: Classification, hub: Hub | None = None, note: str = "") -> Task:
    return record(
        f"ethics/{config}", hub or Hub("hendrycks/ethics", config), family,
        "ethics", license="MIT (source repo)", cite="Hendrycks et al. 2021, arXiv 2008.02275", note=note,
    )  # fmt: skip


# fmt: off
TASKS = [
    record("hellaswag", Hub("Rowan/hellaswag"), Choice("ctx", "endings", skip=("",)),
           "commonsense", cite="Zellers et al. 2019, arXiv 1905.07830", splits=HIDDEN,
           note="the label is a text; texts from WikiHow keep their [header], [title] and [step]"),
    record("hellaswag/resplit", Hub(None), Choice("ctx", "endings"),
           "commonsense", cite="Zellers et al. 2019, arXiv 1905.07830",
           note="from Rowan/hellaswag: official validation rows, split again by context"),
    record("swag/regular", Hub("allenai/swag", "regular"),
           Choice(("sent1", "sent2"), ("ending0", "ending1", "ending2", "ending3"), skip=(-1,)),
           "commonsense", cite="Zellers et al. 2018, arXiv 1808.05326", splits=HIDDEN,
           note="sent2 is the beginning of the sentence that each ending completes"),
    record("commonsense_qa", Hub("tau/commonsense_qa"),
           Choice("question", "choices.text", label="answerKey", keys="choices.label", skip=("",)),
           "commonsense", license="MIT", cite="Talmor et al. 2019, arXiv 1811.00937", splits=HIDDEN),
    superglue("copa", Choice(("premise", "question"), ("choice1", "choice2"), skip=(-1,)),
              "commonsense causal", cite="Roemmele et al. 2011",
              note="the question is the word 'cause' or 'effect'; the paper counts it as classification"),
    record("piqa", Hub("ybisk/piqa", "plain_text", PARQUET), Choice("goal", ("sol1", "sol2"), skip=(-1,)),
           "commonsense", license="AFL-3.0 (data README)", cite="Bisk et al. 2020, arXiv 1911.11641", splits=HIDDEN),
    record("piqa/resplit", Hub(None), Choice("goal", ("sol1", "sol2")),
           "commonsense", license="AFL-3.0 (data README)", cite="Bisk et al. 2020, arXiv 1911.11641",
           note="from ybisk/piqa: official validation rows, split again"),
    record("social_i_qa", Hub("allenai/social_i_qa", "default", PARQUET),
           Choice(("context", "question"), ("answerA", "answerB", "answerC"), keys=("1", "2", "3")),
           "commonsense", cite="Sap et al. 2019, arXiv 1904.09728"),
    record("social_i_qa/resplit", Hub(None),
           Choice(("context", "question"), ("answerA", "answerB", "answerC"), keys=("1", "2", "3")),
           "commonsense", license="unknown (repositories: Apache-2.0)", cite="Sap et al. 2019, arXiv 1904.09728",
           note="from allenai/social_i_qa: official validation rows, split again by context"),
    record("winogrande/winogrande_xl", Hub("allenai/winogrande", "winogrande_xl"),
           Choice("sentence", ("option1", "option2"), label="answer", keys=("1", "2"), skip=("",)),
           "commonsense coreference", cite="Sakaguchi et al. 2020, arXiv 1907.10641", splits=HIDDEN,
           note="'_' stands for the option"),
    record("winogrande/winogrande_xl-resplit", Hub(None),
           Choice("sentence", ("option1", "option2"), label="answer", keys=("1", "2")),
           "commonsense coreference", license="unknown (repository: Apache-2.0)",
           cite="Sakaguchi et al. 2020, arXiv 1907.10641",
           note="from allenai/winogrande: official validation rows, split again, twins together"),
    record("e_care", Hub("12ml/e-CARE"), Choice(("premise", "question"), ("choice1", "choice2")),
           "commonsense causal", license="MIT", cite="Du et al. 2022, arXiv 2205.05849",
           note="the question is the word 'cause' or 'effect'"),
    record("com_ve/validation", Hub(None), Choice(against_common_sense, ("sent0", "sent1")),
           "commonsense", license="CC BY-SA 4.0", cite="Wang et al. 2020, arXiv 2007.00236"),
    record("com_ve/explanation", Hub(None), Choice("FalseSent", ("OptionA", "OptionB", "OptionC")),
           "commonsense", license="CC BY-SA 4.0", cite="Wang et al. 2020, arXiv 2007.00236"),
    record("cosmos_qa", Hub("allenai/cosmos_qa", "default", PARQUET),
           Choice(("question", "context"), ("answer0", "answer1", "answer2", "answer3"), skip=(-1,)),
           "commonsense reading", license="CC BY 4.0", cite="Huang et al. 2019, arXiv 1909.00277", splits=HIDDEN),
    record("cosmos_qa/resplit", Hub(None),
           Choice(("question", "context"), ("answer0", "answer1", "answer2", "answer3")),
           "commonsense reading", cite="Huang et al. 2019, arXiv 1909.00277",
           note="from allenai/cosmos_qa: official validation rows, split again by context"),
    ethics("deontology", Classification("scenario", "excuse", labels=("unreasonable", "reasonable"))),
    ethics("justice", Classification("scenario", labels=("unreasonable", "reasonable"))),
    ethics("utilitarianism", Classification("sentence1", "sentence2",
                                            labels=("first more pleasant", "second more pleasant")),
           Hub(None), "form of our own: the pairs of hendrycks/ethics in random order"),
    ethics("virtue", Classification(scenario, trait, labels=("trait not exemplified", "trait exemplified"))),
]
