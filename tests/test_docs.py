"""Every command and snippet of README and documents is run or checked, and the site is built of them, strictly and offline."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import prefinetune
from prefinetune import schema
from prefinetune.cli import app
from prefinetune.config import setting_names
from prefinetune.errors import InputError
from prefinetune.families import FAMILIES
from snippets import PAGES, ROOT, Reader, blocks, check_command, check_settings, check_words, first_missing, is_tree, prose

HUB = ROOT / "tests" / "hub"
LEARNED_BY_ENCODERS = ("faq", "quiz", "reviews", "support-tickets")


# ---- what a reader has before a page begins


def data(folder: Path) -> None:
    for name in LEARNED_BY_ENCODERS:
        shutil.copytree(ROOT / "examples" / name, folder / "data" / name)


def suite(folder: Path) -> None:
    data(folder)
    span = {"question": "question", "context": "passage", "answer": "answer"}
    own = [
        {"name": "faq", "source": "data/faq/faq.jsonl", "span": span},
        {"name": "tickets", "source": "data/support-tickets", "classification": {"text": "message", "label": "queue"}},
        {"name": "reviews", "source": "data/reviews/reviews.tsv.gz", "classification": {"text": "review", "label": "stars"}},
    ]
    (folder / "suite.yaml").write_text(yaml.safe_dump({"tasks": own}))


def target(*names: str) -> Callable[[Path], None]:
    """Suite files with a task that is not in `suite`."""

    def write(folder: Path) -> None:
        for name in names:
            rows = [f"{word} {at},{word}" for at in range(60) for word in ("refund", "delivery", "login")]
            (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
            entry = {"name": Path(name).stem, "source": f"{name}.csv", "classification": {"text": "text"}}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"tasks": [entry]}))

    return write


def a_run(folder: Path, *names: str) -> None:
    suite(folder)
    config = {"train": {"updates": 1, "evaluation_rows": 4, "checkpoint_every": 1}}
    for name in names or ("mine",):
        prefinetune.train(folder / "suite.yaml", "roberta-base", folder / "runs" / name, config=config)


def a_comparison(folder: Path) -> None:
    a_run(folder)
    target("target")(folder)
    config = {"train": {"updates": 1}}
    start, out = folder / "runs" / "mine", folder / "runs" / "compare"
    prefinetune.compare([folder / "target.yaml"], start, out, labels=[8], seeds=2, grid=[1e-3], config=config)


def controls(folder: Path) -> None:
    """Two further runs to compare with, and nothing of what they were made of."""
    a_run(folder, "nli-only", "denoising")
    shutil.rmtree(folder / "data")
    (folder / "suite.yaml").unlink()


def mail(folder: Path) -> None:
    rows = [f"{word} {at}" for at in range(20) for word in ("refund", "delivery", "login")]
    (folder / "mail.csv").write_text("\n".join(["text", *rows]) + "\n")


def intents(folder: Path) -> None:
    """A run that knows messages by their intent, one fine-tuned from it, and mail whose messages are called otherwise."""
    target("intents")(folder)
    (folder / "intents.csv").write_text((folder / "intents.csv").read_text().replace("text", "message", 1))
    entry = {"name": "intent", "source": "intents.csv", "classification": {"text": "message", "label": "label"}}
    (folder / "intents.yaml").write_text(yaml.safe_dump({"tasks": [entry]}))
    config = {"train": {"updates": 1, "evaluation_rows": 4}}
    prefinetune.train(folder / "intents.yaml", "roberta-base", folder / "runs" / "mine", config=config)
    prefinetune.finetune(folder / "intents.yaml", folder / "runs" / "mine", folder / "tuned", config=config)
    mail(folder)
    (folder / "mail.csv").write_text((folder / "mail.csv").read_text().replace("text", "body", 1))


def stream(folder: Path) -> None:
    (folder / "team" / "huge").mkdir(parents=True)
    (folder / "team" / "huge" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')


BEFORE: dict[str, tuple[Callable[[Path], None], ...]] = {
    "README.md": (controls, data, mail, target("my-task", "mine", "intent", "routing")),
    "docs/data.md": (data, stream),
    "docs/design.md": (a_comparison,),
    "docs/affinity.md": (suite, target("targets")),
    "docs/evidence.md": (suite, target("targets")),
    "docs/scale.md": (suite,),
    "docs/report.md": (a_run, target("target")),
    "docs/faq.md": (data, target("target")),
    "docs/export.md": (intents,),
    "docs/lora.md": (suite,),
    "docs/tracking.md": (suite,),
    "docs/scikit-learn.md": (a_run,),
}


def names_before(page: str) -> dict[str, Any]:
    if page not in ("docs/data.md", "examples/README.md"):
        return {}
    import datasets
    import pandas

    rows = pandas.DataFrame({"message": [f"{word} {at}" for at in range(20) for word in ("refund", "login")]})
    frame = rows.assign(intent=rows.message.str.split().str[0])
    return {"frame": frame, "held_out": frame[:8], "datasets": datasets}


# ---- models that the hub would give


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """The hub client's cache, as it is after tiny models with the names of real ones were fetched."""
    import torch
    import transformers

    from prefinetune.demo.run import byte_pairs

    texts = [path.read_text() for path in sorted(ROOT.glob("docs/*.md"))]
    tokenizer = byte_pairs(texts, 600, 512)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos")}
    parts = {
        f"{part}_{what}": size
        for part in ("encoder", "decoder")
        for what, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    roberta = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, **ids,
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id, **ids,
    )  # fmt: skip
    bart = transformers.BartConfig(vocab_size=len(tokenizer), d_model=16, max_position_embeddings=512, **parts, **ids)
    cache = tmp_path_factory.mktemp("hub")
    models = {
        "roberta-base": (transformers.AutoModelForMaskedLM, roberta),
        "roberta-large": (transformers.AutoModelForMaskedLM, roberta),
        "facebook/bart-base": (transformers.AutoModelForSeq2SeqLM, bart),
        "google/flan-t5-small": (transformers.AutoModelForSeq2SeqLM, t5),
    }
    for name, (auto, config) in models.items():
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(repository / "snapshots" / ("0" * 40))
        tokenizer.save_pretrained(repository / "snapshots" / ("0" * 40))
    return cache


