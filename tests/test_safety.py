"""Nothing that was downloaded or sent runs as code, leaves its folder, or tells a secret."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from prefinetune.checkpoint import checkpoints
from prefinetune.results import RunFolder
from prefinetune.safety import without_secrets

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("src", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


# ---- what the source may not contain

MODULES = (
    "pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal",  # code that poses as data
    "zipfile", "tarfile",  # members may be called ../x, and be larger than any disk; nothing here needs an archive
    "torch.distributed.checkpoint.filesystem",  # its metadata is a pickle
)  # fmt: skip
NAMES = (
    "torch.load", "torch.save", "torch.hub", "torch.package", "pandas.read_pickle", "shutil.unpack_archive", "os.system",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.unsafe_load_all", "yaml.full_load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.dump_all",
    "torch.distributed.checkpoint.save", "torch.distributed.checkpoint.load", "eval", "exec", "compile", "__import__",
)  # fmt: skip
METHODS = (  # whatever they are called on
    "read_pickle", "to_pickle", "unpack_archive", "extractall",
    "gather_object", "all_gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list", "recv_object_list",
    "save_state", "load_state", "register_for_checkpointing",  # Accelerate's, which pickle what they do not know
)  # fmt: skip
# multiprocessing is not among them: what a worker unpickles comes through a pipe from its own parent, and from nowhere else.
FLAGS = ("allow_pickle", "shell", "trust_remote_code")  # False, where they are said at all


def complaints(source: str) -> Iterator[str]:
    """What in a Python source could run data as code, unpack an archive, or hand a text to a shell."""
    tree = ast.parse(source)
    known: dict[str, str] = {}  # a name here -> what it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                known[one.asname or one.name.split(".")[0]] = one.name if one.asname else one.name.split(".")[0]
                yield from refused_name(one.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                known[one.asname or one.name] = f"{node.module}.{one.name}"
                yield from refused_name(f"{node.module}.{one.name}")
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield from refused_name(dotted(node, known))
        if isinstance(node, ast.keyword) and node.arg in FLAGS and ast.unparse(node.value) != "False":
            yield f"{node.arg} is not False"


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, known)}.{node.attr}"
    return known.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def refused_name(name: str) -> Iterator[str]:
    if any(name == other or name.startswith(f"{other}.") for other in (*MODULES, *NAMES)):
        yield name
    if "." in name and name.rsplit(".", 1)[-1] in METHODS:
        yield name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "from _pickle import Unpickler", "import dill",
        "def f():\n    import joblib", "import cloudpickle", "import shelve", "import marshal", "import zipfile, json",
        "from tarfile import open as o", "import shutil\nshutil.unpack_archive(a)", "from shutil import unpack_archive",
        "import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load", "from torch import save as keep",
        "import torch\nf = torch.save", "import torch\ntorch.hub.load(a, b)", "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)", "pd.read_pickle(f)", "frame.to_pickle(f)", "import yaml\nyaml.load(t)",
        "import yaml as y\ny.load(t, Loader=y.UnsafeLoader)", "from yaml import unsafe_load", "eval(text)", "exec(text)",
        "x = eval", "compile(a, b, 'exec')", "__import__(name)", "subprocess.run(c, shell=True)", "Popen(c, shell=yes)",
        "import os\nos.system(c)", "from os import popen", "from subprocess import getoutput",
        "from accelerate.utils import gather_object", "accelerate.utils.broadcast_object_list([x])",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)", "accelerator.save_state(f)",
        "accelerator.load_state(f)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)", "AutoModel.from_pretrained(n, trust_remote_code=asked)",
        "import torch.distributed.checkpoint as dcp\ndcp.save(a)",
    ],
)  # fmt: skip
def test_the_scan_finds(source):
    assert list(complaints(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()", "import yaml\nyaml.safe_load(t)", "import json\njson.load(f)", "np.load(f, allow_pickle=False)",
        "subprocess.run(['a', b])", "import re\nre.compile(t)", "from safetensors.torch import load_file, save_file",
        "AutoModel.from_pretrained(n, trust_remote_code=False)", "import torch\ntorch.compile(m)", "load(x)", "import gzip",
        "class L(yaml.SafeLoader): pass",
    ],
)  # fmt: skip
def test_the_scan_lets_pass(source):
    assert not list(complaints(source))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_unpacks_evaluates_or_asks_a_shell(path):
    assert list(complaints(path.read_text(encoding="utf-8"))) == []


# ---- a real run under a hook that refuses


class Trap:
    """A pickle that creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def trap(path: Path, marker: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Trap(marker)))
    return path


