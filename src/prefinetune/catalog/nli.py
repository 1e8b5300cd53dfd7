"""Inference: does the second text follow from the first."""

from prefinetune.catalog.record import glue, record, superglue
from prefinetune.families import Classification
from prefinetune.sources import PARQUET, Hub
from prefinetune.task import Task

NLI = ("entailment", "neutral", "contradiction")


def recast(config: str) -> Task:
    return record(
        f"recast/{config}", Hub("tasksource/recast", f"recast_{config}"),
        Classification("context", "hypothesis", labels=("not-entailed", "entailed")),
        "nli", license="see the corpus-license field of the metadata files of the source repo",
        cite="Poliak et al. 2018, arXiv 1804.08207",
    )  # fmt: skip


def anli(part: int) -> Task:
    return record(
        f"anli/r{part}", Hub("facebook/anli", "plain_text"), Classification("premise", "hypothesis", labels=NLI),
        "nli adversarial", license="CC BY-NC 4.0", cite="Nie et al. 2020, arXiv 1910.14599", evaluation_only=True,
        splits={"train": f"train_r{part}", "validation": f"dev_r{part}", "test": f"test_r{part}"},
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
    glue("mnli", Classification("premise", "hypothesis", labels=NLI, skip=(-1,)), "nli",
         cite="Williams et al. 2018, N18-1101", splits={"validation": "validation_matched", "test": None},
         note="evaluated on the matched half"),
    glue("qnli", Classification("question", "sentence", labels=("entailment", "not_entailment"), skip=(-1,)), "nli",
         cite="Wang et al. 2018, arXiv 1804.07461",
         note="made from SQuAD: its questions and sentences stand in squad too; mirror: validation rows only"),
    glue("rte", Classification("sentence1", "sentence2", labels=("entailment", "not_entailment"), skip=(-1,)),
         "nli superglue", cite="Dagan et al. 2005; Bar-Haim et al. 2006; Giampiccolo et al. 2007; Bentivogli et al. 2009",
         note="SuperGLUE has the same set once more"),
    glue("wnli", Classification("sentence1", "sentence2", labels=("not_entailment", "entailment"), skip=(-1,)),
         "nli coreference", cite="Wang et al. 2018, arXiv 1804.07461",
         note="most validation premises stand in training too"),
    superglue("cb", Classification("premise", "hypothesis", labels=("entailment", "contradiction", "neutral"), skip=(-1,)),
              "nli", cite="de Marneffe et al. 2019"),
    record("hans", Hub("jhu-cogsci/hans", "plain_text", PARQUET),
           Classification("premise", "hypothesis", labels=("entailment", "non-entailment")),
           "nli adversarial", cite="McCoy et al. 2019, arXiv 1902.01007",
           note="made from templates, the same ones in both splits"),
    record("scitail", Hub("allenai/scitail", "snli_format"),
           Classification("sentence1", "sentence2", label="gold_label", labels=NLI[:2]),
           "nli science", cite="Khot et al. 2018"),
    *map(anli, (1, 2, 3)),
    record("mediqa_rqe", Hub(None), Classification("chq", "faq", labels=("false", "true")),
           "nli medical", cite="Ben Abacha et al. 2019, W19-5039",
           note="question entailment; form of its own (from bigbio/mediqa_rqe)"),
    *map(recast, ("megaveridicality", "sentiment", "verbnet")),
]
