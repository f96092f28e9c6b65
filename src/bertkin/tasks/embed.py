"""Texts to vectors: one for each text, or one for each of its tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bertkin.errors import UserError, nearest
from bertkin.models.fields import read_json
from bertkin.models.heads import LanguageModel
from bertkin.models.int8 import in_bytes
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


@dataclass(frozen=True)
class Sentences:
    """What a folder of sentence-transformers says of how its vectors are made."""

    pooling: VectorPooling = "mean"
    normalise: bool = False
    length: int | None = None
    """Most tokens of a text; None for as many as the model reads."""
    lower: bool = False
    """Whether texts are lowered before the tokenizer reads them."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What may be put before a text, by name, such as query."""
    prompt: str = ""
    """What is put before every text where nobody says another."""
    left_out: bool = False
    """Whether the states of a prompt are no part of what is pooled."""

    def put(self, prompt: str | None) -> str:
        """What is put before every text.

        Args:
            prompt: the name of one of these, or the words themselves; None for the default.

        Raises:
            UserError: a name that none has.
        """
        if prompt is None:
            return self.prompt
        known = {"query": "", "document": ""} | dict(self.prompts)  # which every folder has, if with nothing in them
        if prompt not in known and re.fullmatch(r"\w+", prompt):
            mend = f"{nearest(prompt, known)} (or write the words themselves, as 'query: ')"
            raise UserError(f"no prompt {prompt!r}", where="--prompt", mend=mend)
        return known.get(prompt, prompt)


POOLINGS: dict[str, VectorPooling] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
"""What sentence-transformers calls them."""


def told_of_sentences(folder: Path, pooling: VectorPooling | None = None) -> Sentences:
    """What modules.json and what it names say; the defaults where a folder has none.

    Args:
        pooling: what a person chose. Then modules that make something else of the states are passed over.

    Raises:
        UserError: a file that cannot be read, or a module or pooling that is not done here.
    """
    if not (folder / "modules.json").is_file():
        return Sentences()
    normalise, found, left_out = False, pooling or "mean", False
    for module in _read(folder / "modules.json", list):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else str(module)
        if kind == "Normalize":
            normalise = True
        elif kind == "Pooling" and pooling is None:
            told = _read(folder / str(module.get("path", "")) / "config.json", dict)
            way, left_out = _way(told), told.get("include_prompt") is False
            if way not in POOLINGS:
                raise UserError(f"a pooling {way!r} is not done here", where=folder, mend="say another: --pooling mean")
            found = POOLINGS[way]
        elif kind not in ("Transformer", "Dropout", "Pooling") and pooling is None:
            mend = "say --pooling to have the states before it"
            what = f"its vectors go through a module {kind!r}, which is not done here"
            raise UserError(what, where=folder, mend=mend)
    own, tokenizer, more = (
        _read(folder / name, dict) if (folder / name).is_file() else {}
        for name in ("sentence_bert_config.json", "tokenizer_config.json", "config_sentence_transformers.json")
    )
    length = own.get("max_seq_length") or tokenizer.get("model_max_length")  # as newer versions have it
    bounded = type(length) in (int, float) and 0 < length < 1e9  # transformers writes thirty digits for no bound
    prompts = more.get("prompts")
    said = prompts if isinstance(prompts, dict) else {}
    prompts = {str(name): "" if text is None else str(text) for name, text in said.items()}
    prompt = prompts.get(str(more.get("default_prompt_name")), "")
    lower = own.get("do_lower_case") is True
    return Sentences(found, normalise, int(length) if bounded else None, lower, prompts, prompt, left_out)


def _way(said: dict[str, Any]) -> str:
    """What a configuration calls its pooling; the mean where it says nothing."""
    told = said.get("pooling_mode")
    if told is None:
        on = [name.removeprefix("pooling_mode_") for name, value in said.items() if value is True]
        told = [re.sub("_tokens?$", "", name) for name in on if f"pooling_mode_{name}" in said]
    return "+".join(map(str, told)) or "mean" if isinstance(told, list) else str(told)


