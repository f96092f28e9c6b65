"""What is made once of a corpus is kept in a folder and found again by content: stores and trained tokenizers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bertkin.config import Documents, TokenizerKind
from bertkin.errors import UserError, disk_errors
from bertkin.text.fields import Field, plain, with_frames
from bertkin.text.readers import read_source
from bertkin.text.sentences import count_words
from bertkin.text.sources import Source, list_sources
from bertkin.text.tokenizer import NormalForm, Tokenizer, train_tokenizer

TRAINING = 1
"""Version of how tokenizers are trained; another number trains them anew."""


def cache_folder(given: str | Path | None = None) -> Path:
    """`given`, or $BERTKIN_CACHE, or ~/.cache/bertkin."""
    return Path(given or os.environ.get("BERTKIN_CACHE") or "~/.cache/bertkin").expanduser()


def key_of(made_of: Any) -> str:
    """Hash of plain data that says what something is made of."""
    return hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` for this process alone; another one that makes the same waits, then finds it made."""
    try:
        import fcntl
    except ImportError:  # not a Unix: two at once do the work twice, and the first to rename wins
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hash_sources(sources: Sequence[Source], cache: Path) -> list[dict[str, Any]]:
    """Content hash, size and kind of each source; hashes are remembered by path, size and time of change."""
    memory = cache / "hashes.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):  # none yet, or damaged: it only saves time
        known = dict(json.loads(memory.read_text(encoding="utf-8")))
    inputs, fresh = [], False
    for source in sources:
        real = os.path.realpath(source.path)
        try:
            status = os.stat(real)
            seen = [status.st_size, status.st_mtime_ns, status.st_ino]
            entry = known.get(real)
            if not (isinstance(entry, list) and entry[:3] == seen and len(entry) == 4):
                with open(real, "rb") as file:
                    entry = [*seen, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()]
                if time.time_ns() - status.st_mtime_ns > 2_000_000_000:  # younger ones may yet change within a tick
                    known[real], fresh = entry, True
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", where=source.label, mend="check it") from None
        inputs.append({"hash": entry[3], "bytes": source.size, "kind": source.kind, "compression": source.compression})
    if fresh:
        aside = memory.with_name(f".{memory.name}.{os.getpid()}")
        with disk_errors(memory):
            try:
                aside.write_text(json.dumps(dict(list(known.items())[-100_000:])), encoding="utf-8")
                aside.replace(memory)
            finally:
                aside.unlink(missing_ok=True)
    return inputs


def tokenizer_for(
    paths: Sequence[str | Path],
    *,
    kind: TokenizerKind = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    normal_form: NormalForm | None = None,
    split_chinese: bool = True,
    sentinels: int = 0,
    field: Field = "text",
    documents: Documents = "auto",
    encoding_errors: str = "strict",
    max_words: int | None = None,
    cache: str | Path | None = None,
) -> Tokenizer:
    """Train a tokenizer on a corpus, or open the one trained before on the same, in the same way.

    Arguments are those of `train_tokenizer` and `prepare`.

    Raises:
        UserError: as `train_tokenizer` and `read_documents`; or the disk refuses.
    """
    sources = list_sources(paths)
    folder = cache_folder(cache)
    with disk_errors(folder):
        (folder / "tokenizers").mkdir(parents=True, exist_ok=True)
    reading: dict[str, Any] = {"field": field, "documents": documents, "encoding_errors": encoding_errors}
    training: dict[str, Any] = {
        "kind": kind,
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "strip_accents": strip_accents,
        "normal_form": normal_form,
        "split_chinese": split_chinese,
    }
    if sentinels:  # only then, so that tokenizers trained before there were any are found again
        training["sentinels"] = sentinels
    inputs = hash_sources(sources, folder)
    key = key_of({"version": TRAINING, "inputs": inputs, **reading, **training, "max_words": max_words})
    final, aside = folder / "tokenizers" / key, folder / "tokenizers" / f".{key}.{os.getpid()}"
    with disk_errors(final), locked(folder / "tokenizers" / f".{key}.lock"):
        if final.exists():
            try:
                return Tokenizer.load(final)
            except UserError:
                shutil.rmtree(final)
        texts = (
            text
            for source in sources
            for text in read_source(source, field=field, documents=documents, encoding_errors=encoding_errors)
        )
        names = field if isinstance(field, tuple) else ()
        training["vocab_size"] = vocab_size and vocab_size - 2 * len(names)
        tokenizer = with_frames(train_tokenizer(first_words(map(plain, texts), max_words), **training), names)
        try:
            tokenizer.save(aside)
            os.rename(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Tokenizer.load(final)


def first_words(texts: Iterator[str], max_words: int | None) -> Iterator[str]:
    """Texts until `max_words` words have gone by: the same documents that `prepare` keeps."""
    words = 0
    for text in texts:
        yield text
        if max_words is not None:
            words += count_words(text)
            if words >= max_words:
                return
