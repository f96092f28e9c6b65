"""The peer: masked-language-model pretraining with transformers' Trainer, as its users get it.

What their `run_mlm` example does, from its own classes: BertForMaskedLM with its defaults (post-norm, dropout 0.1,
float32), the documents joined as [CLS] document [SEP] and cut every 128 tokens with no regard to where a document
ends, the remainder dropped, shuffled by the Trainer; DataCollatorForLanguageModeling at 15%; AdamW at 5e-4 that falls
in a line without warm-up; batches of 32. `tuned` adds what people turn on for speed: bf16=True and torch_compile=True.

    throughput(…)    seconds of each step
    train(…)         a whole training, with its held-out curve and its folder

Time is steps times seconds a step. The machine is shared, so the seconds of one long training say more about the
neighbours than about the peer; `quiet` is what a step of that very run takes when nobody disturbs, and the peer's
minutes are counted as if all its steps had been such.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from heldout import BATCH_ROWS, IGNORED, Rows, tally
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from bertkin.text.batches import SplitLike
from bertkin.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shape:
    """The size of a BERT; by default BERT-mini's (Turc et al. 2019)."""

    vocab_size: int
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    intermediate: int = 1024
    max_length: int = 512


@dataclass(frozen=True)
class Settings:
    """How the peer trains; by default as a user gets it."""

    tuned: bool = False
    """bfloat16 (autocast) and torch.compile."""
    batch: int = 32
    length: int = 128
    lr: float = 5e-4
    rate: float = 0.15
    """Share of the tokens that are asked."""
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """How a training of the peer went."""

    folder: Path
    """The model and its tokenizer, as `save_pretrained` writes them."""
    curve: list[dict[str, float]]
    """Held-out step, loss and accuracy."""
    seconds: list[float]
    """Of each step, without evaluations."""


def stream(split: SplitLike, tokenizer: Tokenizer) -> NDArray[Any]:
    """All documents of a split end to end, each as [CLS] document [SEP], in the store's own type."""
    documents = np.asarray(split.documents)
    n = len(documents) - 1
    begins = documents[:-1] + 2 * np.arange(n)
    ends = documents[1:] + 2 * np.arange(n) + 1
    joined = np.empty(split.n_tokens + 2 * n, split.tokens.dtype)
    text = np.ones(len(joined), np.bool_)
    text[begins] = text[ends] = False
    joined[begins], joined[ends], joined[text] = tokenizer.cls_id, tokenizer.sep_id, split.tokens
    return joined


class Chunks(torch.utils.data.Dataset[dict[str, list[int]]]):
    """A stream cut every `length` tokens; the remainder is dropped."""

    def __init__(self, tokens: NDArray[Any], length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[i * self.length : (i + 1) * self.length].astype(np.int64).tolist()}