@pytest.fixture
def reader(tmp_path, cache, hub_cache, monkeypatch) -> Iterator[Callable[[Path], Reader]]:
    """Gives a reader who has what a page takes for granted."""
    import huggingface_hub

    def sit_down(page: Path) -> Reader:
        folder, name = tmp_path / "work", page.relative_to(ROOT).as_posix()
        shutil.copytree(ROOT / "examples", folder / "examples")
        (folder / "mirror").symlink_to(HUB)
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
        for lay_out in BEFORE.get(name, ()):
            lay_out(folder)
        return Reader(folder, names_before(name))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setenv("PREFINETUNE_DATA_ROOT", str(HUB))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    monkeypatch.syspath_prepend(tmp_path / "work")
    families = dict(FAMILIES)
    forget_schemas()
    yield sit_down
    FAMILIES.clear()  # a page may have added one
    FAMILIES.update(families)
    forget_schemas()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def forget_schemas() -> None:
    for cached in (schema.family_schema, schema.task_schema, schema.tasksource_schema):
        cached.cache_clear()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_tells_to_do_can_be_done(page, reader):
    someone = reader(page)
    for block in blocks(page):
        someone.read(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_settings_that_prose_names_are_known(page):
    text = prose(page)
    for command in re.findall(r"`(prefinetune [^`]+)`", text):
        check_words(" ".join(command.split()))
    check_settings(text)


# ---- how code is told from pages


def page_of(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "```\nmake test\n```\n",
        "```console\n$ make\n```\n",
        "- see\n  ```bash\n  make\n  ```\n",
        "```bash\nmake\n",
        "~~~\nmake\n~~~\n",
    ],
)
def test_a_block_that_would_be_neither_run_nor_checked_fails(tmp_path, monkeypatch, text):
    monkeypatch.setattr("snippets.ROOT", tmp_path)
    with pytest.raises(AssertionError):
        blocks(page_of(tmp_path, text))


