"""Suites of tasks, and where their data lie: in a folder, or on the hub.

    read_suite("glue", folder)      the tasks that are there, each as a recipe without a model
    entries_of("mine.yaml")         the tasks of a suite, there or not

A suite is data: `SUITES` has those that are known, others are a YAML file of such rows. `bertkin.tasks.evaluating` runs them.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertkin.config import from_mapping, load_yaml
from bertkin.errors import UserError, nearest
from bertkin.tasks.hub import PLACE, fetch
from bertkin.tasks.tuning import Tuning


@dataclass(frozen=True)
class Entry:
    """A task of a suite.

    Attributes:
        name: as the table has it.
        data: folder or file, inside the suite's folder.
        metric: what is reported; "" for the task's own.
        options: further fields of `bertkin.tasks.tuning.Tuning`, such as text, text2, label, length.
        human: what people score, on the metric's own scale from 0 to 1, where that was measured.
        beside: further metrics of the same answers, and what people score; each has a row, and they count in a mean together.
        parts: further development data, by the names of their files: what the table calls them, and what people score.
        also: another name that its folder goes by.
        hub: where the hub has it, as `bertkin.tasks.hub.fetch` takes it.
    """

    name: str
    data: str
    metric: str = ""
    options: Mapping[str, Any] | None = None
    human: float | None = None
    beside: Mapping[str, float | None] | None = None
    parts: Mapping[str, tuple[str, float | None]] | None = None
    also: str = ""
    hub: str = ""


FOLDER = re.compile(r"\w[\w .+-]*")
"""What a task may be called, as its runs lie in a folder of that name."""


def _glue(name: str, metric: str, human: float, **more: Any) -> Entry:
    also = name.replace("-", "").lower()  # as the hub calls it
    return Entry(name, name, metric, human=human, also=also, hub=f"nyu-mll/glue:{also}", **more)


GLUE = (
    _glue("CoLA", "matthews", 0.664),
    _glue("SST-2", "accuracy", 0.978),
    _glue("MRPC", "f1", 0.863, beside={"accuracy": 0.808}),
    _glue("STS-B", "pearson_spearman", 0.927),
    _glue("QQP", "f1", 0.595, beside={"accuracy": 0.804}, options={"skip_bad": True}),  # a few of its rows are cut off
    _glue("MNLI", "accuracy", 0.920, parts={"dev_mismatched": ("MNLI-mm", 0.928)}),
    _glue("QNLI", "accuracy", 0.912),
    _glue("RTE", "accuracy", 0.936),
    _glue("WNLI", "accuracy", 0.959),
)
"""The tasks of Wang et al. (2018), each with its official metric; what people score is from Nangia & Bowman (2019)."""
SQUAD = (
    Entry(
        "SQuAD-1.1", "train-v1.1.json", "answer_f1", {"dev": "dev-v1.1.json"}, 0.912, hub="rajpurkar/squad:plain_text"
    ),
    Entry(
        "SQuAD-2.0", "train-v2.0.json", "answer_f1", {"dev": "dev-v2.0.json"}, 0.895, hub="rajpurkar/squad_v2:squad_v2"
    ),
)
"""Questions on Wikipedia (Rajpurkar et al. 2016; 2018); what people score is from their page of results."""
CMRC = (
    Entry("CMRC-2018", "cmrc2018_train.json", "cmrc_f1", {"dev": "cmrc2018_dev.json"}, 0.973, hub="hfl/cmrc2018:*"),
    Entry("CMRC-2018-trial", "cmrc2018_dev.json", "cmrc_f1", {"dev": "cmrc2018_trial.json"}),
)
"""Chinese questions (Cui et al. 2019). The second is for those who have no training data: it is trained on the development
data and measured on the trial ones, so its score is not to be compared with published ones."""
UD = (
    Entry("UD-English-EWT", "UD_English-EWT", "accuracy", also="English-EWT"),
    Entry("UD-Chinese-GSD", "UD_Chinese-GSD", "accuracy", also="Chinese-GSD"),
)
"""Parts of speech (Nivre et al. 2020)."""
NER = (Entry("WNUT-17", "wnut17", "span_f1", hub="leondz/wnut_17:wnut_17"), Entry("Resume-zh", "resume-zh", "span_f1"))
"""Entities (Derczynski et al. 2017; Zhang & Yang 2018)."""
DNA = (Entry("splice", "splice.csv", "accuracy"), Entry("promoters", "promoters.data", "accuracy"))
"""What is not language: splice junctions and promoters of the UCI repository; a tenth is held out, by a hash."""
SUITES = {"glue": GLUE, "squad": SQUAD, "cmrc": CMRC, "ud": UD, "ner": NER, "dna": DNA}
"""By name. The tasks of all of them together are `core`, whose data lie in a folder a suite."""
FOLDERS = {"cmrc": "cmrc2018"}
"""What a suite's folder is called inside that of `core`, where it is not as the suite."""


