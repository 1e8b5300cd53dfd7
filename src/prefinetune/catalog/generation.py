"""Generation: summaries, headlines, questions and explanations of a text, and data in words.

The decoder is told nothing but the text; sets that ask for different things differ in form. Where a source stands in a row for
each reference, every row is scored against its own; a record with `references` is scored against all of them.
"""

from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import record
from prefinetune.families import Generation
from prefinetune.sources import Hub


def facts(row: Mapping[str, Any]) -> str:
    """Triples as one text, 'subject | relation | object && subject | ...'; web_nlg has each of them joined already."""
    return " && ".join(map(" | ".join, row["tripleset"]) if "tripleset" in row else row["input"])


def concepts(row: Mapping[str, Any]) -> str:
    return " ".join(row["concepts"])


# fmt: off
TASKS = [
    record("xsum/resplit", Hub("EdinburghNLP/xsum"), Generation("document", "summary"),
           "summarization news", cite="Narayan et al. 2018, arXiv 1808.08745",
           note="one sentence; mirror: 1,000 of the official test rows, split again"),
    record("bbc_news_summary", Hub(None), Generation("document", "summary"),
           "summarization news", cite="Greene and Cunningham 2006",
           note="sentences taken from the article, in an order of their own; lower case; form of its own "
                "(from gopalkalpande/bbc-news-summary)"),
    record("dialogsum", Hub("knkarthick/dialogsum"), Generation("dialogue", "summary"),
           "summarization dialogue", license="CC BY-NC-SA 4.0", cite="Chen et al. 2021, arXiv 2105.06762",
           note="the topic was written with the summary: never an input; test has a row for each of three references; a tenth of "
                "the validation dialogues stand in training too"),
    record("qmsum/specific_spans", Hub(None), Generation("query", "summary", pair="document"),
           "summarization dialogue", license="MIT", cite="Zhong et al. 2021, arXiv 2104.05938",
           note="form of our own (from the repository Yale-LILY/QMSum): specific queries only, each with the turns that "
                "people marked as relevant"),
    record("mts_dialog", Hub("har1/MTS_Dialogue-Clinical_Note"), Generation("dialogue", "section_text"),
           "summarization dialogue medical", license="CC BY 4.0", cite="Ben Abacha et al. 2023, 2023.eacl-main.168",
           note="a section of a clinical note; its header is to be found out as well, and so no input"),
    record("meqsum/resplit", Hub("bigbio/meqsum", "meqsum_source"), Generation("CHQ", "Summary"),
           "summarization medical", license="CC BY 4.0",
           cite="Ben Abacha and Demner-Fushman 2019, P19-1215",
           note="a consumer's letter as one question; mirror: the 1,000 rows, split; some letters stand in mediqa_rqe's "
                "validation and test"),
    record("aeslc", Hub("Yale-LILY/aeslc"), Generation("email_body", "subject_line"),
           "headline email", license="CC BY-NC-SA 4.0", cite="Zhang and Tetreault 2019, arXiv 1906.03497",
           note="a ninth of the test mails stand in validation too"),
    record("squad_qg/nqg-resplit", Hub(None), Generation("source", "target"),
           "question-generation", license="unknown (repository: MIT)", cite="Du et al. 2017, arXiv 1705.00106",
           note="from a sentence, without the answer; lower case, tokenized; training rows are the official test split; nearly "
                "all validation questions stand in squad/resplit, half of them in squad_v2/resplit, a quarter in glue/qnli"),
    record("e_care/explanation", Hub(None), Generation(("cause", "effect"), "conceptual_explanation"),
           "commonsense causal", license="MIT", cite="Du et al. 2022, arXiv 2205.05849",
           note="shares its pairs of cause and effect with e_care, an eighth of its validation pairs with e_care's training; "
                "form of its own (from the repository Waste-Wood/e-CARE)"),
    record("common_gen", Hub("allenai/common_gen"), Generation(concepts, "target"),
           "commonsense", license="MIT", cite="Lin et al. 2020, arXiv 1911.03705",
           note="a row per reference; mirror: 20,000 of the official training rows; the hub's test rows have no target"),
    record("web_nlg/webnlg_challenge_2017", Hub(None), Generation(facts, "target", references="references"),
           "data-to-text", license="CC BY-NC-SA 4.0", cite="Gardent et al. 2017, W17-3518",
           note="training has a row per reference, evaluation a row per set of facts; form of its own (the hub's "
                "webnlg-challenge/web_nlg nests)"),
    record("dart/resplit", Hub("Yale-LILY/dart"),
           Generation(facts, "annotations.text.0", references="annotations.text"),
           "data-to-text", license="MIT", cite="Nan et al. 2021, arXiv 2007.02871",
           note="trained on the first of several references; mirror: training rows are the official test split, which holds all "
                "test rows of web_nlg and the training rows of e2e_nlg/resplit; validation holds validation rows of both"),
    record("e2e_nlg/resplit", Hub("tuetschek/e2e_nlg"), Generation("meaning_representation", "human_reference"),
           "data-to-text", license="CC BY-SA 4.0", cite="Novikova et al. 2017, arXiv 1706.09254",
           note="a row per reference; mirror: training rows are the official test split"),
]
