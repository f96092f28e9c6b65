"""The score of a sentence, by whatever a model can tell of it: the higher, the likelier.

    masked    pseudo-log-likelihood: each token hidden in turn, log p(token | all the others) (Salazar et al. 2020)
    causal    log-likelihood from left to right, after the token that begins a text
    decoder   of an encoder–decoder: log-likelihood given an emptied input, in which one blank stands for everything
    detect    of an ELECTRA: log p(not replaced) of each token

Sums over the sentence's own tokens, in nats; what begins and ends a text is read, but does not count.

An encoder–decoder is asked as it was taught to repair (`bertkin.tasks.repairing`): who fills in BART's blanks reads
`[CLS] [MASK] [SEP]` and writes the sentence after `[SEP] [CLS]`; T5 reads `<extra_id_0> [SEP]` and writes it after
`[PAD] <extra_id_0>`. Hiding each token of the source in turn, as with a masked model, would cost a decoder's pass for
each and let the others give it away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, softplus

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.heads import Source as Read
from bertkin.tasks.repairing import Repair, read_by_encoder, repair, written_first
from bertkin.text.layout import Layout
from bertkin.text.pieces import words_of
from bertkin.text.tokenizer import Tokenizer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Way = Literal["masked", "causal", "decoder", "detect"]
Method = Literal["auto", "masked", "causal", "decoder", "detect"]

NAMES: dict[Way, str] = {
    "masked": "pseudo-log-likelihood",
    "causal": "log-likelihood from left to right",
    "decoder": "log-likelihood given an empty input",
    "detect": "log-likelihood that no token was replaced",
}
WITHIN_WORD = ", within word left to right"
ROWS = 512
"""Asked tokens that reach the vocabulary at once."""


def ways(model: LanguageModel, tokenizer: Tokenizer, objective: str | None = None) -> tuple[Way, ...]:
    """How a model can score a sentence, the usual way first.

    Args:
        objective: the kind of objective it was trained with, where that is known (`Loaded.objective`); a model of
            another library is taken for what its family is.

    Raises:
        UserError: it cannot.
    """
    a = model.architecture
    if any(name.startswith(("head.", "detect.")) for name in model.missing):
        raise UserError(
            "this model has no head that answers, so it cannot score a sentence", mend="give a language model"
        )
    if model.detect is not None:
        return ("detect",)
    if a.both:
        return ("decoder",)
    if objective == "hybrid":
        return ("masked", "causal") if tokenizer.has("mask") else ("causal",)
    if objective in ("causal", "prefix") or (a.causal and objective is None):
        return ("causal",)
    tokenizer.special("mask")
    return ("masked",)


def choose_way(
    model: LanguageModel, tokenizer: Tokenizer, method: Method = "auto", objective: str | None = None
) -> Way:
    """The way that `method` names, or the usual one.

    Raises:
        UserError: the model does not know that way.
    """
    able = ways(model, tokenizer, objective)
    if method == "auto":
        return able[0]
    if method not in able:
        known = f"trained with {objective}" if objective else f"a {model.architecture.family}"
        raise UserError(
            f"a model that is {known} cannot be scored by {method!r}",
            where="--method",
            mend=f"choose {' or '.join(able)}",
        )
    return method


def score_sentences(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    method: Method = "auto",
    *,
    objective: str | None = None,
    noise: str | None = None,
    within_word: bool = False,
    batch_tokens: int = 4096,
) -> Floats:
    """Score sentences. The same tokens always get the same score, so that what the tokenizer cannot tell apart ties.

    Args:
        model: computes in the type and on the device its weights are in.
        method: how; by default as the model can (see `ways`). A model trained with the hybrid objective knows two ways,
            masked and causal, and is asked masked.
        objective: what the model was trained with; see `ways`.
        noise: what an encoder–decoder was taught to repair; see `bertkin.tasks.repairing.repair`.
        within_word: of masked models: hide the later pieces of the same word as well (Kauf & Ivanova 2023). Left visible
            they give the word away, and rare words cut in many pieces score too well. A word begins where
            `tokenizer.word_starts` says so; of tokenizers that tell no more than what stands behind a blank, at signs, too.
        batch_tokens: read at once, about.

    Returns:
        float64 [sentences], in nats, not above 0; a sentence without tokens has 0.

    Raises:
        UserError: a sentence is too long for the model, the tokenizer is of another model, or the model cannot score.
    """
    way = choose_way(model, tokenizer, method, objective)
    if within_word and way != "masked":
        raise UserError(
            f"words are hidden from masked models alone, and this one is scored by {NAMES[way]}",
            where="--within-word",
            mend="leave it out",
        )
    encoded = tokenizer.encode_batch(list(sentences))
    check_tokenizer(model, tokenizer)
    taught = repair(tokenizer, noise) if way == "decoder" else None
    _check_lengths(encoded, sentences, model, way, taught)
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(ids), len(numbers)) for ids in encoded]
    if not which:
        return np.zeros(0)
    distinct = list(numbers)
    if way == "masked":
        batches = _copies(distinct, tokenizer, within_word, batch_tokens, shifted=objective == "hybrid")
    else:
        batches = _framed(distinct, tokenizer, model, way, taught, batch_tokens)
    return _sums(model, batches, len(distinct))[which]


def pseudo_log_likelihood(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    *,
    within_word: bool = False,
    batch_tokens: int = 4096,
) -> Floats:
    """`score_sentences` of a masked model: the sum, over tokens, of log p(token | all the others) (Salazar et al. 2020).

    A sentence of n tokens is read n times, each time with another token hidden. The copies of all sentences are sorted
    by length and lie end to end, and only the hidden places reach the vocabulary.

    Raises:
        UserError: see `score_sentences`.
    """
    return score_sentences(model, tokenizer, sentences, "masked", within_word=within_word, batch_tokens=batch_tokens)


def check_tokenizer(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with more tokens than the model has.

    Raises:
        UserError: with both numbers.
    """
    a = model.architecture
    if tokenizer.vocab_size > a.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model only {a.vocab_size:,}",
            mend="use the tokenizer the model was trained with",
        )


