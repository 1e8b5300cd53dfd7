"""The folders under examples/: what infer proposes is what a person would choose, and what their README says."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from prefinetune.catalog import catalog
from prefinetune.check import check_suite
from prefinetune.families import Choice, Classification, Generation, MultiLabel, Regression, Span, Tagging
from prefinetune.infer import Inferred, infer_suite
from prefinetune.task import read_suite

EXAMPLES = Path(__file__).parents[1] / "examples"
CHOSEN = {
    "faq": (Span("question", "passage", answer="answer"), "high"),
    "mail-subjects": (Generation("body", "subject"), "medium"),
    "newsroom": (Tagging("tokens", "ner_tags"), "high"),
    "quiz": (Choice("question", "options", "answer"), "high"),
    "reviews": (Classification("review", label="stars"), "medium"),
    "support-tickets": (Classification("message", label="queue"), "high"),
    "topics": (MultiLabel("headline", label="topics"), "high"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Inferred:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return infer_suite(EXAMPLES)


def test_what_is_proposed_is_what_a_person_would_choose(found):
    assert {one.task.name: (one.task.family, one.confidence) for one in found.proposals} == CHOSEN


def test_every_folder_is_a_task_and_only_the_readme_is_left_out(found):
    assert {one.task.name for one in found.proposals} == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert [[path.name for path in one.files] for one in found.left_out] == [["README.md"]]


def test_stars_could_also_be_a_number_and_that_is_said(found):
    (reviews,) = [one for one in found.proposals if one.task.name == "reviews"]
    assert [family for family, _ in reviews.alternatives] == [Regression("review", label="stars")]
    assert any("regression" in remark for remark in reviews.remarks)


def test_the_split_files_of_the_tickets_are_one_task(found):
    (tickets,) = [one for one in found.proposals if one.task.name == "support-tickets"]
    assert dict(tickets.rows) == {"train": 48, "validation": 12}
    assert "not used: 'ticket_id'" in tickets.reasons


def test_every_example_passes_the_checks(found, cache):
    assert [(report.task, report.errors) for report in check_suite(found.suite())] == [(name, ()) for name in CHOSEN]


def test_the_readme_says_what_is_proposed(found):
    text = (EXAMPLES / "README.md").read_text()
    told = re.findall(r"^\| `([a-z-]+)` \| `([a-z-]+): (\{[^`]*\})`.*\| (high|medium|low) \|$", text, flags=re.MULTILINE)
    said = {name: (kind, yaml.safe_load(fields), level) for name, kind, fields, level in told}
    proposed = {}
    for name, one in {one.task.name: one for one in found.proposals}.items():
        entry = one.as_dict()
        proposed[name] = (one.task.family.kind, entry[one.task.family.kind], one.confidence)
    assert said == proposed


def test_the_mixed_suite_of_the_readme_can_be_read_and_its_own_tasks_pass_the_checks(tmp_path, cache):
    (block,) = re.findall(r"```yaml\n(.*?)```", (EXAMPLES / "README.md").read_text(), flags=re.DOTALL)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    (tmp_path / "examples" / "mixed.yaml").write_text(block)
    suite = read_suite(tmp_path / "examples" / "mixed.yaml")
    ours = {task.name for task in catalog()}
    own = [task for task in suite if task.name not in ours]
    assert {task.name for task in own} == CHOSEN.keys() - {"mail-subjects"}
    assert len(suite) > len(own) + 10
    assert [report.errors for report in check_suite(own)] == [()] * len(own)
