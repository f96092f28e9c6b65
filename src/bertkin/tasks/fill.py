"""Fill blanks: what does a masked language model put where a text says [MASK]?

loaded = load("runs/mine")                                       a run folder, a model folder, or a hub id
print(fill(loaded, "Paris is the [MASK] of France.")[0])
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from bertkin.errors import UserError, nearest
from bertkin.models.folders import told
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import GENERATOR, find_folder, load_model
from bertkin.tasks.scoring import ways
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

BLANK = "[MASK]"
"""How a blank is written, whatever the tokenizer calls it."""
BATCH_TOKENS = 8192
"""Tokens that go through the model at once."""
BAR = 24

Order = Literal["once", "confident"]
"""All blanks of a text at once, each as if the others stayed blank; or the one the model is surest of, then the text is
read again."""


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer, ready to be asked."""

    folder: Path
    model: LanguageModel
    tokenizer: Tokenizer

    def fill(self, texts: str | Sequence[str], *, top_k: int = 5, order: Order = "once") -> list[Filled]:
        """See `fill`."""
        return fill(self, texts, top_k=top_k, order=order)

    @cached_property
    def told(self) -> dict[str, Any]:
        """What its folder says of its training, where it is one of ours: bertkin.json."""
        return told(self.folder)

    @cached_property
    def objective(self) -> str | None:
        """The kind of objective it was trained with, where that is known."""
        return self.told.get("objective")

    @cached_property
    def noise(self) -> str | None:
        """The noise it was taught to repair (`objective.noise`), where that is known."""
        return self.told.get("noise")

    def __repr__(self) -> str:
        return f"Loaded({str(self.folder)!r}, {self.model.architecture.family}, {self.tokenizer})"


@dataclass(frozen=True)
class Filled:
    """A text and what its blanks were filled with."""

    text: str
    blanks: list[list[tuple[str, float]]]
    """For each blank, in order, the likeliest tokens and their probabilities, the likeliest first."""
    filled: str
    """The text with the likeliest token in each blank."""
    order: tuple[int, ...] = ()
    """The numbers of the blanks, from 0, in the order they were filled in; () where all were at once."""

    def __str__(self) -> str:
        lines = [self.text]
        width = max((len(token) for blank in self.blanks for token, _ in blank), default=0)
        for number, blank in enumerate(self.blanks, start=1):
            if len(self.blanks) > 1:
                when = f", filled {self.order.index(number - 1) + 1} of {len(self.blanks)}" if self.order else ""
                lines.append(f"  blank {number}{when}")
            for token, chance in blank:
                lines.append(f"  {token:<{width}}  {chance:6.1%}  {'▇' * round(BAR * chance)}".rstrip())
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        blanks = [
            [{"token": token, "probability": round(chance, 6)} for token, chance in blank] for blank in self.blanks
        ]
        order = {"order": list(self.order)} if self.order else {}
        return {"text": self.text, "filled": self.filled, "blanks": blanks, **order}


