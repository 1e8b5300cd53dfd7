"""Generation: summaries, headlines, questions and explanations of a text, and data in words.

The decoder is told nothing but the text; sets that ask for different things differ in form. Where a source stands in a row for
each reference, every row is scored against its own; a record with `references` is scored against all of them.
"""

from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import record
from prefinetune.families import Generation
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task


def facts(row: Mapping[str, Any]) -> str:
    """Triples as one text, 'subject | relation | object && subject | ...'; web_nlg has each of them joined already."""
    return " && ".join(map(" | ".join, row["tripleset"]) if "tripleset" in row else row["input"])


def concepts(row: Mapping[str, Any]) -> str:
    return " ".join(row["concepts"])


def scientific_papers(config: str, tags: str) -> Task:
    return record(
        f"scientific_papers/{config}", Hub("armanc/scientific_papers", config, PARQUET), Generation("article", "abstract"),
        f"summarization scientific {tags}", cite="Cohan et al. 2018, arXiv 1804.05685", evaluation_only=True,
    )  # fmt: skip


# fmt: off
TASKS = [
    record("cnn_dailymail", Hub("abisee/cnn_dailymail", "3.0.0"), Generation("article", "highlights"),
           "summarization news", cite="Hermann et al. 2015, arXiv 1506.03340; See et al. 2017, arXiv 1704.04368",
           note="a highlight to a line"),
    record("xsum", Hub("EdinburghNLP/xsum", "default", PARQUET), Generation("document", "summary"),
           "summarization news", cite="Narayan et al. 2018, arXiv 1808.08745", note="one sentence"),
    record("xsum/resplit", Hub(None), Generation("document", "summary"),
           "summarization news", cite="Narayan et al. 2018, arXiv 1808.08745",
           note="one sentence; from EdinburghNLP/xsum: 1,000 of the official test rows, split again"),
    record("billsum", Hub("FiscalNote/billsum"), Generation("text", "summary"),
           "summarization legal", license="CC0-1.0", cite="Kornilova and Eidelman 2019, arXiv 1910.00523",
           note="Californian bills (ca_test) are not read"),
    record("multi_news", Hub("alexfabbri/multi_news", "default", PARQUET), Generation("document", "summary"),
           "summarization news", license="non-commercial research and educational purposes only",
           cite="Fabbri et al. 2019, arXiv 1906.01749", note="several articles in one text, with '|||||' between them"),
    record("gigaword", Hub("Harvard/gigaword", "default", PARQUET), Generation("document", "summary"),
           "headline news", license="MIT", cite="Graff et al. 2003; Rush et al. 2015, arXiv 1509.00685",
           evaluation_only=True, note="a first sentence's headline; lower case, tokenized"),
    record("reddit_tifu/long", Hub("ctr4si/reddit_tifu", "long", PARQUET), Generation("documents", "tldr"),
           "summarization social-media", license="MIT", cite="Kim et al. 2018, arXiv 1811.00783", evaluation_only=True,
           note="training rows only, so that some are held out; the splits that papers report on are not the hub's"),
    scientific_papers("arxiv", "arxiv"),
    scientific_papers("pubmed", "medical"),
    record("big_patent/all", Hub("NortheasternUniversity/big_patent", "all", PARQUET),
           Generation("description", "abstract"),
           "summarization legal", license="CC BY 4.0", cite="Sharma et al. 2019, arXiv 1906.03741", evaluation_only=True),
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
    record("meqsum", Hub("bigbio/meqsum", "meqsum_source", PARQUET), Generation("CHQ", "Summary"),
           "summarization medical", license="CC BY 4.0", cite="Ben Abacha and Demner-Fushman 2019, P19-1215",
           note="a consumer's letter as one question; training rows only, so that some are held out; some letters stand in "
                "mediqa_rqe's validation and test"),
    record("meqsum/resplit", Hub(None), Generation("CHQ", "Summary"),
           "summarization medical", license="CC BY 4.0", cite="Ben Abacha and Demner-Fushman 2019, P19-1215",
           note="a consumer's letter as one question; from bigbio/meqsum: the 1,000 rows, split; some letters stand in "
                "mediqa_rqe's validation and test"),
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
    record("dart", Hub("Yale-LILY/dart", "default", PARQUET),
           Generation(facts, "annotations.text.0", references="annotations.text"),
           "data-to-text", license="MIT", cite="Nan et al. 2021, arXiv 2007.02871",
           note="trained on the first of several references; holds rows of web_nlg and e2e_nlg"),
    record("dart/resplit", Hub(None),
           Generation(facts, "annotations.text.0", references="annotations.text"),
           "data-to-text", license="MIT", cite="Nan et al. 2021, arXiv 2007.02871",
           note="trained on the first of several references; from Yale-LILY/dart: training rows are the official test split, "
                "which holds all test rows of web_nlg and the training rows of e2e_nlg/resplit; validation holds validation rows "
                "of both"),
    record("e2e_nlg", Hub("tuetschek/e2e_nlg", "default", PARQUET), Generation("meaning_representation", "human_reference"),
           "data-to-text", license="CC BY-SA 4.0", cite="Novikova et al. 2017, arXiv 1706.09254",
           note="a row per reference"),
    record("e2e_nlg/resplit", Hub(None), Generation("meaning_representation", "human_reference"),
           "data-to-text", license="CC BY-SA 4.0", cite="Novikova et al. 2017, arXiv 1706.09254",
           note="a row per reference; from tuetschek/e2e_nlg: training rows are the official test split"),
]
