"""A few held-out sentences with one word hidden: what the model answers shows people how it grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bertkin.models.heads import LanguageModel
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

SHORTEST, LONGEST = 8, 32


@dataclass(frozen=True)
class Sample:
    """A sentence with one token hidden."""

    ids: np.ndarray
    """int64 [tokens], with [CLS], [SEP] and one [MASK]."""
    hidden: int
    """Where the [MASK] is."""
    truth: int
    """What was there."""


def pick(split: Any, tokenizer: Tokenizer, count: int = 6) -> list[Sample]:
    """Up to `count` sentences of 8 to 32 tokens, spread over the split, each with one word hidden, always the same."""
    starts = np.asarray(split.sentences)
    if len(starts) < 2 or not tokenizer.has("mask"):
        return []
    lengths = np.diff(np.append(starts, split.n_tokens))
    fit = np.flatnonzero((lengths >= SHORTEST) & (lengths <= LONGEST))
    samples: list[Sample] = []
    for i in fit[np.linspace(0, len(fit) - 1, min(len(fit), 8 * count)).astype(int)] if len(fit) else []:
        tokens = np.asarray(split.tokens[starts[i] : starts[i] + lengths[i]]).astype(np.int64)
        sample = _hide_one(tokens, tokenizer)
        if sample is not None:
            samples.append(sample)
    if not samples:
        return []
    return [samples[i] for i in np.linspace(0, len(samples) - 1, min(len(samples), count)).astype(int)]


def _hide_one(tokens: np.ndarray, tokenizer: Tokenizer) -> Sample | None:
    """Hide a word that is one token and has at least three letters, as near to the sentence's middle as there is."""
    begins = np.append(tokenizer.word_starts[tokens], True)
    middle = len(tokens) / 2
    for place in sorted(range(1, len(tokens) - 1), key=lambda p: abs(p - middle)):
        text = tokenizer.token(int(tokens[place])).strip("Ġ▁")
        if begins[place] and begins[place + 1] and text.isalpha() and len(text) >= 3:
            ids = np.concatenate([[tokenizer.cls_id], tokens, [tokenizer.sep_id]])
            ids[place + 1] = tokenizer.mask_id
            return Sample(ids, place + 1, int(tokens[place]))
    return None


@torch.no_grad()
def answer(
    model: LanguageModel, samples: list[Sample], tokenizer: Tokenizer, top: int = 3, *, shifted: bool = False
) -> list[dict[str, Any]]:
    """What the model would fill in: for each sample its text, the truth, and the likeliest tokens with their share.

    Args:
        shifted: ask at the token before the blank, as a hybrid objective does, and see both sides whatever the stack.
    """
    if not samples:
        return []
    sizes = [len(s.ids) for s in samples]
    layout = Layout.from_lengths(sizes, reach=np.repeat(sizes, sizes).astype(np.int32) if shifted else None)
    asked = layout.starts[:-1].astype(np.int64) + [s.hidden - shifted for s in samples]
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([s.ids for s in samples])).to(device)
    logits = model.logits(ids, layout.to(device), torch.from_numpy(asked).to(device)).float()
    best = logits.softmax(-1).topk(top)
    fills = []
    for sample, chances, tokens in zip(samples, best.values.tolist(), best.indices.tolist(), strict=True):
        before, after = sample.ids[1 : sample.hidden], sample.ids[sample.hidden + 1 : -1]
        text = f"{tokenizer.decode(before)} {tokenizer.token(tokenizer.mask_id)} {tokenizer.decode(after)}"
        answers = [
            [tokenizer.decode([t]) or tokenizer.token(t), round(p, 4)] for t, p in zip(tokens, chances, strict=True)
        ]
        fills.append({"text": text.strip(), "answers": answers, "truth": tokenizer.decode([sample.truth])})
    return fills
