"""Use a fine-tuned model: texts in, answers out.

reader = open_reader("runs/reviews")
reader.predict([("A film to forget.",)])
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.errors import UserError
from bertkin.models.configs import read_config
from bertkin.models.folders import told
from bertkin.models.generate import Decoding
from bertkin.models.heads import LanguageModel
from bertkin.models.int8 import in_bytes
from bertkin.models.light import light_in, named_stock, no_changes, open_light
from bertkin.models.pretrained import find_folder, load_model
from bertkin.models.pretrained_tasks import answer_of, load_task_model
from bertkin.models.task_heads import TaskModel
from bertkin.tasks.answering import LONGEST_ANSWER, Prediction, answers, scores
from bertkin.tasks.chaining import chain_of
from bertkin.tasks.data.columns import Roles
from bertkin.tasks.data.schemes import is_scheme, spans_of
from bertkin.tasks.data.words import words_in
from bertkin.tasks.encoding import Rows, encode
from bertkin.tasks.frames import GREEDY, Frame
from bertkin.tasks.task import ONE_ANSWER, Example, Task, tidy
from bertkin.tasks.weighing import see_windowed
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision

OUTPUTS = {
    "single_label_classification": "class",
    "multi_label_classification": "classes",
    "regression": "score",
}


BOUND = 128
"""Most tokens of an answer where a model does not say."""
AT_ONCE = 4096
"""Examples that are encoded and scored together: a table of millions never has all of its scores in memory."""


@dataclass(frozen=True)
class Reader:
    """A model with the head of a task, and what its answers mean."""

    model: TaskModel
    tokenizer: Tokenizer
    task: Task
    length: int
    stride: int | None = None
    """Tokens that windows of a long text share, where it was trained with a choice of them."""
    windows: int = 1
    """Most windows of a text that has one answer."""
    longest: int = LONGEST_ANSWER
    """Most tokens of a span."""
    columns: Roles | None = None
    """What the columns of the table were taken for that it was trained on."""
    foreign: bool = False
    """Whether nothing was written down of what it was trained on."""

    def rows(self, examples: Sequence[Example]) -> Rows:
        """Examples as the model reads them."""
        long: dict[str, Any] = {"max_length": self.length, "stride": self.stride, "windows": self.windows}
        return encode(examples, self.task, self.tokenizer, **long)

    def answer(self, rows: Rows) -> list[Prediction]:
        """An answer for each example that rows are of."""
        chain, found = chain_of(self.model, self.task), scores(self.model, rows)
        if not all(np.isfinite(one).all() for one in found):
            what = "the model's scores are not numbers: its weights are damaged, or too large for its precision"
            raise UserError(what, mend="try --precision float32, or train it again")
        return answers(self.task, rows, found, chain=chain, longest=self.longest)

    def examples(self, examples: Sequence[Example]) -> list[Prediction]:
        """An answer for each example, labelled or not."""
        return self._in_pieces(examples)[0]

    def predict(self, texts: Sequence[Sequence[str]]) -> list[Prediction]:
        """An answer for each group of texts: of a span, the context comes last. How many lost text is a warning.

        Raises:
            UserError: more or fewer texts than the task takes.
        """
        for group in texts:
            if self.task.output == "choice":
                if len(group) <= self.task.inputs:
                    what = f"{len(group)} texts, where the model reads {self.task.inputs - 1} and two choices or more"
                    raise UserError(what, where=_begin(group), mend="give the choices last, parted by tabs")
            elif not self.takes(len(group)):
                what = f"{len(group)} texts, where the model reads {self.task.inputs}"
                raise UserError(what, where=_begin(group), mend="give a text for each, parted by tabs in a file")
        return self.asked([self._example(tuple(group)) for group in texts])

    def takes(self, texts: int) -> bool:
        """Whether the model answers to so many texts. Of one that transformers made nobody says whether it reads pairs."""
        return texts == self.task.inputs or (self.foreign and self.task.output in ONE_ANSWER and texts == 2)

    def asked(self, examples: Sequence[Example]) -> list[Prediction]:
        """An answer for each example, labelled or not. How many lost text is a warning."""
        found, cut = self._in_pieces(examples)
        if cut:
            what = f"{cut:,} of {len(examples):,} inputs are longer than the model was to read, and lost their ends"
            warnings.warn(what, stacklevel=3)
        return found

    def _in_pieces(self, examples: Sequence[Example]) -> tuple[list[Prediction], int]:
        """An answer for each example, and how many of them lost text."""
        found, cut = list[Prediction](), 0
        for first in range(0, len(examples), AT_ONCE):
            rows = self.rows(examples[first : first + AT_ONCE])
            found += self.answer(rows)
            cut += rows.cut
        return found, cut

    def _example(self, texts: tuple[str, ...]) -> Example:
        if self.task.output == "choice":
            first = self.task.inputs - 1
            return Example(texts[:first], choices=texts[first:])
        return in_words(Example(texts)) if self.task.output == "tokens" else Example(texts)

    def said(self, texts: Sequence[str], prediction: Prediction) -> dict[str, Any]:
        """A prediction as plain data, labels by name."""
        return self.told(self._example(tuple(texts)), prediction)

    def told(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """What is predicted of an example as plain data, labels by name."""
        task, answer = self.task, prediction.answer
        texts = [*example.texts, *example.choices]
        plain = _named(example, texts)
        if task.output in ("class", "choice"):
            names = task.labels if task.output == "class" else example.choices
            plain |= {"label": names[answer], "probability": round(prediction.sure, 4)}
            plain["all"] = {names[i]: round(chance, 4) for i, chance in prediction.best}
        elif task.output == "classes":
            plain["labels"] = [task.labels[i] for i in answer]
            plain["all"] = {task.labels[i]: round(chance, 4) for i, chance in prediction.best}
        elif task.output == "score":
            plain["score"] = tidy(answer)
        elif task.output == "tokens":
            places = example.spans
            tags = [task.labels[tag] for tag in answer]
            plain["words"] = [[texts[-1][a:b], tag] for (a, b), tag in zip(places, tags, strict=True)]
            if is_scheme(task.labels):
                plain["entities"] = [
                    {"text": texts[-1][start:end], "kind": span.type, "start": start, "end": end}
                    for span in spans_of(tags)
                    for start, end in [(places[span.start][0], places[span.end - 1][1])]
                ]
        else:
            plain |= {"answer": answer, "probability": round(prediction.sure, 4), "where": prediction.where}
            plain["best"] = [[text, round(chance, 4)] for text, chance in prediction.best]
        return plain


@dataclass(frozen=True)
class AnswerWriter(Reader):
    """A model that writes its answers."""

    model: LanguageModel  # type: ignore[assignment]
    frame: Frame = field(kw_only=True)
    how: Decoding = GREEDY

    def rows(self, examples: Sequence[Example]) -> Rows:
        return self.frame.encode(examples, self.task)

    def answer(self, rows: Rows) -> list[Prediction]:
        return self.frame.answers(self.model, rows.rows, self.how)

    def told(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        return _named(example, example.texts) | {
            "answer": prediction.answer,
            "probability": round(prediction.sure, 4),
        }


def in_words(example: Example) -> Example:
    """An example of a task of tags, its last text parted into words where nobody has done so."""
    return example if example.spans else replace(example, places=tuple(words_in(example.texts[-1])))


def _begin(group: Sequence[str]) -> str | None:
    """Where in the input a mistake is: the beginning of a question's first text."""
    return repr(group[0][:40]) if group else None


