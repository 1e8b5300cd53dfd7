"""The model card of a run: what the hub's client reads out of it, what its tables say, and that nobody's name changes either."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard, constants, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefinetune.card import VERDICTS, write_card
from prefinetune.catalog import catalog
from prefinetune.emissions import FILE, measured
from prefinetune.errors import InputError
from prefinetune.families import FAMILIES, Classification
from prefinetune.files import read_records
from prefinetune.finetune import finetune
from prefinetune.licenses import read_license, together
from prefinetune.markdown import escaped, fenced, one_line, table
from prefinetune.results import RunFolder
from prefinetune.safety import visible
from prefinetune.sources import Rows
from prefinetune.start import weights_digest
from prefinetune.study_results import read_study
from prefinetune.task import Suite, Task
from prefinetune.train import train
from test_evidence import write_comparison
from test_report_studies import make_study

HUB = Path(__file__).parent / "hub"
BAD = {"bad_rows": 0.2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MARKDOWN = MarkdownIt("commonmark").enable("table")
TAGS = {"h1", "h2", "h3", "p", "ul", "li", "a", "strong", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = "a | b\n---\n| `x` *y* <script>alert(1)</script> [z](javascript:1) ![i](u) \\ & # $1$ ~~s~~ \u202e\x1b[31m"


def rendered_tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a text as another program shows them: rows of cells, the header first."""
    found = []
    for at, token in enumerate(tokens := MARKDOWN.parse(markdown)):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            children = tokens[at + 1].children or []
            found[-1][-1].append("".join(child.content for child in children))
    return found


def rows_of(card: str, column: str) -> list[dict[str, str]]:
    """The rows of the tables that have a column, by the header's names."""
    tables = [table for table in rendered_tables(card) if column in table[0]]
    return [dict(zip(table[0], row, strict=True)) for table in tables for row in table[1:]]


@pytest.fixture(scope="module")
def suite() -> Suite:
    """Two sets of the hub, one of them twice, one that only mirrors have, and a table whose third row shows a validation row and
    whose fourth has an unknown label."""
    train = [{"text": f"the duni bano {index} gilas", "label": index % 2} for index in range(40)]
    validation = [{"text": f"the bali kuno {index} never", "label": index % 2} for index in range(8)]
    train[2], train[3] = {**validation[0], "label": 0}, {**train[3], "label": 7}
    mine = Task("mine", Rows({"train": train, "validation": validation}, name="mine"), Classification("text", labels=("a", "b")))
    snli = catalog()["snli"]
    others = (
        replace(snli, name="snli/again"),
        catalog()["sick"],
        catalog()["counterfactual/snli"],
        replace(mine, license="CC0-1.0"),
    )
    return Suite("small", (snli, *others))


@pytest.fixture(scope="module")
def run(suite, tiny_model, tmp_path_factory) -> Path:
    mirror = tmp_path_factory.mktemp("mirror")
    for slug, source in (
        ("snli", "snli"),
        ("snli-again", "snli"),
        ("sick", "sick"),
        ("counterfactual-snli", "counterfactual-snli"),
    ):
        shutil.copytree(HUB / source, mirror / slug)
    (mirror / "manifest.jsonl").write_text(json.dumps({"slug": "sick", "task": "sick", "files": {}, "commit": COMMIT}))
    out = tmp_path_factory.mktemp("runs") / "first"
    return train(suite, tiny_model, out, config={"train": {"updates": 3}, "data": BAD}, data_root=mirror).folder


@pytest.fixture(scope="module")
def tuned(suite, run) -> Path:
    return finetune(suite["mine"], run, run.parent / "tuned", labels=6, config={"train": {"updates": 2}, "data": BAD}).folder


def card_of(run: Path) -> str:
    return (run / "model" / "README.md").read_text(encoding="utf-8")


