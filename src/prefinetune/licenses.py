"""What the licences of datasets ask of whoever uses a model made from them, as far as their texts tell.

Records give a licence as its publisher states it, in words of all kinds. Here these are sorted by what they restrict. It is
reading, not legal advice: whether a model is a derivative of its training data is for its user to decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# What a licence may ask, the most restrictive first, and how its text says so (in small letters, words joined by "-").
TERMS: Mapping[str, re.Pattern[str]] = {
    "no-derivatives": re.compile(r"\bnd\b|no-?deriv"),
    "non-commercial": re.compile(
        r"\bnc\b|non-?commercial|(not-for|no)-commercial|\b(research|academic|education\w*)\b.*\bonly\b"
    ),
    "share-alike": re.compile(r"\bsa\b|share-?alike|\b[al]?gpl\b|\bgfdl\b|\bodbl\b|\bosl\b|\beupl\b|\bcdla-sharing\b"),
    "credit": re.compile(r"\b(cc-by|creative-commons-attribution|mit|apache|bsd|afl|isc|zlib|ms-pl|odc-by|cdla-permissive)\b"),
}
NOTHING = re.compile(r"\b(cc0|public-domain|pddl|unlicense|wtfpl)\b")  # licences that ask nothing
UNKNOWN = re.compile(r"\bunknown\b|\bunspecified\b")

# Those of the hub's identifiers of licences that datasets have.
HUB_IDS = (
    "mit", "apache-2.0", "afl-3.0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "ms-pl", "unlicense", "wtfpl",
    "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "gfdl", "osl-3.0",
    "eupl-1.1", "eupl-1.2", "odbl", "odc-by", "pddl", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
)  # fmt: skip
HUB_ID = re.compile(rf"(?<!\w)({'|'.join(sorted(map(re.escape, HUB_IDS), key=len, reverse=True))})(?!\w|\.\d)")


class License(NamedTuple):
    """A licence, read."""

    text: str  # as the dataset's record has it
    terms: tuple[str, ...] | None  # of TERMS; None where nothing is known of them
    hub_id: str | None  # as the hub calls it

    @property
    def severity(self) -> tuple[bool, ...]:
        """Larger is more restrictive; of licences whose terms are known."""
        return tuple(term in (self.terms or ()) for term in TERMS)


def read_license(text: str) -> License:
    """What a licence's text says. Of several licences in it, all terms together."""
    words = re.sub(r"[\s_]+", "-", text.strip().lower())
    terms = [term for term, says in TERMS.items() if says.search(words)]
    if UNKNOWN.search(words) or not (terms or NOTHING.search(words)):
        return License(text, None, None)
    if terms and "credit" not in terms:
        terms.append("credit")  # whoever asks for more also wants to be named
    named = set(HUB_ID.findall(words))
    return License(text, tuple(terms), named.pop() if len(named) == 1 else None)


class Together(NamedTuple):
    """The licences of all datasets of a model."""

    known: Mapping[str, License]  # by dataset, the most restrictive first
    unknown: Mapping[str, License]  # by dataset: nothing is known of what they allow

    @property
    def terms(self) -> dict[str, list[str]]:
        """Every term that any dataset asks, the most restrictive first, with those datasets."""
        found = {term: [name for name, one in self.known.items() if term in (one.terms or ())] for term in TERMS}
        return {term: names for term, names in found.items() if names}

    @property
    def strictest(self) -> list[License]:
        """The most restrictive licences of those that are known: several where they are equally so, each text once."""
        known = list(self.known.values())
        return list({one.text: one for one in known if one.severity == known[0].severity}.values())

    @property
    def hub_id(self) -> str:
        """What the hub shall show: unknown where any is; the most restrictive one, where that is one, asks all that any does, and
        no other wants what is made from it shared under itself; else other."""
        if self.unknown or not self.known:
            return "unknown"
        ids = {one.hub_id for one in self.strictest}
        ids |= {self.known[name].hub_id for name in self.terms.get("share-alike", ())}
        asks_all = set(self.terms) == set(self.strictest[0].terms or ())
        return (ids.pop() if len(ids) == 1 and asks_all else None) or "other"


def together(licenses: Iterable[tuple[str, str]]) -> Together:
    """(dataset, text of its licence) of all datasets of a model; one that comes twice with two licences counts twice."""
    read: dict[str, License] = {}
    for name, text in dict.fromkeys(licenses):
        read[f"{name} ({text})" if name in read else name] = read_license(text)
    known = {name: one for name, one in read.items() if one.terms is not None}
    ordered = dict(sorted(known.items(), key=lambda pair: pair[1].severity, reverse=True))
    return Together(ordered, {name: one for name, one in read.items() if one.terms is None})