def _named(example: Example, texts: Sequence[str]) -> dict[str, Any]:
    return ({"id": example.id} if example.id else {}) | {"texts": list(texts)}


def writes(folder: str | Path) -> bool:
    """Whether the model of a folder was fine-tuned to write its answers."""
    task = told(Path(folder)).get("task")
    return isinstance(task, dict) and task.get("output") == "sequence"


def by_beams(reader: Reader, beams: int) -> Reader:
    """The same model, that keeps so many beginnings of an answer side by side as it writes.

    Raises:
        UserError: it writes no answers, or less than one.
    """
    if beams == 1:
        return reader
    if not isinstance(reader, AnswerWriter):
        raise UserError("this model chooses its answers and writes none", where="--beams", mend="leave it out")
    if not 1 <= beams <= 1024:
        raise UserError(f"{beams} beams", where="--beams", mend="choose from 1 to 1024")
    return replace(reader, how=replace(reader.how, beams=beams, max_new_tokens=reader.frame.writes))


def by_windows(reader: Reader, windows: int | None) -> Reader:
    """The same model, that reads a long text in at most so many windows; None for as many as it was trained with.

    Raises:
        UserError: it does not give one answer to a whole text, or less than one.
    """
    if windows is None:
        return reader
    if windows < 1:
        raise UserError(f"{windows} windows", where="--windows", mend="choose at least 1")
    see_windowed(windows, reader.task)
    return replace(reader, windows=windows)


def unanswerable(reader: Reader) -> Reader:
    """The same model, whose questions may have no answer: as a folder of transformers does not say, though it was taught so.

    Raises:
        UserError: it looks for no spans.
    """
    if reader.task.output != "span":
        raise UserError("this model looks for no spans", where="--unanswerable", mend="leave it out")
    return replace(reader, task=replace(reader.task, unanswerable=True))


