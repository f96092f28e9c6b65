"""Shards of a token store in the making: which blocks make one, what is in it, and the processes that make them.

Workers are started as `python -c`, not forked or spawned: forking is not safe beside torch's threads, and spawning
runs the user's main module again. They are sent blocks and answer with counts; ids go straight to disk.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

import bertkin
from bertkin.config import Documents
from bertkin.errors import UserError, disk_errors
from bertkin.text.encoder import Encoder
from bertkin.text.fields import Field, encode_framed
from bertkin.text.readers import BLOCK, Block, cut_blocks, read_block
from bertkin.text.sources import Source
from bertkin.text.tokenizer import Tokenizer

LOT = 1 << 20
"""Characters encoded at once."""


@dataclass(frozen=True)
class How:
    """How sources are read."""

    field: Field
    documents: Documents
    encoding_errors: str


@dataclass(frozen=True)
class Task:
    """What becomes one shard: some blocks; `position` is how many bytes of all sources are read after it."""

    number: int
    blocks: tuple[Block, ...]
    position: int


def tasks(sources: Sequence[Source], how: How) -> Iterator[Task]:
    """Blocks of all sources in order, small ones together."""
    number = size = done = 0
    held: list[Block] = []
    for source in sources:
        for block in cut_blocks(source, field=how.field, documents=how.documents, encoding_errors=how.encoding_errors):
            held.append(block)
            size += block.weight
            if size >= BLOCK:
                yield Task(number, tuple(held), done + block.position)
                number, size, held = number + 1, 0, []
        done += source.size
    if held:
        yield Task(number, tuple(held), done)


# One shard.


def shard_path(work: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return work / f"{number:06d}.npz"


def make_shard(encoder: Encoder, how: How, task: Task, path: Path) -> int:
    """Encode the documents of `task` into a shard at `path`, aside and renamed; returns their number of words.

    A shard holds, over its documents: ids (end to end), lengths, sentences (offsets into ids), hashes, words, bytes.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "lengths", "sentences", "words")}
    hashes: list[int] = []
    sizes: list[int] = []
    n_ids = 0
    for lot in _lots(task.blocks, how):
        encoded = encode_framed(encoder, lot, encoder.frames) if isinstance(how.field, tuple) else encoder.encode(lot)
        for name, array in (
            ("ids", encoded.ids),
            ("lengths", encoded.lengths),
            ("sentences", encoded.sentences + n_ids),
            ("words", encoded.words),
        ):
            parts[name].append(array)
        n_ids += len(encoded.ids)
        for document in lot:
            data = document.encode("utf-8", "surrogatepass")
            hashes.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))
            sizes.append(len(data))
    arrays: dict[str, Any] = {
        name: np.concatenate(arrays) if arrays else np.empty(0, dtype=encoder.dtype if name == "ids" else np.int64)
        for name, arrays in parts.items()
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        try:
            with open(aside, "wb") as file:
                np.savez(
                    file, hashes=np.array(hashes, dtype=np.uint64), bytes=np.array(sizes, dtype=np.int64), **arrays
                )
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return int(arrays["words"].sum())


def _lots(blocks: Iterable[Block], how: How) -> Iterator[list[str]]:
    lot: list[str] = []
    size = 0
    for block in blocks:
        for document in read_block(
            block, field=how.field, documents=how.documents, encoding_errors=how.encoding_errors
        ):
            lot.append(document)
            size += len(document)
            if size >= LOT:
                yield lot
                lot, size = [], 0
    if lot:
        yield lot


def read_shard(path: Path, names: Sequence[str] = ("ids", "lengths", "sentences", "words", "bytes")) -> dict[str, Any]:
    """The named arrays of a shard."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names}


def _finished(path: Path) -> int | None:
    """Words of a shard that an earlier, killed preparation finished; None when there is none or it is damaged."""
    try:
        return int(read_shard(path, ("words",))["words"].sum())
    except FileNotFoundError:
        return None
    except Exception:  # whatever a damaged zip file makes numpy say
        return None


# Many shards.


class Pool:
    """Processes that make shards; with one, this very process does."""

    def __init__(self, workers: int, tokenizer: Tokenizer, how: How, work: Path) -> None:
        self.workers, self.how, self.work = workers, how, work
        self._tokenizer = tokenizer
        self._encoder: Encoder | None = None
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bertkin-prepare")
        for _ in range(workers):
            self._idle.put(None)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            worker.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Path, int, int]]:
        """Make all shards; yields path, words and position of each, in order, as they are finished."""
        waiting: deque[tuple[Task, Future[int]]] = deque()
        for task in tasks:
            if len(waiting) >= 2 * self.workers:
                yield self._next(waiting)
            waiting.append((replace(task, blocks=()), self._threads.submit(self._make, task)))
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[tuple[Task, Future[int]]]) -> tuple[Path, int, int]:
        task, future = waiting.popleft()
        return shard_path(self.work, task.number), future.result(), task.position

    def _make(self, task: Task) -> int:
        path = shard_path(self.work, task.number)
        done = _finished(path)
        if done is not None:
            return done
        if self.workers == 1:
            self._encoder = self._encoder or Encoder(self._tokenizer)
            return make_shard(self._encoder, self.how, task, path)
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self._tokenizer.backend.to_str(), self.how)
                with self._lock:
                    self._all.append(worker)
            return worker.make(task, path)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that makes shards, one at a time."""

    def __init__(self, tokenizer: str, how: How) -> None:
        home = str(Path(bertkin.__file__).parent.parent)
        code = f"import sys; sys.path.insert(0, {home!r}); from bertkin.text.shards import work; work()"
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        _send(self._to, (tokenizer, how))

    def make(self, task: Task, path: Path) -> int:
        """Have the shard made; raises here what was raised there."""
        try:
            _send(self._to, (task, path))
            kind, answer = _receive(self._from)
        except (EOFError, OSError):
            what = f"a preparing process died (exit status {self._process.wait()})"
            raise UserError(what, mend="if memory ran out, use fewer: --data.workers 1") from None
        if kind == "words":
            return int(answer)
        if kind == "user":
            raise UserError(answer[0], where=answer[1], mend=answer[2])
        raise RuntimeError(f"in a preparing process:\n{answer}")

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()


def _send(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)  # from our own child, over a pipe of ours


def work() -> None:
    """What a worker process runs: makes shards until its parent closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not enter the conversation
    try:
        tokenizer, how = _receive(inbox)
        encoder = Encoder(Tokenizer.from_str(tokenizer))
        while True:
            task, path = _receive(inbox)
            try:
                answer: Any = ("words", make_shard(encoder, how, task, path))
            except UserError as error:
                answer = ("user", (error.what, error.where, error.mend))
            except BaseException:
                answer = ("error", traceback.format_exc())
            _send(outbox, answer)
    except (EOFError, BrokenPipeError):
        pass
