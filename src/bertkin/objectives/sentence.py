"""Two sentence objectives: is B what follows A, and are A and B in their order?

Each piece of a document with a sentence boundary inside is parted there, `[CLS] A [SEP] B [SEP]`, segments 0 and 1, and
in half of the pairs something is changed:

    next    B is replaced by as many tokens of another document; label 1 = replaced. Next sentence prediction
            (Devlin et al. 2019), with labels as transformers' BertForPreTraining has them.
    order   A and B change places; label 1 = swapped. Sentence order prediction (Lan et al. 2020).

A piece without a boundary inside stays a single sequence that is not asked.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from bertkin.errors import UserError
from bertkin.text.batches import Bools, Ints, Pieces, SplitLike
from bertkin.text.shuffle import Bits, below, mix, noise

_TRIES = 4
"""Places elsewhere that are looked at for each replaced part; the first that holds it in one document is taken."""


def check_sentences(split: SplitLike, kind: str) -> None:
    """Refuse a split on which the objective (none, next or order) cannot be asked.

    Raises:
        UserError: no document has two sentences; or `next` on a single document, which leaves no other to draw from.
    """
    if kind == "next" and split.n_documents < 2:
        raise UserError(
            "next sentence prediction draws from other documents, and the corpus is a single one",
            where="--objective.sentence",
            mend="choose order or none, or divide the corpus with --data.documents",
        )
    if kind != "none" and not np.any(_between(split, split.documents[:-1], np.diff(split.documents))[1]):
        raise UserError(
            "no document of the corpus has two sentences",
            where="--objective.sentence",
            mend="choose none, or divide the corpus otherwise with --data.documents",
        )


def pair_up(split: SplitLike, pieces: Pieces, kind: Literal["next", "order"], keys: Bits) -> tuple[Pieces, Ints, Ints]:
    """Part the pieces at sentence boundaries and change half of the pairs.

    The second [SEP] costs a token of text, taken from the outer end of the longer part, so the rows keep their length.

    Args:
        pieces: as `bertkin.text.batches.cut` makes them.
        keys: uint64 [rows].

    Returns:
        The new pieces; which sequences are pairs, int64 [pairs], sorted; and their labels, int64 [pairs].

    Raises:
        UserError: `next` with a single document.
    """
    low, inside = _between(split, pieces.first, pieces.count)
    pairs = np.flatnonzero((inside > 0) & (pieces.count >= 3) & (pieces.document >= 0))
    place = np.arange(len(pieces.row)) - np.searchsorted(pieces.row, pieces.row)  # which piece of its row
    draws = mix(keys[pieces.row[pairs]], place[pairs])

    whole = pieces.take(pairs)
    border = np.asarray(split.sentences[low[pairs] + below(noise(draws, 0), inside[pairs])], np.int64)
    first_is_longer = 2 * (border - whole.first) > whole.count
    a_first = whole.first + first_is_longer
    a_count = border - a_first
    b_first, b_count = border, whole.count - 1 - a_count
    b_document = whole.document
    changed = noise(draws, 1) >> np.uint64(63) == 1
    if kind == "order":
        a_first, b_first = np.where(changed, b_first, a_first), np.where(changed, a_first, b_first)
        a_count, b_count = np.where(changed, b_count, a_count), np.where(changed, a_count, b_count)
    else:
        other, found = _elsewhere(split, whole.document, b_count, draws)
        changed &= found
        b_first = np.where(changed, other, b_first)
        b_document = np.where(changed, _document_of(split, other), b_document)

    copies = np.ones(len(pieces.row), np.int64)
    copies[pairs] = 2
    table = pieces.take(np.repeat(np.arange(len(copies)), copies))
    second = np.cumsum(copies)[pairs] - 1
    table.first[second - 1], table.count[second - 1] = a_first, a_count
    table.first[second], table.count[second], table.document[second] = b_first, b_count, b_document
    table.segment[second] = 1
    return table, pairs, changed.astype(np.int64)


def _between(split: SplitLike, first: Ints, count: Ints) -> tuple[Ints, Ints]:
    """For each stretch of tokens: the first sentence that starts inside it (not at its start), and how many do."""
    low = np.searchsorted(split.sentences, first, side="right")
    return low, np.searchsorted(split.sentences, first + count, side="left") - low


def _document_of(split: SplitLike, offset: Ints) -> Ints:
    return np.searchsorted(split.documents, offset, side="right") - 1


def _elsewhere(split: SplitLike, document: Ints, count: Ints, draws: Bits) -> tuple[Ints, Bools]:
    """Where `count` tokens start that have nothing to do with `document`, and whether such a place was found.

    A place is the start of the sentence around a random token of the other documents. Where its document is too short
    for `count` tokens they run on into the next, or begin in the one before, but never reach `document` itself.
    """
    if split.n_documents < 2:
        check_sentences(split, "next")
    own_begin = np.asarray(split.documents[document], np.int64)
    own_end = np.asarray(split.documents[document + 1], np.int64)
    best, score = np.zeros_like(count), np.zeros_like(count)
    for attempt in range(_TRIES):
        token = below(noise(draws, 2 + attempt), split.n_tokens - (own_end - own_begin))
        token += np.where(token >= own_begin, own_end - own_begin, 0)
        theirs = _document_of(split, token)
        begin, end = np.asarray(split.documents[theirs]), np.asarray(split.documents[theirs + 1])
        sentence = np.searchsorted(split.sentences, np.minimum(token, end - count), side="right") - 1
        start = np.maximum(begin, np.where(sentence >= 0, split.sentences[sentence], 0))
        fits = start + count <= end
        for candidate, worth in ((start, np.where(fits, 2, 1)), (end - count, np.ones_like(count))):
            clear = (candidate >= 0) & (candidate + count <= split.n_tokens)
            clear &= (candidate >= own_end) | (candidate + count <= own_begin)
            better = clear & (worth > score)
            best, score = np.where(better, candidate, best), np.where(better, worth, score)
    return best, score > 0
