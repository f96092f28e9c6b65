"""Marks beside a token store: which tokens belong together as a phrase, an entity, or a word of a text without spaces.

    <cache>/marks/<key>/
        {train,heldout}.marks   uint8 [tokens]: 1 where a token goes on with what began before it, 2 where one begins
                                whatever the token says, 0 where the token itself tells
        phrases.txt             what was found: phrase, how often it stands there, its score
        manifest.json           what it was made of

    phrase    found in the corpus (`bertkin.text.collocations`), or given in a list (ERNIE: Sun et al. 2019)
    entity    given in a list
    word      of Chinese text: found by a segmenter (whole word masking: Cui et al. 2021)

All of them are one byte a token, made once and memory-mapped, so what is hidden stays a function of the row's number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.errors import UserError, disk_errors
from bertkin.text.batches import Ints
from bertkin.text.cache import key_of, locked
from bertkin.text.chinese import Segmenter, is_chinese, segmented, segmenter
from bertkin.text.collocations import LEAST_NPMI, blocks, find_phrases
from bertkin.text.matching import Entries, check_list, marked, read_list, spellings
from bertkin.text.pieces import running, words_of
from bertkin.text.store import Store
from bertkin.text.tokenizer import Tokenizer

FORMAT = 1

Progress = Callable[[int, int, str], None]


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
    check_list(unit, phrases)
    if unit in ("phrase", "entity") and phrases is not None:
        entries = read_list(phrases)
        digest = hashlib.blake2b("\n".join(entries).encode(), digest_size=16).hexdigest()
        return _kept(store, {"list": digest}, partial(_mark_list, store, tokenizer, entries, phrases, progress))
    if unit == "phrase":
        return _kept(store, {"npmi": LEAST_NPMI}, partial(_mark_found, store, tokenizer, progress))
    if unit == "word" and is_chinese(store.train, tokenizer):
        by = segmenter()
        return _kept(store, {"segmenter": by.name}, partial(_mark_words, store, tokenizer, by, progress))
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


def described(store: Store) -> str | None:
    """A line about what is hidden at once, for a store that is marked."""
    if store.marks is None:
        return None
    made_of = json.loads((store.marks / "manifest.json").read_text(encoding="utf-8"))
    if "segmenter" in made_of:
        return f"words are hidden whole, as {made_of['segmenter']} finds them"
    path = store.marks / "phrases.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    found = sum(line.split("\t")[1] != "0" for line in lines)
    if "list" in made_of:
        return f"{found:,} of the {len(lines):,} entries of the list stand in the corpus: {path}"
    return f"{found:,} phrases found in the corpus: {path}"


def find_marks(store: Store, key: str) -> Store | None:
    """The store with the marks of this key, if they were made before and are still there."""
    folder = store.folder.parent.parent / "marks" / key
    return replace(store, marks=folder) if _whole(store, folder) else None


def _whole(store: Store, folder: Path) -> bool:
    files = [(folder / f"{split.name}.marks", split.n_tokens) for split in (store.train, store.heldout)]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _mark_list(
    store: Store, tokenizer: Tokenizer, entries: list[str], path: str | Path, progress: Progress, folder: Path
) -> None:
    counts = _write_marks(store, tokenizer, spellings(tokenizer, entries), len(entries), folder, progress)
    if not counts.any():
        raise UserError(
            f"none of its {len(entries):,} entries occurs in the corpus",
            where=path,
            mend="check that it is written as the corpus is, one phrase or entity on each line",
        )
    order = np.argsort(-counts, kind="stable")
    _write_phrases(folder, [f"{entries[one]}\t{counts[one]}" for one in order])


def _mark_found(store: Store, tokenizer: Tokenizer, progress: Progress, folder: Path) -> None:
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
    texts = [tokenizer.decode(phrase.tokens).strip() for phrase in phrases]
    encoded = [(list(phrase.tokens), number) for number, phrase in enumerate(phrases)]
    counts = _write_marks(store, tokenizer, encoded + spellings(tokenizer, texts), len(texts), folder, progress)
    lines = zip(texts, counts, phrases, strict=True)
    _write_phrases(folder, [f"{text}\t{count}\t{phrase.score:.3f}" for text, count, phrase in lines])


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
        with open(folder / f"{split.name}.marks", "wb") as file:
            for marks in marked(split, words, entries, counts):
                file.write(marks.data)
                done += len(marks) * split.tokens.itemsize
                progress(done, total, "marking phrases")
    return counts


def _mark_words(store: Store, tokenizer: Tokenizer, by: Segmenter, progress: Progress, folder: Path) -> None:
    """Write which tokens go on with a Chinese word."""
    pieces = running(tokenizer)
    total, done = store.train.tokens.nbytes + store.heldout.tokens.nbytes, 0
    for split in (store.train, store.heldout):
        with open(folder / f"{split.name}.marks", "wb") as file:
            for first, last in blocks(split, 1 << 18):
                file.write(segmented(np.asarray(split.tokens[first:last]), pieces, by.cut).data)
                done += (last - first) * split.tokens.itemsize
                progress(done, total, "segmenting words")
