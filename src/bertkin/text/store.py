"""The token store: a corpus as memory-mapped ids, made once, by as many processes as there are cores.

    <cache>/stores/<key>/
        manifest.json                   what it was made of, how, counts, sizes and hashes of the files beside it
        {train,heldout}.tokens          ids, uint16 or uint32, documents end to end, no special tokens
        {train,heldout}.documents       int64 [documents + 1], offsets of documents in tokens
        {train,heldout}.sentences       int64 [sentences], offsets at which sentences begin

The key is a hash of everything the bytes depend on: content of the inputs, how they are read, the tokenizer, the split,
the format. Work in progress lies in <cache>/preparing/<key>/ as numbered shards, each written aside and renamed, so a
killed preparation goes on from the shards it finished; the store itself appears by renaming a folder.
"""

from __future__ import annotations

import json
import os
import shutil
import typing
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.config import Documents
from bertkin.errors import UserError, disk_errors
from bertkin.text.cache import cache_folder, hash_sources, key_of, locked
from bertkin.text.fields import Field
from bertkin.text.readers import BLOCK
from bertkin.text.shards import How, Pool, read_shard, tasks
from bertkin.text.sources import Source, list_sources
from bertkin.text.tokenizer import Tokenizer

FORMAT = 1
PARTS = ("tokens", "documents", "sentences")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Split:
    """One side of a store, memory-mapped.

    Attributes:
        tokens: uint16 or uint32 [tokens].
        documents: int64 [documents + 1], offsets into `tokens`.
        sentences: int64 [sentences], offsets into `tokens`; every document begins one.
        marks: uint8 [tokens], which tokens belong together, if the store is marked (`bertkin.text.words`).
    """

    name: str
    tokens: np.ndarray
    documents: np.ndarray
    sentences: np.ndarray
    marks: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.documents) - 1

    def document_of(self, offsets: np.ndarray) -> np.ndarray:
        """Number of the document that holds each token offset, int64, same shape."""
        return np.searchsorted(self.documents, offsets, side="right") - 1

    def __repr__(self) -> str:
        return f"Split({self.name}: {self.n_documents:,} documents, {self.n_tokens:,} tokens)"