@pytest.mark.parametrize(
    "command",
    [
        "prefinetune trian suite.yaml",
        "prefinetune train suite.yaml --modle roberta-base",
        "prefinetune train suite.yaml train.update=3",
        "prefinetune finetune task.yaml optimizer.learning_rate=fast",
        "torchrun --nproc 8 train.py",
        "make everything",
        "pip install prefinetune[speed]",
        "ssh somewhere",
    ],
)
def test_a_command_that_would_not_work_is_found_without_running_it(command):
    with pytest.raises((AssertionError, SystemExit, InputError)):
        check_command(command.split())


@pytest.mark.parametrize("command", ["prefinetune trian", "prefinetune tasks shwo NAME", "prefinetune train SUITE --modle NAME"])
def test_a_verb_or_option_in_prose_that_there_is_not_is_found(command):
    with pytest.raises(AssertionError):
        check_words(command)


def test_output_is_what_was_said_but_for_numbers_and_what_is_left_out():
    said = "one  1,234 rows\ntwo 0.5\nthree\nfour\n"
    assert first_missing("one 7 rows\ntwo 9", said) is None
    assert first_missing("two 9\n...\nfour", said) is None
    assert first_missing("two 9\nfour", said) == "four"
    assert first_missing("two", said) == "two"
    assert first_missing("three\n...\none 1 rows", said) == "one 1 rows"


# ---- what stands in text blocks that are no output


def test_text_blocks_that_are_no_output_are_those_that_the_next_tests_know():
    told = {
        page.name for page in PAGES for block in blocks(page) if block.kind == "text" and not block.title and not is_tree(block)
    }
    assert told == {"README.md", "method.md"}


def test_every_file_of_the_readmes_tree_is_there_and_every_file_of_the_package_in_it():
    (tree,) = [block.text for block in blocks(ROOT / "README.md") if block.kind == "text"]
    named, folder = set(), ""
    for indent, names in re.findall(r"^( {0,2})([^\s,]+(?:, [^\s,]+)*)", tree, re.MULTILINE):
        folder = folder if indent else names
        named |= {f"{folder}{name}" if indent else name for name in names.split(", ")}
    assert not {name for name in named if not (ROOT / name).exists()}
    package = {path for path in (ROOT / "src" / "prefinetune").iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert {f"src/prefinetune/{path.name}{'/' * path.is_dir()}" for path in package} <= named


def test_every_formula_of_the_method_names_tests_that_there_are():
    named = re.findall(r"⊢ `(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "method.md").read_text())
    assert len(named) > 100
    texts = {name: (ROOT / "tests" / name).read_text() for name, _ in named}
    assert not [test for name, test in named if not re.search(rf"^def {test}\(", texts[name], re.MULTILINE)]


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly: a dead link, a page outside of the navigation or a docstring that does not fit is an error."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'prefinetune[docs]'")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_reader_of_the_site_fetches_nothing_from_elsewhere(site):
    fetched = []

    class Finder(HTMLParser):
        def handle_starttag(self, tag, attrs):
            wanted = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}.get(tag)
            fetched.extend(value for name, value in attrs if name == wanted and value and tag != "a")

    for page in site.rglob("*.html"):
        Finder().feed(page.read_text())
    for sheet in site.rglob("*.css"):
        fetched += re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text())
    assert len(fetched) > 50
    assert not [address for address in fetched if re.match(r"(https?:)?//", address)]


def test_the_site_has_every_verb_setting_and_public_name(site):
    commands, settings, python = ((site / f"{name}.html").read_text() for name in ("cli", "settings", "reference"))
    verbs = get_command(app).commands
    every = [f"{name} {inner}" for name, verb in verbs.items() for inner in getattr(verb, "commands", {})] + list(verbs)
    assert not [verb for verb in every if f"prefinetune {verb}</code>" not in commands]
    assert not [name for name in setting_names() if f"<code>{name}</code>" not in settings]
    shown = re.findall(r"^::: prefinetune\.([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(f"{prefinetune.HOMES[name]}.{name}" for name in prefinetune.__all__)
    assert not [name for name in shown if f'id="prefinetune.{name}"' not in python]


def test_links_out_of_the_documents_lead_to_files_or_name_them(site):
    text = (site / "evidence.html").read_text()
    assert "<code>src/prefinetune/statistics.py</code>" in text
    assert "../src" not in text
