"""The model card of a run, as the README.md of its model's folder: what the model is, what it was made from and under which
licences, what it hurt and what it helped, and how to make it again. It reads files only.

The metadata on top are built by `huggingface_hub`, read back by it, and compared. Whatever others wrote (names, licences, labels,
commands) is text: it ends no table, begins no HTML and adds no field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefinetune import launcher
from prefinetune.emissions import FILE as EMISSIONS
from prefinetune.environment import without_home
from prefinetune.errors import InputError, listing
from prefinetune.families import FAMILIES
from prefinetune.files import read_records, write
from prefinetune.judged import evidence_beside, read_evidence
from prefinetune.licenses import TERMS, together
from prefinetune.markdown import Raw, called, escaped, fenced, last_part, linked, number, one_line, table
from prefinetune.safety import visible, without_secrets

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from prefinetune.report.read import Run
    from prefinetune.sources import Hub
    from prefinetune.statistics import Effect

# What a class's name ends with, and so does the AutoModel that loads it -> the pipeline that Transformers has for it.
HEADS: Mapping[str, str | None] = {
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask", "ForQuestionAnswering": None, "ForMultipleChoice": None,
}  # fmt: skip
METRICS = {"rougeL": "rouge", "pearson": "pearsonr", "micro_f1": "f1"}  # ours -> the hub's, where they differ
LEFT_OUT = {  # rule -> what the rows that it took out were; see quarantine.RULES
    "leak": "showed evaluation rows", "quarantined": "of no use", "overlap": "overlapping", "skip": "without a label",
    "held_out": "held out", "max_rows": "beyond data.max_rows",
}  # fmt: skip
VERDICTS = {"harm": "Hurt", "unclear": "Not clearly different", "gain": "Helped"}  # in the order of the card
LEAKS = {  # data.leaks -> what that means for the scores
    "drop": "Training rows that show evaluation rows of the same run were left out; what the first model had read is not known.",
    "report": "Training rows that show evaluation rows were counted and left in: scores may be too good.",
    "off": "Nobody looked for training rows that show evaluation rows: scores may be too good.",
}
MUPPET = """@inproceedings{aghajanyan-etal-2021-muppet,
  title = "Muppet: Massive Multi-task Representations with Pre-Finetuning",
  author = "Aghajanyan, Armen and Gupta, Anchit and Shrivastava, Akshat and Chen, Xilun and Zettlemoyer, Luke and Gupta, Sonal",
  booktitle = "Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing",
  year = "2021",
  url = "https://aclanthology.org/2021.emnlp-main.468",
  eprint = "2101.11038",
  archivePrefix = "arXiv",
}"""
R3F = "R3F: Aghajanyan et al. 2020, arXiv 2008.03156"


def write_card(
    run: str | Path,
    folder: str | Path,
    *,
    task: str | None = None,
    evidence: Sequence[str | Path] | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the card of a model that a run made. Of several processes the main one writes.

    Args:
        run: the folder of a train or finetune run.
        folder: of the model, with its config.json; the card becomes its README.md.
        task: the one whose head the model has, where the run had several.
        evidence: folders of comparisons and studies that judge the run; None takes those that stand beside it.
        out: another file for the card.

    Raises:
        InputError: the run or the model is not there or damaged, has no such task, or evidence is of another run.
    """
    page = Path(out) if out else Path(folder) / "README.md"
    if launcher.is_main():
        text = Card(Path(run), Path(folder), task, None if evidence is None else list(map(Path, evidence))).text()
        page.parent.mkdir(parents=True, exist_ok=True)
        write(page, text)
    return page


# ---- what a model went through


@dataclass(frozen=True)
class Stage:
    """One run of those behind a model."""

    run: Run
    entries: Sequence[Mapping[str, Any]]  # tasks, as suite.yaml has them
    commit: str | None  # of the hub model that it started from; None for a folder, and in runs of older versions

    @property
    def last(self) -> Mapping[str, Any]:
        """A record that tells how long it was trained."""
        return self.run.results[0] if self.run.results else {}

    def rows(self, entry: Mapping[str, Any]) -> int | None:
        """Rows that a task was trained on: of few labels, those."""
        labels = self.last.get("labels")
        return labels if isinstance(labels, int) else entry.get("rows", {}).get("train", {}).get("stored")


