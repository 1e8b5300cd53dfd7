"""What columns are called. A name is split into words, and the whole name or its last word is looked up."""

from __future__ import annotations

import re
from collections.abc import Set


def one_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


LABEL = one_of("label labels class classes sentiment intent target gold polarity emotion stance y decision verdict relation")
CATEGORY = one_of("category categories topic topics tag tags type kind queue team department genre priority urgency status")
NUMBER = one_of(
    "rating ratings stars star score scores grade points hours days minutes seconds price cost age votes similarity level value "
    "amount percent percentage probability duration quality number"
)
ABOUT = one_of(
    "id idx index ind uid uuid guid no nr nb key date time timestamp created updated year month day url link href author user "
    "username speaker name source origin lang language split fold version file filename path domain location state country city "
    "email phone annotator worker confidence hash count start end offset length position info affiliation multiple unnamed"
)
MAIN = one_of(
    "text sentence content body message review tweet utterance document article passage description statement sms post ticket "
    "input premise paragraph scenario dialogue conversation transcript story query question claim mail comment"
)
QUESTION = one_of("question query q prompt stem ask")
CONTEXT = one_of("context passage paragraph document article story text evidence source background body chapter")
ANSWER = one_of("answer answers answerkey key correct solution label gold target option choice id index")
WRITTEN = one_of(
    "summary summaries highlights output response reply completion translation target reference headline explanation paraphrase "
    "continuation"
)
MAYBE_WRITTEN = one_of("title subject line answer question abstract description caption")
SHORTER = one_of("summary summaries highlights headline title subject line caption")  # than what they are about
HEADING = one_of("title subject headline heading header line")
REMARK = one_of("explanation explanations rationale reason reasons note notes remark remarks justification comment comments")
OPTION = one_of("option options opt choice choices answer answers ans ending endings sol solution alternative candidate response")
FIRST_OF_PAIR = one_of("premise question query claim text sentence tweet review context q scenario post chq paragraph")
SECOND_OF_PAIR = one_of(
    "hypothesis answer sentence passage paragraph context document response evidence aspect term entity target reply conclusion "
    "faq excuse product candidate"
)


def words_of(name: str) -> list[str]:
    """answerKey -> answer, key; gold_label -> gold, label; a path counts by its last part that is no number."""
    parts = [part for part in name.split(".") if not part.isdigit()] or [name]
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", parts[-1])
    return [word for word in re.split(r"[^0-9a-z]+", spaced.lower()) if word] or [parts[-1].lower()]


def called(name: str, known: Set[str]) -> bool:
    """Whether a column's name, or its last word, is one of those known; digits behind it do not count."""
    words = words_of(name)
    whole = {"_".join(words), "".join(words), words[-1], words[-1].rstrip("0123456789")}
    return not known.isdisjoint(whole)