def throughput(
    tokens: NDArray[Any],
    tokenizer: Tokenizer,
    shape: Shape,
    settings: Settings = Settings(),
    *,
    steps: int = 10,
    warmup: int = 3,
) -> list[float]:
    """Seconds of each of `steps` steps, after `warmup` that do not count (compiling happens in them).

    Args:
        tokens: the training stream, see `stream`; or any ids below the vocabulary's size.
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        _trainer(_model(shape, tokenizer, settings), tokens, tokenizer, settings, folder, warmup + steps, clock).train()
    return clock.seconds[warmup:]


def train(
    tokens: NDArray[Any],
    tokenizer: Tokenizer,
    shape: Shape,
    rows: Rows,
    out: Path,
    settings: Settings = Settings(),
    *,
    steps: int,
    every: int = 50,
    told: Callable[[dict[str, float]], None] = lambda _: None,
) -> Run:
    """A whole training, its schedule fitted to `steps`; one that was broken off goes on from its last evaluation.

    Args:
        rows: asked every `every` steps and at the end.
        out: gets model/ (with the tokenizer), peer.json, written anew at each evaluation, and the Trainer's own
            checkpoints until the training is done.
        told: called with each point of the curve.
    """
    model = _model(shape, tokenizer, settings)
    kept = out / "checkpoints"
    kept.mkdir(parents=True, exist_ok=True)
    last = get_last_checkpoint(str(kept))
    curve, seconds = _so_far(out / "peer.json", last)

    def at(step: int) -> None:
        if step % every == 0 or step == steps:
            loss, accuracy = ask_peer(model, rows)
            curve.append({"step": step, "loss": round(loss, 5), "accuracy": round(accuracy, 5)})
            told(curve[-1] | {"quiet": quiet(clock.seconds)})
            _write(out / "peer.json", {"curve": curve, "seconds": [round(s, 4) for s in clock.seconds]})

    clock = _Clock(at, seconds)
    trainer = _trainer(model, tokens, tokenizer, settings, str(kept), steps, clock, every)
    trainer.train(resume_from_checkpoint=last)
    model.save_pretrained(out / "model")
    tokenizer.save(out / "model", shape.max_length)
    shutil.rmtree(kept)
    return Run(out / "model", curve, clock.seconds)


def _so_far(file: Path, checkpoint: str | None) -> tuple[list[dict[str, float]], list[float]]:
    """The curve and the seconds of each step up to a checkpoint of the Trainer's."""
    if checkpoint is None:
        return [], []
    told, done = json.loads(file.read_text()), int(checkpoint.rpartition("-")[2])
    return [point for point in told["curve"] if point["step"] <= done], told["seconds"][:done]


def quiet(seconds: Sequence[float]) -> float:
    """What a step takes when nobody else uses the machine: the tenth percentile, in seconds."""
    return float(np.quantile(seconds, 0.1))


@torch.no_grad()
def ask_peer(model: Any, rows: Rows) -> tuple[float, float]:
    """As `heldout.ask`, of a transformers model: mean loss in nats and accuracy over the asked tokens."""
    loss, correct = 0.0, 0
    was = model.training
    model.eval()
    for first in range(0, len(rows.inputs), BATCH_ROWS):
        inputs = torch.from_numpy(rows.inputs[first : first + BATCH_ROWS]).to(model.device)
        labels = torch.from_numpy(rows.labels[first : first + BATCH_ROWS]).to(model.device)
        asked = labels != IGNORED
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
        more = tally(logits[asked], labels[asked])
        loss, correct = loss + more[0], correct + more[1]
    model.train(was)
    n = int((rows.labels != IGNORED).sum())
    return loss / n, correct / n


class _Clock(TrainerCallback):
    """Times each step, then hands its number on; what is done with it does not count."""

    def __init__(self, at: Callable[[int], None] = lambda _: None, seconds: Sequence[float] = ()) -> None:
        self.seconds = list(seconds)
        self._at, self._begun = at, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._begun)
        self._at(state.global_step)
        self._begun = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun = time.perf_counter()


def _model(shape: Shape, tokenizer: Tokenizer, settings: Settings) -> BertForMaskedLM:
    torch.manual_seed(settings.seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate,
            max_position_embeddings=shape.max_length,
            pad_token_id=tokenizer.pad_id,
        )
    )


def _trainer(
    model: BertForMaskedLM,
    tokens: NDArray[Any],
    tokenizer: Tokenizer,
    settings: Settings,
    folder: str,
    steps: int,
    clock: _Clock,
    save_every: int | None = None,
) -> Trainer:
    roles = {f"{role}_token": tokenizer.token(tokenizer.special(role)) for role in ("pad", "unk", "cls", "sep", "mask")}
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **roles)
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch,
        max_steps=steps,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        bf16=settings.tuned,
        torch_compile=settings.tuned,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Chunks(tokens, settings.length),
        data_collator=DataCollatorForLanguageModeling(theirs, mlm_probability=settings.rate),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    transformers.utils.logging.disable_progress_bar()
    return trainer


def _write(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content) + "\n")
    aside.replace(path)
