"""benchmarks/scale.py computes what it says, docs/scale.md shows what it computes, and the files and commands by which a run is
launched on many machines are ones that their own tools accept."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser
from torch.utils.flop_counter import FlopCounterMode
from transformers import RobertaConfig, RobertaModel
from transformers.models.roberta.modeling_roberta import RobertaClassificationHead
from typer.main import get_command

from prefinetune.cli import app
from prefinetune.config import make_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import scale
from scale import A100, BASE, GPUS, H100, LARGE, NO_HOST, Dealt, Host, Lengths

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
PAGE = ROOT / "docs" / "scale.md"
SHAPES = pytest.mark.parametrize("shape", [BASE, LARGE], ids=lambda shape: shape.name)


def config_of(shape: scale.Shape) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=shape.vocabulary, max_position_embeddings=shape.positions, hidden_size=shape.hidden, type_vocab_size=1,
        num_hidden_layers=shape.layers, intermediate_size=shape.feed_forward, num_attention_heads=shape.hidden // 64,
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip


@pytest.fixture
def equal_lengths(monkeypatch):
    """Every example has 64 tokens, in one sequence."""
    monkeypatch.setattr(scale, "lengths", lambda: Lengths(np.full(10, 64), np.full(10, 64**2)))
    scale.dealt.cache_clear()
    yield
    scale.dealt.cache_clear()


# ---- the model


@SHAPES
def test_parameters_are_those_of_transformers(shape):
    with torch.device("meta"):
        trunk = RobertaModel(config_of(shape), add_pooling_layer=False)
        head = RobertaClassificationHead(config_of(shape))
    assert shape.parameters == trunk.num_parameters()
    assert shape.head_parameters(3) == sum(parameter.numel() for parameter in head.parameters())


@SHAPES
@pytest.mark.parametrize("length", [32, 256])
def test_flops_are_those_that_pytorch_counts(shape, length):
    shape = shape._replace(layers=2)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        trunk = RobertaModel(config_of(shape), add_pooling_layer=False)
        embedded = torch.empty(3, length, shape.hidden, requires_grad=True)
        trunk.encoder(embedded).last_hidden_state.sum().backward()
    expected = shape.flops(np.array(3 * length), np.array(3 * length**2))
    assert counter.get_total_flops() == pytest.approx(float(expected), rel=1e-9)


# ---- the sum of gradients


class Ring:
    """Processes that each hold a vector; what they send is counted."""

    def __init__(self, vectors: list[np.ndarray]) -> None:
        self.vectors, self.sent = vectors, np.zeros(len(vectors))

    def pass_on(self, members: list[int], pieces: list[np.ndarray], step: int, add: bool) -> None:
        """Each member sends one piece to its neighbour, all at once."""
        count = len(members)
        moves = [(at, pieces[(at - step) % count]) for at in range(count)]
        held = [self.vectors[members[at]][piece].copy() for at, piece in moves]
        for (at, piece), values in zip(moves, held, strict=True):
            receiver = self.vectors[members[(at + 1) % count]]
            receiver[piece] = receiver[piece] + values if add else values
            self.sent[members[at]] += len(piece)

    def scatter(self, members: list[int], place: np.ndarray) -> list[np.ndarray]:
        """Afterwards member i holds the sum of piece i + 1."""
        pieces = np.split(place, len(members))
        for step in range(len(members) - 1):
            self.pass_on(members, pieces, step, add=True)
        return [pieces[(at + 1) % len(members)] for at in range(len(members))]

    def gather(self, members: list[int], place: np.ndarray) -> None:
        pieces = np.split(place, len(members))
        for step in range(len(members) - 1):
            self.pass_on(members, pieces, step - 1, add=False)


@pytest.mark.parametrize(("machines", "size"), [(1, 1), (1, 2), (1, 8), (2, 4), (3, 2), (4, 4)])
def test_rings_that_really_run_send_what_the_formula_says(machines, size):
    count, length = machines * size, machines * size * 3
    generator = np.random.default_rng(0)
    ring = Ring([generator.integers(100, size=length) for _ in range(count)])
    total = sum(vector.copy() for vector in ring.vectors)
    inside = [[machine * size + at for at in range(size)] for machine in range(machines)]
    held = [ring.scatter(members, np.arange(length)) for members in inside]
    sent_inside = ring.sent.copy()
    for at in range(size):
        across = [members[at] for members in inside]
        ring.scatter(across, held[0][at])
        ring.gather(across, held[0][at])
    sent_between, after = ring.sent - sent_inside, ring.sent.copy()
    for members in inside:
        ring.gather(members, np.arange(length))
    sent_inside += ring.sent - after
    for vector in ring.vectors:
        np.testing.assert_array_equal(vector, total)
    expected = scale.all_reduce_sent(length, count, size)
    np.testing.assert_allclose(sent_inside, expected.inside)
    np.testing.assert_allclose(sent_between, expected.between)


@given(size=st.floats(1, 1e12), machines=st.integers(1, 64), machine=st.integers(1, 16))
def test_an_all_reduce_sends_twice_all_but_one_share(size, machines, machine):
    gpus = machines * machine
    sent = scale.all_reduce_sent(size, gpus, machine)
    assert sum(sent) == pytest.approx(2 * (gpus - 1) / gpus * size)
    assert (sent.between == 0) == (machines == 1)


def test_an_all_reduce_takes_its_bytes_and_its_steps():
    cluster = H100._replace(inside=100e9, between=10e9, attained=0.5, latency_inside=1e-6, latency_between=1e-3)
    size = 4 * 2.5 * scale.BUCKET  # three messages
    seconds = 2 * 7 / 8 * size / 50e9 + 2 * 3 / 4 * size / 8 / 5e9 + 3 * (14e-6 + 6e-3)
    assert scale.all_reduce_seconds(size, 32, cluster) == pytest.approx(seconds)


# ---- an update


@SHAPES
@pytest.mark.parametrize("cluster", [H100, A100], ids=lambda cluster: cluster.name)
def test_one_gpu_has_nobody_to_talk_to(shape, cluster):
    one = scale.estimate(shape, cluster, 1, 512)
    assert (one.sent, one.communication, one.hidden, one.balance) == (0, 0, 0, 1)
    assert scale.efficiency(shape, cluster, 1, 512) == 1


def test_an_update_of_equal_examples_is_what_one_computes_by_hand(equal_lengths):
    cluster = H100._replace(flops=100e12, utilization=0.5, memory=1e12, attained=0.5, launch=0)
    one = scale.estimate(BASE, cluster, 8, 1024, Host(stream=1e-6, own=1e-5))
    weights = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert one.tokens == 1024 * 64
    assert one.compute == pytest.approx((6 * weights * 128 * 64 + 12 * 12 * 768 * 128 * 64**2) / 50e12)
    assert one.host == pytest.approx(1024e-6 + 128e-5)
    heads = 46 * (768 * 769 + 3 * 769)
    assert one.optimizer == pytest.approx((124_055_040 + heads) * 32 / 0.5e12)
    assert one.sent == pytest.approx(2 * 7 / 8 * 4 * (124_055_040 + heads))
    assert one.seconds == pytest.approx(max(one.host, one.compute + one.optimizer + one.communication))
    assert one.hours(10_240) * 3600 == pytest.approx(10 * one.seconds)
    assert one.tokens_per_second == pytest.approx(1024 * 64 / one.seconds)


def test_twice_the_examples_are_twice_the_work_and_the_same_sum(equal_lengths):
    some, more = (scale.estimate(LARGE, A100, 64, examples) for examples in (64 * 256, 2 * 64 * 256))
    assert more.compute == pytest.approx(2 * some.compute)
    assert more.tokens == 2 * some.tokens
    assert (more.communication, more.optimizer, more.sent) == (some.communication, some.optimizer, some.sent)


def test_twice_the_gpus_halve_the_work_until_kernels_are_too_small(equal_lengths):
    seconds = {gpus: scale.estimate(BASE, H100, gpus, 2**17).compute for gpus in (64, 128)}
    assert seconds[64] == pytest.approx(2 * seconds[128])
    assert scale.estimate(BASE, H100, 512, 512).compute == 12 * H100.launch


def test_an_update_waits_for_the_slowest_process():
    update = Dealt(np.array([100, 900]), np.array([100.0**2, 900.0**2]), np.array([1, 1]))
    cluster = H100._replace(launch=0)
    seconds, _ = scale.compute_seconds(BASE, cluster, update)
    assert seconds[1] > 9 * seconds[0]
    found = scale.estimate(BASE, cluster, 512, 512)
    even = np.mean([scale.compute_seconds(BASE, cluster, one)[0].mean() for one in scale.dealt(512, 512)])
    assert found.compute > 2 * even  # one example each: as slow as the longest
    assert scale.estimate(BASE, cluster, 8, 4096).balance > 0.99
    most = np.mean([one.examples.max() for one in scale.dealt(512, 64)])
    assert most > 512 / 64  # who has short ones has more of them
    assert scale.estimate(BASE, cluster, 64, 512, Host(0, 1)).host == pytest.approx(most)


def test_micro_batches_stay_within_the_budget():
    update = Dealt(np.array([scale.TOKEN_BUDGET, scale.TOKEN_BUDGET + 1]), np.array([0.0, 0.0]), np.array([1, 1]))
    seconds, last = scale.compute_seconds(BASE, H100._replace(launch=1.0), update)
    np.testing.assert_allclose(seconds, [12, 24])
    np.testing.assert_allclose(last, [12, 12])


@given(
    shape=st.sampled_from([BASE, LARGE]),
    cluster=st.sampled_from([H100, A100]),
    gpus=st.sampled_from(GPUS),
    examples=st.sampled_from([512, 1024, 4096]),
    overlap=st.booleans(),
    host=st.sampled_from([scale.HOST, NO_HOST]),
)
@settings(deadline=None, max_examples=60)
def test_no_number_of_gpus_does_more_than_its_share(shape, cluster, gpus, examples, overlap, host):
    assert 0 < scale.efficiency(shape, cluster, gpus, examples, host, overlap) <= 1 + 1e-9


@SHAPES
def test_the_smallest_update_is_the_first_that_is_good_enough(shape):
    found = scale.smallest_update(shape, H100, 64, NO_HOST)
    assert scale.efficiency(shape, H100, 64, found, NO_HOST) >= 0.9 > scale.efficiency(shape, H100, 64, found // 2, NO_HOST)
    assert scale.smallest_update(shape, H100, 64, NO_HOST, overlap=True) <= found


def test_overlap_hides_at_most_a_backward_pass(equal_lengths):
    fast = scale.estimate(BASE, H100, 64, 2**17)
    assert fast.hidden == fast.communication
    slow = scale.estimate(BASE, A100, 64, 64 * 64)  # 4,096 tokens on each: one micro-batch
    assert slow.hidden == pytest.approx(slow.compute * 2 / 3)


def test_the_lengths_are_a_mixture_of_real_sets():
    told = json.loads(scale.LENGTHS.read_text())
    tokens, squares = scale.lengths()
    assert tokens.mean() == pytest.approx(told["mean"], rel=0.01)
    assert (squares <= tokens.astype(float) ** 2).all()
    assert (squares >= tokens).all()


# ---- the page


def test_the_page_has_the_tables_of_the_script():
    page = PAGE.read_text()
    stale = [table.title for table in scale.tables() if table.markdown() not in page]
    assert not stale, f"`python benchmarks/scale.py --page docs/{PAGE.name}` brings these up to date: {stale}"


def test_tables_and_estimates_are_written(tmp_path, monkeypatch, capsys):
    table = scale.Table("Told", ("a", "b"), [("x", "1")])
    monkeypatch.setattr(scale, "tables", lambda: [table])
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n| a | b |\n| --- | --- |\n| old | 0 |\n| older | 0 |\n\nAfter.\n")
    scale.main(["--out", str(tmp_path / "scale.json"), "--page", str(page)])
    assert page.read_text() == "Before.\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\nAfter.\n"
    assert "Told" in capsys.readouterr().out
    estimates = json.loads((tmp_path / "scale.json").read_text())["estimates"]
    assert len(estimates) == 2 * 2 * (4 + 4 + 4 + 3)
    assert all(one["hours"] == pytest.approx(one["seconds"] * 4.8e6 / one["examples"] / 3600) for one in estimates)


# ---- commands


def commands(path: Path) -> list[list[str]]:
    """The launching commands in a file, or in the code of a page; some go on in the next line."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    text = re.sub(r"\\\n", " ", text)
    found = []
    for line in text.splitlines():
        line = re.sub(r"\s&&.*$|\s&$|\s# .*$", "", line.strip(" #`"))
        if re.match(r"(torchrun|accelerate launch|prefinetune|python -m prefinetune) ", line):
            found.append(shlex.split(re.sub(r'"?\$\(.*?\)"?|"?\$\w+"?', "1", line)))
    return found


