"""Texts that others wrote, on their way to a terminal, a file or a path: what must be taken out of them first."""

from __future__ import annotations

import os
import re

# What a terminal obeys (C0 and C1 but tab and line end), and what turns the order of letters around.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

HIDDEN = "***"
SECRET_NAME = re.compile(r"(^|_)(API_?KEY|ACCESS_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; a shorter value of such a variable (a flag, say) may stand anywhere
SECRETS = (
    (re.compile(r"(:/{1,2})[^\s/@]+@"), rf"\1{HIDDEN}@"),  # https://user:token@host; a path has one slash there
    (re.compile(r"((?:token|api_?key|secret|password|signature)=)[^\s&'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_|gh[a-z]_|glpat-|sk-)[\w-]{16,}"), HIDDEN),
)


def visible(text: str) -> str:
    """The text with control characters as escapes. What JSON it was, it stays."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_secrets(text: str) -> str:
    """The text without tokens: values of environment variables that are named like one, and what looks like one."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def is_name(text: object) -> bool:
    """Whether a text names something in a folder, and nothing outside of it."""
    return isinstance(text, str) and text not in ("", ".", "..") and not set(text) & set("/\\") and text.isprintable()