def _read(path: Path, kind: type) -> Any:
    found = read_json(path)
    if not isinstance(found, kind):
        raise UserError(f"expected a {kind.__name__}, found {type(found).__name__}", where=path)
    return found


def _to_length_one(vectors: Floats) -> Floats:
    """Each row divided by its length."""
    made: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return made


class Embedder:
    """A pretrained model as a function from texts to vectors.

    Args:
        path: a run folder, a model folder, or a hub id; any family. An encoder–decoder's encoder is used, and of what a light
            strategy saved the stock with its changes.
        pooling: how states become one vector; by default as a folder of sentence-transformers says, else their mean.
        normalise: to length 1, so that a dot product is a cosine; by default as such a folder says, else not.
        precision: auto is bfloat16 where the processor gains by it; int8 multiplies bytes in feed-forward blocks
            (`models.int8`), faster still where there are no matrix tiles, and a little less exact.
        length: most tokens of a text; by default as such a folder says, else what the model reads.
        prompt: what is put before every text: the name of one that such a folder has (query, passage …), or the words
            themselves; by default that folder's own default, else nothing.
        stock: of what a light strategy saved, the model it belongs to; by default the one it names.

    Raises:
        UserError: there is no such model or pooling, a stock for a whole model, no int8 here, or a folder of
            sentence-transformers that does more with the states than this does.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        pooling: VectorPooling | None = None,
        normalise: bool | None = None,
        precision: str = "auto",
        length: int | None = None,
        prompt: str | None = None,
        stock: str | Path | None = None,
    ) -> None:
        if pooling is not None and pooling not in get_args(VectorPooling):
            mend = nearest(pooling, get_args(VectorPooling))
            raise UserError(
                f"no pooling {pooling!r}; `tokens` gives a vector for each token", where="pooling", mend=mend
            )
        light, int8 = light_in(path), precision == "int8"
        dtype = torch.float32 if int8 else pick_precision(precision, "cpu")
        if light is None and stock is not None:
            raise no_changes(path)
        folder = find_folder(path if light is None else stock or named_stock(light) or path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no head is needed here
            if light is None:
                self.model: LanguageModel | TaskModel = load_model(folder, dtype=dtype)
            else:  # its stock, with what the strategy put around it
                self.model = open_light(light, stock)[0].to(dtype)
        if int8:
            self.model = in_bytes(self.model)
        a = self.model.architecture
        self.tokenizer = Tokenizer.load(folder, a.vocab_size)
        if length is not None and not 4 <= length <= a.max_length:
            raise UserError(f"rows of {length} tokens", where="--length", mend=f"choose 4 to {a.max_length}")
        said = told_of_sentences(folder if light is None else light, pooling)
        self.length = length or min(said.length or a.max_length, a.max_length)
        self.pooling: VectorPooling = pooling or said.pooling
        self.normalise, self.lower = said.normalise if normalise is None else normalise, said.lower
        self.prompt = said.put(prompt)
        if self.prompt and said.left_out:
            mend = 'say --prompt "", or --pooling mean to have the prompt pooled, too'
            raise UserError("its pooling leaves prompts out, which is not done here", where=folder, mend=mend)
        self.each = normalise is True
        """Whether the vectors of tokens are normalised: only where a person says so."""
        self.pooler = Pooler(a, self.pooling) if self.pooling in ("mean", "max") else None

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
        return _to_length_one(out) if self.normalise else out

    def tokens(self, texts: Sequence[str], *, batch_tokens: int | None = None) -> list[Floats]:
        """For each text a vector for each of its tokens, special ones included: float32 [tokens, width]."""
        rows = self._rows(texts)
        out: list[Floats] = [np.empty((0, self.width), np.float32)] * len(texts)
        for mine, states, layout in self._states(rows, batch_tokens):
            parts = np.split(states.float().numpy(), layout.starts[1:-1].numpy())
            for i, part in zip(mine, parts, strict=True):
                out[i] = _to_length_one(part) if self.each else part
        return out

    def _rows(self, texts: Sequence[str]) -> Rows:
        whole = [self.prompt + text for text in texts]
        examples = [Example((text.lower() if self.lower else text,)) for text in whole]
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
