"""Texts of strangers are shown as texts: on a page, in a real browser, and on a terminal."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prefinetune import evidence
from prefinetune.check import check_suite, show_reports
from prefinetune.cli.shared import show_table
from prefinetune.display import Display, Terminal
from prefinetune.families import FAMILIES, Classification
from prefinetune.infer import infer_suite
from prefinetune.leaks import Leaks, Overlap
from prefinetune.preview import preview_task, show_preview
from prefinetune.report import list_runs, write_report
from prefinetune.report.document import document
from prefinetune.report.leaks import write_leaks
from prefinetune.report.markup import Markup
from prefinetune.safety import visible
from prefinetune.sources import Rows
from prefinetune.tables import show_comparison, show_inferred, show_scores
from prefinetune.task import Suite, Task
from test_report import READ_THROUGH, browser, fewer_resamples, make_comparison, make_run, visit  # noqa: F401 (fixtures)
from test_report_studies import make_affinity, make_study

ATTACKS = (
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "<img src=x onerror='window.pwned = 3'>",
    '"><svg onload="window.pwned = 4">',
    "' autofocus onfocus='window.pwned = 5' x='",
    '" onmouseover="window.pwned = 6" style="position:fixed;inset:0" x="',
    '<a href="javascript:window.pwned = 7">here</a>',
    "javascript:window.pwned = 8",
    "</title></style></textarea><script>document.title = 'pwned'</script>",
    "<!--<script>",
    "--><script>window.pwned = 9</script>",
    "<iframe srcdoc='<script>parent.pwned = 10</script>'></iframe>",
    "&lt;script&gt;window.pwned = 11&lt;/script&gt;",
    "\u2028window.pwned = 12\u2029",
    "\\u003cscript>window.pwned = 13</script>",
    "${window.pwned = 14}{{window.pwned = 15}}%{window.pwned = 16}",
    "<meta http-equiv=refresh content='0;url=javascript:window.pwned = 17'>",
    "<base href=//evil.invalid/><link rel=stylesheet href=//evil.invalid/x.css>",
    '<b onclick="window.pwned = 18">bold</b><br><i>',
    "<form action=javascript:window.pwned=19><button>go</button></form>",
    "\\\"];window.pwned = 20;//",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.pwned=21>",
)  # fmt: skip


# ---- pages

# Texts of a run's files by which programs find their way; all others are a stranger's.
MEANT = {"train", "finetune", "base", "pre-finetuned", "further", *FAMILIES, "text", "all", "32"}
PATHS = {"digest", "when", "started", "subset", "start", "kind", "run", "role"}


def poisoned(value: Any, attack: Callable[[str], str], key: str = "") -> Any:
    """A copy in which texts, names among the keys too, are attacks; equal texts become equal ones."""
    if isinstance(value, dict):
        names = key in ("loss_by_task", "tasks", "arms", "seconds", "packages", "settings", "groups", "statistics")
        return {(attack(k) if names else k): poisoned(v, attack, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(one, attack) for one in value]
    if isinstance(value, str) and value not in MEANT and key not in PATHS:
        return attack(value)
    return value


def poison(folder: Path, attack: Callable[[str], str]) -> None:
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml") and path.name != "config.yaml":
            text = path.read_text()
            if path.suffix == ".yaml":
                path.write_text(yaml.safe_dump(poisoned(yaml.safe_load(text), attack), allow_unicode=True))
            elif path.suffix == ".json":
                path.write_text(json.dumps(poisoned(json.loads(text), attack)))
            else:
                path.write_text("".join(json.dumps(poisoned(json.loads(line), attack)) + "\n" for line in text.splitlines()))


def attacker() -> tuple[Callable[[str], str], dict[str, str]]:
    """Gives each text an attack of its own, each in turn; and what became of which."""
    found: dict[str, str] = {}

    def attack(text: str) -> str:
        return found.setdefault(text, f"{ATTACKS[len(found) % len(ATTACKS)]} #{len(found)}")

    return attack, found


@pytest.fixture(scope="module")
def run_page(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("hostile")
    attack, found = attacker()
    names = [f"task-{at}" for at in range(len(ATTACKS))]
    make_run(root / "runs" / "<img src=x onerror=window.pwned=31>", names)
    make_run(root / "runs" / "tuned'\"><script>window.pwned=32<", names[:1], kind="finetune")
    poison(root, attack)
    with next((root / "runs").glob("*/metrics.jsonl")).open("a") as file:
        file.write('{"<script>window.pwned = 33</script>')
    return write_report([root], root / "page.html"), found


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("hostile")
    attack, found = attacker()
    names = [f"task-{at}" for at in range(len(ATTACKS))]
    arms = ("base", "pre-finetuned", "<img src=x onerror=window.pwned=41>", "</script><script>window.pwned=42</script>")
    folder = make_comparison(root / "comparison", names, {"32": 32, "all": 400}, arms=arms, rows=10, without=(arms[2], 1))
    poison(folder, attack)
    (root / "demo.json").write_text(json.dumps({"seconds": dict.fromkeys(ATTACKS, 1.0)}))
    return write_report([root], root / "page.html"), found


@pytest.fixture(scope="module")
def study_page(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("hostile")
    attack, found = attacker()
    names = [f"task-{at}" for at in range(len(ATTACKS))]
    groups = {f"group {at}": {"series": f"series {at % 2}", "x": at + 1, "gain": at / 9} for at in range(4)}
    groups["control"] = {"role": "control"}
    pair = (("group 0", "control"), ("group 1", "group 2"))
    study = make_study(root / "study", "scale", groups, names, {"32": 32}, members=1, contrasts=pair, rows=10, tasks=5)
    make_affinity(study / "runs/0-0", [f"source/{at}" for at in range(5)], names[:2])
    poison(study, attack)
    return write_report([study], root / "page.html"), found


@pytest.fixture(scope="module")
def leaks_page(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    kinds = ("exact", "normalised", "n-grams", "shared context", "shared text")
    numbers = {"training_row": 1, "evaluation_row": 2}
    texts = [{"training": [one, one[::-1]], "evaluation": [f"{one} again"]} for one in ATTACKS]
    pairs = tuple({"kind": kinds[at % 5], **numbers, **text} for at, text in enumerate(texts))
    overlaps = [Overlap(one, f"{one} other", "test", rows % 2, 0, 0, 1, 9, 1, 1, pairs) for rows, one in enumerate(ATTACKS)]
    drop = {one: {f"{one} other/test": np.arange(1)} for one in ATTACKS[1::2]}
    counts = dict.fromkeys(ATTACKS, 9)
    found = Leaks(tuple(overlaps), drop, {one: np.arange(1) for one in ATTACKS}, counts, counts, 13, 0.5)
    page = write_leaks(found, ATTACKS[8], tmp_path_factory.mktemp("leaks") / "leaks.html")
    return page, {one: one for one in ATTACKS}


PAGES = ("run_page", "comparison_page", "study_page", "leaks_page")
# What no page of ours has, and what an attack would leave behind.
FOUND = """() => ({
    pwned: window.pwned === undefined ? null : window.pwned,
    elements: [...document.querySelectorAll(
        'img, iframe, object, embed, form, base, link, math, meta[http-equiv=refresh], textarea')].map(one => one.outerHTML),
    scripts: document.scripts.length,
    handlers: [...document.querySelectorAll('*')].flatMap(one => one.getAttributeNames().filter(name => name.startsWith('on'))),
    links: [...document.querySelectorAll('a')].map(one => one.getAttribute('href') ?? one.getAttribute('xlink:href'))
        .filter(href => !href?.startsWith('#')),
})"""


HOVER = "([chart, curve, point]) => Plotly.Fx.hover(chart, [{curveNumber: curve, pointNumber: point}])"


@pytest.mark.parametrize("name", PAGES)
def test_no_text_of_a_stranger_runs_or_becomes_markup(name, visit, request):  # noqa: F811
    path, _ = request.getfixturevalue(name)
    page = visit(path, viewport={"width": 1300, "height": 900})
    title, scripts = page.title(), 0 if name == "leaks_page" else 3
    harmless = {"pwned": None, "elements": [], "scripts": scripts, "handlers": [], "links": []}
    assert title.startswith(("Pre-finetuning runs", "Did pre-finetuning help?", "Leaks in </title>"))
    page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
    if page.locator(".chart").count():
        page.evaluate(READ_THROUGH)
    for control in page.locator("button:visible:not(.sort), select").all():
        control.focus()
    for chart in page.locator(".chart").all():  # what the mouse is on is written anew
        handle = chart.element_handle()
        for curve, points in enumerate(page.evaluate("chart => (chart.data ?? []).map(trace => trace.x?.length ?? 0)", handle)):
            for point in range(min(points, 3)):
                page.evaluate(HOVER, [handle, curve, point])
                page.wait_for_timeout(60)
                assert page.evaluate(FOUND) == harmless
    if page.locator("#filter").count():
        page.fill("#filter", "<img src=x onerror=window.pwned=51>")
        page.wait_for_timeout(200)
        page.fill("#filter", "")
        page.wait_for_timeout(200)
    everything = "() => document.querySelectorAll('body *:not(.chart, .chart *, a)').forEach(one => "
    everything += "['mouseover', 'focus', 'click'].forEach(kind => one.dispatchEvent(new MouseEvent(kind))))"
    page.evaluate(everything)
    page.wait_for_timeout(200)
    assert page.evaluate(FOUND) == harmless
    assert page.title() == title


@pytest.mark.parametrize("name", PAGES)
def test_every_text_of_a_stranger_is_shown_as_it_is(name, visit, request):  # noqa: F811
    path, found = request.getfixturevalue(name)
    text = visit(path).evaluate("() => document.body.textContent")
    words = " ".join(text.split())
    shown = [attack for attack in found.values() if " ".join(attack.split()) in words]
    assert {re.sub(r" #\d+$", "", attack) for attack in shown} == set(ATTACKS)


def test_the_attacks_are_real(browser, tmp_path):  # noqa: F811
    """Most of them, not escaped, do run under the page's own policy, or become an element."""
    page = browser.new_context().new_page()
    live = []
    for at, attack in enumerate(ATTACKS):
        path = tmp_path / f"{at}.html"
        inside = attack if attack[0] in "<" else f'"\'><p title="{attack}" id="{attack}">{attack}'
        path.write_text(document("title", Markup(f'<p class="">{inside}</p><input title="{attack}"><input title=\'{attack}\'>')))
        page.goto(path.as_uri())
        page.wait_for_timeout(30)
        after = page.evaluate(FOUND)
        plain = {"pwned": None, "elements": [], "scripts": 0, "handlers": [], "links": []}
        if after != plain or page.title() != "title":
            live.append(attack)
    assert len(live) >= 15  # the others are attacks inside a script, as an address, or where something is decoded twice


