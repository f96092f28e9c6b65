"""Texts to vectors: one for each text, or one for each of its tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkin.errors import UserError, nearest
from bertkin.models.heads import LanguageModel
from bertkin.models.light import light_in, named_stock, no_changes, open_light
from bertkin.models.pretrained import find_folder, load_model
from bertkin.models.task_heads import Pooler, TaskModel, end_of
from bertkin.tasks.encoding import Rows, alike, at_once, encode, packed
from bertkin.tasks.task import Example, Task
from bertkin.text.batches import Ints
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision

Floats = NDArray[np.float32]
VectorPooling = Literal["mean", "max", "first", "last"]


class Embedder:
    """A pretrained model as a function from texts to vectors.

    Args:
        path: a run folder, a model folder, or a hub id; any family. An encoder–decoder's encoder is used, and of what a light
            strategy saved the stock with its changes.
        pooling: how states become one vector.
        normalise: to length 1, so that a dot product is a cosine.
        precision: auto is bfloat16 where the processor gains by it.
        length: most tokens of a text; by default what the model reads.
        stock: of what a light strategy saved, the model it belongs to; by default the one it names.

    Raises:
        UserError: there is no such model or pooling, or a stock for a whole model.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        pooling: VectorPooling = "mean",
        normalise: bool = False,
        precision: str = "auto",
        length: int | None = None,
        stock: str | Path | None = None,
    ) -> None:
        if pooling not in get_args(VectorPooling):
            mend = nearest(pooling, get_args(VectorPooling))
            raise UserError(
                f"no pooling {pooling!r}; `tokens` gives a vector for each token", where="pooling", mend=mend
            )
        light, dtype = light_in(path), pick_precision(precision, "cpu")
        if light is None and stock is not None:
            raise no_changes(path)
        folder = find_folder(path if light is None else stock or named_stock(light) or path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no head is needed here
            if light is None:
                self.model: LanguageModel | TaskModel = load_model(folder, dtype=dtype)
            else:  # its stock, with what the strategy put around it
                self.model = open_light(light, stock)[0].to(dtype)
        a = self.model.architecture
        self.tokenizer = Tokenizer.load(folder, a.vocab_size)
        if length is not None and not 4 <= length <= a.max_length:
            raise UserError(f"rows of {length} tokens", where="--length", mend=f"choose 4 to {a.max_length}")
        self.length, self.pooling, self.normalise = length or a.max_length, pooling, normalise
        self.pooler = Pooler(a, pooling) if pooling in ("mean", "max") else None

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.model.architecture.hidden

    def encode(self, texts: Sequence[str], *, batch_tokens: int | None = None) -> Floats:
        """A vector for each text: float32 [texts, width]."""
        rows = self._rows(texts)
        out = np.empty((len(texts), self.width), np.float32)
        for mine, states, layout in self._states(rows, batch_tokens):
            pooled = self.pooler(states, layout) if self.pooler is not None else states[end_of(layout, self.pooling)]
            out[mine] = pooled.float().numpy()
        if self.normalise:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        return out

    def tokens(self, texts: Sequence[str], *, batch_tokens: int | None = None) -> list[Floats]:
        """For each text a vector for each of its tokens, special ones included: float32 [tokens, width]."""
        rows = self._rows(texts)
        out: list[Floats] = [np.empty((0, self.width), np.float32)] * len(texts)
        for mine, states, layout in self._states(rows, batch_tokens):
            parts = np.split(states.float().numpy(), layout.starts[1:-1].numpy())
            for i, part in zip(mine, parts, strict=True):
                out[i] = part
        return out

    def _rows(self, texts: Sequence[str]) -> Rows:
        examples = [Example((text,)) for text in texts]
        rows = encode(examples, Task("class"), self.tokenizer, max_length=self.length)
        if rows.cut:
            what = f"{rows.cut:,} of {len(texts):,} texts are longer than {self.length:,} tokens, and lost their ends"
            warnings.warn(what, stacklevel=3)
        return rows

    @torch.inference_mode()
    def _states(self, rows: Rows, batch_tokens: int | None) -> Iterator[tuple[Ints, Tensor, Layout]]:
        """Rows of like length together: their numbers, last hidden states [tokens, width], and layout."""
        stack = self.model.stack if self.model.source is None else self.model.source
        assert stack is not None
        for mine in alike(rows.lengths, batch_tokens or at_once()):
            ids, layout = packed([rows.rows[i] for i in mine])
            yield mine, stack(ids, layout), layout