def read_suite(suite: str | Path, folder: str | Path | None = None, only: Sequence[str] = ()) -> dict[str, Tuning]:
    """The tasks of a suite, each as a recipe without a model: of a known suite those that are there, of one's own all.

    Args:
        suite: one of `SUITES`, core, or a YAML file: a list of entries with name, data, and perhaps metric and options.
        folder: where the tasks' data lie; by default beside the YAML file, or of a suite that is known on the hub. A task's
            own folder may also end in "-part".
        only: names of tasks.

    Raises:
        UserError: no such suite, an entry that makes no sense, a name that is none, or a task without its data.
    """
    entries, root = entries_of(suite), Path(folder or Path(suite).parent)
    for name in only:
        if name not in [entry.name for entry in entries]:
            raise UserError(f"no task {name!r}", where="--only", mend=nearest(name, [entry.name for entry in entries]))
    chosen = [entry for entry in entries if not only or entry.name in only]
    remote = folder is None and is_known(suite)  # all parts of its data come from the hub
    if remote and not any(entry.hub for entry in chosen):
        raise UserError("where its data lie is not said", where=f"suite {suite}", mend="give --data FOLDER")
    found: dict[str, Tuning] = {}
    for entry in chosen:
        names = () if remote else (entry.data, entry.also)
        place = next((place for name in names if name and (place := _place(root, name)) is not None), None)
        if place is None and entry.hub and (remote or not is_known(suite)):
            place = fetch(entry.hub, mend="give --data FOLDER" if remote else "put its data beside the list")
        if place is None and (entry.name in only or not is_known(suite)):
            raise UserError(
                f"{entry.data or entry.hub} is not there", where=root, mend=f"put the data of {entry.name} there"
            )
        if place is None:  # of a known suite what is there is enough
            continue
        fields = {**(entry.options or {}), "data": [str(place)]} | ({"metric": entry.metric} if entry.metric else {})
        for part in ("dev", "test"):
            if remote:
                fields.pop(part, None)
            elif isinstance(fields.get(part), str):
                fields[part] = str(_place(root, fields[part]) or root / fields[part])
        found[entry.name] = from_mapping(Tuning, fields, f"{suite}: {entry.name}")
    if not found:
        wanted = ", ".join(only or [entry.data for entry in entries][:4])
        raise UserError("none of its tasks is there", where=root, mend=f"put folders such as {wanted} there")
    return found


def _place(root: Path, name: str) -> Path | None:
    """Where data lie, whole or a part of them: CoLA or CoLA-part, train.json or train-part.json."""
    whole = root / os.path.expanduser(name)
    if not whole.name:
        return None
    places = (whole, whole.with_name(f"{whole.name}-part"), whole.with_name(f"{whole.stem}-part{whole.suffix}"))
    pattern = whole if glob.glob(str(whole), recursive=True) else None  # whose files are found later
    return next((place for place in places if place.exists()), pattern)


def entries_of(suite: str | Path) -> Sequence[Entry]:
    """The tasks of a suite, there or not: a known one's, or those of a YAML file.

    Raises:
        UserError: no such suite, or an entry that makes no sense.
    """
    if is_known(suite):
        return SUITES.get(str(suite).lower()) or tuple(_core())
    if str(suite).lower() == "blimp":
        raise UserError("minimal pairs need no training", where="suite blimp", mend="ask the model: bertkin.pairs")
    path = Path(suite)
    known = nearest(str(path), [*SUITES, "core"])
    rows = load_yaml(path, f"no suite {str(path)!r}", f"{known} A YAML file will do too")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("expected a list of tasks, each with name and data", where=path)
    entries: list[Entry] = []
    for row in rows:
        hub = row.get("hub") or ""
        if not isinstance(row.get("name"), str) or not isinstance(row.get("data", hub or None), str):
            raise UserError(f"a task without name or data: {row!r}", where=path)
        if hub and not PLACE.fullmatch(str(hub)):
            raise UserError(f"hub: {hub!r}", where=path, mend="write OWNER/NAME:CONFIGURATION")
        if not FOLDER.fullmatch(row["name"]):
            raise UserError(
                f"{row['name']!r} cannot be a task's folder", where=path, mend="name tasks by letters, digits, - and _"
            )
        if row["name"] in [entry.name for entry in entries]:
            raise UserError(f"two tasks are called {row['name']!r}", where=path, mend="give each a name of its own")
        ours = ("name", "data", "metric", "human", "hub")
        options = {name: value for name, value in row.items() if name not in ours}
        metric, human = str(row.get("metric") or ""), row.get("human")
        if human is not None and (type(human) not in (int, float) or not math.isfinite(human)):
            raise UserError(f"human: {human!r}", where=path, mend="write a number, such as 0.912, or leave it out")
        entries.append(Entry(row["name"], row.get("data", ""), metric, options, human, hub=hub))
    return entries


def is_known(suite: str | Path) -> bool:
    """Whether a suite is one of those that are known by name."""
    return str(suite).lower() in (*SUITES, "core")


def _core() -> Iterator[Entry]:
    """The tasks of all suites, their data in a folder a suite."""
    for name, entries in SUITES.items():
        folder = FOLDERS.get(name, name)
        for entry in entries:
            paths = {
                part: f"{folder}/{path}" for part, path in (entry.options or {}).items() if part in ("dev", "test")
            }
            also = f"{folder}/{entry.also}" if entry.also else ""
            yield replace(entry, data=f"{folder}/{entry.data}", also=also, options={**(entry.options or {}), **paths})