def open_reader(
    path: str | Path,
    *,
    precision: str = "auto",
    stock: str | Path | TaskModel | LanguageModel | None = None,
    stock_folder: str | Path | None = None,
) -> Reader:
    """Open a fine-tuned model: a run folder, a model folder (ours or transformers'), what a light strategy saved, or a hub id.

    Args:
        precision: auto is bfloat16 where the processor gains by it; int8 multiplies bytes in feed-forward blocks
            (`models.int8`), faster still where there are no matrix tiles, and a little less exact.
        stock: of a light strategy, the model it belongs to, loaded or not; by default the one it names. Several over one
            loaded stock share its weights in memory.
        stock_folder: of a stock that is loaded, where it and its tokenizer lie; by default where the light one says.

    Raises:
        UserError: there is none, it has no head of a task, or int8 is not possible here.
    """
    light = light_in(path)
    config: dict[str, Any] = {}
    if light is None and (names := told(Path(path) / "model").get("tasks") or told(Path(path)).get("tasks")):
        raise UserError(f"holds several tasks ({', '.join(names)})", where=path, mend="say which: --task NAME")
    if light is None and stock is not None:
        raise no_changes(path)
    if light is not None:
        if writes(light):
            return _open_light_writer(light, stock, precision)
        opened, _ = open_light(light, stock)
        if not isinstance(opened, TaskModel):
            raise UserError("no head of a task here", where=light, mend="fine-tune it: bertkin finetune")
        model, folder = opened, light
        whose = stock if isinstance(stock, str | Path) else stock_folder or named_stock(light)
        tokenizer = Tokenizer.load(find_folder(str(whose)), model.architecture.vocab_size)
    else:
        folder = find_folder(path)
        if writes(folder) or _only_writes(folder):
            return _writer(load_model(folder), folder, folder, precision)
        model, config = load_task_model(folder)
        tokenizer = Tokenizer.load(folder, model.architecture.vocab_size)
    model = in_bytes(model) if precision == "int8" else model.to(pick_precision(precision, "cpu"))
    known = told(folder)
    a = model.architecture
    if "task" in known:
        task = Task.from_mapping(known["task"], folder)
    else:
        named = config.get("id2label") or {}
        labels = tuple(named[key] for key in sorted(named, key=int))
        labels = labels or tuple(f"LABEL_{at}" for at in range(model.answer.outputs))  # PEFT's folder has no names
        output: Any = model.answer.head
        if output == "class":
            output = OUTPUTS.get(config.get("problem_type") or "", "score" if len(labels) == 1 else "class")
        inputs = 2 if output in ("span", "choice") else 1
        scheme: Any = "iob2" if output == "tokens" and is_scheme(labels) else ""
        task = Task(output, inputs, labels if output in ("class", "classes", "tokens") else (), scheme=scheme)
    length = min(int(known.get("length") or 512), a.max_length)
    long = (known.get("stride"), int(known.get("windows") or 1), int(known.get("longest") or LONGEST_ANSWER))
    columns = Roles.from_mapping(known.get("columns"))
    return Reader(model.eval(), tokenizer, task, length, *long, columns, foreign="task" not in known)


def _only_writes(folder: Path) -> bool:
    """Whether a folder of transformers holds an encoder and a decoder with no other head than that which writes."""
    a, _ = read_config(folder / "config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return a.both and answer_of(a, config) is None


def _open_light_writer(light: Path, stock: Any, precision: str) -> AnswerWriter:
    """What a light strategy changed in a model that writes, over its stock."""
    if isinstance(stock, TaskModel):
        raise UserError("a model that writes needs a stock with words", where=light, mend="give the stock's folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a head that the stock lacks is among the changes
        model, _ = open_light(light, stock)
    assert isinstance(model, LanguageModel)
    whose = stock if isinstance(stock, str | Path) else named_stock(light)
    return _writer(model, light, find_folder(str(whose)), precision)


def _writer(model: LanguageModel, folder: Path, words: Path, precision: str) -> AnswerWriter:
    """A model that writes, with what its folder knows of its answers, and the tokenizer of another (or the same)."""
    if precision == "int8":
        raise UserError("int8 is for models that give no written answer", where="--precision", mend="choose auto")
    known, a = told(folder), model.architecture
    tokenizer = Tokenizer.load(words, a.vocab_size)
    task = Task.from_mapping(known["task"], folder) if "task" in known else Task("sequence")
    length = min(int(known.get("length") or 512), a.max_length)
    frame = Frame.of(a, tokenizer, length, min(int(known.get("writes") or BOUND), a.max_length - 2))
    columns = Roles.from_mapping(known.get("columns"))
    model = model.to(pick_precision(precision, "cpu")).eval()
    return AnswerWriter(model, tokenizer, task, length, columns=columns, frame=frame)
