"""What the recipe of a fine-tuning becomes whose answers are written: who writes, how long they may be, and how they are
laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bertkin.config import AUTO
from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.folders import told
from bertkin.models.writers import start_of, writer_for, writing_shape
from bertkin.tasks.frames import Frame
from bertkin.tasks.task import Example
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer


def settle(
    tuning: Tuning, a: Architecture, stock: Path, tokenizer: Tokenizer, examples: Sequence[Example]
) -> tuple[Tuning, Frame]:
    """The recipe with who writes and how long answers may be, and the frame they are laid out in.

    Answers may be half as long again as the longest in training, and where one stack reads them with the text, half of a
    row.

    Args:
        a: of the pretrained model.

    Raises:
        UserError: the model cannot write so, or not with this strategy; or answers too long for it.
    """
    writer = writer_for(a, told(stock).get("objective"), tuning.writer)
    shape = writing_shape(a, writer, tuning.decoder_layers)
    if shape.both and not shape.one_table:
        shape = replace(shape, start_id=tokenizer.cls_id)
    _check(tuning, new=shape.both and not a.both)
    most = a.max_length - len(start_of(shape, tokenizer)) + 1 if shape.both else tuning.length - 1
    writes = tuning.writes
    if writes is AUTO:
        longest = max(map(len, tokenizer.encode_batch([one.references[0] for one in examples])), default=0) + 1
        writes = min(most if shape.both else tuning.length // 2, longest * 3 // 2 + 8)
    if not 1 <= writes <= most:
        raise UserError(f"answers of {writes} tokens", where="--writes", mend=f"choose from 1 to {most}")
    settled = replace(tuning, writer=writer, writes=writes)
    return settled, Frame.of(shape, tokenizer, tuning.length, writes)


def _check(tuning: Tuning, *, new: bool) -> None:
    """Refuse what a model that writes cannot have.

    Args:
        new: whether its decoder is new.
    """
    kind, where = tuning.strategy.kind, "--strategy"
    if kind in ("prefix", "layers", "pals"):
        what = f"{kind} is for models that answer with a class, tags or a span"
        raise UserError(what, where=where, mend="choose full, last, adapter, lora or bias")
    if kind == "adapter" and new:
        what = "a new decoder is saved whole, and adapters do not fold into the weights"
        raise UserError(what, where=where, mend="choose lora, or --writer prefix")
    if kind == "frozen" and not new:
        raise UserError("nothing is new in a model that can write already", where=where, mend="choose lora or last")
