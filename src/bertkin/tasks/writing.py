"""Fine-tuning a model to write: the work whose batches are texts and their answers.

    Writing(found, device)    the work, beside `bertkin.tasks.finetune.FineTuning`

The loss is of the answer's tokens. While it trains, answers are written for the first of the dev examples, at its end
for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import save_generation, save_model
from bertkin.models.writers import begin_writer
from bertkin.tasks.answering import Prediction
from bertkin.tasks.encoding import Rows, alike
from bertkin.tasks.finetune import FineTuning, TaskBatch
from bertkin.tasks.frames import Frame
from bertkin.tasks.gathering import Gathered
from bertkin.tasks.metrics import measure

LOOKED_AT = 256
"""Dev examples that answers are written for while training goes on."""


def save_writer(model: LanguageModel, folder: Path, frame: Frame, extra: Mapping[str, Any] | None = None) -> None:
    """Write a model as a folder that transformers opens, and generates with as it was taught to: up to an end, and no
    longer than its answers may be.

    Raises:
        UserError: the disk refuses.
    """
    save_model(model, folder, tokenizer=frame.tokenizer, extra=extra)
    save_generation(folder, frame.tokenizer, frame.start, frame.writes)


class Writing(FineTuning):
    """The work of fine-tuning a model to write; see `bertkin.train.work.Work`."""

    def __init__(self, found: Gathered, device: str) -> None:
        super().__init__(found, device)
        assert found.frame is not None
        self.frame = found.frame

    def first_model(self) -> Any:
        tuning = self.tuning
        model = begin_writer(self.stock, tuning.writer, layers=tuning.decoder_layers, seed=self.train.seed)
        self.new = any(".cross" in name for name in model.missing)
        self.dress(model)
        return model

    def counts(self, batch: TaskBatch) -> tuple[int, int]:
        return sum(len(row.answer) for row in batch.rows) + len(batch.rows) * max(len(self.frame.start) - 1, 0), 0

    def learn(self, model: Any, part: TaskBatch, counts: tuple[int, int], sums: list[float]) -> None:
        a = self.frame.asked(part.rows, self.device)
        losses = model.loss(a.ids, a.layout, a.asked, a.targets, source=a.source)
        (losses.loss_sum / max(counts[0], 1)).backward()
        sums[0] += float(losses.loss_sum.detach())
        sums[1] += float(losses.n_correct)

    def measured(self, model: Any, rows: Rows) -> dict[str, float]:
        """The loss of all answers, and metrics of those written for the first examples; the headline also as accuracy."""
        return self._measured(model, rows, LOOKED_AT)[1]

    def asked(self, model: Any, rows: Rows) -> tuple[list[Prediction], dict[str, float]]:
        return self._measured(model, rows, len(rows.rows))

    def _measured(self, model: Any, rows: Rows, most: int) -> tuple[list[Prediction], dict[str, float]]:
        known = [row for row in rows.rows if len(row.answer)]
        loss, count = self._loss(model, known)
        predictions = self.frame.answers(model, rows.rows[:most])
        scored = measure(self.task, rows.examples[:most], [one.answer for one in predictions])
        return predictions, {"loss": loss / max(count, 1), "accuracy": scored[self.task.metric], **scored}

    @torch.inference_mode()
    def _loss(self, model: LanguageModel, rows: list[Any]) -> tuple[float, int]:
        """The summed loss of answers, and of how many tokens."""
        loss, count = 0.0, 0
        for mine in alike(np.array([row.n_tokens for row in rows], np.int64), 8192) if rows else ():
            a = self.frame.asked([rows[i] for i in mine], self.device)
            losses = model.loss(a.ids, a.layout, a.asked, a.targets, source=a.source)
            loss, count = loss + float(losses.loss_sum), count + losses.n
        return loss, count

    def facts(self) -> dict[str, Any]:
        objective = "denoise" if self.frame.two else "causal" if self.frame.causal else "prefix"
        return super().facts() | {"objective": objective, "writes": self.tuning.writes}

    @property
    def changes_alone(self) -> bool:
        return super().changes_alone and not self.new  # a new decoder is saved whole

    def _save(self, finished: Any, folder: Path, facts: dict[str, Any]) -> None:
        save_writer(finished, folder, self.frame, facts)

    def notes(self, model: Any) -> list[str]:
        said = [line for line in super().notes(model) if not line.startswith("cut ")]
        if self.new:  # and saved with all that was there before
            said = [
                re.sub(r"saved: .*", "saved: the whole model", one) if one[:8] == "strategy" else one for one in said
            ]
        frame, a = self.frame, model.architecture
        if self.new:
            drawn = sum(p.numel() for name, p in model.named_parameters() if name in model.missing)
            who = f"a new decoder of {a.decoder_layers} layers, begun from the encoder's; {drawn:,} numbers of it are drawn"
        elif frame.two:
            who = f"{a.family}'s decoder"
        else:
            side = "left" if frame.causal else "left, the text from both sides"
            who = f"the stack itself, after the text and a separator; the answer is seen from the {side}"
        said.append(f"writes      {who}; at most {frame.writes:,} tokens")
        if self.examples.cut:
            answers = frame.cut_answers(self.examples)
            said.append(
                f"cut         {self.examples.cut:,} examples lose text at {frame.length:,} tokens, or their answer's "
                f"end at {frame.writes:,} ({answers:,})"
            )
        if len(self.dev.examples) > LOOKED_AT:
            said.append(
                f"dev         answers are written for the first {LOOKED_AT} of {len(self.dev.examples):,} while it "
                "trains, for all at the end"
            )
        return said