def load(path: str | Path) -> Loaded:
    """Open a model that can fill blanks: a run folder, a model folder (ours or transformers'), or a hub id.

    Raises:
        UserError: there is none, it is damaged, it has no vocabulary head, or no tokenizer that goes with it.
    """
    folder = find_folder(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing head is said below
        model = load_model(folder)
    if any(name.startswith("head.") for name in model.missing):
        mend = "give a masked language model, or train one: bertkin pretrain"
        raise UserError("this model has no vocabulary head, so it cannot fill blanks", where=folder, mend=mend)
    return Loaded(folder, model, Tokenizer.load(folder, model.architecture.vocab_size))


def fill(
    model: Loaded | str | Path, texts: str | Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> list[Filled]:
    """What the model would put in the blanks of each text.

    Args:
        model: from `load`, or what `load` takes.
        texts: one or many; each blank is written [MASK], or as the tokenizer writes it.
        top_k: answers to give for each blank.
        order: "confident" fills in the blank that the model is surest of and reads the text again, until none is left;
            the answers for a blank are then those at the time it was filled in.

    Raises:
        UserError: a text without a blank, or longer than the model reads, or a model that was never asked for blanks.
    """
    return list(fill_stream(model, [texts] if isinstance(texts, str) else texts, top_k=top_k, order=order))


def fill_stream(
    model: Loaded | str | Path, texts: Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> Iterator[Filled]:
    """`fill`, a batch of texts at a time."""
    loaded = model if isinstance(model, Loaded) else load(model)
    if top_k < 1:
        raise UserError(f"cannot give {top_k} answers", where="top_k", mend="ask for 1 or more")
    if order not in get_args(Order):
        raise UserError(f"{order!r} is not a choice", where="--order", mend=nearest(str(order), get_args(Order)))
    _check(loaded)
    coded = [_encode(loaded, text, number) for number, text in enumerate(texts, start=1)]
    few = min(top_k, loaded.model.architecture.vocab_size)
    for first, last in stretches([len(ids) for ids in coded]):
        yield from _answer(loaded, texts[first:last], coded[first:last], few, order)


def _check(loaded: Loaded) -> None:
    """Refuse a model that was never asked for what is hidden.

    Raises:
        UserError: saying what it does instead.
    """
    able = ways(loaded.model, loaded.tokenizer, loaded.objective)
    if "masked" in able:
        return
    what, mend = {
        "causal": ("goes on with texts", "ask it with bertkin generate"),
        "decoder": ("writes a text for another", "ask it with bertkin generate"),
        "detect": ("finds replaced tokens", f"give its {GENERATOR}, the folder inside that one"),
    }[able[0]]
    raise UserError(f"this model {what} and fills no blanks", where=loaded.folder, mend=mend)


def _encode(loaded: Loaded, text: str, number: int) -> np.ndarray:
    """The text as the model reads it, int64 [tokens]."""
    tokenizer, longest = loaded.tokenizer, loaded.model.architecture.max_length
    ids = np.array([tokenizer.cls_id, *tokenizer.encode(own_marks(tokenizer, text)), tokenizer.sep_id], dtype=np.int64)
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    if not (ids == tokenizer.mask_id).any():
        raise UserError(
            f"no blank in {shown!r}", where=f"text {number}", mend=f"write {BLANK} where a word is to be found"
        )
    if len(ids) > longest:
        raise UserError(
            f"{shown!r} has {len(ids):,} tokens, the model reads {longest:,}",
            where=f"text {number}",
            mend="give a shorter text around the blank",
        )
    return ids


def own_marks(tokenizer: Tokenizer, text: str) -> str:
    """The text with each blank as the tokenizer writes it.

    White space before a blank is part of the token that is looked for (Ġ, ▁), so it goes.
    """
    mark = tokenizer.token(tokenizer.mask_id)
    return re.sub(rf"\s*(?:{re.escape(BLANK)}|{re.escape(mark)})", lambda _: mark, text)


def stretches(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring texts with at most `BATCH_TOKENS` tokens together (or a single text)."""
    first = tokens = 0
    for number, length in enumerate(lengths):
        if number > first and tokens + length > BATCH_TOKENS:
            yield first, number
            first, tokens = number, 0
        tokens += length
    if first < len(lengths):
        yield first, len(lengths)


Answers = list[tuple[int, float]]
"""Tokens and their probabilities, the likeliest first."""


def _answer(
    loaded: Loaded, texts: Sequence[str], coded: Sequence[np.ndarray], top_k: int, order: Order
) -> Iterator[Filled]:
    """One batch. All blanks at once take one reading, the surest first as many as the text with most blanks has."""
    tokenizer = loaded.tokenizer
    whole = [ids.copy() for ids in coded]
    found: list[dict[int, Answers]] = [{} for _ in coded]
    left = list(range(len(coded)))
    while left:
        for number, answers in zip(left, _ask(loaded, [whole[i] for i in left], top_k), strict=True):
            new = [place for place in answers if place not in found[number]]  # a [MASK] can be the answer to a [MASK]
            sure = max(new, key=lambda place: answers[place][0][1])
            for place in new if order == "once" else [sure]:
                found[number][place] = answers[place]
                whole[number][place] = answers[place][0][0]
        left = [i for i in left if len(found[i]) < int((coded[i] == tokenizer.mask_id).sum())]
    for text, ids, answered in zip(texts, whole, found, strict=True):
        places = sorted(answered)
        blanks = [[(word(tokenizer, token), chance) for token, chance in answered[place]] for place in places]
        steps = () if order == "once" else tuple(places.index(place) for place in answered)
        yield Filled(text, blanks, tokenizer.decode(ids[1:-1]).strip(), steps)


@torch.no_grad()
def _ask(loaded: Loaded, coded: Sequence[np.ndarray], top_k: int) -> list[dict[int, Answers]]:
    """The answers for the blanks of each text, by their places: all texts packed, and only the blanks of all of them
    reach the vocabulary. A hybrid model sees both sides and answers at the token before."""
    tokenizer, device = loaded.tokenizer, next(loaded.model.parameters()).device
    ids, sizes = np.concatenate(coded), [len(part) for part in coded]
    shifted = loaded.objective == "hybrid"
    layout = Layout.from_lengths(sizes, reach=np.repeat(sizes, sizes).astype(np.int32) if shifted else None)
    blanks = np.flatnonzero(ids == tokenizer.mask_id)
    logits = loaded.model.logits(
        torch.from_numpy(ids).to(device), layout.to(device), torch.from_numpy(blanks - shifted).to(device)
    ).float()
    best = logits.softmax(-1).topk(top_k)
    answers: list[dict[int, Answers]] = [{} for _ in coded]
    owners = layout.sequence_ids()[blanks]
    for owner, blank, tokens, chances in zip(owners, blanks, best.indices.tolist(), best.values.tolist(), strict=True):
        answers[owner][int(blank - layout.starts[owner])] = list(zip(tokens, chances, strict=True))
    return answers


def word(tokenizer: Tokenizer, token: int) -> str:
    """A token as people read it, without the mark of a word's beginning; as the vocabulary has it if it is no text."""
    text = tokenizer.decode([token]).strip()
    return text if text and "\ufffd" not in text else tokenizer.token(token)
