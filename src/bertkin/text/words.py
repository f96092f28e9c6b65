"""Marks beside a token store: which tokens belong together as a phrase, an entity, or a word of a text without spaces.

    <cache>/marks/<key>/
        {train,heldout}.continues       uint8 [tokens]: 1 where a token goes on with what began before it
        phrases.txt                     what was found: phrase, how often it stands there, its score
        manifest.json                   what it was made of

    phrase    found in the corpus (`bertkin.text.collocations`), or given in a list (ERNIE: Sun et al. 2019)
    entity    given in a list
    word      of Chinese text: found by a segmenter (whole word masking: Cui et al. 2021)

All of them are one byte a token, made once and memory-mapped, so what is hidden stays a function of the row's number.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.errors import UserError, disk_errors
from bertkin.text.batches import Bools, Ints, SplitLike
from bertkin.text.cache import key_of, locked
from bertkin.text.collocations import LEAST_NPMI, Words, blocks, find_phrases
from bertkin.text.shuffle import Bits, noise
from bertkin.text.store import Store
from bertkin.text.tokenizer import Tokenizer

FORMAT = 1
LONGEST_ENTRY = 32
"""Tokens of the longest entry of a list that is looked for."""
MARK_BLOCK = 1 << 20

Progress = Callable[[int, int, str], None]
_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_NO_TEXT = re.compile("[\udc80-\udcff]")
_KANA = re.compile("[\u3040-\u30ff]")


def mark(
    store: Store, tokenizer: Tokenizer, unit: str, phrases: str | Path | None, progress: Progress = lambda *_: None
) -> Store:
    """The store with the marks that hiding `unit` needs, made or found where they were made before.

    Args:
        unit: as in `bertkin.config.Objective`; token and span need none, and word only for Chinese text.
        phrases: a list of phrases or entities, one a line; without one, phrases are found in the corpus.
        progress: called with bytes done, bytes in all, and what is being done.

    Raises:
        UserError: the list is missing or empty, or nothing in it occurs; no phrase is found; Chinese text without a
            segmenter; the disk refuses.
    """
    if unit in ("phrase", "entity"):
        if phrases is None and unit == "entity":
            raise UserError(
                "entities are told by a list, and there is none",
                where="--objective.phrases",
                mend="give a file with one on each line, or choose --objective.unit phrase",
            )
        if phrases is not None:
            entries = read_list(phrases)
            made_of: dict[str, Any] = {"list": hashlib.blake2b("\n".join(entries).encode(), digest_size=16).hexdigest()}
            return _kept(
                store, made_of, lambda folder: _mark_list(store, tokenizer, entries, phrases, folder, progress)
            )
        made_of = {"npmi": LEAST_NPMI}
        return _kept(store, made_of, lambda folder: _mark_found(store, tokenizer, folder, progress))
    if unit == "word" and is_chinese(store.train, tokenizer):
        segmenter = _segmenter()
        return _kept(
            store, {"segmenter": segmenter.name}, lambda folder: _segment(store, tokenizer, segmenter, folder, progress)
        )
    return store


def _kept(store: Store, made_of: dict[str, Any], make: Callable[[Path], None]) -> Store:
    """The store with marks, which `make` writes into a folder unless they are there already."""
    made_of = {"format": FORMAT, "store": store.fingerprint, **made_of}
    key = key_of(made_of)
    marks = store.folder.parent.parent / "marks"
    with disk_errors(marks):
        marks.mkdir(exist_ok=True)
        with locked(marks / f".{key}.lock"):
            final, aside = marks / key, marks / f".{key}.{os.getpid()}"
            if not _whole(store, final):
                shutil.rmtree(final, ignore_errors=True)
                try:
                    aside.mkdir()
                    make(aside)
                    (aside / "manifest.json").write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")
                    os.rename(aside, final)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
    return replace(store, marks=final)


def find_marks(store: Store, key: str) -> Store | None:
    """The store with the marks of this key, if they were made before and are still there."""
    folder = store.folder.parent.parent / "marks" / key
    return replace(store, marks=folder) if _whole(store, folder) else None


def _whole(store: Store, folder: Path) -> bool:
    files = [(folder / f"{split.name}.continues", split.n_tokens) for split in (store.train, store.heldout)]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


# What the tokens say.


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """What each token writes into the text, in UTF-8, a blank in front included; special tokens write U+FFFD. [vocab]"""
    prefix = tokenizer._json["model"].get("continuing_subword_prefix") or ""
    tokens = [tokenizer.token(number) for number in range(tokenizer.vocab_size)]
    if '"ByteLevel"' in json.dumps(tokenizer._json["pre_tokenizer"]):
        table = _byte_letters()
        pieces = [bytes(byte for letter in token for byte in table.get(letter, letter.encode())) for token in tokens]
    else:
        pieces = [token.removeprefix(prefix).replace("▁", " ").encode("utf-8", "replace") for token in tokens]
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
        begins=tokenizer.word_starts | np.array([not text[:1].isalnum() for text in texts]),
        ends=np.array([not text[-1:].isalnum() for text in texts]),
        letters=np.array([any(map(str.isalnum, text)) for text in texts]),
    )


# Lists.


def check_list(unit: str, phrases: str | Path | None) -> None:
    """Refuse a list that is missing or empty, or that the unit does without, before anything is begun.

    Raises:
        UserError: saying what to give.
    """
    if phrases is not None and unit not in ("phrase", "entity"):
        raise UserError(
            f"a list is for phrases or entities, not for unit {unit}",
            where="--objective.phrases",
            mend="choose --objective.unit phrase or entity, or leave it out",
        )
    if phrases is None and unit == "entity":
        raise UserError(
            "entities are told by a list, and there is none",
            where="--objective.unit entity",
            mend="give --objective.phrases FILE with one on each line, or choose --objective.unit phrase",
        )
    if phrases is not None:
        read_list(phrases)


def read_list(path: str | Path) -> list[str]:
    """The phrases or entities of a file, one a line; what follows a tab is left out (see phrases.txt).

    Raises:
        UserError: it is missing, not UTF-8 text, or empty.
    """
    mend = "give a file with a phrase or entity on each line"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such list", where=path, mend=mend) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path, mend=mend) from None
    entries = list(dict.fromkeys(filter(None, (line.split("\t")[0].strip() for line in text.splitlines()))))
    if not entries:
        raise UserError("the list is empty", where=path, mend=mend)
    return entries


@dataclass(frozen=True)
class Entries:
    """Token sequences to look for."""

    first: Bools
    """[vocab]: some sequence begins with the token."""
    prefixes: list[tuple[Bits, Ints]]
    """Of the beginnings of 1, 2, … tokens, their hashes, sorted, and which entry each is; -1 where it is only a part."""

    @classmethod
    def of(cls, sequences: Sequence[tuple[Sequence[int], int]], vocab_size: int) -> Entries:
        """Args: sequences: tokens, and the number of the entry they write."""
        first = np.zeros(vocab_size, np.bool_)
        grouped: list[dict[int, int]] = [{} for _ in range(LONGEST_ENTRY)]
        for tokens, number in sequences:
            if 0 < len(tokens) <= LONGEST_ENTRY:
                first[tokens[0]] = True
                names = np.cumsum(noise(np.array(tokens, np.uint64), np.arange(len(tokens)))).tolist()
                for length, name in enumerate(names[:-1]):
                    grouped[length].setdefault(name, -1)
                if grouped[len(tokens) - 1].get(names[-1], -1) < 0:
                    grouped[len(tokens) - 1][names[-1]] = number
        prefixes = []
        for group in filter(None, grouped):
            hashes, numbers = np.array(list(group), np.uint64), np.array(list(group.values()), np.int64)
            order = np.argsort(hashes)
            prefixes.append((hashes[order], numbers[order]))
        return cls(first, prefixes)

    def match(self, tokens: Ints, boundaries: Bools) -> tuple[Ints, Ints, Ints]:
        """Where sequences stand in tokens [n], longest first, none over another: position, length and entry of each.

        Args:
            boundaries: [n + 1], where a match may begin or end.
        """
        at = np.flatnonzero(boundaries[:-1])
        at = at[self.first[tokens[at]]]
        names = np.zeros(len(at), np.uint64)
        candidates = []
        for length, (hashes, numbers) in enumerate(self.prefixes, start=1):
            inside = at + length <= len(tokens)
            at = at[inside]
            names = names[inside] + noise(tokens[at + length - 1].astype(np.uint64), length - 1)
            place = np.minimum(np.searchsorted(hashes, names), len(hashes) - 1)
            known = hashes[place] == names
            at, names, place = at[known], names[known], place[known]
            hit = (numbers[place] >= 0) & boundaries[at + length]
            candidates.append((length, at[hit], numbers[place[hit]]))
        taken = np.zeros(len(tokens), np.bool_)
        found = [_place(taken, *candidate) for candidate in reversed(candidates)]
        position, length_of, number = (np.concatenate(column) for column in zip(*found, strict=True))
        return position, length_of, number


def _place(taken: Bools, length: int, at: Ints, number: Ints) -> tuple[Ints, Ints, Ints]:
    """Of the candidates, from left to right, those that are not over what is taken; they are taken then."""
    before = np.append(0, np.cumsum(taken))
    free = before[at + length] == before[at]
    at, number = at[free], number[free]
    chosen: list[Ints] = []
    left = np.arange(len(at))
    while len(left):
        clear = np.diff(at[left], prepend=-length) >= length
        chosen.append(left[clear])
        since = at[left] - at[left[clear]][np.cumsum(clear) - 1]
        left = left[since >= length]
    kept = np.sort(np.concatenate(chosen)) if chosen else left
    taken[(at[kept][:, None] + np.arange(length)).ravel()] = True
    return at[kept], np.full(len(kept), length), number[kept]


def continues(split: SplitLike, words: Words, entries: Entries, counts: Ints) -> Iterator[np.ndarray]:
    """The marks of a split, uint8, block by block; `counts` [entries] is added to."""
    for first, last in blocks(split, MARK_BLOCK):
        tokens = np.asarray(split.tokens[first:last]).astype(np.int64)
        documents = split.documents[slice(*np.searchsorted(split.documents, [first, last]))] - first
        starts = np.append(words.starts(tokens), True)
        starts[documents] = True
        position, length, number = entries.match(tokens, starts)
        over = documents[np.minimum(np.searchsorted(documents, position, side="right"), len(documents) - 1)]
        within = ~((over > position) & (over < position + length))  # no phrase runs over the end of a document
        position, length, number = position[within], length[within], number[within]
        counts += np.bincount(number, minlength=len(counts))
        marks = np.zeros(len(tokens), np.uint8)
        inside = np.repeat(position - np.cumsum(length) + length, length) + np.arange(length.sum())
        marks[inside] = 1
        marks[position] = 0
        yield marks


def _mark_list(
    store: Store, tokenizer: Tokenizer, entries: list[str], path: str | Path, folder: Path, progress: Progress
) -> None:
    # A tokenizer that keeps blanks writes a phrase in two ways: with one before it and without.
    encoded = [*zip(tokenizer.encode_batch(entries), range(len(entries)), strict=True)]
    encoded += zip(tokenizer.encode_batch([f" {entry}" for entry in entries]), range(len(entries)), strict=True)
    unknown = tokenizer._specials.get("unk", -1)
    encoded = [(tokens, number) for tokens, number in encoded if unknown not in tokens]
    counts = _write_marks(store, tokenizer, encoded, len(entries), folder, progress)
    if not counts.any():
        raise UserError(
            f"none of its {len(entries):,} entries occurs in the corpus",
            where=path,
            mend="check that it is written as the corpus is, one phrase or entity on each line",
        )
    order = np.argsort(-counts, kind="stable")
    _write_phrases(folder, [f"{entries[one]}\t{counts[one]}" for one in order])


def _mark_found(store: Store, tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    size = store.train.tokens.nbytes
    phrases = find_phrases(
        store.train,
        words_of(tokenizer),
        progress=lambda done, total: progress(done * size // total, size, "finding phrases"),
    )
    if not phrases:
        raise UserError(
            "no words stand together often enough to be phrases",
            where="--objective.unit phrase",
            mend="give more text, a list with --objective.phrases, or choose --objective.unit word",
        )
    encoded = [(phrase.tokens, number) for number, phrase in enumerate(phrases)]
    _write_marks(store, tokenizer, encoded, len(phrases), folder, progress)
    lines = [f"{tokenizer.decode(p.tokens).strip()}\t{p.count}\t{p.score:.3f}" for p in phrases]
    _write_phrases(folder, lines)


def _write_phrases(folder: Path, lines: list[str]) -> None:
    (folder / "phrases.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_marks(
    store: Store,
    tokenizer: Tokenizer,
    encoded: Sequence[tuple[Sequence[int], int]],
    n_entries: int,
    folder: Path,
    progress: Progress,
) -> Ints:
    """Write the marks of both splits; how often each entry was found."""
    words, entries = words_of(tokenizer), Entries.of(encoded, tokenizer.vocab_size)
    counts = np.zeros(n_entries, np.int64)
    total, done = store.train.tokens.nbytes + store.heldout.tokens.nbytes, 0
    for split in (store.train, store.heldout):
        with open(folder / f"{split.name}.continues", "wb") as file:
            for marks in continues(split, words, entries, counts):
                file.write(marks.data)
                done += len(marks) * split.tokens.itemsize
                progress(done, total, "marking phrases")
    return counts


# Chinese words.


@dataclass(frozen=True)
class Segmenter:
    """Cuts Chinese text in words that together are the text."""

    name: str
    cut: Callable[[str], list[str]]


def _segmenter() -> Segmenter:
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
    return len(_CHINESE.findall(text)) > 0.3 * letters and len(_KANA.findall(text)) < 0.02 * letters


def _text(ids: np.ndarray, pieces: list[bytes]) -> str:
    """What tokens write, as many bytes as their pieces have: one that is no UTF-8 is a question mark."""
    text = b"".join(map(pieces.__getitem__, ids.tolist())).decode("utf-8", "surrogateescape")
    return _NO_TEXT.sub("?", text)


def _segment(store: Store, tokenizer: Tokenizer, segmenter: Segmenter, folder: Path, progress: Progress) -> None:
    """Write which tokens go on with a Chinese word."""
    pieces = [
        b" " + piece if start and not _CHINESE.search(piece.decode("utf-8", "replace")) else piece
        for piece, start in zip(pieces_of(tokenizer), tokenizer.word_starts.tolist(), strict=True)
    ]
    total, done = store.train.tokens.nbytes + store.heldout.tokens.nbytes, 0
    for split in (store.train, store.heldout):
        with open(folder / f"{split.name}.continues", "wb") as file:
            for first, last in blocks(split, 1 << 18):
                file.write(segmented(np.asarray(split.tokens[first:last]), pieces, segmenter).data)
                done += (last - first) * split.tokens.itemsize
                progress(done, total, "segmenting words")


def segmented(ids: np.ndarray, pieces: list[bytes], segmenter: Segmenter) -> np.ndarray:
    """Which of some tokens [n] begin inside a word that has a Chinese character, uint8 [n].

    Words and tokens are aligned by the bytes they write, which are the same bytes.

    Args:
        pieces: [vocab], what each token writes.
    """
    words = segmenter.cut(_text(ids, pieces))
    ends = np.cumsum([len(word.encode()) for word in words])
    chinese = np.array([_CHINESE.search(word) is not None for word in words])
    lengths = np.array([len(piece) for piece in pieces])[ids]
    starts = np.cumsum(lengths) - lengths
    word = np.searchsorted(ends, starts, side="right")
    inside = starts > np.append(0, ends[:-1])[word]
    return (chinese[word] & inside).astype(np.uint8)
