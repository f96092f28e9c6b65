"""A few held-out sentences, with one word hidden or half of them taken away: what the model answers, or writes, shows
people how it grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bertkin.models.generate import Decoding, Manner, write
from bertkin.models.heads import LanguageModel
from bertkin.models.writers import start_of
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

SHORTEST, LONGEST = 8, 32
WRITTEN, REPAIRED, GAP = 12, 40, 3
"""Tokens that are written after a beginning, or at most for a whole sentence; tokens taken out of one."""


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
    if not tokenizer.has("mask"):
        return []
    samples = [_hide_one(tokens, tokenizer) for tokens in sentences(split, 8 * count)]
    return _spread([sample for sample in samples if sample is not None], count)


def sentences(split: Any, count: int = 6) -> list[np.ndarray]:
    """Up to `count` sentences of 8 to 32 tokens, int64 [tokens], spread over the split, always the same."""
    starts = np.asarray(split.sentences)
    if len(starts) < 2:
        return []
    lengths = np.diff(np.append(starts, split.n_tokens))
    fit = np.flatnonzero((lengths >= SHORTEST) & (lengths <= LONGEST))
    return [np.asarray(split.tokens[starts[i] : starts[i] + lengths[i]]).astype(np.int64) for i in _spread(fit, count)]


def _spread(things: Any, count: int) -> list[Any]:
    """Up to `count` of them at equal distances, the first and the last among them."""
    if not len(things):
        return []
    return [things[i] for i in np.linspace(0, len(things) - 1, min(len(things), count)).astype(int)]


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


def go_on(
    model: LanguageModel, wanted: list[np.ndarray], tokenizer: Tokenizer, *, both_sides: bool = False
) -> list[dict[str, Any]]:
    """What the model writes, greedily: after the first half of each sentence, or, an encoder–decoder, for a sentence with
    a gap. For each the text it read, what it wrote, and what was there.

    Args:
        wanted: from `sentences`.
        both_sides: the first half is seen from both sides, as a prefix objective does.
    """
    if not wanted:
        return []
    a, shown = model.architecture, []
    for tokens in wanted:
        if not a.both:
            half = max(3, len(tokens) // 2)
            shown.append((tokens[:half], tokens[half:], [tokenizer.cls_id, *tokens[:half]]))
            continue
        at = len(tokens) // 2 - 1
        with_sentinels = len(tokenizer.sentinels) > 0
        mark = [tokenizer.sentinels[0]] if with_sentinels else [tokenizer.mask_id] if tokenizer.has("mask") else []
        read = np.array([*tokens[:at], *mark, *tokens[at + GAP :]])
        truth = tokens[at : at + GAP] if with_sentinels else tokens
        shown.append((read, truth, [*([] if with_sentinels else [tokenizer.cls_id]), *read, tokenizer.sep_id]))
    start = start_of(a, tokenizer) if a.both else ()
    whole = a.both and not len(tokenizer.sentinels)
    how = Decoding(max_new_tokens=REPAIRED if whole else WRITTEN, temperature=0)
    texts: list[list[int]] = [[] for _ in shown]
    prompts = [[int(i) for i in prompt] for _, _, prompt in shown]
    for step in write(model, prompts, how, ends={tokenizer.sep_id}, manner=Manner(start, both_sides)):
        for place, token in step:
            texts[place].append(token)
    return [
        {
            "text": tokenizer.decode(read),
            "written": tokenizer.decode([token for token in text if token != tokenizer.sep_id]).strip(),
            "truth": tokenizer.decode(truth),
        }
        for (read, truth, _), text in zip(shown, texts, strict=True)
    ]
