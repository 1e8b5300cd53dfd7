"""A world small enough to learn in a minute: sentences over made-up words whose meanings are never stated.

Every text is "the ADJECTIVE NOUN [never] VERB the ADJECTIVE NOUN .", such as "the duni kuno never gilas the
bili bano .". A word has latent features (a noun its category, size and age) that show only through labels:
36 training tasks ask about features and local combinations of them, 7 target tasks about other combinations.
A model that has learned from the training tasks what the words mean needs few labels for a target. It tells
whether the machinery learns and transfers, and nothing about natural language.

    suite, tasks = world(seed=0), targets(seed=0)  # a seed is one assignment of features to words
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

from prefinetune.families import Choice, Classification, Family, MultiLabel, Span, Tagging
from prefinetune.sources import Rows
from prefinetune.task import Suite, Task

# Kind of word -> its ending, how many words share a combination of features, and the features with their values.
# That makes 64 nouns, 48 adjectives and 40 verbs; no feature of a word tells another.
KINDS: dict[str, tuple[str, int, dict[str, tuple[str, ...]]]] = {
    "noun": ("o", 4, {"category": ("animal", "tool", "food", "plant"), "size": ("large", "small"), "age": ("old", "young")}),
    "adjective": ("i", 4, {"polarity": ("good", "bad"), "strength": ("strong", "weak"), "hue": ("red", "green", "blue")}),
    "verb": ("as", 5, {"polarity": ("good", "bad"), "strength": ("strong", "weak"), "speed": ("fast", "slow")}),
}  # fmt: skip
STEMS = ["".join(letters) for letters in product("bdgkmpr", "aeiou", "ln")]
BLANK = "___"
ASKING = ["which", "ends", "well", "large", "old", "good", "strong", "fast", "plant", "noun", "adjective", "phrase", "?"]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # at ids 0 to 4; the first four are RoBERTa's own

Word = SimpleNamespace  # .text and one attribute per feature


@dataclass(frozen=True)
class Sentence:
    adjective: Word
    noun: Word
    never: bool
    verb: Word
    adjective2: Word
    noun2: Word

    @property
    def parts(self) -> dict[str, str]:
        """Slot -> the word in it, in order."""
        subject = {"the": "the", "adjective": self.adjective.text, "noun": self.noun.text}
        action = {"never": "never", "verb": self.verb.text} if self.never else {"verb": self.verb.text}
        return subject | action | {"the2": "the", "adjective2": self.adjective2.text, "noun2": self.noun2.text, ".": "."}

    @property
    def text(self) -> str:
        return " ".join(self.parts.values())

    def start(self, slot: str) -> int:
        """The character at which the word in a slot begins."""
        slots = list(self.parts)
        return sum(len(self.parts[name]) + 1 for name in slots[: slots.index(slot)])

    @property
    def outcome(self) -> str:
        """Good is doing good, or never doing bad."""
        return "good" if (self.verb.polarity == "good") != self.never else "bad"


class World:
    """Words with features, and sentences over them."""

    def __init__(self, seed: int) -> None:
        self.words: dict[str, list[Word]] = {}
        for kind, (_, repeats, features) in KINDS.items():
            texts = words_of(kind)
            random.Random(f"{seed} {kind}").shuffle(texts)
            meanings = [dict(zip(features, values, strict=True)) for values in product(*features.values())] * repeats
            self.words[kind] = [Word(text=text, **meaning) for text, meaning in zip(texts, meanings, strict=True)]

    def sentences(self, rng: random.Random) -> Iterator[Sentence]:
        while True:
            adjectives, nouns = rng.choices(self.words["adjective"], k=2), rng.choices(self.words["noun"], k=2)
            verb = rng.choice(self.words["verb"])
            yield Sentence(adjectives[0], nouns[0], rng.random() < 0.4, verb, adjectives[1], nouns[1])


def words_of(kind: str) -> list[str]:
    ending, repeats, features = KINDS[kind]
    return [stem + ending for stem in STEMS[: repeats * len(list(product(*features.values())))]]


def vocabulary() -> list[str]:
    """All words, the same for every seed."""
    return [*(word for kind in KINDS for word in words_of(kind)), "the", "never", ".", BLANK, *ASKING]


# ---- five forms of problems


class Problem(NamedTuple):
    form: str
    family: Family
    draw: Callable[[World, random.Random], dict[str, Any]]  # one row


def single(rule: Callable[[Sentence], Any]) -> Problem:
    """The label is what the rule says of the sentence."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        sentence = next(world.sentences(rng))
        return {"text": sentence.text, "label": str(rule(sentence))}

    return Problem("single", Classification("text"), draw)