def test_the_hubs_client_reads_the_scores_and_datasets_of_a_run_out_of_its_card(run, tuned):
    card = ModelCard.load(run / "model" / "README.md")
    data = metadata_load(run / "model" / "README.md")
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("other", "transformers", "feature-extraction")
    assert data["datasets"] == ["stanfordnlp/snli", "RobZamp/sick"]
    assert "base_model" not in data  # it was a folder
    for name in data["datasets"]:
        validate_repo_id(name)
    records = {record["task"]: record for record in RunFolder(run).results()}
    assert len(records) == 5
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        f"accuracy of {task}": record["score"] for task, record in records.items()
    }
    assert {(result.dataset_type, result.dataset_config, result.dataset_revision) for result in card.data.eval_results} == {
        ("stanfordnlp/snli", "plain_text", None), ("RobZamp/sick", None, COMMIT), ("mine (not on the hub)", None, None),
        ("counterfactual/snli (not on the hub)", None, None),
    }  # fmt: skip
    name, results = model_index_to_eval_results(eval_results_to_model_index("first", card.data.eval_results))
    assert (name, results) == ("first", card.data.eval_results)
    of_tuned = metadata_load(tuned / "model" / "README.md")
    assert of_tuned["pipeline_tag"] == "text-classification"
    assert set(of_tuned["datasets"]) == set(data["datasets"])  # the trunk was trained on them


def test_a_model_of_the_hub_is_named_with_its_commit(suite, tiny_model, tmp_path, monkeypatch):
    place = tmp_path / "hub" / "models--some--model"
    shutil.copytree(tiny_model, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run = train(
        Suite("one", (suite["mine"],)),
        "some/model",
        tmp_path / "run",
        config={"train": {"updates": 1}, "data": BAD},
    )
    data = metadata_load(run.model / "README.md")
    assert (data["base_model"], data["base_model_relation"]) == ("some/model", "finetune")
    assert f"https://huggingface.co/some/model) at commit {COMMIT[:8]}" in card_of(run.folder)
    assert weights_digest("some/model") == f"hub {COMMIT}"  # by which a comparison tells two versions of it apart


def test_every_dataset_stands_in_the_card_with_its_rows_its_origin_and_its_licence(run):
    found = {row["dataset"]: row for row in rows_of(card_of(run), "rows trained on")}
    assert {name: row["rows trained on"] for name, row in found.items()} == {
        "snli": "3",
        "snli/again": "3",
        "sick": "3",
        "counterfactual/snli": str(len((HUB / "counterfactual-snli" / "train.jsonl").read_text().splitlines())),
        "mine": "38",
    }
    assert found["mine"]["left out"] == "1 showed evaluation rows, 1 of no use"
    assert found["snli"]["left out"] == "1 without a label"
    assert found["sick"]["rows of"] == f"RobZamp/sick, at {COMMIT}"
    assert found["snli"]["rows of"] == "stanfordnlp/snli, plain_text, revision not pinned"
    assert found["counterfactual/snli"]["rows of"] == "counterfactual-snli"
    assert found["mine"]["rows of"] == "rows in memory: mine"
    assert found["sick"]["licence"] == catalog()["sick"].license
    assert sum(float(row["share of examples seen"].rstrip("%")) for row in found.values()) == pytest.approx(100, abs=0.3)


def test_a_fine_tuned_model_has_the_data_and_licences_of_both_stages(tuned):
    card = card_of(tuned)
    found = [(row["dataset"], row["rows trained on"]) for row in rows_of(card, "rows trained on")]
    assert found[:3] + found[-2:] == [("snli", "3"), ("snli/again", "3"), ("sick", "3"), ("mine", "38"), ("mine", "6")]
    assert "CC BY-NC-SA 3.0" in card.partition("## Licences of the data")[2]
    [scored] = rows_of(card, "majority class")
    assert (scored["task"], scored["rows"]) == ("mine", "4")  # half of eight


def test_data_of_an_earlier_run_that_is_damaged_are_said_to_be_unknown(run, tuned, tmp_path):
    shutil.copytree(run, tmp_path / "first")
    shutil.copytree(tuned, tmp_path / "tuned")
    identity = json.loads((tmp_path / "tuned" / "run.json").read_text())
    (tmp_path / "tuned" / "run.json").write_text(json.dumps({**identity, "model": str(tmp_path / "first" / "model")}))
    (tmp_path / "first" / "suite.yaml").unlink()
    page = write_card(tmp_path / "tuned", tmp_path / "tuned" / "model")
    assert "its data are not known" in page.read_text()
    assert metadata_load(page)["license"] == "unknown"


# ---- licences


@pytest.mark.parametrize(
    ("texts", "strictest", "hub_id"),
    [
        (["MIT", "CC0-1.0"], "MIT", "mit"),
        (["CC BY-SA 4.0", "MIT"], "CC BY-SA 4.0", "cc-by-sa-4.0"),
        (["CC BY-SA 4.0", "CC BY-NC 4.0"], "CC BY-NC 4.0", "other"),  # neither asks what the other does
        (["CC BY-NC 4.0", "cc-by-nc-sa-4.0", "MIT"], "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        (["cc-by-nc-sa-4.0", "CC BY-SA 4.0"], "cc-by-nc-sa-4.0", "other"),  # each wants itself for what is made from it
        (["CC BY-NC-SA 4.0", "CC BY-NC-ND 4.0"], "CC BY-NC-ND 4.0", "other"),
        (["Apache-2.0", "non-commercial research only (license.txt)"], "non-commercial research only (license.txt)", "other"),
        (["MIT (source repo); data set CC BY-NC 4.0"], "MIT (source repo); data set CC BY-NC 4.0", "other"),
        (["MIT", "unknown"], "MIT", "unknown"),
        (["CC BY-NC 4.0", "MIT (source repo); data set licence unknown"], "CC BY-NC 4.0", "unknown"),
        (["proprietary"], None, "unknown"),
    ],
)
def test_the_most_restrictive_licence_is_found_and_unknown_stays_unknown(texts, strictest, hub_id):
    found = together((f"set {at}", text) for at, text in enumerate(texts))
    assert [one.text for one in found.strictest] == ([strictest] if strictest else [])
    assert found.hub_id == hub_id
    assert len(found.known) + len(found.unknown) == len(texts)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(sorted({task.license for task in catalog()})), min_size=1, max_size=6), st.randoms())