def _check_lengths(
    encoded: list[list[int]], sentences: Sequence[str], model: LanguageModel, way: Way, taught: Repair | None
) -> None:
    # Who writes never reads the last token, so that one mark costs no room.
    marks = {"masked": 2, "detect": 2, "causal": 0, "decoder": 2 if taught is not None and taught.each else 1}[way]
    room = model.architecture.max_length - marks
    for ids, text in zip(encoded, sentences, strict=True):
        if len(ids) > room:
            raise UserError(
                f"a sentence of {len(ids):,} tokens ({text[:40]!r} …), but the model reads at most {room:,}",
                mend="cut it into shorter ones",
            )


class Asked(NamedTuple):
    """Sequences read at once, and what is asked in them; [n] is questions."""

    ids: Ints
    layout: Layout
    asked: Ints
    """[n]: flat positions, sorted."""
    targets: Ints
    owner: Ints
    """[n]: whose score each answer counts for."""
    source: tuple[Ints, Layout] | None = None


def _sums(model: LanguageModel, batches: Iterator[Asked], n: int) -> Floats:
    """[n]: the log-probability of the targets, summed by owner."""
    scores = np.zeros(n)
    was, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                ids, asked, targets = (torch.from_numpy(a).to(device) for a in (batch.ids, batch.asked, batch.targets))
                layout = batch.layout.to(device)
                if model.detect is not None:
                    loss = softplus(model.replaced(ids, layout)[asked].float())
                else:
                    source: Read | None = None
                    if batch.source is not None:
                        source = torch.from_numpy(batch.source[0]).to(device), batch.source[1].to(device)
                    hidden = model.hidden(ids, layout, asked, source)
                    parts = zip(hidden.split(ROWS), targets.split(ROWS), strict=True)
                    loss = torch.cat([cross_entropy(model.answer(h).float(), t, reduction="none") for h, t in parts])
                scores -= np.bincount(batch.owner, weights=loss.double().cpu().numpy(), minlength=n)
    finally:
        model.train(was)
    return scores


