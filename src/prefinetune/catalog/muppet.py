"""The paper's datasets (MUPPET, Aghajanyan et al. 2021, arXiv 2101.11038): which records they are, and how many rows they have.

Training and evaluation rows are those of the official splits, evaluation being the validation split or, where there is none, the
test split. They come from the hub's own dataset metadata; those of mrqa/natural_questions from the card of the shared task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefinetune.catalog.record import words
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task

# The paper's own families -> record -> (training rows, evaluation rows).
SETS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "classification": {
        "glue/cola": (8_551, 1_043),
        "glue/sst2": (67_349, 872),
        "glue/mrpc": (3_668, 408),
        "glue/qqp": (363_846, 40_430),
        "glue/stsb": (5_749, 1_500),
        "glue/mnli": (392_702, 9_815),
        "glue/qnli": (104_743, 5_463),
        "glue/rte": (2_490, 277),
        "glue/wnli": (635, 71),
        "super_glue/boolq": (9_427, 3_270),
        "super_glue/cb": (250, 56),
        "super_glue/copa": (400, 100),
        "super_glue/multirc": (27_243, 4_848),
        "super_glue/wic": (5_428, 638),
        "super_glue/wsc": (554, 104),
        "ag_news": (120_000, 7_600),
        "imdb": (25_000, 25_000),
        "snli": (550_152, 10_000),
        "hans": (30_000, 30_000),
        "rotten_tomatoes": (8_530, 1_066),
        "yelp_polarity": (560_000, 38_000),
        "eraser_multi_rc": (24_029, 3_214),
        "wiki_qa": (20_360, 2_733),
        "trec": (5_452, 500),
        "scitail": (23_596, 1_304),
    },
    "commonsense": {
        "commonsense_qa": (9_741, 1_221),
        "hellaswag": (39_905, 10_042),
        "swag/regular": (73_546, 20_006),
        "openbookqa/main": (4_957, 500),
        "cosmos_qa": (25_262, 2_985),
        "race/all": (87_866, 4_887),
        "ai2_arc/ARC-Easy": (2_251, 570),
        "ai2_arc/ARC-Challenge": (1_119, 299),
        "sciq": (11_679, 1_000),
        "math_qa": (29_837, 4_475),
    },
    "reading": {
        "squad": (87_599, 10_570),
        "mrqa/natural_questions": (104_071, 12_836),
        "drop": (77_400, 9_535),
        "super_glue/record": (100_730, 10_000),
        "hotpot_qa/distractor": (90_447, 7_405),
        "trivia_qa/rc": (138_384, 17_944),
    },
    "summarization": {
        "cnn_dailymail": (287_113, 13_368),
        "xsum": (204_045, 11_332),
        "billsum": (18_949, 3_269),
        "aeslc": (14_436, 1_960),
        "multi_news": (44_972, 5_622),
    },
}

# Sets that the paper's tables report scores on.
EVALUATION = words("""
    glue/mnli glue/qqp glue/rte glue/qnli glue/mrpc glue/sst2 super_glue/boolq
    squad race/all commonsense_qa hellaswag openbookqa/main
    cnn_dailymail gigaword reddit_tifu/long scientific_papers/arxiv scientific_papers/pubmed big_patent/all
    anli/r1 anli/r2 anli/r3 hyperpartisan_news_detection/byarticle
""")

HEADER = ("record", "hub copy", "splits", "family", "licence", "citation")  # of the page's tables


def suites(task: Task) -> set[str]:
    """The tags by which the paper's mixtures are chosen. Its encoders learned all families but summarization."""
    found = set()
    if any(task.name in sets for sets in SETS.values()):
        found |= {"muppet", "muppet-bart"} | ({"muppet-roberta"} if task.family.kind != "generation" else set())
    if task.name in EVALUATION:
        found.add("muppet-evaluation")
    return found


def listing() -> str:
    """The tables of docs/catalog.md, from the records."""
    from prefinetune.catalog import catalog

    lines: list[str] = []
    for family, sets in SETS.items():
        rows: list[tuple[str, ...]] = [
            (name, *describe(catalog()[name]), f"{train:,}", f"{evaluation:,}") for name, (train, evaluation) in sets.items()
        ]
        total = (f"**{sum(sizes[part] for sizes in sets.values()):,}**" for part in (0, 1))
        rows.append((f"**{len(sets)} sets**", "", "", "", "", "", *total))
        lines += [f"### The paper's {family} sets", "", *table((*HEADER, "training rows", "evaluation rows"), rows), ""]
    others = [(name, *describe(catalog()[name])) for name in EVALUATION if catalog()[name].evaluation_only]
    lines += ["### Only for evaluation", "", *table(HEADER, others)]
    return "\n".join(lines)


def describe(task: Task) -> tuple[str, str, str, str, str]:
    """(hub copy, splits, family, licence, citation), for people."""
    assert isinstance(task.source, Hub)
    copy = " ".join(part for part in (task.source.id, task.source.config) if part)
    if task.source.revision:
        copy += f", {'Parquet branch' if task.source.revision == PARQUET else task.source.revision[:8]}"
    splits = ", ".join(f"{role}: {name or 'hidden'}" for role, name in task.splits.items())
    return copy, splits, task.family.kind, task.license, task.cite


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]