PLACES = [
    PAGE,
    LAUNCH / "skypilot.yaml",
    LAUNCH / "kubernetes.yaml",
    LAUNCH / "accelerate.yaml",
    LAUNCH / "accelerate-fsdp2.yaml",
]


def check_prefinetune(words: list[str]) -> None:
    """Options and settings are known ones; nothing is run."""
    verb = get_command(app).commands[words[0]]
    if hasattr(verb, "commands"):
        verb, words = verb.commands[words[1]], words[1:]
    context = verb.make_context(verb.name, list(words[1:]))
    make_config(overrides=context.params.get("settings") or ())


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.name)
def test_commands_are_ones_that_their_programs_accept(path):
    found = commands(path)
    assert found
    for words in found:
        if words[0] == "torchrun":
            launched = get_args_parser().parse_args(words[1:])
            assert launched.module
            assert launched.training_script == "prefinetune"
            check_prefinetune(launched.training_script_args)
        elif words[0] == "accelerate":
            launched = launch_command_parser().parse_args(words[2:])
            assert launched.module
            assert launched.training_script == "prefinetune"
            check_prefinetune(launched.training_script_args)
        else:
            check_prefinetune(words[words.index("prefinetune") + 1 :])


def test_settings_on_the_page_are_known():
    named = re.findall(r"[a-z]+\.[a-z_]+=[\w.]+", PAGE.read_text())
    assert len(named) >= 4
    make_config(overrides=named)