def _framed(
    sentences: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    model: LanguageModel,
    way: Way,
    taught: Repair | None,
    batch_tokens: int,
) -> Iterator[Asked]:
    """Every sentence once, all of its tokens asked, in batches of nearly the same length."""
    before, after = _frame(tokenizer, model, way, taught)
    counts = np.array([len(ids) for ids in sentences], np.int64)
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    # Who finds replaced tokens answers in their places, who writes at the token before, so that the last is not read.
    unread = 0 if way == "detect" else 1
    sizes = counts[order] + len(before) + len(after) - unread
    batch = (np.cumsum(sizes) - sizes) // batch_tokens
    for low, high in pairwise(np.flatnonzero(np.diff(batch, prepend=-1, append=-1))):
        mine, size = order[low:high], sizes[low:high]
        ids = np.array(
            [
                i
                for n in mine
                for i in [*before, *sentences[n], *after][: counts[n] + len(before) + len(after) - unread]
            ],
            np.int64,
        )
        layout = Layout.from_lengths(size)
        if way == "causal" and not model.architecture.causal:
            layout = Layout.from_lengths(size, reach=layout.positions + 1)
        sentence = np.repeat(mine, counts[mine])
        firsts = np.repeat(np.cumsum(counts[mine]) - counts[mine], counts[mine])
        place = np.arange(len(sentence)) - firsts + len(before)
        asked = np.repeat(np.cumsum(size) - size, counts[mine]) + place - unread
        targets = np.array([i for n in mine for i in sentences[n]], np.int64)
        emptied = None
        if taught is not None:
            sources = [read_by_encoder(tokenizer, taught.hidden(counts[n])) for n in mine]
            emptied = np.concatenate(sources), Layout.from_lengths([len(one) for one in sources])
        yield Asked(ids, layout, asked, targets, sentence, emptied)


def _frame(
    tokenizer: Tokenizer, model: LanguageModel, way: Way, taught: Repair | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before a sentence, and after it."""
    if way == "detect":
        return (tokenizer.cls_id,), (tokenizer.sep_id,)
    if taught is None:
        return (tokenizer.cls_id,), ()
    return (*written_first(tokenizer, model), *taught.opening), ()


# Masked models.


def _copies(
    sentences: Sequence[Sequence[int]], tokenizer: Tokenizer, within_word: bool, batch_tokens: int, *, shifted: bool
) -> Iterator[Asked]:
    """Every sentence once for each of its tokens, in batches of copies of nearly the same length.

    Args:
        shifted: hidden tokens are asked for at the token before, and all is seen from both sides (see
            `bertkin.objectives.causal.hybrid`).
    """
    counts = np.array([len(ids) for ids in sentences], np.int64)
    tokens = np.array([i for ids in sentences for i in (tokenizer.cls_id, *ids, tokenizer.sep_id)], np.int64)
    begins = np.cumsum(counts + 2) - counts - 2  # where in `tokens` each sentence's [CLS] is
    word_ends = _word_ends(tokens, begins, tokenizer) if within_word else None

    order = np.argsort(counts, kind="stable")
    sentence = np.repeat(order, counts[order])
    firsts = np.repeat(np.cumsum(counts[order]) - counts[order], counts[order])
    place = np.arange(len(sentence)) - firsts + 1  # of the hidden token, counted from [CLS]
    sizes = counts[sentence] + 2
    batch = (np.cumsum(sizes) - sizes) // batch_tokens
    edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1))
    for low, high in pairwise(edges):
        mine, size = sentence[low:high], sizes[low:high]
        starts = np.cumsum(size) - size
        ids = tokens[np.repeat(begins[mine] - starts, size) + np.arange(size.sum())]
        asked = starts + place[low:high]
        targets = ids[asked]
        ids[asked] = tokenizer.mask_id
        if word_ends is not None:
            left = (
                word_ends[begins[mine] + place[low:high]] - begins[mine] - place[low:high]
            )  # of the word, this token too
            hidden = np.repeat(asked - np.cumsum(left) + left, left) + np.arange(left.sum())
            ids[hidden] = tokenizer.mask_id
        reach = np.repeat(size, size).astype(np.int32) if shifted else None
        yield Asked(ids, Layout.from_lengths(size, reach=reach), asked - shifted, targets, mine)


def _word_ends(tokens: Ints, begins: Ints, tokenizer: Tokenizer) -> Ints:
    """[tokens]: the place after the last token of each token's word. [CLS], [SEP] and each sign are words of their own."""
    opens = tokenizer.word_starts[tokens].copy()
    if not tokenizer.prefix:  # whose tokens say what stands behind a blank, and not where a sign parts two words
        words = words_of(tokenizer)
        opens |= words.begins[tokens]
        opens[1:] |= words.ends[tokens[:-1]]
    opens[begins] = True
    opens[begins + 1] = True  # the first token of a sentence, or the [SEP] of an empty one
    opens[np.append(begins[1:], len(tokens)) - 1] = True
    starts = np.append(np.flatnonzero(opens), len(tokens))
    return starts[np.searchsorted(starts, np.arange(len(tokens)), side="right")]