def test_licences_together_are_as_strict_as_each_of_them_in_whatever_order(texts, random):
    pairs = [(str(at), text) for at, text in enumerate(texts)]
    found = together(pairs)
    for text in texts:
        terms = read_license(text).terms
        assert terms is None or set(terms) <= set(found.terms)
        assert terms is None or read_license(text).severity <= found.strictest[0].severity
    random.shuffle(pairs)
    again = together(pairs)
    assert (again.hub_id, set(again.strictest), again.unknown) == (found.hub_id, set(found.strictest), found.unknown)


def test_the_card_names_the_most_restrictive_licence_and_who_has_it(run):
    section = card_of(run).partition("## Licences of the data")[2].partition("\n## ")[0]
    assert "The most restrictive that is known: **CC BY-NC-SA 3.0" in section
    assert "- non-commercial: sick\n" in section
    assert "- share-alike: snli, snli/again, sick\n" in section.replace("sick, snli, snli/again", "snli, snli/again, sick")
    assert "None of them is no-derivatives." in section


# ---- what it changed


@pytest.fixture
def judged(run, tmp_path) -> tuple[Path, Path]:
    """A run, and a comparison beside it by which it hurt two tasks."""
    moved = shutil.copytree(run, tmp_path / "first")
    folder = write_comparison(tmp_path / "compared", {"up": 0.2, "down": -0.1, "same": 0.0, "worse": -0.3})
    point_at(folder, moved)
    return moved, folder


def point_at(comparison: Path, run: Path) -> None:
    plan = json.loads((comparison / "comparison.json").read_text())
    plan["arms"]["pre-finetuned"] = {"start": str(run), "weights": weights_digest(run)}
    (comparison / "comparison.json").write_text(json.dumps(plan))


def test_harms_come_before_what_is_unclear_and_that_before_gains(judged, command):
    run, _ = judged
    assert command("card", run)[0] == 0
    card = card_of(run)
    assert "compared is a comparison with base: every task is fine-tuned from both, 3 seeds each. " in card
    assert "**It hurts 2 of what it was judged on" in card.partition("## Use")[0]
    titles = re.findall(r"^### (Hurt|Not clearly different|Helped)$", card, re.MULTILINE)
    assert titles == list(VERDICTS.values())
    found = rows_of(card, "difference")
    assert [row["task"] for row in found] == ["worse", "down", "same", "up"]
    for row in found:
        low, high = map(float, row["95 % interval"].split(" to "))
        assert low <= float(row["difference"]) <= high
        assert float(row["with"]) - float(row["without"]) == pytest.approx(float(row["difference"]), abs=0.0015)
    assert float(found[0]["95 % interval"].split(" to ")[1]) < 0