def pair(fits: Callable[[Sentence], bool]) -> Problem:
    """Which of two sentences fits, where only one does."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        one, other = next(two for two in pairs(world, rng) if fits(two[0]) != fits(two[1]))
        return {"text": one.text, "pair": other.text, "label": "first" if fits(one) else "second"}

    return Problem("pair", Classification("text", "pair"), draw)


def pairs(world: World, rng: random.Random) -> Iterator[tuple[Sentence, Sentence]]:
    return zip(world.sentences(rng), world.sentences(rng), strict=False)


def span(question: str, first: str, last: str, fits: Callable[[Word], bool]) -> Problem:
    """The words from slot `first` to slot `last`, of the subject or of the object: of the one whose last word fits."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        sentence = next(s for s in world.sentences(rng) if fits(getattr(s, last)) != fits(getattr(s, f"{last}2")))
        which = "" if fits(getattr(sentence, last)) else "2"
        start, end = sentence.start(first + which), sentence.start(last + which) + len(sentence.parts[last + which])
        answers = {"text": [sentence.text[start:end]], "answer_start": [start]}
        return {"question": question, "context": sentence.text, "answers": answers}

    return Problem("span", Span("question", "context"), draw)


def choice(question: str, fits: Callable[[Sentence], bool]) -> Problem:
    """Which of three sentences fits, where only one does."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        label = rng.randrange(3)
        options = [next(s for s in world.sentences(rng) if fits(s) == (at == label)).text for at in range(3)]
        return {"text": question, "options": options, "label": label}

    return Problem("choice", Choice("text", "options"), draw)


def fill(slot: str, fits: Callable[[Sentence], bool]) -> Problem:
    """Which of two words to put into the slot, where the sentence fits with only one of them."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        sentence, words = next(world.sentences(rng)), world.words[slot.rstrip("2")]
        right = rng.choice([word for word in words if fits(replace(sentence, **{slot: word}))])
        wrong = rng.choice([word for word in words if not fits(replace(sentence, **{slot: word}))])
        label = rng.randrange(2)
        options = [right.text, wrong.text] if label == 0 else [wrong.text, right.text]
        return {"text": " ".join((sentence.parts | {slot: BLANK}).values()), "options": options, "label": label}

    return Problem("fill", Choice("text", "options"), draw)


