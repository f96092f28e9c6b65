"""`bertkin demo` from end to end, small, and the parts it is made of."""

from __future__ import annotations

import json
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bertkin.cli import main
from bertkin.objectives.make import evaluation_batches
from bertkin.tasks import baselines
from bertkin.tasks.documentation import collect, docstrings, prose
from bertkin.text.batches import Specials
from bertkin.text.store import prepare
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.state import read_log

TEXTS = ["the cat sat on the mat. the dog sat on the log.", "the cat saw the dog.", "a dog sat. the end."] * 40


def test_the_demo_shows_what_was_learnt_and_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [sys.argv[0]])
    assert main(["demo", "--minutes", "0.03", "--words", "20000", "--preset", "modern-tiny"]) == 0
    out, err = capsys.readouterr()
    assert err.index("docstrings and help topics") < err.index("parameters") < err.index("held-out loss")
    for part in ("most frequent token", "bigram", "modern-tiny", "[MASK]", "┤", "runs/demo/report.html"):
        assert part in out
    record = next(r for r in read_log(Path("runs/demo")) if r["kind"] == "baselines")
    assert 0 < record["frequent"] < 1
    assert "bigram" in Path("runs/demo/report.html").read_text(encoding="utf-8")
    assert Path("runs/demo/loss.svg").read_text(encoding="utf-8").startswith("<svg")

    commands = [line.strip() for line in out[out.index("Try next") :].splitlines()[1:]]
    assert len(commands) == 3
    for command in commands:
        typed = shlex.split(command)
        arguments = typed[typed.index("bertkin") + 1 :]
        if arguments[0] == "pretrain":  # ten minutes are too long for a test
            arguments[arguments.index("--train.minutes") + 1] = "0.01"
            arguments += ["--train.batch-tokens", "512", "--train.eval-rows", "8", "--train.threads", "1"]
        assert main(arguments) == 0, command
    capsys.readouterr()
    assert main(["demo", "--out", "runs/demo"]) == 2
    assert "bertkin resume runs/demo" in capsys.readouterr().err


def test_documentation_is_collected_once_and_repeats_no_paragraph(tmp_path: Path) -> None:
    found = collect(words=5000, cache=tmp_path)
    documents = [json.loads(line)["text"] for line in found.path.read_text(encoding="utf-8").splitlines()]
    paragraphs = [p.lower() for document in documents for p in document.split("\n")]
    assert len(documents) == found.documents
    assert len(set(paragraphs)) == len(paragraphs)
    assert found.words >= 5000
    stamp = found.path.stat().st_mtime_ns
    again = collect(words=5000, cache=tmp_path)
    assert again == found
    assert again.path.stat().st_mtime_ns == stamp


def test_prose_is_kept_and_code_is_not() -> None:
    text = """Return the number of ``items`` in a :class:`list`, as an integer.

        Parameters
        ----------
        x : int

        Use it like this, in a loop over the list::

            for i in range(10): print(len(x[i]))

        >>> len([1, 2, 3])
        3

        A second paragraph of words
        goes on in the next line."""
    assert prose(text).split("\n") == [
        "Return the number of items in a list, as an integer.",
        "Use it like this, in a loop over the list::",
        "A second paragraph of words goes on in the next line.",
    ]


def test_a_file_that_is_no_python_has_no_docstrings(tmp_path: Path) -> None:
    for name, content in {"a.py": b"def (", "b.py": b"\xff\xfe\0", "c.py": b"(" * 10000}.items():
        (tmp_path / name).write_bytes(content)
        assert docstrings(str(tmp_path / name)) == []
    assert docstrings(str(tmp_path / "none.py")) == []


def test_baselines_count_what_a_slow_loop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"{text} number {i}" for i, text in enumerate(TEXTS)))
    tokenizer = train_tokenizer(TEXTS, vocab_size=40)
    store = prepare([tmp_path / "texts.txt"], tokenizer, documents="line", heldout=0.2, workers=1, cache=tmp_path / "c")
    ids = Specials.of(tokenizer)
    monkeypatch.setattr(baselines, "CHUNK", 7)
    counts = baselines.count(store.train, ids)

    single = np.bincount(store.train.tokens, minlength=ids.vocab_size)
    pairs = np.zeros((ids.vocab_size, ids.vocab_size), int)
    for first, last in pairwise(store.train.documents):
        document = [ids.cls, *store.train.tokens[first:last]]
        for left, right in pairwise(document):
            pairs[left, right] += 1
    assert single[counts.frequent] == single.max()
    for left in range(ids.vocab_size):
        best = pairs[left].max()
        assert pairs[left, counts.successor[left]] == best if best else counts.successor[left] == counts.frequent

    batches = list(evaluation_batches(store.heldout, ids, length=32, n_rows=8, batch_rows=3))
    shown = baselines.ask(counts, batches, ids)
    right = total = 0
    for batch in batches:
        for place, target in zip(batch.asked, batch.targets, strict=True):
            left, seen = batch.ids[place - 1], batch.ids[place]
            special = left in set(ids.special_ids.tolist()) - {ids.cls}
            guess = seen if seen != ids.mask else counts.frequent if special else counts.successor[left]
            right, total = right + int(guess == target), total + 1
    assert shown.bigram == right / total
    assert 0 < shown.frequent <= shown.bigram