# Refuses every unpickling, also by C code, and torch.load, whose reader is not pickle's. Records which files are opened.
HOOK = """
import sys

log = open(sys.argv[1], "a")


def refuse(event, arguments):
    if event == "pickle.find_class":
        print("unpickled", *arguments, file=log, flush=True)
        raise RuntimeError(f"something was unpickled: {arguments}")
    if event == "open" and isinstance(arguments[0], str):
        print("opened", arguments[1], arguments[0], file=log, flush=True)


sys.addaudithook(refuse)
"""
RUN = """
import json
import pickle

import torch


def refused(*_, **__):
    print("unpickled by", sys._getframe(1).f_code.co_filename, file=log, flush=True)
    raise RuntimeError("something was unpickled")


pickle.load = pickle.loads = torch.load = torch.save = refused
from prefinetune.cli import main

for words in json.loads(sys.argv[2]):
    sys.argv = ["prefinetune", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end)
"""
CANARY = "canary7Qz9Xw3Lk5"  # in every secret
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}AAAAAAAAAAAA", "HUGGING_FACE_HUB_TOKEN": f"hf_{CANARY}BBBBBBBBBBBB",
    "WANDB_API_KEY": f"{CANARY}{'c' * 24}",
    "GITHUB_TOKEN": f"ghp_{CANARY}{'d' * 20}", "AWS_SECRET_ACCESS_KEY": f"{CANARY}e/f+g", "AWS_SESSION_TOKEN": f"{CANARY}hhhh",
    "OPENAI_API_KEY": f"sk-{CANARY}{'i' * 20}", "COMET_API_KEY": f"{CANARY}jjjj", "DB_PASSWORD": f"{CANARY}kkkk",
    "HTTPS_PROXY": f"http://someone:{CANARY}@proxy.invalid:3128", "PIP_INDEX_URL": f"https://__token__:{CANARY}@pypi.invalid/simple",
    "MLFLOW_TRACKING_URI": f"https://user:{CANARY}@mlflow.invalid",
}  # fmt: skip
LABELS = (
    "../../../../evil", "/etc/evil", "..", "C:\\\\evil", "<script>window.pwned = 1</script>", "\x1b[31mred", "[red]loud[/red]",
    "${HOME}", "$(touch evil)", "`touch evil`", "; touch evil", "a|b", "x" * 300,
)  # fmt: skip


@pytest.fixture(scope="module")
def hooked(tiny_model, tmp_path_factory) -> dict:
    """Train, resume among pickles, fine-tune (which writes a plain model), report and list, each under the hook, with secrets in
    the environment and on the command line, on rows whose labels are hostile."""
    root = tmp_path_factory.mktemp("hooked")
    work, home, log, marker = root / "in" / "work", root / "in" / "home", root / "log.txt", root / "marker"
    work.mkdir(parents=True)
    home.mkdir()
    rows = [{"text": f"the duni {at} kuno never gilas the {at} bano .", "label": LABELS[at % len(LABELS)]} for at in range(78)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"source": "rows.jsonl", "classification": {"text": "text", "label": "label"}}
    (work / "suite.yaml").write_text(yaml.safe_dump({"tasks": [{"name": "hostile", **entry}, {"name": "other/one", **entry}]}))
    (work / "task.yaml").write_text(yaml.safe_dump({"tasks": [{"name": "hostile", **entry}]}))
    (work / f"mirror?token={CANARY}").mkdir()
    environment = {
        **os.environ, **SECRETS, "HOME": str(home), "HF_HOME": str(home / "hf"), "PREFINETUNE_CACHE": str(work / "cache"),
        "PREFINETUNE_NATIVE": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    told = []

    def run(*commands: tuple[str, ...]) -> None:
        program = [sys.executable, "-c", HOOK + RUN, log, json.dumps(commands)]
        done = subprocess.run(program, cwd=work, env=environment, capture_output=True)
        told.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr.decode()[-3000:]

    train = (
        "train", "suite.yaml", "--model", str(tiny_model), "--out", "run", "--data-root", f"mirror?token={CANARY}",
        "train.updates=4", "train.checkpoint_every=2", "train.evaluate_every=2", "mixture.sub_batches=2",
    )  # fmt: skip
    run(train)
    last = checkpoints(work / "run" / "checkpoints")[-1]
    shutil.rmtree(last)
    for name in ("model", "heads", "predictions"):
        shutil.rmtree(work / "run" / name)
    (work / "run" / "results.jsonl").unlink()
    left = checkpoints(work / "run" / "checkpoints")[-1]
    places = [left / name for name in ("optimizer.pt", "pytorch_model.bin", "rng_state_0.pth", "state.pkl", "custom_0.pkl")]
    places += [work / "run" / name for name in ("training_args.bin", "model.pt", "checkpoints/step-99999999.pt")]
    traps = [trap(place, marker) for place in places]
    run(
        (*train, "--resume"),
        ("finetune", "task.yaml", "--from", "run", "--out", "tuned", "--labels", "32", "train.updates=2"),
        ("report", "run", "tuned", "--out", "page.html"),
        ("runs", "."),
    )
    return {"root": root, "work": work, "log": log.read_text(), "told": told, "marker": marker, "traps": traps}


def test_training_resuming_fine_tuning_and_reporting_unpickle_nothing(hooked):
    lines = hooked["log"].splitlines()
    assert [line for line in lines if line.startswith("unpickled")] == []
    # The hook was there, and what was resumed from is the checkpoint among the pickles.
    assert any(line.startswith("opened") and line.endswith("checkpoints/step-00000002/state.json") for line in lines)
    assert RunFolder(hooked["work"] / "run").results()[-1]["updates"] == 4
    assert (hooked["work"] / "tuned" / "model" / "model.safetensors").exists()


def test_the_hook_refuses_what_is_unpickled(tmp_path):
    program = HOOK + f"import io, _pickle\n_pickle.Unpickler(io.BytesIO({pickle.dumps(Trap(tmp_path / 'marker'))!r})).load()"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True)
    assert "something was unpickled" in done.stderr
    assert "unpickled" in (tmp_path / "log").read_text()
    assert not (tmp_path / "marker").exists()


