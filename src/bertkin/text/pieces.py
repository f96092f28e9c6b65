"""What each token of a vocabulary writes into the text, and what that says about where words begin and end."""

from __future__ import annotations

import json
import re
import unicodedata

import numpy as np

from bertkin.text.collocations import Words
from bertkin.text.tokenizer import Tokenizer

CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """What each token writes into the text, in UTF-8, a blank in front included; special tokens write U+FFFD. [vocab]"""
    tokens = [tokenizer.token(number) for number in range(tokenizer.vocab_size)]
    if '"ByteLevel"' in json.dumps(tokenizer._json["pre_tokenizer"]):
        table = _byte_letters()
        pieces = [bytes(byte for letter in token for byte in table.get(letter, letter.encode())) for token in tokens]
    else:
        pieces = [token.removeprefix(tokenizer.prefix).replace("▁", " ").encode("utf-8", "replace") for token in tokens]
    for number in tokenizer.special_ids:
        pieces[number] = "\ufffd".encode()
    return pieces


def _byte_letters() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(others))]
    return {letter: bytes([byte]) for letter, byte in zip(letters, [*plain, *others], strict=True)}


def words_of(tokenizer: Tokenizer) -> Words:
    """Where words begin and end, by the tokens: at a word start, and on either side of what is no letter or digit."""
    texts = [piece.decode("utf-8", "replace") for piece in pieces_of(tokenizer)]
    special = set(tokenizer.special_ids.tolist())
    # A letter that bytes only begin, or end, is U+FFFD here: a letter, but for special tokens.
    texts = [text if number in special else text.replace("\ufffd", "x") for number, text in enumerate(texts)]
    return Words(
        begins=tokenizer.word_starts | np.array([not _in_word(text[:1]) for text in texts]),
        ends=np.array([not _in_word(text[-1:]) and text != " " for text in texts]),  # a blank goes before a word
        letters=np.array([any(map(str.isalnum, text)) for text in texts]),
    )


def _in_word(character: str) -> bool:
    """Whether it is a letter, a digit, or what is written on or under one: an accent, a vowel sign."""
    return character.isalnum() or (character != "" and unicodedata.category(character)[0] == "M")


def running(tokenizer: Tokenizer) -> list[bytes]:
    """What each token writes where Chinese text runs on: blanks between its characters are tokenizers' work and left
    out, but other words stand apart. [vocab]"""
    pieces = pieces_of(tokenizer)
    for number, start in enumerate(tokenizer.word_starts.tolist()):
        blank = tokenizer.token(number).startswith("▁")
        if CHINESE.search(pieces[number].decode("utf-8", "replace")) or pieces[number] == b" ":
            pieces[number] = pieces[number].lstrip() if blank else pieces[number]
        elif start:
            pieces[number] = b" " + pieces[number].lstrip()
    return pieces
