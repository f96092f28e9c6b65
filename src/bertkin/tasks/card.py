"""The card of a fine-tuned model: model/README.md, with the front matter that transformers' models have.

What it is, what it scores and how surely, how to use it, and the command that makes it again. What nobody told us, such
as a licence or a language, is not there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bertkin.config import AUTO
from bertkin.models.adapt import trainable
from bertkin.models.configs import OURS
from bertkin.models.many import STOCK
from bertkin.tasks.gathering import Gathered
from bertkin.tasks.hub import named
from bertkin.tasks.task import Task
from bertkin.tasks.tuning import Tuning
from bertkin.tasks.weighing import HAVE
from bertkin.train.folder import RECIPE

PIPELINES = {
    "class": "text-classification", "classes": "text-classification", "score": "text-classification",
    "choice": "multiple-choice", "tokens": "token-classification", "span": "question-answering",
    "sequence": "text2text-generation",
}  # fmt: skip
"""What the hub calls a task."""
GUESSED = ("model", "data", "train.batch_tokens", "train.length")
"""Fields that are arguments, or that nothing reads."""
PYTHON = ("strategy.matrices", "strategy.seed")
"""Fields that have no option."""


def card(found: Gathered, model: nn.Module, out: Path, told: Mapping[str, Any], of: str = "") -> str:
    """The card as Markdown.

    Args:
        model: as it is saved.
        out: the run folder; its model/ is there.
        told: what `bertkin.tasks.concluding.conclude` found: dev, and perhaps test.
        of: the task's name, where several were trained together.
    """
    tuning, task = found.tuning, found.task
    name, folder = of or out.resolve().name, out / "model" / of
    trained, parameters = trainable(model)
    stock, data = source(found.stock), ", ".join(map(_data_name, tuning.data))
    budgets = [(getattr(tuning.train, unit), unit) for unit in ("steps", "tokens", "epochs", "minutes")]
    budget = next(f"{amount:g} {unit}" for amount, unit in budgets if amount)
    facts = {
        "task": str(task),
        "labels": ", ".join(f"`{label}`" for label in task.labels[:40]).replace("|", r"\|")
        + (" …" if len(task.labels) > 40 else ""),
        "begun from": f"`{stock}`",
        "data": f"`{data}`: {len(found.train.examples):,} examples to train with, {told['dev']['examples']:,} to measure on",
        "trained": f"{tuning.strategy.kind}: {trained:,} of {parameters:,} parameters",
        "how long": f"{budget}{' of all tasks' * bool(of)}, {tuning.batch} examples a step, "
        f"a rate of {tuning.train.lr:g}, seed {tuning.train.seed}",
        "reads": f"up to {tuning.length:,} tokens"
        + (f", in at most {tuning.windows} windows" if tuning.windows > 1 else "")
        + (f", pooling {tuning.pooling}" if task.output in HAVE["pooling"] else ""),
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    degenerate = told["dev"]["degenerate"]
    warning = f"\nIt answers {degenerate} everywhere: it has not learnt the task.\n" if degenerate else ""
    use = f"bertkin predict {shlex.quote(shown(out))}{f' --task {shlex.quote(of)}' if of else ''} {_asked(task)}"
    again = f"```\n{command(tuning, found.stock, out)}\n```\n{_besides(tuning)}"
    if of:
        again = f"It was trained together with other tasks; every choice is in `{shown(out / RECIPE)}`.\n"
    parts = [
        f"---\n{_front(found, folder, name, told)}---\n",
        f"# {name}\n\nA model fine-tuned with bertkin.\n\n| | |\n|---|---|\n{rows}\n",
        f"## Scores\n\n{_scores(told)}\n{warning}",
        f"## Use\n\n```\n{use}\n```\n{_transformers(task, folder, stock, of, tuning.writes)}",
        f"## Make it again\n\n{again}",
    ]
    return "\n".join(parts)


def merged(
    before: str, task: Task, light: str | Path, out: Path, writes: int = 0, moved: str | Path | None = None
) -> str:
    """The card of a model whose changes were folded into its stock: what `card` said of it before, used and made otherwise.

    Args:
        before: the card of the light model; of any other than `card` wrote, nothing is known: "".
        light: its folder or run, as it was named.
        out: the merged model's folder; it is there.
        writes: most tokens of a written answer.
        moved: where the stock lies, if not where the light model says.
    """
    import yaml

    parted = re.fullmatch(r"---\n(.*?\n)---\n(.*)", before, re.DOTALL)
    try:
        told = yaml.safe_load(parted[1]) if parted is not None else None
    except yaml.YAMLError:
        told = None
    head, *sections = re.split(r"^(?=## )", parted[2], flags=re.MULTILINE) if parted is not None else [""]
    names = [section.partition("\n")[0] for section in sections]
    if not isinstance(told, dict) or "base_model" not in told or not {"## Use", "## Make it again"} <= {*names}:
        return ""
    use = f"```\nbertkin predict {shlex.quote(shown(out))} {_asked(task)}\n```\n"
    stock = str(told["base_model"])
    where = f" --stock {shlex.quote(shown(moved))}" if moved is not None else ""
    made = f"bertkin merge {shlex.quote(shown(light))} --out {shlex.quote(shown(out))}{where}"
    folded = f"Measured before its changes were folded into `{stock}`, which moves answers by rounding alone.\n\n"
    told |= {"library_name": _library(out)}
    for at, name in enumerate(names):
        if name == "## Use":
            sections[at] = f"{folded}## Use\n\n{use}{_transformers(task, out, stock, writes=writes)}\n"
        elif name == "## Make it again":
            sections[at] = f"{sections[at].rstrip()}\n\nand then\n\n```\n{made}\n```\n"
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---\n{head}{''.join(sections)}"


def source(stock: Path) -> str:
    """How a model is called: its hub id where it came from there, else where it lies."""
    match = re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]", f"{stock}/")
    return match[1].replace("--", "/", 1) if match else shown(stock)


def _data_name(path: str) -> str:
    """How labelled data are called: by the hub's name where they came from there, else where they lie."""
    name = named(path)
    return name if name != path else shown(path)