def test_pickles_that_somebody_put_into_a_run_are_not_opened(hooked):
    opened = {line.split(" ", 2)[2] for line in hooked["log"].splitlines() if line.startswith("opened")}
    names = {Path(path).name for path in opened}
    assert not names & {path.name for path in hooked["traps"]}
    assert not hooked["marker"].exists()


def test_a_run_holds_no_pickle(hooked):
    planted = set(hooked["traps"])
    written = [path for path in hooked["work"].rglob("*") if path.is_file() and path not in planted]
    assert {".safetensors", ".json", ".jsonl", ".yaml"} <= {path.suffix for path in written}
    for path in written:
        assert path.suffix not in (".pt", ".pth", ".pkl", ".pickle", ".ckpt"), path
        if path.suffix != ".safetensors":  # which begin with a number
            assert not re.match(rb"\x80[\x02-\x05]|PK\x03\x04", path.read_bytes()), path


def test_a_run_writes_nothing_outside_its_folder_and_the_cache(hooked):
    """Labels that are paths, variables and commands included."""
    root = hooked["root"]
    assert sorted(path.name for path in root.iterdir()) == ["in", "log.txt"]
    assert sorted(path.name for path in (root / "in").iterdir()) == ["home", "work"]
    given = {"rows.jsonl", "suite.yaml", "task.yaml", f"mirror?token={CANARY}"}
    assert {path.name for path in (root / "in" / "work").iterdir()} == given | {"run", "tuned", "page.html", "cache"}
    assert not list((root / "in" / "work" / f"mirror?token={CANARY}").iterdir())
    assert not [path for path in (root / "in").rglob("*") if "evil" in path.name]


def test_no_secret_of_the_environment_or_the_command_line_is_written_or_shown(hooked):
    work = hooked["work"]
    written = [path for path in work.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert not [text for text in hooked["told"] if CANARY.encode() in text]
    command = json.loads((work / "run" / "environment.json").read_text())["command"]
    assert "--data-root 'mirror?token=***' train.updates=4" in command  # all but the secret is there


# ---- secrets


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://user:tok123@host/x", "https://***@host/x"),
        ("https://tok123@host/x y", "https://***@host/x y"),
        ("no file 'data/https:/user:tok123@host/x.csv'", "no file 'data/https:/***@host/x.csv'"),
        ("s3://key:tok123@bucket", "s3://***@bucket"),
        ("https://host/x?access_token=tok123&page=2", "https://host/x?access_token=***&page=2"),
        ("api_key=tok123", "api_key=***"),
        ("X-Amz-Signature=tok123", "X-Amz-Signature=***"),
        ("hf_tok123tok123tok123", "***"),
        ("ghp_tok123tok123tok123", "***"),
        ("sk-tok123tok123tok123", "***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text, left):
    assert without_secrets(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "prefinetune train suite.yaml --model roberta-base optimizer.learning_rate=1e-5 data.max_length=128",
        "hub:nyu-mll/glue:rte@refs/convert/parquet", "someone@example.org", "C:/models/x", "https://host/path", "hf_tasks",
        "token", "/data/a@b/c",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


def test_values_of_secret_variables_are_hidden_and_short_ones_are_not(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefgh-1234")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "abcdefgh-5678")  # is no token
    monkeypatch.setenv("USE_TOKEN", "true")
    assert without_secrets("--x=abcdefgh-1234! abcdefgh-5678 true") == "--x=***! abcdefgh-5678 true"


@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize("address", ["hub:https://user:{}@host/set", "https://user:{}@host/rows.csv", "s3://{}@bucket/rows.csv"])
def test_an_address_as_source_is_refused_without_repeating_its_token(command, tmp_path, address, mapping):
    source = {"train": address.format(CANARY)} if mapping else address.format(CANARY)
    entry = {"name": "a", "source": source, "classification": {"text": "t", "label": "l"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"tasks": [entry]}))
    for words in (("tasks", "check"), ("tasks", "preview"), ("train", "--model", "x")):
        code, out, err = command(*words, tmp_path / "suite.yaml")
        assert (code, CANARY in out + err) == (2, False), out + err
        assert "is not accepted" in err


def test_a_model_at_an_address_is_refused_without_repeating_its_token(command, tmp_path):
    code, out, err = command("train", "glue/rte", "--model", f"https://user:{CANARY}@host/model", "--out", tmp_path / "out")
    assert (code, CANARY in out + err) == (2, False)
    assert "no model folder 'https://***@host/model'" in err