def several(rules: dict[str, Callable[[Sentence], bool]]) -> Problem:
    """The labels are the names of the rules that hold."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        sentence = next(world.sentences(rng))
        return {"text": sentence.text, "labels": [name for name, rule in rules.items() if rule(sentence)]}

    return Problem("several", MultiLabel("text", label="labels", labels=tuple(rules)), draw)


def tags(fits: Callable[[Word], bool]) -> Problem:
    """Phrases of an adjective and a noun that fits are PHRASEs, and every verb is an ACT."""

    def draw(world: World, rng: random.Random) -> dict[str, Any]:
        sentence = next(world.sentences(rng))
        found = dict.fromkeys(sentence.parts, "O") | {"verb": "B-ACT"}
        for adjective, noun in (("adjective", "noun"), ("adjective2", "noun2")):
            if fits(getattr(sentence, noun)):
                found |= {adjective: "B-PHRASE", noun: "I-PHRASE"}
        return {"tokens": list(sentence.parts.values()), "tags": list(found.values())}

    return Problem("tags", Tagging("tokens"), draw)


# ---- the tasks

RULES: dict[str, Callable[[Sentence], Any]] = {
    "subject-category": lambda s: s.noun.category,
    "subject-size": lambda s: s.noun.size,
    "subject-age": lambda s: s.noun.age,
    "subject-polarity": lambda s: s.adjective.polarity,
    "subject-strength": lambda s: s.adjective.strength,
    "subject-hue": lambda s: s.adjective.hue,
    "object-size": lambda s: s.noun2.size,
    "object-age": lambda s: s.noun2.age,
    "object-polarity": lambda s: s.adjective2.polarity,
    "object-hue": lambda s: s.adjective2.hue,
    "verb-polarity": lambda s: s.verb.polarity,
    "verb-speed": lambda s: s.verb.speed,
    "verb-strength": lambda s: s.verb.strength,
    "outcome": lambda s: s.outcome,
    "subject-looks": lambda s: f"{s.adjective.hue} {s.noun.size}",
    "subject-power": lambda s: s.adjective.strength == "strong" and s.noun.age == "young",
    "manner": lambda s: f"{s.verb.speed} {s.verb.strength}",
    "object-danger": lambda s: s.adjective2.polarity == "bad" or s.noun2.category == "animal",
}
PROBLEMS: dict[str, Problem] = {name: single(rule) for name, rule in RULES.items()} | {
    "larger-subject": pair(lambda s: s.noun.size == "large"),
    "better-subject": pair(lambda s: s.adjective.polarity == "good"),
    "faster-verb": pair(lambda s: s.verb.speed == "fast"),
    "older-object": pair(lambda s: s.noun2.age == "old"),
    "find-large": span("large noun ?", "noun", "noun", lambda word: word.size == "large"),
    "find-old": span("old noun ?", "noun", "noun", lambda word: word.age == "old"),
    "find-good": span("good adjective ?", "adjective", "adjective", lambda word: word.polarity == "good"),
    "find-strong": span("strong adjective ?", "adjective", "adjective", lambda word: word.strength == "strong"),
    "find-plant": span("plant phrase ?", "adjective", "noun", lambda word: word.category == "plant"),
    "choose-large": choice("which large ?", lambda s: s.noun.size == "large"),
    "choose-fast": choice("which fast ?", lambda s: s.verb.speed == "fast"),
    "choose-strong": choice("which strong ?", lambda s: s.adjective.strength == "strong"),
    "choose-plant": choice("which plant ?", lambda s: s.noun2.category == "plant"),
    "choose-well": choice("which ends well ?", lambda s: s.outcome == "good"),
    "fill-verb": fill("verb", lambda s: s.outcome == s.adjective.polarity),  # the good do good
    "fill-subject": fill("noun", lambda s: (s.noun.age == "young") == (s.verb.speed == "fast")),  # the young are fast
    "fill-object": fill("noun2", lambda s: (s.noun2.size == "large") == (s.adjective2.strength == "strong")),
    "fill-adjective": fill("adjective", lambda s: s.adjective.strength == s.verb.strength),
}
# Not among the training tasks of `world`.
SEVERAL = several(
    {
        "denies": lambda s: s.never,
        "fast": lambda s: s.verb.speed == "fast",
        "has bad": lambda s: "bad" in (s.adjective.polarity, s.adjective2.polarity),
        "strong verb": lambda s: s.verb.strength == "strong",
    }
)
TAGS = tags(lambda word: word.size == "large")
TARGET_RULES: dict[str, Callable[[Sentence], Any]] = {
    "object-category": lambda s: s.noun2.category,
    "object-looks": lambda s: f"{s.adjective2.hue} {s.noun2.age}",
    "mostly-good": lambda s: [s.adjective.polarity, s.verb.polarity, s.adjective2.polarity].count("good") >= 2,
    "power": lambda s: sum(value in ("strong", "large") for value in (s.adjective.strength, s.verb.strength, s.noun.size)) >= 2,
    "sizes": lambda s: f"{s.noun.size} {s.noun2.size}",
    "ending": lambda s: f"{s.outcome} {s.noun2.age}",
    "haste": lambda s: s.verb.speed == "fast" and s.noun.category != "plant",
}


def world(seed: int, num_tasks: int = 36, rows_per_task: int = 640, validation_rows: int = 100) -> Suite:
    """The training tasks; with fewer than 36, a selection drawn by the seed."""
    chosen = set(random.Random(seed).sample(list(PROBLEMS), num_tasks))
    sizes = {"train": rows_per_task, "validation": validation_rows}
    tasks = [make_task(seed, name, problem, sizes) for name, problem in PROBLEMS.items() if name in chosen]
    return Suite("micro", tuple(tasks))


def targets(seed: int, train_rows: int = 512) -> tuple[Task, ...]:
    """The held-out tasks, about the same words as `world(seed)`."""
    sizes = {"train": train_rows, "validation": 200, "test": 1000}
    tasks = [make_task(seed, f"target-{name}", single(rule), sizes) for name, rule in TARGET_RULES.items()]
    return tuple(replace(task, evaluation_only=True, tags=frozenset({"target"})) for task in tasks)


def make_task(seed: int, name: str, problem: Problem, sizes: dict[str, int]) -> Task:
    words, tables = World(seed), {}
    for split, count in sizes.items():
        rng = random.Random(f"{seed} {name} {split}")
        tables[split] = [problem.draw(words, rng) for _ in range(count)]
    return Task(f"micro/{name}", Rows(tables, name=f"micro/{name}"), problem.family, tags=frozenset({problem.form}))


# ---- a model for it


def layout(model: Any, packed: bool, token_types: bool = False) -> Any:
    """How a model with the tokenizer below is given its micro-batches: padded, or (if it reads them) as streams."""
    own = model.layout(SimpleNamespace(pad_id=1, token_types=token_types))
    assert own.packed or not packed
    return own._replace(packed=packed)


def tokenizer() -> Any:
    """One token per word; `<s> A </s>` and `<s> A </s> </s> B </s>`, as RoBERTa has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: at for at, word in enumerate([*SPECIALS, *vocabulary()])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    roles = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", mask_token="<mask>", model_max_length=64, **roles)


def model_config() -> Any:
    """A RoBERTa of 2 layers x 128 without dropout, for sequences of up to 64 tokens."""
    from transformers import RobertaConfig

    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    vocab_size = len(SPECIALS) + len(vocabulary())
    # RoBERTa counts positions from 2; its ids of <s>, <pad> and </s> are the defaults.
    return RobertaConfig(
        vocab_size=vocab_size, max_position_embeddings=66, type_vocab_size=1, initializer_range=0.06, **size, **dropout
    )