def read_stage(folder: Path) -> Stage:
    """A run.

    Raises:
        InputError: it is none, or its files are damaged.
    """
    from prefinetune.report.read import read_run

    if not (folder / "run.json").exists():
        raise InputError(f"{folder} is no run (no run.json); expected the folder that `prefinetune train` or `finetune` wrote")
    run = read_run(folder, folder.resolve().name)
    if run.damaged or not run.tasks:
        raise InputError(f"{folder}: {'; '.join(run.problems) or 'suite.yaml names no task'}; its card cannot be written")
    suite = yaml.safe_load((folder / "suite.yaml").read_text(encoding="utf-8"))
    return Stage(run, suite["tasks"], suite.get("commit"))


def hub_of(entry: Mapping[str, Any]) -> Hub | None:
    """The set of the hub that a task's rows are of, also where they came from a mirror."""
    from prefinetune.sources import Hub
    from prefinetune.task import read_source

    told = entry.get("origin", entry["source"])
    found = read_source(told, Path(), entry["name"]) if isinstance(told, str) and re.match("hub:.", told) else None
    return found if isinstance(found, Hub) else None


# ---- the card


class Card:
    """A card while it is written: one method per section."""

    def __init__(self, run: Path, folder: Path, task: str | None, evidence: Sequence[Path] | None) -> None:
        from prefinetune.lineage import line_of

        self.folder = folder
        self.stage = read_stage(run)
        earlier = line_of(self.stage.run.model)
        self.stages, self.unread = [self.stage], list[str]()  # the first one first; what of earlier runs cannot be read
        for one in earlier:
            try:
                self.stages.insert(0, read_stage(one))
            except InputError as problem:
                self.unread.append(str(problem))
        try:
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{folder} holds no model (no config.json that can be read); a run has one once it is finished with --resume"
            ) from None
        names = [entry["name"] for entry in self.stage.entries]
        if task is not None and task not in names:
            raise InputError(f"no task {task!r} in {run}; it has {listing(names)}")
        self.task = names[0] if self.stage.run.kind == "finetune" else task  # whose head the model has
        self.name = visible(without_secrets(self.stage.run.name))
        runs = [run, *earlier]
        self.evidence = [read_evidence(one, runs) for one in (evidence_beside(runs) if evidence is None else evidence)]
        entries = [entry for stage in self.stages for entry in stage.entries]
        self.datasets = list(dict.fromkeys(hub.id for entry in entries if (hub := hub_of(entry)) and hub.id))
        told = [(entry["name"], str(entry.get("license", "unknown"))) for entry in entries]
        self.licenses = together([*told, *(("the data of an earlier run", "unknown") for _ in self.unread)])
        self.architecture = next(iter(self.config.get("architectures") or ()), "")
        self.family = next((FAMILIES[kind] for kind in FAMILIES for entry in self.stage.entries
                            if entry["name"] == self.task and kind in entry), None)  # fmt: skip

    def text(self) -> str:
        """The whole card; what the hub's client reads out of it is what was put in."""
        from huggingface_hub import ModelCard

        sections = [
            self.head(), self.use(), self.changes(), self.scores(), self.making(), self.data(), self.licences(), self.limits(),
            self.surroundings(), self.sources(),
        ]  # fmt: skip
        data = self.metadata()
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")
        assert card.data.to_dict() == data.to_dict(), "the card's metadata do not read back as they were written"
        return str(card)

    # -- metadata

    def metadata(self) -> ModelCardData:
        from huggingface_hub import ModelCardData

        base = self.stages[0].run.model if self.stages[0].commit else None
        results = self.results()
        return ModelCardData(
            license=self.licenses.hub_id,
            base_model=base,
            base_model_relation="finetune" if base else None,
            library_name="transformers",
            pipeline_tag=self.family.hub_task if self.family else "feature-extraction",
            tags=["prefinetune", "pre-finetuning", "multi-task"],
            datasets=self.datasets or None,
            metrics=sorted({one.metric_type for one in results}) or None,
            model_name=self.name,
            eval_results=results or None,
        )

    def results(self) -> list[EvalResult]:
        """The scores as the hub holds them. It groups them by set and split, so that the task is named with the metric."""
        from huggingface_hub import EvalResult

        entries = {entry["name"]: entry for entry in self.stage.entries}
        found = []
        for record in self.scored():
            entry, hub = entries[record["task"]], hub_of(entries[record["task"]])
            name = visible(one_line(record["task"]))
            split = entry.get("splits", {}).get(record.get("split"), "")
            found.append(
                EvalResult(
                    task_type=FAMILIES[record["family"]].hub_task,
                    dataset_type=(hub and hub.id) or f"{name} (not on the hub)",  # a bare name could be somebody else's set
                    dataset_name=(hub and hub.id) or name,
                    dataset_config=hub.config if hub else None,
                    dataset_revision=hub.revision if hub else None,
                    dataset_split=split if re.fullmatch(r"[\w.\-\[\]%:+]+", split) else None,
                    metric_type=METRICS.get(record["metric"], record["metric"]),
                    metric_name=f"{record['metric']} of {name}",
                    metric_value=record["score"],
                )
            )
        return found

    def scored(self) -> list[Mapping[str, Any]]:
        """The results that are of this model."""
        names = [entry["name"] for entry in self.stage.entries]
        records = [one for one in self.stage.run.results if one["task"] in names and one.get("family") in FAMILIES]
        return [one for one in records if self.task in (None, one["task"])]

    # -- sections

    def head(self) -> str:
        what = f"A {escaped(self.config.get('model_type', 'model'))} model"
        size = self.config.get("hidden_size") or self.config.get("d_model")
        layers = self.config.get("num_hidden_layers") or self.config.get("encoder_layers")
        if isinstance(size, int) and isinstance(layers, int):
            what += f" ({layers} layers × {size})"
        root, folder = self.stages[0], Path(self.stages[0].run.model)
        base = f"a model that was in the folder {escaped(called(folder.absolute()))}"
        if root.commit:
            base = f"[{escaped(root.run.model)}](https://huggingface.co/{root.run.model}) at commit {root.commit[:8]}"
        parts = [f"{what}, made from {base} with prefinetune:"]
        for stage in self.stages:
            count = len(stage.entries)
            examples, updates = stage.last.get("examples"), stage.run.updates
            seen = f", {examples:,} examples in {updates:,} updates" if isinstance(examples, int) else ""
            done = "pre-finetuned" if stage.run.kind == "train" else "fine-tuned"
            parts.append(f"- {done} on {count:,} dataset{'s at once' * (count > 1)}{seen}")
        hurt = [one for each in self.evidence for one in each.findings if one.effect.verdict == "harm"]
        if hurt:
            parts.append(f"\n**It hurts {len(hurt)} of what it was judged on; see below.**")
        return f"# {escaped(self.name)}\n\n" + "\n".join(parts)

    def use(self) -> str:
        head = next((one for one in HEADS if self.architecture.endswith(one)), None)
        generates = self.architecture.endswith("ForConditionalGeneration")
        auto = f"AutoModel{head}" if head else "AutoModelForSeq2SeqLM" if generates else "AutoModel"
        lines = [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            'folder = "."  # this folder, or the name that it has on the hub',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {auto}.from_pretrained(folder)",
        ]
        if head and HEADS[head]:
            lines[0] += ", pipeline"
            lines += [f'answer = pipeline("{HEADS[head]}", model=model, tokenizer=tokenizer)']
        elif self.family is None:
            trunk = "model.get_encoder()" if self.config.get("is_encoder_decoder") else "model"
            lines += [f'states = {trunk}(**tokenizer("A text.", return_tensors="pt")).last_hidden_state  # [1, tokens, size]']
        text = f"## Use\n\n{fenced(chr(10).join(lines), 'python')}"
        if self.family is None:
            where = "lie in the run's folder; `prefinetune export` writes the model of a task with its head"
            if (self.folder / "heads").is_dir():
                where = "are in this folder, too: `prefinetune.load(folder).predict(task, rows)`"
            text += f"\n\nThis is the trunk, to be fine-tuned. The heads of its tasks {where}."
        labels = self.config.get("id2label") or {}
        if head and len(labels) > 1:
            text += f"\n\nIts answers are {listing(map(escaped, labels.values()), 30)}."
        return text

    def changes(self) -> str:
        """Harms first, over all comparisons and studies."""
        parts = ["## What pre-finetuning changed"]
        if not self.evidence:
            return parts[0] + (
                "\n\nNot known: no comparison with the model that it was made from stands beside this run. `prefinetune compare` "
                "makes one."
            )
        parts += [f"{escaped(f'{one.name} is {one.told}')}. Intervals are of 95 %." for one in self.evidence]
        every = sorted(
            ((one.name, finding) for one in self.evidence for finding in one.findings), key=lambda pair: pair[1].effect.mean
        )
        for verdict, title in VERDICTS.items():
            rows = [
                (f.task, f.at, f.metric, f"{f.base:.3f}", f"{f.score:.3f}", f"{f.effect.mean:+.3f}", interval(f.effect), name)
                for name, f in every
                if f.effect.verdict == verdict
            ]
            header = ("task", "labels", "metric", "without", "with", "difference", "95 % interval", "found by")
            if rows:
                parts.append(f"### {title}\n\n{table(header, rows)}")
            elif verdict == "harm":
                parts.append(f"### {title}\n\nNothing whose interval lies below zero, of {len(every)} differences.")
        parts.append("\n".join(f"- {escaped(sentence)}" for one in self.evidence for sentence in one.sentences))
        if missing := sum(one.missing for one in self.evidence):
            parts.append(f"{missing} parts that were planned are missing.")
        return "\n\n".join(filter(None, parts))

    def scores(self) -> str:
        rows = []
        for record in sorted(self.scored(), key=lambda one: one["task"]):
            majority = record.get("scores", {}).get("majority")
            shown = "" if majority is None else f"{majority:.3f}"
            split, count = record.get("split", ""), record.get("rows")
            rows.append((record["task"], record["metric"], f"{record['score']:.3f}", shown, split, number(count)))
        if not rows:
            return "## Scores\n\nThere are none."
        header = ("task", "metric", "score", "majority class", "split", "rows")
        return f"## Scores\n\nOf this one run, with one seed; no interval.\n\n{table(header, rows)}"

    def making(self) -> str:
        parts = ["## How it was made"]
        for at, stage in enumerate(self.stages, 1):
            if len(self.stages) > 1:
                parts.append(f"### Stage {at}: {escaped(stage.run.name)}")
            settings = stage.run.config
            mixture, objective = settings.get("mixture", {}), settings.get("objective", {})
            cap, r3f = mixture.get("cap"), objective.get("r3f")
            told = [
                f"{mixture.get('sampling')} sampling" + (f", at most {cap:,} examples of a task" if cap else ""),
                f"{mixture.get('order')} order",
                f"updates of {mixture.get('sub_batches')} sub-batches of {mixture.get('sub_batch_size')} examples",
                "losses divided by the logarithm of the number of outcomes"
                if objective.get("scaling") == "log"
                else "losses as they are",
                f"{objective.get('balancing')} balancing",
                *([f"R3F with weight {r3f:g}"] if r3f else []),
                f"peak learning rate {settings.get('optimizer', {}).get('learning_rate')}",
                f"seed {settings.get('seed')}",
            ]
            parts.append(f"Trained with {escaped('; '.join(told))}.")
            shown = fenced(yaml.safe_dump(settings, sort_keys=False), "yaml")
            parts.append(f"<details><summary>All settings</summary>\n\n{shown}\n\n</details>")
            command = stage.run.environment.get("command")
            if isinstance(command, str) and command:
                parts.append(fenced(visible(without_home(without_secrets(command))), "bash"))
            else:
                parts.append("It was started from Python and not by a command.")
        return "\n\n".join(parts)

    def data(self) -> str:
        parts = [
            "## Data",
            *(f"An earlier run cannot be read, so that its data are not known: {escaped(one)}" for one in self.unread),
        ]
        for at, stage in enumerate(self.stages, 1):
            if len(self.stages) > 1:
                parts.append(f"### Of stage {at}")
            shares, counted = stage.run.shares()
            rows = []
            for entry in stage.entries:
                kind = next((kind for kind in FAMILIES if kind in entry), "")
                account = entry.get("rows", {}).get("train", {})
                out = ", ".join(f"{account[rule]:,} {words}" for rule, words in LEFT_OUT.items() if account.get(rule))
                share = shares.get(entry["name"])
                rows.append(
                    (entry["name"], kind, Raw(origin_cell(entry)), number(stage.rows(entry)), out,
                     f"{share[0]:.1%}" if share else "", entry.get("license", "unknown"))
                )  # fmt: skip
            total = sum(stage.rows(entry) or 0 for entry in stage.entries)
            seen = "share of examples seen" if counted else "share of examples expected"
            parts.append(table(("dataset", "family", "rows of", "rows trained on", "left out", seen, "licence"), rows))
            parts.append(f"{total:,} rows in {len(rows):,} dataset{'s' * (len(rows) > 1)}.")
        return "\n\n".join(parts)

    def licences(self) -> str:
        every, parts = self.licenses, ["## Licences of the data"]
        if every.strictest:
            terms = every.strictest[0].terms or ()
            named = " and ".join(f"**{escaped(one.text)}**" for one in every.strictest)
            asks = f" ({', '.join(terms)})" if terms else ""
            parts.append(f"The most restrictive that {'is' if len(every.strictest) == 1 else 'are'} known: {named}{asks}.")
        lines = [f"- {term}: {listing(map(escaped, names), 200)}" for term, names in every.terms.items() if term != "credit"]
        if every.unknown:
            count, size = len(every.unknown), len(every.unknown) + len(every.known)
            names = listing(map(escaped, every.unknown), 200)
            lines.append(
                f"- **not known, or in words that tell nothing of it: {count:,} of {size:,}** ({names}). What these allow is to "
                "be found out before the model is used or shared."
            )
        parts.append("\n".join(lines))
        absent = [term for term in TERMS if term not in every.terms and term != "credit"]
        if absent and not every.unknown:
            parts.append(f"None of them is {' or '.join(absent)}.")
        parts.append(
            "This is what the datasets' records say. The licence of the model that it was made from holds beside it and is not "
            "known to this card; whether a model is a derivative of its data is not for a card to decide."
        )
        return "\n\n".join(filter(None, parts))

    def limits(self) -> str:
        lines = []
        of_majority = [(one, one.get("scores", {}).get("majority")) for one in self.scored()]
        if poor := [one["task"] for one, majority in of_majority if majority is not None and one["score"] <= majority]:
            lines.append(f"No better than always giving the most frequent answer: {listing(map(escaped, poor), 50)}.")
        lines += [
            "One run with one seed: another seed gives other numbers.",
            "It has learned whatever errors, biases and offensive texts are in its datasets and in the model before it.",
            "In which languages its data are is not recorded.",
        ]
        entries = [(entry["name"], entry.get("store", {})) for stage in self.stages for entry in stage.entries]
        if cut := [name for name, store in entries if store.get("truncated", 0) > 0.01 * store.get("examples", 0)]:
            lines.append(
                f"Texts longer than it reads were cut in more than one of a hundred examples: {listing(map(escaped, cut), 50)}."
            )
        lines.append(LEAKS.get(str(self.stage.run.config.get("data", {}).get("leaks")), LEAKS["off"]))
        return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)

    def surroundings(self) -> str:
        around = self.stage.run.environment
        told = {
            "Python": around.get("python"),
            "system": around.get("platform"),
            "computed on": ", ".join(map(str, around.get("devices") or ())) or None,
            "cores": around.get("cores"),
            "started": around.get("started"),
            "seconds in updates": number(self.stage.last.get("seconds")) or None,
            **around.get("packages", {}),
        }
        lines = [f"- {escaped(name)}: {escaped(value)}" for name, value in told.items() if value]
        if used := read_records(self.stage.run.folder / EMISSIONS):
            kwh, kilograms, seconds = (sum(one[name] for one in used) for name in ("kwh", "kg_co2e", "seconds"))
            lines.append(
                f"- energy: {kwh:.3g} kWh, {1000 * kilograms:.3g} g of CO2 equivalents, estimated by {escaped(used[-1]['by'])} "
                f"for the whole machine over {seconds:,.0f} s (electricity of: {escaped(used[-1]['mix'])})"
            )
        return "## Environment\n\n" + "\n".join(lines)

    def sources(self) -> str:
        cited: dict[str, list[str]] = {}
        for entry in (entry for stage in self.stages for entry in stage.entries):
            if entry.get("cite"):
                cited.setdefault(str(entry["cite"]), []).append(entry["name"])
        lines = [f"- {escaped(listing(names, 50))}: {linked(cite)}" for cite, names in cited.items()]
        if any(stage.run.config.get("objective", {}).get("r3f") for stage in self.stages):
            lines.append(f"- {linked(R3F)}")
        return f"## Citations\n\nThe method:\n\n{fenced(MUPPET, 'bibtex')}" + ("\n\nThe data:\n\n" + "\n".join(lines)) * bool(
            lines
        )


def origin_cell(entry: Mapping[str, Any]) -> str:
    """Where a dataset's rows are: on the hub with the revision, or what its file was called; no path of the user's."""
    hub = hub_of(entry)
    if hub is not None:
        config = f", {escaped(hub.config)}" if hub.config else ""
        at = f"at {escaped(hub.revision[:40])}" if hub.revision else "revision not pinned"
        return f"[{escaped(hub.id)}](https://huggingface.co/datasets/{hub.id}){config}, {at}"
    told = entry.get("origin", entry["source"])
    paths = list(told.values()) if isinstance(told, Mapping) else [told]
    is_path = not str(told).startswith(("tasksource:", "rows in memory", "hub:"))
    return escaped(listing(last_part(path) if is_path else path for path in paths))


def interval(effect: Effect) -> str:
    return "none" if effect.low is None or effect.high is None else f"{effect.low:+.3f} to {effect.high:+.3f}"