def test_links_on_the_page_lead_somewhere():
    links = re.findall(r"\]\((\.\./[^)]+)\)", PAGE.read_text())
    assert links
    assert not [link for link in links if not (PAGE.parent / link).exists()]


# ---- launch files


@pytest.mark.parametrize("name", ["accelerate", "accelerate-fsdp2"])
def test_accelerate_reads_its_files(name, monkeypatch):
    path = LAUNCH / f"{name}.yaml"
    config = load_config_from_file(str(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "-m", "prefinetune", "train"])
    arguments, *_ = _validate_launch_command(arguments)
    assert (config.num_processes, arguments.num_processes) == (8, 8)
    if name == "accelerate":
        assert arguments.multi_gpu
        assert not arguments.use_fsdp
    else:
        assert arguments.use_fsdp
        assert int(arguments.fsdp_version) == 2
        assert arguments.fsdp_auto_wrap_policy == "NO_WRAP"


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip(f"{name} is not installed")


def shell_of(name: str) -> str:
    """The shell script in a launch file."""
    path = LAUNCH / name
    if name == "slurm.sh":
        return path.read_text()
    documents = list(yaml.safe_load_all(path.read_text()))
    if name == "skypilot.yaml":
        return documents[0]["run"]
    return documents[1]["spec"]["template"]["spec"]["containers"][0]["args"][0]


