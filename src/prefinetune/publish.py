"""What a run leaves, made ready for other programs and other people: folders that plain Transformers loads, and their way to the
hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml

from prefinetune.checkpoint import CannotSave, replacing
from prefinetune.config import make_config
from prefinetune.display import Display
from prefinetune.errors import InputError
from prefinetune.export import assemble, slug, write_model
from prefinetune.lineage import entries, reopen
from prefinetune.load import ABOUT, About, Loaded, load, read_about
from prefinetune.onnx_file import check_onnx, write_onnx
from prefinetune.store import encode_split


def export(
    run: str | Path,
    to: str | Path,
    *,
    task: str | None = None,
    every_task: bool = False,
    calibrate: bool = False,
    onnx: bool = False,
    cache: str | Path | None = None,
    overwrite: bool = False,
    display: Display | None = None,
) -> Path:
    """Write a run as folders that plain Transformers loads. Each is there whole or not at all.

    Of a run of `train`, `to` is the trunk (`AutoModel`), with all heads in `to`/heads; `load(to)` gives all tasks back. With a
    `task`, it is that task's model (`AutoModelForSequenceClassification` and so on), trunk and head in one. With `every_task`, it
    is the trunk with all heads, and in `to`/tasks every task's model, in the folder of its name with "-" for "/". A run of
    `finetune` holds one task, and `to` is its model. Each folder has a prefinetune.json, by which we load it again.

    Args:
        calibrate: fit temperatures on the run's validation rows, for all families that have probabilities.
        onnx: add model.onnx to the models of tasks; not of encoder-decoders.
        cache: where prepared data is kept.
        overwrite: replace an earlier export.

    Raises:
        InputError: `run` is no run, or has not finished; there is no such task; both `task` and `every_task` are given; `to` is
            there already; validation rows cannot be read again; or the disk is full.
    """
    run, to, display = Path(run), Path(to), display or Display(quiet=True)
    about = read_about(run)
    run = about.heads_in
    if task is not None and every_task:
        raise InputError("--task and --all exclude each other: one task's model, or that of every task")
    if about.is_whole and every_task:
        raise InputError(f"{run} holds one task, {next(iter(about.tasks))}; leave --all out")
    chosen = list(about.tasks) if task is None else [about.find(task)]
    check_target(to, overwrite)
    if onnx and not (about.is_whole or every_task or task):
        raise InputError("--onnx goes with --task or --all: a trunk alone answers nothing")
    trunk_too = task is None or about.is_whole
    loaded = None if trunk_too and not (every_task or calibrate or onnx) else load(run, chosen)
    if onnx and loaded:
        check_onnx(loaded.model.backbone.config.is_encoder_decoder)
    temperatures = dict(about.temperatures)
    if calibrate and loaded:
        temperatures |= fit_temperatures(loaded, run, cache, display)
    try:
        with replacing(to) as writing:
            if trunk_too:
                copy_model(about, writing)
                write_about(about, chosen, about.is_whole, temperatures, writing)
                write_readme(run, writing)
            if loaded and (every_task or onnx or not trunk_too):
                for one in chosen:
                    place = writing / "tasks" / slug(one) if every_task else writing
                    whole = assemble(loaded.model, one, loaded.tokenizer)
                    if every_task or not trunk_too:
                        place.mkdir(parents=True, exist_ok=True)
                        write_model(whole, loaded.tokenizer, place)
                        write_about(about, [one], True, temperatures, place)
                        write_readme(run, place, task=one)
                    if onnx:
                        write_onnx(whole, loaded.tokenizer.tokenizer, place)
    except CannotSave as error:
        raise InputError(f"{error.problem}; put that right, or choose another --to") from error
    return to


def check_target(to: Path, overwrite: bool) -> None:
    """Raises InputError where a folder may not be written."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not (to / ABOUT).is_file():
        raise InputError(f"{to} exists and holds something that is no export; choose another --to")
    if not overwrite:
        raise InputError(f"{to} already holds an export; replace it with --overwrite, or choose another --to")


def copy_model(about: About, folder: Path) -> None:
    """The model's own files, and heads where there are some beside it."""
    for path in about.model.iterdir():
        if path.is_file() and path.name not in (ABOUT, "README.md"):
            shutil.copyfile(path, folder / path.name)
    if not about.is_whole:
        shutil.copytree(about.heads_in / "heads", folder / "heads")


def write_about(about: About, tasks: Sequence[str], is_whole: bool, temperatures: Mapping[str, float], folder: Path) -> None:
    text = json.dumps(about.record(tasks, is_whole, temperatures), indent=1, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")


def write_readme(run: Path, folder: Path, **about: str) -> None:
    """The model card."""
    if find_spec("prefinetune.card") and (run / "run.json").exists():
        import_module("prefinetune.card").write_card(run, folder, **about)


def fit_temperatures(loaded: Loaded, run: Path, cache: str | Path | None, display: Display) -> dict[str, float]:
    """By task, fitted on the validation rows of the run.

    Raises:
        InputError: no task has probabilities, or rows cannot be read again.
    """
    path = run / "config.yaml"
    wanted = [entry for entry in entries(run) if entry["name"] in loaded.tasks and loaded.family(entry["name"]).probability_type]
    if not wanted:
        raise InputError(f"--calibrate: {run} holds no validation rows of a task with probabilities")
    config = make_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    for entry in wanted:
        task = entry["name"]
        try:
            opened = reopen(entry, config.data, cache)
        except InputError as error:
            raise InputError(f"--calibrate: {error}; in Python, load(RUN).calibrate({task!r}, rows) takes any rows") from None
        opened = replace(opened, task=replace(opened.task, family=loaded.family(task)), _cache={})
        temperature = loaded.calibrate_on(
            task, encode_split(opened, "validation", loaded.tokenizer, config.train.evaluation_rows)
        )
        display.say(f"{task}: temperature {temperature:.3f}")
    return loaded.temperatures


# ---- to the hub


def files_of(folder: Path) -> list[tuple[str, int]]:
    """(path, bytes) of what an upload consists of."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def check_name(name: str) -> None:
    """Raises InputError for what is no name on the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push: {name!r} is not accepted ({str(error).rstrip('.')}); expected ORG/NAME") from None


def push(folder: str | Path, name: str, public: bool = False) -> str:
    """Upload an exported folder to the hub; an upload that broke off goes on with the next call.

    Returns:
        The address of the repository.

    Raises:
        InputError: the name is none, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_name(name)
    try:
        api = HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of prefinetune")
    except Exception as error:  # every failure of the hub's client is one message
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"--push: {name} was not uploaded ({reason}). {folder} is complete; after `hf auth login`, where that was missing, "
            f"`hf upload {name} {folder}` goes on"
        ) from error
    return str(address)
