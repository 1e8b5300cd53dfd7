"""Language itself: acceptability, word senses, what a pronoun refers to."""

from prefinetune.catalog.record import glue, record, superglue
from prefinetune.families import Classification, Regression
from prefinetune.sources import Hub

# fmt: off
TASKS = [
    glue("cola", Classification("sentence", labels=("unacceptable", "acceptable"), skip=(-1,)), "acceptability",
         cite="Warstadt et al. 2019, arXiv 1805.12471"),
    record("blimp/pairs", Hub(None),
           Classification("sentence1", "sentence2", labels=("first acceptable", "second acceptable")),
           "acceptability", license="CC BY 4.0", cite="Warstadt et al. 2020, arXiv 1912.00582",
           note="form of our own: minimal pairs of nyu-mll/blimp in random order"),
    record("google_wellformed_query", Hub("google-research-datasets/google_wellformed_query"),
           Regression("content", label="rating", low=0, high=1),
           "acceptability", license="CC BY-SA 4.0", cite="Faruqui and Das 2018, arXiv 1808.09419"),
    superglue("wic", Classification(("word", "sentence1"), "sentence2", labels=("False", "True"), skip=(-1,)),
              "word-sense", license="MIT (source repo); data set CC BY-NC 4.0",
              cite="Pilehvar and Camacho-Collados 2019, arXiv 1808.09121",
              note="mirror: test is 200 of the official training rows, texts are tokenized"),
    superglue("wsc", Classification("text", ("span2_text", "span1_text"), labels=("False", "True"), skip=(-1,)),
              "coreference", config="wsc.fixed", cite="Levesque et al. 2012",
              note="the hub's repaired copy, in which every span stands in its text"),
]