def shown(path: str | Path) -> str:
    """A path as one would type it here: without the folder we are in."""
    full = Path(path).absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else os.fspath(path)


def _front(found: Gathered, folder: Path, name: str, told: Mapping[str, Any]) -> str:
    """What the hub reads of a card."""
    import yaml

    task = found.task
    base = source(found.stock)
    if base == shown(found.stock):  # a folder of ours: its run's name, not the way to it
        base = found.stock.parent.name if found.stock.name == "model" else found.stock.name
    path = found.tuning.data[0]
    called = named(path)
    data = called.partition(":")[0] if called != path else Path(path).resolve().name
    scores = [
        {"type": metric, "value": score["value"], "name": f"{metric} ({part})"}
        for part in ("dev", "test")
        for metric, score in told.get(part, {}).get("scores", {}).items()
    ]
    kind = {"type": PIPELINES[task.output]}
    result = {"task": kind, "dataset": {"type": data, "name": data}, "metrics": scores}
    front = {
        "base_model": base,
        "library_name": _library(folder),
        "pipeline_tag": PIPELINES[task.output],
        "tags": ["bertkin", PIPELINES[task.output], found.tuning.strategy.kind],
        "metrics": list(told["dev"]["scores"]),
        "model-index": [{"name": name, "results": [result]}],
    }
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))


def _library(folder: Path) -> str:
    """What opens a model folder, as the hub calls it."""
    if (folder / "adapter_config.json").exists():
        return "peft"
    config = folder / "config.json"
    return "transformers" if config.exists() and OURS not in config.read_text(encoding="utf-8") else "bertkin"


def _scores(told: Mapping[str, Any]) -> str:
    """Every metric with its interval, on dev and test."""
    parts = [part for part in ("dev", "test") if part in told]
    head = "".join(f" {part} ({told[part]['examples']:,} examples) | 95% interval |" for part in parts)
    lines = [f"| metric |{head}", "|---|" + "---:|---:|" * len(parts)]
    for name in told["dev"]["scores"]:
        cells = ""
        for part in parts:
            score = told[part]["scores"][name]
            between = "" if score["low"] is None else f"{score['low']:.4f} – {score['high']:.4f}"
            cells += f" {score['value']:.4f} | {between} |"
        lines.append(f"| {name} |{cells}")
    said = "An interval is where the score lies for 95% of sets drawn, with replacement, from the same examples."
    return "\n".join([*lines, "", said])