def test_evidence_follows_a_run_that_was_moved_and_is_refused_for_another(judged, run, tuned, tmp_path, command):
    moved, folder = judged
    page = write_card(shutil.move(moved, tmp_path / "elsewhere"), tmp_path / "elsewhere" / "model", evidence=[folder])
    assert len(rows_of(page.read_text(), "difference")) == 4
    point_at(folder, tuned)
    code, _, said = command("card", run, "--evidence", folder, "--out", tmp_path / "card.md")
    assert code == 2
    assert f"judges '{tuned}'" in said
    assert not (tmp_path / "card.md").exists()
    assert "holds no comparison and no study" in command("card", run, "--evidence", tmp_path)[2]


def test_a_study_is_read_by_the_groups_that_it_is_about(run, tmp_path):
    groups = {"2 tasks": {"role": "main", "gain": 0.3, "spread": 2.0}, "further": {"role": "control", "gain": -0.3}}
    study = make_study(tmp_path / "study", "scale", groups, targets=["a", "b", "c"], labels={"32": 32}, rows=200)
    found = rows_of(write_card(run, run / "model", evidence=[study], out=tmp_path / "card.md").read_text(), "difference")
    read = {target.task: target.effect.mean for target in read_study(study).reading("2 tasks", "32").targets}
    assert {row["task"]: float(row["difference"]) for row in found} == {task: round(mean, 3) for task, mean in read.items()}
    assert {row["found by"] for row in found} == {"study"}


def test_a_damaged_comparison_beside_a_run_spoils_no_card(judged):
    run, folder = judged
    (folder / "comparison.json").write_text("{")
    assert "Not known: no comparison" in write_card(run, run / "model").read_text()


# ---- how to make and to load it


@pytest.mark.parametrize("which", ["run", "tuned"])
def test_the_lines_that_load_it_do(which, run, tuned, monkeypatch):
    monkeypatch.chdir((run if which == "run" else tuned) / "model")
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    exec(code, found := {})
    if which == "run":
        assert found["states"].shape[::2] == (1, 32)
    else:
        assert found["answer"]("the duni bano")[0]["label"] in ("a", "b")


def test_command_and_environment_are_told_and_no_place_of_the_users(run, tmp_path, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "first")
    around = json.loads((copied / "environment.json").read_text())
    around["command"] = f"prefinetune train {Path.home()}/data/suite.yaml --model roberta-base"
    (copied / "environment.json").write_text(json.dumps(around))
    card = write_card(copied, copied / "model").read_text()
    assert "```bash\nprefinetune train ~/data/suite.yaml --model roberta-base\n```" in card
    assert f"- torch: {around['packages']['torch']}\n" in card
    assert str(run.parent) not in card
    assert str(Path.home()) not in card
    assert "aghajanyan-etal-2021-muppet" in card
    assert "[arXiv 1508.05326](https://arxiv.org/abs/1508.05326)" in card  # of SNLI


def test_the_command_writes_where_it_is_told_and_says_what_is_missing(run, command, tmp_path):
    code, out, _ = command("card", run, "--out", tmp_path / "cards" / "one.md", "--json")
    assert (code, json.loads(out)) == (0, {"out": str(tmp_path / "cards" / "one.md")})
    assert ModelCard.load(tmp_path / "cards" / "one.md").data.model_name == "first"
    code, _, said = command("card", tmp_path)
    assert code == 2
    assert "no run.json" in said
    unfinished = shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("model"))
    assert "--resume" in command("card", unfinished)[2]
    with pytest.raises(InputError, match="no task 'other'"):
        write_card(run, run / "model", task="other", out=tmp_path / "x.md")
    card = ModelCard.load(write_card(run, run / "model", task="sick", out=tmp_path / "sick.md"))
    assert (card.data.pipeline_tag, [one.metric_name for one in card.data.eval_results]) == (
        "text-classification",
        ["accuracy of sick"],
    )


