"""Inference: does the second text follow from the first."""

from prefinetune.catalog.record import record
from prefinetune.families import Classification
from prefinetune.sources import Hub
from prefinetune.task import Task

NLI = ("entailment", "neutral", "contradiction")


def recast(config: str) -> Task:
    return record(
        f"recast/{config}", Hub("tasksource/recast", f"recast_{config}"),
        Classification("context", "hypothesis", labels=("not-entailed", "entailed")),
        "nli", license="see the corpus-license field of the metadata files of the source repo",
        cite="Poliak et al. 2018, arXiv 1804.08207",
    )  # fmt: skip


# fmt: off
TASKS = [
    record("snli", Hub("stanfordnlp/snli", "plain_text"),
           Classification("premise", "hypothesis", labels=NLI, skip=(-1,)),
           "nli", license="CC BY-SA 4.0 (data set; not restated in the repos)", cite="Bowman et al. 2015, arXiv 1508.05326",
           note="mirror: a random 20,000 of the official training rows"),
    record("taxinli", Hub(None), Classification("premise", "hypothesis", labels=NLI),
           "nli", license="see LICENSE of the source repo (Microsoft, TaxiNLI)", cite="Joshi et al. 2020, arXiv 2009.14505",
           note="rows with from_mnli_dev are from MNLI's validation set: do not evaluate on MNLI after training on them"),
    record("conj_nli", Hub("pietrolesci/conj_nli"),
           Classification("premise", "hypothesis", labels=NLI, skip=(-1,)),
           "nli", license="MIT", cite="Saha et al. 2020, arXiv 2010.10418",
           note="training rows were made automatically, validation rows by people"),
    record("counterfactual/snli", Hub(None), Classification("premise", "hypothesis", labels=NLI),
           "nli counterfactual", license="Apache-2.0", cite="Kaushik et al. 2020, arXiv 1909.12434",
           note="SNLI pairs and their human revisions; validation and test hold rows of SNLI's own"),
    record("monli", Hub(None), Classification("sentence1", "sentence2", labels=NLI[:2]),
           "nli", cite="Geiger et al. 2020, arXiv 2004.14623",
           note="no contradictions; made from SNLI sentences; form of its own (from tasksource/monli)"),
    record("sick", Hub("RobZamp/sick"), Classification("sentence_A", "sentence_B", labels=NLI),
           "nli", license="CC BY-NC-SA 3.0 (data set; not restated in the repo)", cite="Marelli et al. 2014"),
    record("glue/qnli", Hub("nyu-mll/glue", "qnli"),
           Classification("question", "sentence", labels=("entailment", "not_entailment"), skip=(-1,)),
           "nli glue", cite="Wang et al. 2018, arXiv 1804.07461", evaluation_only=True,
           note="the mirror has validation rows only"),
    record("glue/wnli", Hub("nyu-mll/glue", "wnli"),
           Classification("sentence1", "sentence2", labels=("not_entailment", "entailment"), skip=(-1,)),
           "nli coreference glue", cite="Wang et al. 2018, arXiv 1804.07461",
           note="most validation premises stand in training too"),
    record("mediqa_rqe", Hub(None), Classification("chq", "faq", labels=("false", "true")),
           "nli medical", cite="Ben Abacha et al. 2019, W19-5039",
           note="question entailment; form of its own (from bigbio/mediqa_rqe)"),
    *map(recast, ("megaveridicality", "sentiment", "verbnet")),
]
