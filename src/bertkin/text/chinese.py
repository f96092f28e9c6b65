"""Words of Chinese text, which has no blanks between them: found by a segmenter, told of the tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bertkin.errors import UserError
from bertkin.text.batches import BEGINS, GOES_ON, Marks, SplitLike
from bertkin.text.pieces import CHINESE, pieces_of
from bertkin.text.tokenizer import Tokenizer

_NO_TEXT = re.compile("[\udc80-\udcff]")
_KANA = re.compile("[\u3040-\u30ff]")


@dataclass(frozen=True)
class Segmenter:
    """Cuts Chinese text in words that together are the text."""

    name: str
    cut: Callable[[str], list[str]]


def segmenter() -> Segmenter:
    try:
        import rjieba
    except ImportError:
        raise UserError(
            "whole words of Chinese text need a segmenter",
            where="--objective.unit word",
            mend='pip install "bertkin[chinese]", or choose --objective.unit token',
        ) from None
    from importlib.metadata import version

    return Segmenter(f"rjieba {version('rjieba')}", rjieba.cut)


def is_chinese(split: SplitLike, tokenizer: Tokenizer) -> bool:
    """Whether a good part of a text is Chinese: of the letters of its first 100,000 tokens, three in ten."""
    pieces = pieces_of(tokenizer)
    text = _text(np.asarray(split.tokens[:100_000]), pieces)
    letters = sum(map(str.isalnum, text))
    return len(CHINESE.findall(text)) > 0.3 * letters and len(_KANA.findall(text)) < 0.02 * letters


def _text(ids: np.ndarray, pieces: list[bytes]) -> str:
    """What tokens write, as many bytes as their pieces have: one that is no UTF-8 is a question mark."""
    text = b"".join(map(pieces.__getitem__, ids.tolist())).decode("utf-8", "surrogateescape")
    return _NO_TEXT.sub("?", text)


def segmented(ids: np.ndarray, pieces: list[bytes], cut: Callable[[str], list[str]]) -> Marks:
    """The marks of some tokens [n]: which begin a word that has a Chinese character, or what follows one, and which go
    on with it.

    Words and tokens are aligned by the bytes they write, which are the same bytes.

    Args:
        pieces: [vocab], what each token writes (`bertkin.text.pieces.running`).
        cut: cuts a text in words that together are the text.
    """
    words = cut(_text(ids, pieces))
    ends = np.cumsum([len(word.encode()) for word in words])
    chinese = np.array([CHINESE.search(word) is not None for word in words])
    lengths = np.array([len(piece) for piece in pieces])[ids]
    starts = np.cumsum(lengths) - lengths
    word = np.searchsorted(ends, starts, side="right")
    inside = starts > np.append(0, ends[:-1])[word]
    inside[1:] |= lengths[:-1] == 0  # a blank of its own, which writes nothing here, goes with what follows
    touches = chinese | np.append(False, chinese[:-1])
    return np.where(inside, chinese[word] * GOES_ON, touches[word] * BEGINS).astype(np.uint8)
