"""Social media and talk: emotion, irony, hate, offence, stance."""

from collections.abc import Mapping
from typing import Any

from prefinetune.catalog.record import record, words
from prefinetune.families import Classification
from prefinetune.sources import Hub
from prefinetune.task import Task

EMOJI = words("❤ 😍 😂 💕 🔥 😊 😎 ✨ 💙 😘 📷 🇺🇸 ☀ 💜 😉 💯 😁 🎄 📸 😜")


def tweet_eval(config: str, tags: str, labels: tuple[str, ...]) -> Task:
    return record(
        f"tweet_eval/{config}", Hub("cardiffnlp/tweet_eval", config), Classification("text", labels=labels),
        f"{tags} tweets tweeteval", cite="Barbieri et al. 2020, arXiv 2010.12421",
        license="no restrictions stated by the repo; restrictions of the single tasks and Twitter may apply",
    )  # fmt: skip


def stance(target: str) -> Task:
    return tweet_eval(f"stance_{target}", "stance", ("none", "against", "favor"))


def forum_label(row: Mapping[str, Any]) -> str:
    """By name, so that taking out the class of skipped sentences moves no other."""
    return ("noHate", "hate", "idk/skip", "relation")[row["label"]]


# fmt: off
TASKS = [
    tweet_eval("emoji", "emoji", EMOJI),
    tweet_eval("emotion", "emotion", ("anger", "joy", "optimism", "sadness")),
    tweet_eval("hate", "hate", ("non-hate", "hate")),
    tweet_eval("irony", "irony", ("non_irony", "irony")),
    tweet_eval("offensive", "hate offensive", ("non-offensive", "offensive")),
    tweet_eval("sentiment", "sentiment", ("negative", "neutral", "positive")),
    *map(stance, ("abortion", "atheism", "climate", "feminist", "hillary")),
    record("olid/subtask_b", Hub(None), Classification("tweet", labels=("TIN", "UNT")),
           "hate offensive tweets", cite="Zampieri et al. 2019, arXiv 1902.09666",
           note="targeted insult or not; form of its own (from christophsonntag/OLID)"),
    record("olid/subtask_c", Hub(None), Classification("tweet", labels=("IND", "GRP", "OTH")),
           "hate offensive tweets", cite="Zampieri et al. 2019, arXiv 1902.09666",
           note="individual, group or other; form of its own (from christophsonntag/OLID)"),
    record("hate_speech_offensive", Hub("tdavidson/hate_speech_offensive"),
           Classification("tweet", label="class", labels=("hate speech", "offensive language", "neither")),
           "hate offensive tweets", license="MIT", cite="Davidson et al. 2017, arXiv 1703.04009",
           note="the columns of counts are the votes behind the label: never an input"),
    record("hate_speech18", Hub("odegiber/hate_speech18"),
           Classification("text", label=forum_label, labels=("noHate", "hate", "relation"), skip=("idk/skip",)),
           "hate", license="CC BY-SA 3.0 ES", cite="de Gibert et al. 2018, arXiv 1809.04444",
           note="'relation': hateful only together with its neighbours; the mirror sets the authors' balanced sample apart as "
                "test, and that sample has only noHate and hate"),
    record("ethos/binary", Hub("iamollas/ethos", "binary"),
           Classification("text", labels=("no_hate_speech", "hate_speech")),
           "hate", license="GPL-3.0 (source repo)", cite="Mollas et al. 2020, arXiv 2006.08328"),
    record("gab_hate", Hub(None), Classification("text", labels=("not hateful", "hateful")),
           "hate", license="Apache-2.0 (source repo); data set licence unknown", cite="Kennedy et al. 2022"),
    record("meld/emotion", Hub(None),
           Classification("text", labels=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")),
           "emotion dialogue", license="GPL-3.0 (source repo)", cite="Poria et al. 2019, arXiv 1810.02508",
           note="utterances without their dialogue; form of its own (from declare-lab/MELD)"),
]
