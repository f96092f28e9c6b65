"""Where a text can be cut so that a tokenizer gives its pieces the very ids it gives the whole.

Most tokenizers look at nothing but the word, so a text can be encoded word by word, and each word only once. Which cuts
are safe is read from the tokenizer's description; where it is not one we know, or a text holds odd control characters
on whose meaning Python and the library differ, nothing is cut.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bertkin.text.sentences import sentence_starts

_ODD = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2581]")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_CHINESE_OR_WORD = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")
_MARKS = r"!-/:-@\[-`{-~"  # ASCII punctuation and symbols, which BERT's pre-tokenizer makes words of their own
_MARK_OR_WORD = re.compile(rf"[^\s{_MARKS}]+|[{_MARKS}]")
_CHINESE_OR_MARK_OR_WORD = re.compile(rf"[{_MARKS}\u4e00-\u9fff]|[^\s{_MARKS}\u4e00-\u9fff]+")
_SPACED = re.compile(r"\s*\S+|\s+")
_GPT2_ASCII = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


@dataclass(frozen=True)
class Cutting:
    """What of a text a tokenizer lets us encode apart, with the same ids.

    Attributes:
        by: at white space ("words"), before white space ("spaced"), or not at all ("whole").
        chinese: Chinese characters, too, are words of their own.
        marks: so are ASCII punctuation marks.
        anywhere: a sentence may end where no white space follows.
        lead: what to put before a word, so that it looks as it does inside a text.
    """

    by: Literal["words", "spaced", "whole"] = "whole"
    chinese: bool = False
    marks: bool = False
    anywhere: bool = False
    lead: str = ""

    def words(self, text: str) -> list[str] | None:
        """What of `text` can be encoded apart, in order; None when it has to be encoded whole."""
        if self.by != "words" or self._is_odd(text):
            return None
        return self._find(text)(text)

    def sentences(self, text: str) -> list[list[str]] | None:
        """The same, sentence by sentence (`bertkin.text.sentences`)."""
        if self.by == "whole" or self._is_odd(text):
            return None
        starts = sentence_starts(text) or [0]
        if not self.anywhere and any(not text[start - 1].isspace() for start in starts[1:]):
            return None
        starts[0] = 0
        parts = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
        if self.by == "words":
            find = self._find(text)
            return [find(part) for part in parts]
        for number in range(len(parts) - 1):  # white space goes with the word after it
            part = parts[number]
            kept = part.rstrip()
            parts[number + 1] = part[len(kept) :] + parts[number + 1]
            parts[number] = kept
        return [(_GPT2_ASCII if part.isascii() else _SPACED).findall(part) for part in parts]

    def _is_odd(self, text: str) -> bool:
        if self.lead and text and not text[0].isspace():  # normalizers drop such a letter, and then nothing leads
            first = text[0]
            if not first.isprintable() or first == "\ufffd" or unicodedata.category(first).startswith("M"):
                return True
        return _ODD.search(text) is not None

    def _find(self, text: str) -> Callable[[str], list[str]]:
        if self.chinese and not text.isascii() and _CHINESE.search(text):
            return (_CHINESE_OR_MARK_OR_WORD if self.marks else _CHINESE_OR_WORD).findall
        return _MARK_OR_WORD.findall if self.marks else str.split


def how_to_cut(plain: dict[str, Any]) -> Cutting:
    """Read from a tokenizer.json how its tokenizer looks at a text; `Cutting()` when we cannot tell."""
    normalizers = _steps(plain["normalizer"], "normalizers")
    pre_tokenizers = _steps(plain["pre_tokenizer"], "pretokenizers")
    if any(not token["special"] for token in plain["added_tokens"]) or not pre_tokenizers:
        return Cutting()
    first, *others = pre_tokenizers
    used = {step["type"] for step in normalizers}
    chinese = any(step["type"] == "BertNormalizer" and step["handle_chinese_chars"] for step in normalizers)
    local = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
    inside = {"BertPreTokenizer", "Punctuation", "Digits", "Split", "Whitespace"}
    by_words = first["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
    if by_words and used <= local and all(step["type"] in inside for step in others):
        bert = first["type"] == "BertPreTokenizer"
        return Cutting("words", chinese, marks=bert and not used & {"NFC", "NFKC"}, anywhere=bert)
    if others:
        return Cutting()
    if first["type"] == "ByteLevel" and not used and first["use_regex"] and not first["add_prefix_space"]:
        return Cutting("spaced")
    if first["type"] == "Metaspace" and first["prepend_scheme"] == "first" and first.get("split", True):
        blanks = [step["pattern"] for step in normalizers if step["type"] == "Replace"]
        if used <= local | {"Replace"} and blanks == [{"Regex": r"\s+\z"}, {"Regex": r"\s+"}]:  # as we make them
            return Cutting("words", chinese, lead=" ")
    return Cutting()


def _steps(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [inner for s in step[name] for inner in _steps(s, name)] if step["type"] == "Sequence" else [step]