SCRIPTS = pytest.mark.parametrize("name", ["slurm.sh", "skypilot.yaml", "kubernetes.yaml"])


@SCRIPTS
def test_bash_can_parse_the_scripts(name):
    subprocess.run(["bash", "-n"], input=shell_of(name), text=True, check=True)


@SCRIPTS
def test_shellcheck_has_nothing_to_say(name):
    found = subprocess.run([tool("shellcheck"), "-s", "bash", "-"], input=shell_of(name), text=True, capture_output=True)
    assert found.returncode == 0, found.stdout


def test_kubernetes_knows_every_field():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    documents = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)


def test_skypilot_knows_every_field():
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    task = sky.Task.from_yaml(str(LAUNCH / "skypilot.yaml"))
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.job_recovery["max_restarts_on_errors"] == 5


class Job:
    """slurm.sh as Slurm would run it, on a machine without Slurm: `srun` starts two processes of a stand-in for training, which
    works until it gets a signal; `scontrol requeue` is taken down."""

    def __init__(self, folder: Path, does: str, restarts: int = 0, out: Sequence[str] = ("--out", "run")) -> None:
        self.folder, tools = folder, folder / "bin"
        tools.mkdir()
        programs = {
            "srun": 'trap "kill -USR1 \\$a \\$b" USR1; trap "kill -TERM \\$a \\$b" TERM; shift\n'
            'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & a=$!\nSLURM_PROCID=1 SLURM_LOCALID=1 "$@" & b=$!\n'
            "for one in $a $b; do wait $one; s=$?; while kill -0 $one 2>/dev/null; do wait $one; s=$?; done; done; exit $s",
            "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> requeued; fi',
            "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $*" >> started\n'
            f'trap "touch saved-$RANK-USR1; exit 0" USR1; trap "touch saved-$RANK-TERM; exit 0" TERM\n{does}',
        }
        for name, text in programs.items():
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "x[1-2]"}
        environment = {**os.environ, **slurm, "SLURM_RESTART_COUNT": str(restarts), "PATH": f"{tools}:{os.environ['PATH']}"}
        command = ["bash", str(LAUNCH / "slurm.sh"), "suite.yaml", "--model", "m o", *out]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait_for_start(self) -> None:
        end = time.monotonic() + 20
        while len(self.started()) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.2)  # traps are set after the line is written

    def started(self) -> list[str]:
        path = self.folder / "started"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def end(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode

    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


WORK = "for _ in {1..200}; do sleep 0.1 & wait $!; done"  # bash runs a trap between commands
FINISH = "mkdir -p run/model; touch run/model/config.json"


def test_slurm_starts_every_process_with_its_place_and_stops_when_the_run_is_finished(tmp_path):
    job = Job(tmp_path, FINISH)
    assert job.end() == 0
    line = "{0} {0} 2 first -m prefinetune train suite.yaml --model m o --out run --resume"
    assert job.started() == [line.format(0), line.format(1)]
    assert not job.requeued()


def test_slurm_saves_and_requeues_before_the_time_limit(tmp_path):
    job = Job(tmp_path, WORK)
    job.wait_for_start()
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 0
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0-USR1", "saved-1-USR1"}
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_slurm_saves_and_stays_away_when_it_is_cancelled(tmp_path):
    job = Job(tmp_path, WORK)
    job.wait_for_start()
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 1
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0-TERM", "saved-1-TERM"}
    assert not job.requeued()


@pytest.mark.parametrize("out", [["--out=run"], ["-o", "run"]])
def test_slurm_finds_the_run_however_it_is_named(tmp_path, out):
    job = Job(tmp_path, FINISH, out=out)
    assert job.end() == 0
    assert not job.requeued()


CRASHES = [("exit 137", 0, True), (f"{FINISH}; exit 137", 0, True), ("exit 137", 10, False), ("exit 2", 0, False)]


@pytest.mark.parametrize(("does", "restarts", "again"), CRASHES)
def test_slurm_requeues_what_crashed_but_neither_for_ever_nor_bad_input(tmp_path, does, restarts, again):
    job = Job(tmp_path, does, restarts)
    assert job.end() == int(does.split()[-1])
    assert job.requeued() == again
