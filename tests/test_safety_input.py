"""Models, names, files and folders of runs that strangers made are data: they run nothing and stay in their place."""

import ast
import builtins
import contextlib
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from prefinetune import evidence
from prefinetune.checkpoint import CHECKSUMS, checksum, damage
from prefinetune.errors import InputError
from prefinetune.export import slug
from prefinetune.families import FAMILIES, Classification
from prefinetune.mirror import MANIFEST, verify_mirror
from prefinetune.pretrained import load_backbone, read_config
from prefinetune.report import list_runs
from prefinetune.safety import is_name
from prefinetune.sources import Files, Hub, Rows
from prefinetune.splits import open_task
from prefinetune.task import Suite, Task, read_suite
from prefinetune.tokenizer import load_tokenizer
from test_report import make_comparison, make_run
from test_safety import Trap

ROWS = Rows({"train": [{"text": "a", "label": "b"}]})
FAMILY = Classification("text", label="label")


# ---- models


@pytest.fixture
def marker(tmp_path) -> Path:
    """A file that is there when something ran."""
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(tiny_model, tmp_path, marker, monkeypatch):
    """Makes a model folder whose Python file creates the marker, with changes to its JSON files. Whoever asks is told yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    code = f"""
from pathlib import Path
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel
Path({str(marker)!r}).touch()
class Config(RobertaConfig): model_type = "hostile"
class Model(RobertaModel): config_class = Config
class Words(PreTrainedTokenizerFast): pass
"""

    def make(**changes: dict) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "hostile")
        for name in ("hostile.py", "modeling.py", "custom_generate/generate.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(code)
        for name, values in changes.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return make


def load_all(folder: Path) -> None:
    load_tokenizer(str(folder))
    backbone = load_backbone(str(folder))
    backbone.language_head()
    backbone.new_head("sentence", 3)


AUTO = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification")
AUTO_MAP = {name: "hostile.Config" if name == "AutoConfig" else "hostile.Model" for name in AUTO}


def test_the_hostile_code_would_run_if_it_were_trusted(hostile, marker, monkeypatch, tmp_path):
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = hostile(config={"model_type": "hostile", "auto_map": AUTO_MAP})
    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


def test_a_model_with_code_of_its_own_is_refused_and_the_code_does_not_run(hostile, marker):
    folder = hostile(config={"model_type": "hostile", "auto_map": AUTO_MAP})
    with pytest.raises(InputError, match="comes as code of its own, which is never run; expected one that Transformers has"):
        read_config(str(folder))
    with pytest.raises(InputError):
        load_all(folder)
    assert not marker.exists()


def test_of_a_known_model_with_code_of_its_own_transformers_own_classes_are_used(hostile, marker):
    folder = hostile(config={"auto_map": AUTO_MAP}, tokenizer_config={"auto_map": {"AutoTokenizer": [None, "hostile.Words"]}})
    load_all(folder)
    assert not marker.exists()


def test_a_tokenizers_own_code_does_not_run(hostile, marker):
    names = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["hostile.Words", "hostile.Words"]}}
    folder = hostile(tokenizer_config=names)
    with contextlib.suppress(InputError):  # refusing is as good
        load_all(folder)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_code_of_the_hub_is_not_fetched(hostile, key):
    with pytest.raises(InputError, match="asks for attention code of the hub"):
        read_config(str(hostile(config={key: "kernels-community/flash-attn"})))


def test_a_quantization_that_cannot_be_read_is_the_users_mistake(hostile):
    with pytest.raises(InputError, match="its weights could not be loaded"):
        load_backbone(str(hostile(config={"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}})))


def test_no_option_and_no_setting_turns_foreign_code_on(command):
    told = command("settings")[1]
    for verb in ("train", "finetune", "compare"):
        told += command(verb, "--help")[1]
    assert "--model" in told
    assert not {"trust", "remote", "pickle", "unsafe"} & set(told.lower().replace("-", " ").replace("_", " ").split())


@pytest.mark.parametrize("verb", ["train", "finetune"])
def test_weights_that_are_a_pickle_are_refused_and_not_read(command, tiny_model, tmp_path, marker, verb):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    rows = [{"text": f"the duni kuno {at} gilas", "label": str(at % 2)} for at in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"name": "a", "source": "rows.jsonl", "classification": {"text": "text", "label": "label"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": [entry]}))
    start = "--model" if verb == "train" else "--from"
    code, _, err = command(verb, tmp_path / "suite.yaml", start, folder, "--out", tmp_path / "out")
    assert code == 2
    assert "error: model" in err
    assert "its weights could not be loaded" in err
    assert "expected model.safetensors. Weights as a pickle (pytorch_model.bin) are never read" in err
    assert not marker.exists()
    pickle.loads((folder / "model.pkl").read_bytes())
    assert marker.exists()  # it would have


def test_a_dataset_with_a_script_does_not_run_it(tmp_path, marker, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(marker)!r}, 'w')\n")
    task = Task("a", Hub("set"), FAMILY)
    with pytest.raises(InputError, match="could not be read"):
        open_task(task).split("train")
    assert not marker.exists()


# ---- names

NASTY = (
    "", " ", ".", "..", "../../evil", "/etc/passwd", "a/../../b", "a/..", "a/./b", "a//b", "a/", "/a", "~", "~root/x", "-rf",
    "--out", "a\0b", "a\nb", "a\rb", "a\tb", "a b", "\x1b[31mred", "C:\\evil", "..\\..\\evil", "a\\b", "a:b", "con.txt", "a.b",
    ".hidden", "a;touch evil", "$(touch evil)", "`touch evil`", "${HOME}", "%2e%2e%2fevil", "a|b", "a&b", "a*", "a?", "a'b",
    'a"b', "<script>", "\u2024\u2024/\u2024\u2024/evil", "\uff0e\uff0e\uff0fevil", "a\u2215b", "\u0430",
    "a\u202eb", "a\ufeff", "\ud800", "x" * 129, "x/" * 5000,
)  # fmt: skip
NAMES = st.text(st.sampled_from("aAbB01/-_+. \\\0\né.."), max_size=12) | st.text(max_size=8) | st.sampled_from(NASTY)


def task_named(name: str) -> Task | None:
    try:
        return Task(name, ROWS, FAMILY)
    except InputError:
        return None


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:40])
def test_a_task_cannot_be_called(name):
    with pytest.raises(InputError, match="is not accepted; expected letters"):
        Task(name, ROWS, FAMILY)


@given(NAMES)
@example("glue/rte")
def test_the_folder_of_a_task_is_one_plain_component(name):
    task = task_named(name)
    if task is not None:
        for found in (task.slug, *(slug(family.head_key(object.__new__(family), name)) for family in FAMILIES.values())):
            assert found.isascii()
            assert is_name(found)
            assert Path("/run", found).resolve().parent == Path("/run")
            assert found[0].isalnum()
            assert len(f".building-{found}-validation-{'0' * 32}.jsonl.writing") < 255


@given(NAMES, NAMES)
@example("a/b", "a-b")
@example("A/b", "a/B")
@example("choice", "classification/choice")
def test_two_tasks_of_a_suite_never_share_a_folder(one, other):
    tasks = [task for task in map(task_named, dict.fromkeys((one, other))) if task is not None]
    if len({task.slug.lower() for task in tasks}) < len(tasks):
        with pytest.raises(InputError, match="would share the folder"):
            Suite("s", tuple(tasks))
    elif tasks:
        assert [task.name for task in Suite("s", tuple(tasks))] == [task.name for task in tasks]


@given(st.lists(st.tuples(NAMES, st.sampled_from(sorted(FAMILIES))), max_size=4))
def test_two_heads_of_a_run_never_share_a_folder(pairs):
    found = {name: (task, FAMILIES[kind]) for name, kind in pairs if (task := task_named(name)) is not None}
    try:
        Suite("s", tuple(task for task, _ in found.values()))
    except InputError:
        return
    keys = {family.head_key(object.__new__(family), name) for name, (_, family) in found.items()}
    assert len({slug(key).lower() for key in keys}) == len(keys)


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:40])
def test_a_suite_file_with_a_name_that_is_a_path_is_refused_and_nothing_is_written(command, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.csv").write_text("text,label\na,b\nc,d\n")
    entry = {"name": name, "source": "rows.csv", "classification": {"text": "text", "label": "label"}}
    text = json.dumps({"tasks": [entry]})  # YAML reads it, escapes included
    (tmp_path / "in" / "suite.yaml").write_text(text)
    code, _, err = command("train", tmp_path / "in" / "suite.yaml", "--model", "x", "--out", tmp_path / "in" / "run")
    assert code == 2
    assert "suite.yaml" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "rows.csv", "suite.yaml"]


HUB_NASTY = [name for name in NASTY if name not in ("a.b", "con.txt", "x" * 129)]


@pytest.mark.parametrize("name", [name for name in HUB_NASTY if name], ids=lambda name: ascii(name)[:40])
def test_the_hub_is_not_asked_for(name, tmp_path):
    with pytest.raises(InputError, match="is not accepted"):
        Hub(name)
    if name == "a:b":
        return  # in a file: configuration b of a
    (tmp_path / "suite.yaml").write_text(
        json.dumps({"tasks": [{"name": "a", "source": f"hub:{name}", "classification": {"text": "text"}}]})
    )
    with pytest.raises(InputError, match=r"suite\.yaml"):
        read_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../../b", "/etc", "a//b", "a\0b", "a\\b", "a\nb", "."], ids=lambda name: ascii(name)[:40]
)
def test_configurations_and_revisions_are_no_way_out(name):
    for given_ in ({"config": name}, {"revision": name}):
        with pytest.raises(InputError, match="is not accepted"):
            Hub("namespace/name", **given_)


@given(st.from_regex(r"[A-Za-z0-9._/\-]{1,12}", fullmatch=True) | NAMES)
@example("nyu-mll/glue")
@example("squad")
def test_hub_names_that_the_hub_takes_are_taken_and_no_others_that_are_paths(name):
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        theirs = True
    except HFValidationError:
        theirs = False
    try:
        Hub(name)
        ours = True
    except InputError:
        ours = False
    assert ours or not theirs, "a name of the hub is refused"
    if ours:
        assert name.count("/") <= 1
        assert all(map(is_name, name.split("/")))


def test_a_split_of_another_name_is_looked_up_and_never_a_path(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path.parent / "secret.csv").write_text("text,label\na,b\n")
    (tmp_path / "suite.yaml").write_text(
        yaml.safe_dump({"tasks": [{"name": "a", "source": str(tmp_path), "splits": {"train": "../secret"},
                                   "classification": {"text": "text", "label": "label"}}]})
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no split '\.\./secret'"):
        open_task(read_suite(tmp_path / "suite.yaml").tasks[0]).split("train")


@pytest.mark.parametrize("long", ["x" * 300, "x/" * 3000 + "y", "x" * 70000])
def test_names_too_long_for_a_file_system_are_the_users_mistake(command, tmp_path, long):
    for number, text in enumerate(
        (f"include: '{long}.yaml'", f"tasks: [{{name: a, source: '{long}.csv', classification: {{text: t, label: l}}}}]")
    ):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        code, out, err = command("tasks", "check", path)
        assert code == 2
        assert "too long" in (out + err).replace("\n", "") or "File name too long" in " ".join((out + err).split())
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        open_task(Task("a", Files(f"{long}.csv"), FAMILY)).split("train")
    for words in (("tasks", "check", f"{long}.yaml"), ("runs", long), ("report", long), ("train", "glue/rte", "--model", long)):
        code, _, err = command(*words)
        assert (code, err.startswith("error: ")) == (2, True), err[-500:]


# ---- folders that others made


def write_mirror(folder: Path, slug: str, role: str) -> None:
    folder.mkdir()
    record = {"slug": slug, "task": "a", "asked": {}, "commit": None, "from_mirror": False, "rows": {role: 1},
              "files": {role: {"sha256": "0", "bytes": 1}}}  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(record) + "\n")


@pytest.mark.parametrize(
    ("slug", "role"), [("../../evil", "train"), ("/etc", "train"), ("..", "x"), ("a", "../../../etc/passwd"), (7, "x")]
)
def test_a_mirrors_list_cannot_name_what_is_outside_of_it(tmp_path, slug, role):
    write_mirror(tmp_path / "mirror", slug, role)
    with pytest.raises(InputError, match="is not accepted; expected the name of a folder of the mirror"):
        verify_mirror(tmp_path / "mirror")


def test_row_statistics_with_objects_in_them_are_not_read(tmp_path):
    folder, marker = make_comparison(tmp_path / "c", ["a"], {"32": 32}), tmp_path / "it-ran"
    cell = np.empty((1, 1), object)
    cell[0, 0] = Trap(marker)
    for at, path in enumerate(sorted((folder / "rows").iterdir())):
        if at % 2:
            np.save(path, cell, allow_pickle=True)
        else:
            path.write_bytes(pickle.dumps(Trap(marker)))
    (problem,) = evidence.read_comparison(folder).problems
    assert "(6 in all): rows that cannot be read" in problem
    assert not marker.exists()


def test_row_statistics_come_from_the_comparisons_own_folder(tmp_path):
    folder = make_comparison(tmp_path / "c", ["a"], {"32": 32})
    shutil.copy(folder / "rows" / "0.npy", tmp_path / "elsewhere.npy")
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    digests = ["../../elsewhere", str(tmp_path / "elsewhere"), "../rows/0", "..", "a\0b", "", 7]
    lines = [json.dumps({**record, "digest": digest}) for record, digest in zip(records, digests, strict=True)]
    (folder / "results.jsonl").write_text("".join(line + "\n" for line in lines))
    found = evidence.read_comparison(folder)
    assert any("(6 in all): rows that cannot be read ('../../elsewhere' is no digest)" in problem for problem in found.problems)
    for digest in digests:
        with pytest.raises(ValueError, match="is no digest"):
            evidence.rows_file(folder, digest)


@pytest.mark.parametrize("name", ["../../../evil", "/etc/hostname", "..", "a/../../evil"])
def test_a_checkpoints_checksums_are_of_its_own_files(tmp_path, name):
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (tmp_path.parent / "evil").write_text("")
    for file in ("model.safetensors", "heads.safetensors", "optimizer.safetensors", "state.json"):
        (folder / file).write_text("{}")
    sums = {path.name: checksum(path) for path in folder.iterdir()}
    for listed in ({**sums, name: checksum(folder / "state.json")}, {"state.json": sums["state.json"]}, {}, []):
        (folder / CHECKSUMS).write_text(json.dumps(listed))
        assert damage(folder) == "checksums.json is not of a checkpoint's files"


@pytest.mark.parametrize(
    "command",
    [
        "touch evil",
        "prefinetune; touch evil",
        "prefinetune$(touch evil)",
        "'prefinetune",
        "/tmp/prefinetune x",
        ["touch"],
        "\ntouch",
        7,
    ],
)
def test_a_command_that_is_not_ours_is_not_what_to_type_next(tmp_path, command):
    run = make_run(tmp_path / "run", ["mine"], done=50)
    (run / "environment.json").write_text(json.dumps({"command": command}))
    other = make_comparison(tmp_path / "other", ["a"], {"32": 32}, without=("further", 1))
    plan = json.loads((other / "comparison.json").read_text())
    (other / "comparison.json").write_text(json.dumps({**plan, "command": command}))
    lines = list_runs(tmp_path)
    assert len(lines) == 2
    for line in lines:
        assert line.next_command.startswith("prefinetune ")
        assert not {"touch", "evil"} & set(line.next_command.split())


def test_of_a_command_that_is_ours_every_word_stays_a_word(tmp_path):
    """Asked of a real shell: what would escape touches a file of this test's own folder, and can do nothing else."""
    run = make_run(tmp_path / "run", ["mine"], done=50)
    (run / "environment.json").write_text(
        json.dumps({"command": "prefinetune train x; touch evil && `touch evil` $(touch evil)"})
    )
    script = f"prefinetune() {{ printf '%s\\n' \"$@\"; }}; {list_runs(run)[0].next_command}"
    where = {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, **where)
    words = ["train", "x;", "touch", "evil", "&&", "`touch", "evil`", "$(touch", "evil)", "--resume"]
    assert done.stdout.split("\n")[:-1] == words
    assert not (tmp_path / "evil").exists()


def test_a_file_that_unpacks_to_more_than_a_text_can_be_is_refused_in_bounded_memory(tmp_path):
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b"text,label\n")
        for _ in range(300):
            file.write(b"a" * (1 << 20))
    program = (
        "import datasets, resource, sys\nfrom pathlib import Path\nfrom prefinetune.errors import InputError\n"
        "import prefinetune.readers as r\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: r.read_file(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except InputError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, bomb, tmp_path / "cache"], capture_output=True, text=True)
    *told, megabytes = done.stdout.splitlines()
    assert "bomb.csv.gz" in " ".join(told), done.stderr[-500:]
    assert int(megabytes) < 400, megabytes  # of 300 MB in one cell, a longest text is read


# ---- what the source says of models


def test_whoever_loads_by_name_says_that_foreign_code_is_off_and_weights_are_safetensors():
    for path in (Path(evidence.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
                said = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
                of = ast.unparse(node.func.value).removeprefix("transformers.")
                if of.startswith("Auto"):
                    assert said.get("trust_remote_code") is False, (path, node.lineno)
                if of not in ("AutoConfig", "AutoTokenizer"):
                    assert said.get("use_safetensors") is True, (path, node.lineno)