def _asked(task: Task) -> str:
    """A question in the form the task takes."""
    count = task.inputs + (task.output == "choice")
    names = ["A text."] if count == 1 else [f"Text {at + 1}." for at in range(count)]
    if task.output == "span" and count == 2:
        names = ["A question?", "A text that holds the answer."]
    return '"' + names[0] + '"' if len(names) == 1 else "$'" + r"\t".join(names) + "'"


def _transformers(task: Task, folder: Path, stock: str, of: str = "", writes: int = 0) -> str:
    """How transformers opens a folder, where it does.

    Args:
        stock: what it was begun from, as it is called.
        of: the task's name, where several were trained together.
        writes: most tokens of a written answer.
    """
    if (folder / "adapter_config.json").exists():
        return (
            "\nThe changes of a LoRA, as PEFT keeps them"
            + ("" if of else "; `bertkin finetune … --merge` makes a whole model of them")
            + ".\n"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        apart = next((place / STOCK for place in (folder, folder.parent) if (place / STOCK).is_dir()), None)
        if apart is not None:
            told = "is the encoder as it was trained, what was put around it is beside; bertkin joins them"
            return f"\n`{shown(apart)}` {told}.\n"
        return f"\nOnly what changed in `{stock}` is here; bertkin puts it on again.\n"
    names = config.get("architectures") or [""]
    end = re.search(r"For[A-Z]\w+$|LMHeadModel$|EncoderDecoderModel$", names[0])
    odd = task.output == "sequence" and end is not None and end[0] == "ForMaskedLM"  # who sees whom is not said there
    if config.get("model_type") == OURS or end is None or odd:
        return ""
    auto = {"LMHeadModel": "ForCausalLM"}.get(end[0], end[0])
    auto = "ForSeq2SeqLM" if end[0] in ("ForConditionalGeneration", "EncoderDecoderModel") else auto
    where = json.dumps(shown(folder), ensure_ascii=False)
    asked = '"A text."' if task.inputs == 1 else ", ".join(f'"Text {at + 1}."' for at in range(task.inputs))
    read = f'tokenizer({asked}, return_tensors="pt")'
    use = "" if task.output in ("choice", "sequence") else f"outputs = model(**{read})\n"
    if auto == "ForSeq2SeqLM":
        use = f"ids = model.generate(**{read}, max_new_tokens={writes})\n"
        use += "print(tokenizer.decode(ids[0], skip_special_tokens=True))\n"
    return (
        f"\n```python\nfrom transformers import AutoModel{auto}, AutoTokenizer\n\n"
        f"model = AutoModel{auto}.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n{use}```\n"
    )


def command(tuning: Tuning, stock: Path, out: Path) -> str:
    """The command that makes a run again: every option that is not as it is by default, those that were measured or
    filled in among them, so that it holds when the defaults change."""
    words = ["bertkin finetune", shlex.quote(source(stock)), *(shlex.quote(_data_name(path)) for path in tuning.data)]
    options = [f"--out {shlex.quote(shown(out))}"]
    for name, value in differing(tuning):
        if name in PYTHON:
            continue
        flag = "--" + name.replace("_", "-").removesuffix(".kind")
        if value is True:
            options.append(flag)
        elif value is False:
            room, _, last = flag[2:].rpartition(".")
            options.append(f"--{room}.no-{last}" if room else f"--no-{last}")
        else:
            text = shown(value) if name in ("dev", "test") else format(value, "g") if _short(value) else str(value)
            options.append(f"{flag} {shlex.quote(text)}")
    return " \\\n  ".join([" ".join(words), *options])


def _short(value: Any) -> bool:
    """Whether a number loses nothing written short."""
    return isinstance(value, float) and float(format(value, "g")) == value


def differing(tuning: Any, usual: Any = None, room: str = "") -> list[tuple[str, Any]]:
    """The fields of a recipe that are not as they are by default, in order, by name."""
    usual = type(tuning)() if usual is None else usual
    found: list[tuple[str, Any]] = []
    for field in fields(tuning):
        name, value, default = f"{room}{field.name}", getattr(tuning, field.name), getattr(usual, field.name)
        if is_dataclass(value):
            found += differing(value, default, f"{name}.")
        elif name not in GUESSED and value is not AUTO and value != default:
            found.append((name, value))
    return found


def _besides(tuning: Tuning) -> str:
    """What the command cannot say."""
    odd = [f"`{name}` = {value!r}" for name, value in differing(tuning) if name in PYTHON]
    return f"\nand, which has no option: {', '.join(odd)}.\n" if odd else ""