# ---- terminals

# Colours, a link, the window's title, an empty screen, a full reset, the clipboard, text that goes back or turns around.
COMMANDS = (
    "\x1b[31mred\x1b[0m", "\x1b]8;;http://evil.invalid\x07here\x1b]8;;\x07", "\x1b]0;title\x07", "\x1b[2J\x1b[H",
    "\x9b31m", "a\x08\x08b", "new\rold", "\x07", "\x0e", "\x1bc", "\x1b]52;c;aGVsbG8=\x07", "\u202egnp.exe", "\x7f", "\x85",
)  # fmt: skip
MARKUP = ("[red]loud[/red]", "[link=http://evil.invalid]here[/link]", "[/]", ":warning:", "[bold", "[@click=app.quit]x[/]")
HOSTILE = " ".join((*COMMANDS, *MARKUP))
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text: str) -> None:
    assert OBEYED.findall(text) == []
    squeezed = "".join(text.split())
    for one in MARKUP:
        assert "".join(one.split()) in squeezed, (one, text)


@pytest.fixture
def terminal() -> Terminal:
    """One that takes commands, and would show colours and links were it told to; the console itself uses none."""
    return Terminal(file=io.StringIO(), force_terminal=True, color_system=None, width=400)


def test_what_is_said_commands_no_terminal(terminal):
    Display(console=terminal).say(HOSTILE)
    assert_harmless(terminal.file.getvalue())