@dataclass(frozen=True)
class Store:
    """A prepared corpus."""

    folder: Path
    manifest: dict[str, Any]
    marks: Path | None = None
    """Folder of the marks beside the store, one file a split."""

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a store; its files are checked to be there and whole (`verify` checks every byte).

        Raises:
            UserError: it is missing, damaged, or of another format.
        """
        folder = Path(folder)
        mend = "delete the folder and prepare the corpus again"
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            version = manifest["format"]
            files = {name: (int(file["bytes"]), int(file["crc32"])) for name, file in manifest["files"].items()}
        except FileNotFoundError:
            raise UserError(
                "not a token store", where=folder, mend="make one: bertkin pretrain prepares its corpus"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"damaged ({type(error).__name__})", where=folder / "manifest.json", mend=mend) from None
        if version != FORMAT:
            raise UserError(f"a token store of format {version}; this is format {FORMAT}", where=folder, mend=mend)
        for name in (f"{split}.{part}" for split in ("train", "heldout") for part in PARTS):
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if name not in files or size != files[name][0]:
                what = "missing" if size is None else f"{size:,} bytes long, not {files.get(name, (0,))[0]:,}"
                raise UserError(what, where=folder / name, mend=mend)
        return cls(folder, manifest)

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            UserError: a file is damaged.
        """
        for name, file in self.manifest["files"].items():
            crc = 0
            with open(self.folder / name, "rb") as opened:
                while chunk := opened.read(1 << 20):
                    crc = zlib.crc32(chunk, crc)
            if crc != file["crc32"]:
                mend = "delete the folder and prepare the corpus again"
                raise UserError("its bytes have changed", where=self.folder / name, mend=mend)

    def _split(self, name: str) -> Split:
        def array(part: str, dtype: Any, folder: Path = self.folder) -> np.ndarray:
            path = folder / f"{name}.{part}"
            return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)

        return Split(
            name,
            array("tokens", self.manifest["dtype"]),
            array("documents", "<i8"),
            array("sentences", "<i8"),
            None if self.marks is None else array("marks", np.uint8, self.marks),
        )

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def heldout(self) -> Split:
        return self._split("heldout")

    @property
    def fingerprint(self) -> str:
        """The key: a hash of inputs, reading, tokenizer, split and format."""
        return typing.cast(str, self.manifest["key"])

    @property
    def vocab_size(self) -> int:
        return typing.cast(int, self.manifest["tokenizer"]["vocab_size"])

    @property
    def words(self) -> int:
        """Words of both splits together."""
        return sum(typing.cast(int, counts["words"]) for counts in self.manifest["counts"].values())

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer other than the one that made the store.

        Raises:
            UserError: it is another one.
        """
        if tokenizer.fingerprint != self.manifest["tokenizer"]["fingerprint"]:
            raise UserError(
                "this token store was made by another tokenizer",
                where=self.folder,
                mend="use the tokenizer it was made with, or prepare the corpus again",
            )

    def __repr__(self) -> str:
        return f"Store({self.words:,} words; {self.train}, {self.heldout})"


def prepare(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    field: Field = "text",
    documents: Documents = "auto",
    encoding_errors: str = "strict",
    max_words: int | None = None,
    heldout: float = 0.01,
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Store:
    """Turn a corpus into a token store, or open the one made before of the same.

    Args:
        paths: files, folders, globs, "-".
        heldout: share of the documents held out, chosen by a hash of their text.
        max_words: stop after the document that reaches this many words.
        workers: processes; by default one a core. The store's bytes do not depend on it.
        cache: where stores are kept; by default $BERTKIN_CACHE or ~/.cache/bertkin.
        progress: called with bytes done and bytes in all.

    Raises:
        UserError: the corpus cannot be read or is empty, or the disk refuses.
    """
    if not 0 <= heldout < 1:
        raise UserError(
            f"a share of {heldout} cannot be held out", where="heldout", mend="give a number from 0 to below 1"
        )
    if max_words is not None and max_words < 1:
        raise UserError(f"a corpus of {max_words} words is none", where="max_words", mend="ask for more")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} processes can do nothing", where="workers", mend="give 1 or more")
    sources = list_sources(paths)
    folder = cache_folder(cache)
    with disk_errors(folder):
        for name in ("stores", "preparing"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    inputs = hash_sources(sources, folder)
    how = How(field, documents, encoding_errors)
    made_of = {
        "format": FORMAT,
        "block": BLOCK,
        "inputs": inputs,
        "reading": asdict(how),
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "heldout": heldout,
        "max_words": max_words,
    }
    key = key_of(made_of)
    final, work = folder / "stores" / key, folder / "preparing" / key
    total = sum(source.size for source in sources)
    with disk_errors(work), locked(folder / "preparing" / f".{key}.lock"):
        if final.exists():
            try:
                store = Store.open(final)
            except UserError:
                shutil.rmtree(final)
            else:
                if progress:
                    progress(total, total)
                return store
        work.mkdir(exist_ok=True)
        shards = _make_shards(work, sources, how, tokenizer, max_words, workers, progress)
        made_of["key"] = key
        made_of["sources"] = [source.label for source in sources]
        _merge(shards, work / "store", tokenizer, heldout, max_words, made_of, where=", ".join(map(str, paths)))
        os.rename(work / "store", final)
        shutil.rmtree(work)
    if progress:
        progress(total, total)
    return Store.open(final)


# Shards to store.


def _make_shards(
    work: Path,
    sources: Sequence[Source],
    how: How,
    tokenizer: Tokenizer,
    max_words: int | None,
    workers: int | None,
    progress: Progress | None,
) -> list[Path]:
    total = sum(source.size for source in sources)
    cores = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    at_most = sum(-(-source.size // BLOCK) * (4 if source.compression else 1) for source in sources)
    shards: list[Path] = []
    words = 0
    with Pool(max(1, min(cores, at_most)), tokenizer, how, work) as pool:
        for path, n_words, position in pool.run(tasks(sources, how)):
            shards.append(path)
            words += n_words
            if progress:
                progress(min(position, total), total)
            if max_words is not None and words >= max_words:
                break
    return shards


class _Writer:
    """The three files of one split, written front to back."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]) -> None:
        self.name, self.dtype = name, dtype
        self.counts = {"documents": 0, "tokens": 0, "sentences": 0, "words": 0, "bytes": 0, "unknown": 0}
        self._files = {part: (folder / f"{name}.{part}").open("wb") for part in PARTS}
        self.sums = {part: [0, 0] for part in PARTS}
        self._write("documents", np.zeros(1, dtype="<i8"))

    def _write(self, part: str, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).data.cast("B") if len(array) else b""
        self._files[part].write(data)
        size, crc = self.sums[part]
        self.sums[part] = [size + len(data), zlib.crc32(data, crc)]

    def add(self, ids: np.ndarray, lengths: np.ndarray, sentences: np.ndarray) -> None:
        """Append documents: `ids` end to end, their `lengths`, and where in `ids` sentences begin."""
        done = self.counts["tokens"]
        self._write("tokens", ids.astype(self.dtype.newbyteorder("<"), copy=False))
        self._write("documents", (done + np.cumsum(lengths)).astype("<i8"))
        self._write("sentences", (done + sentences).astype("<i8"))
        self.counts["tokens"] += len(ids)
        self.counts["documents"] += len(lengths)
        self.counts["sentences"] += len(sentences)

    def close(self) -> dict[str, dict[str, int]]:
        for file in self._files.values():
            file.close()
        return {f"{self.name}.{part}": {"bytes": size, "crc32": crc} for part, (size, crc) in self.sums.items()}


