"""What a model that writes reads: texts and their answer as rows of tokens, rows as batches, and answers written anew.

                   reads                          writes              sees
    decoder        [CLS] text [SEP], by the       [start] answer      the text from both sides,
                   encoder                        [SEP]               the answer from the left
    prefix         [CLS] text [SEP] answer        answer [SEP]        the same; of causal models all from the left

Texts are joined as the tokenizer joins them. The model is asked for the answer alone, and writes it greedily or by beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.generate import Decoding, Manner, write
from bertkin.models.heads import LanguageModel, Source
from bertkin.models.steps import Steps
from bertkin.models.writers import start_of
from bertkin.tasks.answering import Prediction
from bertkin.tasks.encoding import NONE, Row, Rows, Template, alike, fit, put_together, tokenize
from bertkin.tasks.task import Example, Task
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

AT_ONCE = 32
"""Answers written side by side."""
GREEDY = Decoding(temperature=0.0)


@dataclass(frozen=True)
class Asked:
    """Rows as a model is asked for their answers: see `LanguageModel.forward`."""

    ids: Tensor
    layout: Layout
    asked: Tensor
    targets: Tensor
    counts: list[int]
    """Targets of each row."""
    source: Source | None = None


@dataclass(frozen=True)
class Frame:
    """How texts and answers are laid out for a model.

    Attributes:
        two: an encoder reads and a decoder writes.
        causal: the one stack sees nothing but from the left.
        start: what a decoder reads before the answer.
        length: most tokens of the texts, and where one stack reads both, of the answer with them.
        writes: most tokens of an answer, its end among them.
    """

    tokenizer: Tokenizer
    two: bool
    causal: bool
    start: tuple[int, ...]
    length: int
    writes: int

    @staticmethod
    def of(a: Architecture, tokenizer: Tokenizer, length: int, writes: int) -> Frame:
        """The frame of a model that writes."""
        return Frame(tokenizer, a.both, a.causal, start_of(a, tokenizer) if a.both else (), length, writes)

    # Rows.

    def encode(self, examples: Sequence[Example], task: Task) -> Rows:
        """A row for each example. The longest text loses its end first, and an answer its own; `Rows.cut` counts both.

        Raises:
            UserError: no room is left for the texts.
        """
        template, end = Template.of(self.tokenizer), self.tokenizer.sep_id
        close = () if self.two or template.after[-1:] == (end,) else (end,)
        template = replace(template, alone=None) if close else template
        texts = max((len(example.texts) for example in examples), default=1)
        room = self.length - (0 if self.two else self.writes) - template.extra(texts) - len(close)
        if room < 2 * texts:
            what = f"rows of {self.length} tokens with answers of {self.writes} leave no room for the text"
            raise UserError(what, where="--length", mend="choose longer rows, or shorter answers with --writes")
        answers = self.tokenizer.encode_batch([example.references[0] for example in examples])
        rows, cut = [], 0
        texts_of = tokenize(examples, self.tokenizer, placed=False)
        for number, (parts, answer) in enumerate(zip(texts_of, answers, strict=True)):
            fitted, lost = fit([ids for ids, _ in parts], room)
            ids, segments, _ = put_together(fitted, template)
            ids = np.concatenate([ids, np.array(close, np.int64)])
            if segments is not None and close:
                segments = np.append(segments, segments[-1:])
            whole = np.array([*answer, end], np.int64)
            written = NONE if examples[number].label is None else whole[: self.writes]
            rows.append(Row(ids, segments, number, NONE, NONE, answer=written))
            cut += lost or len(whole) > self.writes
        return Rows(rows, examples, task, [[] for _ in examples], cut)

    def cut_answers(self, rows: Rows) -> int:
        """How many answers lost their end."""
        return sum(len(row.answer) > 0 and row.answer[-1] != self.tokenizer.sep_id for row in rows.rows)

    def asked(self, rows: Sequence[Row], device: str = "cpu") -> Asked:
        """Rows with their answers, packed."""
        reads = [row.ids for row in rows]
        source = None
        if self.two:
            seen = [np.concatenate([self.start, row.answer[:-1]]) for row in rows]
            targets = [np.concatenate([self.start[1:], row.answer]) for row in rows]
            ids, layout = _packed(reads, [row.segments for row in rows])
            source = ids.to(device), layout.to(device)
        else:
            seen = [np.concatenate([row.ids, row.answer[:-1]]) for row in rows]
            targets = [row.answer for row in rows]
        ids, layout = _packed(seen, [None if self.two else row.segments for row in rows])
        if not self.two and not self.causal:
            text = np.repeat([len(ids) for ids in reads], layout.lengths)
            layout = replace(layout, reach=np.maximum(layout.positions + 1, text).astype(np.int32))
        counts = [len(one) for one in targets]
        ends = np.cumsum(layout.lengths)
        places = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, counts, strict=True)])
        wanted = torch.from_numpy(np.concatenate(targets).astype(np.int64))
        asked = torch.from_numpy(places.astype(np.int64))
        return Asked(ids.to(device), layout.to(device), asked.to(device), wanted.to(device), counts, source)

    # Answers.

    def answers(self, model: LanguageModel, rows: Sequence[Row], how: Decoding = GREEDY) -> list[Prediction]:
        """What the model writes for each row, and how likely it thinks that."""
        how = replace(how, max_new_tokens=min(how.max_new_tokens, self.writes) if how != GREEDY else self.writes)
        steps = Steps(model) if Steps.usable(model) else None
        written: list[list[int]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
        ends = {self.tokenizer.sep_id, model.architecture.sep_id}
        manner = Manner(self.start, both_sides=not self.two and not self.causal)
        for first in range(0, len(order), AT_ONCE):
            mine = order[first : first + AT_ONCE]
            prompts, segments = [rows[i].ids.tolist() for i in mine], [rows[i].segments for i in mine]
            for step in write(model, prompts, how, ends=ends, manner=manner, segments=segments, steps=steps):
                for place, token in step:
                    written[mine[place]].append(token)
        answered = [replace(row, answer=np.array(one, np.int64)) for row, one in zip(rows, written, strict=True)]
        chances = np.exp(self.chances(model, answered))
        said = [self.tokenizer.backend.decode(one, skip_special_tokens=True).strip() for one in written]
        return [Prediction(text, min(float(chance), 1.0)) for text, chance in zip(said, chances, strict=True)]

    @torch.inference_mode()
    def chances(self, model: LanguageModel, rows: Sequence[Row], *, batch_tokens: int = 8192) -> np.ndarray:
        """The logarithm of each row's answer's probability, float64 [rows], as the model has it."""
        found, device = np.zeros(len(rows)), str(model.table.device)
        for mine in alike(np.array([row.n_tokens for row in rows]), batch_tokens):
            a = self.asked([rows[i] for i in mine], device)
            hidden = model.hidden(a.ids, a.layout, a.asked, a.source)
            logs = [  # a few places at a time: each takes the whole vocabulary
                model.answer(states).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
                for states, targets in zip(hidden.split(512), a.targets.split(512), strict=True)
            ]
            owner = np.repeat(mine, a.counts)
            np.add.at(found, owner, torch.cat(logs).cpu().double().numpy())
        return found


def _packed(sequences: Sequence[np.ndarray], segments: Sequence[np.ndarray | None]) -> tuple[Tensor, Layout]:
    """Sequences end to end, and their layout in numpy; a segment goes on with 0."""
    kinds = None
    if any(one is not None for one in segments):
        rows = zip(sequences, segments, strict=True)
        filled = [(NONE if kind is None else kind, len(ids)) for ids, kind in rows]
        kinds = np.concatenate([np.pad(kind, (0, size - len(kind))) for kind, size in filled]).astype(np.int32)
    layout = Layout.from_lengths([len(ids) for ids in sequences], segments=kinds)
    return torch.from_numpy(np.fromiter(chain.from_iterable(sequences), np.int64)), layout