def test_scores_and_comparisons_command_no_terminal(terminal, tmp_path):
    folder = make_comparison(tmp_path / "c", [HOSTILE, "b"], {"32": 32}, arms=("base", "pre-finetuned", HOSTILE))
    display = Display(console=terminal)
    show_scores({HOSTILE: {HOSTILE: 0.5}}, display)
    show_comparison(evidence.read_comparison(folder), display)
    assert_harmless(terminal.file.getvalue())


def test_the_live_screen_commands_the_terminal_only_by_itself():
    console = Terminal(file=io.StringIO(), force_terminal=True, color_system=None, width=400, legacy_windows=False)
    display = Display(console=console)
    with display.training(4, 0):
        display.losses = {HOSTILE[at:]: 1.0 for at in range(0, 60, 10)}
        display.say(HOSTILE)
    left = re.sub(r"\x1b\[\?25[lh]|\x1b\[\d*[AK]|\r", "", console.file.getvalue())  # the cursor; up; an empty line
    assert OBEYED.findall(left) == []


def test_tables_previews_checks_and_proposals_command_no_terminal(terminal, tmp_path, monkeypatch, cache):
    monkeypatch.setattr("prefinetune.cli.shared.console", lambda: terminal)
    show_table((HOSTILE,), [(HOSTILE,)])
    rows = [{"text": f"{HOSTILE} {at}", "label": COMMANDS[at % len(COMMANDS)] + MARKUP[at % 6], HOSTILE: "x"} for at in range(60)]
    for values in (rows, [{**row, "label": None} for row in rows]):
        task = Task("a", Rows({"train": values}, name=HOSTILE), Classification("text", label="label"))
        show_reports(check_suite(Suite("s", (task,))), terminal)
    show_preview(preview_task(Task("a", Rows({"train": rows}), Classification("text", label="label")), 5), terminal)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"{COMMANDS[0]}[red]x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{COMMANDS[0]}.exe").write_text("")
    show_inferred(infer_suite(folder), terminal)
    assert_harmless(terminal.file.getvalue())


