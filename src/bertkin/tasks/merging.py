"""What a light strategy changed, folded into its stock after the fact: an ordinary folder.

fold("runs/reviews", Path("merged"))
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bertkin.errors import UserError, disk_errors
from bertkin.models.adapt import merge
from bertkin.models.folders import told
from bertkin.models.light import light_in
from bertkin.models.pretrained_tasks import save_task_model
from bertkin.tasks.card import merged
from bertkin.tasks.predict import AnswerWriter, open_reader
from bertkin.tasks.writing import save_writer
from bertkin.train.state import write_text


def fold(path: str | Path, out: Path, *, stock: str | Path | None = None) -> None:
    """Write a model of its own from a run (or a folder) that holds no more than what was changed; whole, or not at all.

    Args:
        path: what `finetune` saved of lora, bias, last or frozen, or what PEFT saved of a LoRA with the head of a task.
        out: a folder that is not there yet, or is empty.
        stock: what it belongs to; by default the one it names.

    Raises:
        UserError: no such changes; changes that do not fold into weights; a folder that holds something; or the disk refuses.
    """
    light, out = light_in(path), out.resolve()
    if light is None:
        mend = "give a run of a light strategy, such as lora; any other is an ordinary folder already"
        raise UserError("no changes to a model here", where=path, mend=mend)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("holds something already", where=out, mend="choose another --out")
    reader = open_reader(path, precision="float32", stock=stock)
    merge(reader.model)
    known = {name: value for name, value in told(light).items() if name != "light"}
    aside = out.with_name(f".{out.name}.part")
    try:
        if isinstance(reader, AnswerWriter):
            save_writer(reader.model, aside, reader.frame, known)
        else:
            labels, problem = reader.task.outputs, reader.task.output
            save_task_model(
                reader.model, aside, labels=labels, problem=problem, tokenizer=reader.tokenizer, extra=known
            )
        with disk_errors(out):
            aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    before = light / "README.md"
    if before.is_file():
        writes = reader.frame.writes if isinstance(reader, AnswerWriter) else 0
        if card := merged(before.read_text(encoding="utf-8", errors="replace"), reader.task, path, out, writes, stock):
            write_text(out / "README.md", card)
