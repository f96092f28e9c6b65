"""Text to tokens: bertkin's preparation beside the bare `tokenizers` library, on the same file with the same tokenizer.

    python benchmarks/preparing.py                     about 1 GB made from $BERTKIN_DATA/text/enwiki.jsonl.gz
    python benchmarks/preparing.py --megabytes 100 --out preparing.json
    python benchmarks/preparing.py --text my.txt

Both sides run in a fresh process, in turn, several times. The bare side does the least anyone must do: it reads the
file's lines in Python and gives them in batches to `encode_batch`, which uses all cores, and keeps nothing but a count.
bertkin's side does all of its work: hashing, cutting into documents, sentences, splitting, writing the store.
Memory is the sum of the resident sets of the process and its children, sampled from /proc twenty times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LINES = 1000
"""Lines the bare library encodes at once."""


def make_text(path: Path, megabytes: float) -> None:
    """Write about `megabytes` of text: the articles of the English Wikipedia sample, shuffled anew each time round."""
    data = os.environ.get("BERTKIN_DATA")
    if not data:
        sys.exit("BERTKIN_DATA is not set, so there is no text to make a file of; give one with --text")
    with gzip.open(Path(data) / "text" / "enwiki.jsonl.gz", "rt", encoding="utf-8") as lines:
        articles = [json.loads(line)["text"] for line in lines]
    size = number = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            random.Random(number).shuffle(articles)
            number += 1
            for article in articles:
                size += file.write(article + "\n\n")
                if size >= megabytes * 1e6:
                    break


# One side, in its own process.


def run_bare(text: str, tokenizer: str) -> int:
    """Tokens of `text`, counted with the bare library."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(tokenizer)
    tokens = 0
    batch: list[str] = []
    with open(text, encoding="utf-8") as lines:
        for line in lines:
            if not line.isspace():
                batch.append(line)
            if len(batch) == LINES:
                tokens += sum(map(len, backend.encode_batch(batch, add_special_tokens=False)))
                batch = []
    return tokens + sum(map(len, backend.encode_batch(batch, add_special_tokens=False)))


def run_bertkin(text: str, tokenizer: str) -> int:
    """Tokens of a store made of `text` in a new cache."""
    from bertkin.text.store import prepare
    from bertkin.text.tokenizer import Tokenizer

    cache = tempfile.mkdtemp(prefix="bertkin-benchmark-", dir=Path(text).parent)
    try:
        store = prepare([text], Tokenizer.load(tokenizer), cache=cache)
        return store.train.n_tokens + store.heldout.n_tokens
    finally:
        shutil.rmtree(cache)


SIDES = {"tokenizers": run_bare, "bertkin": run_bertkin}


# Measuring.


class Memory(threading.Thread):
    """Highest sum of resident memory over a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.done = pid, 0, threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.done.wait(0.05):
            parents: dict[int, int] = {}
            resident: dict[int, int] = {}
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    except OSError:
                        continue  # it has ended
                    parents[int(entry)], resident[int(entry)] = int(stat[1]), int(stat[21]) * page
            family = {self.pid}
            while grown := {pid for pid, parent in parents.items() if parent in family} - family:
                family |= grown
            self.peak = max(self.peak, sum(resident.get(pid, 0) for pid in family))


def measure(side: str, text: Path, tokenizer: Path) -> dict[str, float]:
    """Run one side in a fresh process; seconds (start of Python included), of all cores too, peak bytes, tokens."""
    command = [sys.executable, __file__, "--side", side, "--text", str(text), "--tokenizer", str(tokenizer)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory = Memory(child.pid)
    memory.start()
    out, _ = child.communicate()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory.done.set()
    memory.join()
    if child.returncode:
        sys.exit(f"{side} failed")
    return {"seconds": seconds, "core_seconds": work, "peak_bytes": memory.peak, "tokens": int(out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file; made when not given")
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the file that is made")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; by default 8,192 WordPieces of the text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(SIDES[args.side](str(args.text), str(args.tokenizer)))
        return
    with tempfile.TemporaryDirectory(prefix="bertkin-benchmark-") as folder:
        text = args.text or Path(folder) / "text.txt"
        if not args.text:
            make_text(text, args.megabytes)
        tokenizer = args.tokenizer or train(text, Path(folder))
        size = text.stat().st_size
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for number in range(args.repeats):
            for side in SIDES:
                run = measure(side, text, tokenizer)
                runs[side].append(run)
                print(f"{number + 1}/{args.repeats} {side:10} {run['seconds']:.1f} s", file=sys.stderr, flush=True)
    show(runs, size, args.out)


def train(text: Path, folder: Path) -> Path:
    """A WordPiece tokenizer of the first 50 MB of `text`."""
    from itertools import islice

    from bertkin.text.tokenizer import train_tokenizer

    with text.open(encoding="utf-8") as lines:
        train_tokenizer(islice(lines, 150_000)).save(folder)
    return folder / "tokenizer.json"


def show(runs: dict[str, list[dict[str, float]]], size: int, out: Path | None) -> None:
    """Print the medians and their ratios; write everything to `out`."""
    medians: dict[str, dict[str, Any]] = {}
    for side, measured in runs.items():
        medians[side] = {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        medians[side]["megabytes_per_second"] = size / 1e6 / medians[side]["seconds"]
    bare, ours = medians["tokenizers"], medians["bertkin"]
    ratio = ours["megabytes_per_second"] / bare["megabytes_per_second"]
    n = len(runs["bertkin"])
    print(f"{size / 1e6:,.0f} MB of text, {os.cpu_count()} cores, median of {n} runs each")
    print(f"{'':12}{'seconds':>10}{'MB/s':>10}{'core s':>10}{'peak MB':>10}{'tokens':>16}")
    for side, median in medians.items():
        print(
            f"{side:12}{median['seconds']:10.1f}{median['megabytes_per_second']:10.2f}"
            f"{median['core_seconds']:10.1f}"
            f"{median['peak_bytes'] / 1e6:10.0f}{median['tokens']:16,.0f}"
        )
    print(f"bertkin prepares at {ratio:.2f} times the bare library's rate, in {ours['peak_bytes'] / 1e6:,.0f} MB")
    if out:
        figures = {"bytes": size, "cores": os.cpu_count(), "ratio": ratio, "medians": medians, "runs": runs}
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