def test_errors_lists_and_json_command_no_terminal(command, tmp_path):
    name = "".join(COMMANDS).replace("/", "") + "[red]x[/]".replace("/", "")
    run = make_run(tmp_path / name, ["a"], done=50)
    (run / "environment.json").write_text(json.dumps({"command": f"prefinetune train '{HOSTILE}'"}))
    code, out, err = command("runs", tmp_path)
    assert code == 0
    assert OBEYED.findall(out + err) == []
    assert "next: prefinetune train" in out
    code, out, err = command("runs", tmp_path, "--json")
    assert OBEYED.findall(out + err) == []
    assert [line["folder"] for line in json.loads(out)] == [line.folder for line in list_runs(tmp_path)] == [str(run)]
    train = ("train", "glue/rte", "--model")
    for words in (("report", tmp_path / f"{name} no"), ("tasks", "check", tmp_path / f"{name}.yaml"), ("tasks", "check", HOSTILE),
                  (*train, HOSTILE), (*train, "x", f"{HOSTILE}=1")):  # fmt: skip
        code, out, err = command(*words)
        assert code == 2
        assert OBEYED.findall(out + err) == [], words


def test_what_is_made_visible_stays_the_same_json():
    for text in (*COMMANDS, HOSTILE, "tab\tline\nend", "ünïcødé 日本語 😀 مرحبا"):
        written = visible(json.dumps({text: [text]}, ensure_ascii=False))
        assert json.loads(written) == {text: [text]}
        assert OBEYED.findall(written) == []
    assert visible("tab\tline\nend ünïcødé 日本語 😀") == "tab\tline\nend ünïcødé 日本語 😀"