def _merge(
    shards: Sequence[Path],
    folder: Path,
    tokenizer: Tokenizer,
    heldout: float,
    max_words: int | None,
    made_of: dict[str, Any],
    where: str,
) -> None:
    """Write the store's files from the shards, each document to its side of the split."""
    is_held_out = _sides(shards, heldout, max_words, where)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    writers = [_Writer(folder, name, dtype) for name in ("train", "heldout")]
    unknown = tokenizer._specials.get("unk", -1)
    for path, taken in zip(shards, is_held_out, strict=False):
        shard = read_shard(path)
        lengths = shard["lengths"]
        ends = np.cumsum(lengths)
        document_of = np.searchsorted(ends, shard["sentences"], side="right")
        for side, writer in enumerate(writers):
            mine = np.zeros(len(lengths), dtype=bool)
            mine[: len(taken)] = (taken == side) & (lengths[: len(taken)] > 0)
            ids = shard["ids"][np.repeat(mine, lengths)]
            kept = np.where(mine, lengths, 0)
            shift = (ends - lengths) - (np.cumsum(kept) - kept)  # how far a document's tokens move forward
            sentences = shard["sentences"] - shift[document_of] if len(lengths) else shard["sentences"]
            writer.add(ids, lengths[mine], sentences[mine[document_of]])
            writer.counts["words"] += int(shard["words"][mine].sum())
            writer.counts["bytes"] += int(shard["bytes"][mine].sum())
            writer.counts["unknown"] += int(np.count_nonzero(ids == unknown))
    files = {name: file for writer in writers for name, file in writer.close().items()}
    if not any(writer.counts["tokens"] for writer in writers):
        raise UserError("the corpus has no text", where=where, mend="give files with text")
    manifest = {
        **made_of,
        "dtype": dtype.newbyteorder("<").str,
        "counts": {writer.name: writer.counts for writer in writers},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _sides(shards: Sequence[Path], heldout: float, max_words: int | None, where: str) -> Iterator[np.ndarray]:
    """For each shard, 1 for the documents held out, 0 for the others; cut short where `max_words` is reached.

    A share that leaves one side empty moves over the document that was nearest to it.
    """
    low: tuple[float, Any] = (2.0, ())
    high: tuple[float, Any] = (-1.0, ())
    taken: list[int] = []
    words = n_documents = n_held = 0
    for number, path in enumerate(shards):
        shard = read_shard(path, ("hashes", "words", "lengths"))
        before = words + np.cumsum(shard["words"]) - shard["words"]
        n = len(before) if max_words is None else int(np.searchsorted(before, max_words, side="left"))
        words += int(shard["words"].sum())
        taken.append(n)
        real = np.flatnonzero(shard["lengths"][:n] > 0)
        shares = shard["hashes"][real] / 2.0**64
        if len(real):
            n_documents += len(real)
            n_held += int((shares < heldout).sum())
            low = min(low, (float(shares.min()), (number, int(real[shares.argmin()]))))
            high = max(high, (float(shares.max()), (number, int(real[shares.argmax()]))))
    move: Any = None
    if n_documents and heldout > 0 and n_documents == 1:
        mend = "give more, cut it with --data.documents blank or line, or hold out nothing with --data.heldout 0"
        raise UserError("the corpus is a single document, so none can be held out", where=where, mend=mend)
    if heldout > 0 and n_held == 0:
        move = (*low[1], 1)
    elif n_documents and n_held == n_documents:
        move = (*high[1], 0)
    for number, (path, n) in enumerate(zip(shards, taken, strict=True)):
        side = (read_shard(path, ("hashes",))["hashes"][:n] / 2.0**64 < heldout).astype(np.int8)
        if move and move[0] == number:
            side[move[1]] = move[2]
        yield side
