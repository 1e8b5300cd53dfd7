"""Sentiment: of sentences, of reviews, towards an aspect; and whether there is an opinion at all."""

from prefinetune.catalog.record import glue, record, words
from prefinetune.families import Classification, MultiLabel
from prefinetune.sources import Hub
from prefinetune.task import Task


def absa(domain: str, cite: str) -> Task:
    return record(
        f"absa/{domain}", Hub(None), Classification("text", "aspect", labels=("negative", "neutral", "positive")),
        "sentiment aspect", license="MIT (source repo); data set licence unknown", cite=cite,
        note="without the rows that the original labels 'conflict'" if domain != "twitter" else "",
    )  # fmt: skip


EMOTIONS = words(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval disgust "
    "embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse sadness "
    "surprise neutral"
)

# fmt: off
TASKS = [
    glue("sst2", Classification("sentence", labels=("negative", "positive"), skip=(-1,)),
         "sentiment", cite="Socher et al. 2013, D13-1170",
         note="shares sentences with SetFit/sst5, SetFit/subj and rotten_tomatoes, across splits"),
    record("SetFit/sst5", Hub("SetFit/sst5"),
           Classification("text", labels=("very negative", "negative", "neutral", "positive", "very positive")),
           "sentiment", cite="Socher et al. 2013, D13-1170",
           note="shares sentences with glue/sst2, SetFit/subj and rotten_tomatoes, across splits"),
    record("rotten_tomatoes", Hub("cornell-movie-review-data/rotten_tomatoes"),
           Classification("text", labels=("neg", "pos")),
           "sentiment", cite="Pang and Lee 2005, arXiv cs/0506075",
           note="shares sentences with glue/sst2, SetFit/sst5 and SetFit/subj, across splits"),
    record("SetFit/subj", Hub("SetFit/subj"), Classification("text", labels=("objective", "subjective")),
           "sentiment subjectivity", license="MIT (source repo); data set licence unknown",
           cite="Pang and Lee 2004, arXiv cs/0409058",
           note="shares sentences with glue/sst2, SetFit/sst5 and rotten_tomatoes, across splits"),
    record("imdb", Hub("stanfordnlp/imdb", "plain_text"), Classification("text", labels=("neg", "pos")),
           "sentiment", cite="Maas et al. 2011, P11-1015"),
    record("yelp_polarity", Hub("fancyzhx/yelp_polarity", "plain_text"),
           Classification("text", labels=("negative", "positive")),
           "sentiment", cite="Zhang et al. 2015, arXiv 1509.01626",
           note="the hub calls its labels '1' and '2': fewer than three stars, more than three"),
    record("counterfactual/imdb", Hub(None), Classification("text", labels=("Negative", "Positive")),
           "sentiment counterfactual", license="Apache-2.0", cite="Kaushik et al. 2020, arXiv 1909.12434",
           note="IMDB reviews and their human revisions; form of its own "
                "(from tasksource/counterfactually-augmented-imdb)"),
    record("mpqa", Hub(None), Classification("text", labels=("negative", "positive")),
           "sentiment", license="MIT (source repo); data set licence unknown", cite="Wiebe et al. 2005"),
    record("multi_domain_sentiment", Hub(None), Classification("text", labels=("negative", "positive")),
           "sentiment", license="Apache-2.0 (source repo)", cite="Blitzer et al. 2007, P07-1056"),
    record("go_emotions/simplified", Hub("google-research-datasets/go_emotions", "simplified"),
           MultiLabel("text", label="labels", labels=EMOTIONS),
           "emotion", license="Apache-2.0", cite="Demszky et al. 2020, arXiv 2005.00547"),
    record("meld/sentiment", Hub(None), Classification("text", labels=("negative", "neutral", "positive")),
           "sentiment dialogue", license="GPL-3.0 (source repo)", cite="Poria et al. 2019, arXiv 1810.02508",
           note="utterances without their dialogue; form of its own (from declare-lab/MELD)"),
    absa("laptop", "Pontiki et al. 2014, S14-2004"),
    absa("restaurant", "Pontiki et al. 2014, S14-2004"),
    absa("twitter", "Dong et al. 2014, P14-2009"),
]