def test_energy_is_in_the_card_where_codecarbon_is_installed(suite, tiny_model, tmp_path, monkeypatch):
    """A stand-in for it; all that is asked of codecarbon is what is used of it here."""
    states = []

    class Tracker:
        def __init__(self, **options):
            assert options == {"save_to_file": False, "save_to_api": False, "log_level": "error"}

        def start(self):
            states.append("started")

        def stop(self):
            states.append("stopped")
            used = {"duration": 90.0, "energy_consumed": 0.25, "emissions": 0.1, "country_name": None, "codecarbon_version": "3"}
            self.final_emissions_data = SimpleNamespace(**used)

    monkeypatch.setitem(sys.modules, "codecarbon", SimpleNamespace(OfflineEmissionsTracker=Tracker))
    with pytest.raises(RuntimeError, match="an error"), measured(tmp_path):
        raise RuntimeError("an error")
    assert states == ["started", "stopped"]
    run = train(Suite("one", (suite["mine"],)), tiny_model, tmp_path / "run", config={"train": {"updates": 1}, "data": BAD})
    said = "- energy: 0.25 kWh, 100 g of CO2 equivalents, estimated by codecarbon 3 for the whole machine over 90 s"
    assert f"{said} (electricity of: world average)\n" in card_of(run.folder)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with measured(tmp_path):
        pass
    assert len(read_records(tmp_path / FILE)) == 1


def test_a_run_that_was_stopped_before_its_card_gets_it_when_it_is_resumed(suite, tiny_model, tmp_path):
    arguments = Suite("one", (suite["mine"],)), tiny_model, tmp_path / "run"
    config = {"train": {"updates": 1}, "data": BAD}
    page = train(*arguments, config=config).model / "README.md"
    page.unlink()
    train(*arguments, config=config, resume=True)
    assert page.exists()


# ---- texts of others


@settings(max_examples=50)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_out_of_a_cell_or_a_block_of_code(text):
    [[_, row]] = rendered_tables(table(("name", "rows"), [(text, "7")]))
    assert row == [visible(one_line(text)), "7"]
    block = MARKDOWN.parse(fenced(text, "bash"))
    assert [token.type for token in block] == ["fence"]


def test_hostile_names_change_neither_the_metadata_nor_the_tables(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / ("x --- | " + "y: [" + "<b>"))
    suite = yaml.safe_load((copied / "suite.yaml").read_text())
    results = RunFolder(copied).results()
    for entry, record in zip(suite["tasks"], results, strict=True):
        assert entry["name"] == record["task"]
        entry["name"] = record["task"] = f"{HOSTILE}{entry['name']}"
        entry["license"] = entry["cite"] = HOSTILE
        entry["source"], entry["origin"] = f"/secret/place/{HOSTILE.replace('/', '')}", None
        del entry["origin"]
    (copied / "suite.yaml").write_text(yaml.safe_dump(suite))
    (copied / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in results))
    (copied / "environment.json").write_text(json.dumps({"command": f"prefinetune train '```\n{HOSTILE}'", "platform": HOSTILE}))
    config = json.loads((copied / "model" / "config.json").read_text())
    (copied / "model" / "config.json").write_text(json.dumps({**config, "model_type": HOSTILE}))
    page = write_card(copied, copied / "model")
    before, after = metadata_load(run / "model" / "README.md"), metadata_load(page)
    assert after.keys() == before.keys() - {"datasets"}
    assert after["model-index"][0]["name"] == copied.name
    assert sorted(result.metric_name for result in ModelCard.load(page).data.eval_results) == sorted(
        f"accuracy of {visible(one_line(record['task']))}" for record in results
    )
    text = page.read_text().partition("\n---\n")[2]
    assert [len(table) for table in rendered_tables(text)] == [len(table) for table in rendered_tables(card_of(run))]
    assert {row["dataset"] for row in rows_of(text, "licence")} == {visible(one_line(entry["name"])) for entry in suite["tasks"]}
    shown = MarkdownIt("commonmark", {"html": False}).enable("table").render(re.sub(r"</?(details|summary)>", "", text))
    assert set(re.findall(r"<(\w+)", shown)) <= TAGS
    assert set(re.findall(r'href="([^"]*)"', shown)) <= {"https://arxiv.org/abs/1508.05326"}
    assert "<script>" not in text.replace("```", "")[: text.index("```bash")]
    assert "/secret/place" not in text
    assert not re.search("[\x1b\u202e]", text)


def test_every_family_says_what_the_hub_calls_it():
    assert {kind: family.hub_task for kind, family in FAMILIES.items() if not family.hub_task} == {}


def test_a_text_stays_readable_when_it_is_escaped():
    assert escaped("glue/cola, 10 % (F1)") == "glue/cola, 10 % (F1)"
