"""Similarity: do two texts mean the same, and how nearly."""

from prefinetune.catalog.record import glue, record
from prefinetune.families import Classification, Regression
from prefinetune.sources import Hub

# fmt: off
TASKS = [
    glue("mrpc", Classification("sentence1", "sentence2", labels=("not_equivalent", "equivalent")), "paraphrase",
         cite="Dolan and Brockett 2005, I05-5002", splits={}, note="the hub's test rows have their labels"),
    glue("qqp", Classification("question1", "question2", labels=("not_duplicate", "duplicate"), skip=(-1,)), "paraphrase",
         cite="Iyer et al. 2017"),
    glue("stsb", Regression("sentence1", "sentence2", low=0, high=5, skip=(-1,)), "paraphrase",
         license="see LICENSE.txt of the source folder (mixed sources)", cite="Cer et al. 2017, arXiv 1708.00055"),
    record("medical_questions_pairs", Hub("curaihealth/medical_questions_pairs"),
           Classification("question_1", "question_2", labels=("different", "similar")),
           "paraphrase medical", cite="McCreery et al. 2020, arXiv 2008.13546",
           note="each first question stands in two rows, so a random split leaks"),
]
