"""Reading with spans: the answer is a piece of the context, or nothing."""

from prefinetune.catalog.record import record
from prefinetune.families import Span
from prefinetune.sources import Hub
from prefinetune.task import Task


def squad_form(name: str, hub: Hub, tags: str = "reading", **more: str) -> Task:
    return record(name, hub, Span("question", "context"), tags, **more)


def squadshifts(config: str) -> Task:
    return squad_form(
        f"squadshifts/{config}-resplit", Hub("ludwigschmidt/squadshifts", config),
        cite="Miller et al. 2020, arXiv 2004.14444", note="mirror: official test rows, split again by context",
    )  # fmt: skip


def subjqa(config: str) -> Task:
    return squad_form(
        f"subjqa/{config}", Hub("megagonlabs/subjqa", config), "reading reviews",
        license="as the underlying review data sets (README)", cite="Bjerva et al. 2020, arXiv 2004.14283",
        note="many questions have no answer",
    )  # fmt: skip


WIKIPEDIA = "CC BY-SA 4.0 (stated on the site page in the repository)"

# fmt: off
TASKS = [
    squad_form("squad/resplit", Hub("rajpurkar/squad", "plain_text"), license=WIKIPEDIA,
               cite="Rajpurkar et al. 2016, arXiv 1606.05250",
               note="mirror: official validation rows, split again by article as in squad_v2/resplit"),
    squad_form("squad_v2/resplit", Hub("rajpurkar/squad_v2", "squad_v2"), license=WIKIPEDIA,
               cite="Rajpurkar et al. 2018, arXiv 1806.03822",
               note="half the questions have no answer; mirror: official validation rows, split again by article"),
    *map(squadshifts, ("amazon", "new_wiki", "reddit")),
    *map(subjqa, ("electronics", "grocery", "restaurants", "tripadvisor")),
    squad_form("quoref/contrast_sets-resplit", Hub(None), "reading coreference",
               cite="Dasigi et al. 2019, arXiv 1908.05803; Gardner et al. 2020, arXiv 2004.02709",
               note="the contrast set with its original test questions, split again by article"),
    squad_form("ropes/contrast_sets-resplit", Hub(None),
               cite="Lin et al. 2019, arXiv 1908.05852; Gardner et al. 2020, arXiv 2004.02709",
               note="the contrast set with its originals, split again by context; background and situation joined"),
    squad_form("qamr/resplit", Hub(None), license="MIT", cite="Michael et al. 2018, arXiv 1711.05885",
               note="training rows are the official test split"),
    squad_form("tweet_qa/extractive", Hub(None), "reading tweets", cite="Xiong et al. 2019, arXiv 1907.06292",
               note="only rows whose answer stands in the tweet; form of its own (from ucsbnlp/tweet_qa)"),
    squad_form("fairytale_qa/extractive", Hub(None), "reading fiction", license="Apache-2.0",
               cite="Xu et al. 2022, arXiv 2203.13947",
               note="only rows whose answer stands in the text; form of its own (from WorkInTheDark/FairytaleQA)"),
    squad_form("bipar/en-resplit", Hub(None), "reading fiction", license="CC BY-NC 4.0",
               cite="Jing et al. 2019, D19-1249", note="training rows are the official test split"),
    squad_form("friendsqa/resplit", Hub(None), "reading dialogue", license="Apache-2.0",
               cite="Yang and Choi 2019, W19-5923", note="training rows are the official test split"),
    squad_form("policy_qa/resplit", Hub("alzoubi36/policy_qa"), "reading legal", license="MIT",
               cite="Ahmad et al. 2020, arXiv 2010.02557", note="mirror: training rows are the official test split"),
]
