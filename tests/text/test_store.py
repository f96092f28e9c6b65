"""The token store: the same bytes however it is made, made once, checked when opened, and never half there."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.text import cache, shards
from bertkin.text import store as store_module
from bertkin.text.readers import read_documents
from bertkin.text.sentences import count_words, sentences
from bertkin.text.store import Store, prepare
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

SONG = "the cat sat on a mat while rain fell and children sang old songs by themselves near 中文 很好"
WORDS = SONG.split()


def text_of(number: int) -> str:
    rng = np.random.default_rng(number)
    said = [" ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() + "." for _ in range(rng.integers(1, 8))]
    return " ".join(said)


TEXTS = [text_of(number) for number in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a kilobyte, so that a small corpus has many shards."""
    for module in ("readers", "shards", "store"):
        monkeypatch.setattr(f"bertkin.text.{module}.BLOCK", 1000)
    monkeypatch.setattr("bertkin.text.sources.CHUNK", 300)
    monkeypatch.setattr("bertkin.text.readers.cut_blocks.__kwdefaults__", {**READ, "size": 1000})


READ = {"field": "text", "documents": "auto", "encoding_errors": "strict"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(TEXTS[:100]), encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[100:200])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for number, text in enumerate(TEXTS[200:]):
        (folder / f"c{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


def files_of(store: Store) -> dict[str, bytes]:
    return {name: (store.folder / name).read_bytes() for name in store.manifest["files"]}


def texts_of(store: Store, tokenizer: Tokenizer, name: str) -> list[list[int]]:
    split = getattr(store, name)
    return [split.tokens[a:b].tolist() for a, b in zip(split.documents, split.documents[1:], strict=False)]


def is_held_out(text: str, share: float) -> bool:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64 < share


# What is in it.


@pytest.mark.usefixtures("small")
def test_documents_come_in_order_each_on_its_side(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = prepare([corpus], tokenizer, heldout=0.1, cache=tmp_path, workers=1)
    assert list(read_documents([corpus])) == TEXTS
    assert len(json.loads((store.folder / "manifest.json").read_text())["inputs"]) == 102
    for name, side in (("train", False), ("heldout", True)):
        expected = [text for text in TEXTS if is_held_out(text, 0.1) == side]
        assert texts_of(store, tokenizer, name) == tokenizer.encode_batch(expected)
        split = getattr(store, name)
        counts = store.manifest["counts"][name]
        assert counts["documents"] == split.n_documents == len(expected)
        assert counts["tokens"] == split.n_tokens == split.documents[-1] == len(split.tokens)
        assert counts["words"] == sum(map(count_words, expected))
        assert counts["bytes"] == sum(len(text.encode()) for text in expected)
        assert counts["unknown"] == 0
        starts = np.cumsum([0] + [len(tokenizer.encode(s)) for text in expected for s in sentences(text)])
        assert split.sentences.tolist() == starts[:-1].tolist()
        offsets = np.arange(split.n_tokens)
        owner = np.repeat(np.arange(split.n_documents), np.diff(split.documents))
        assert split.document_of(offsets).tolist() == owner.tolist()
    assert store.words == sum(map(count_words, TEXTS))
    assert store.vocab_size == tokenizer.vocab_size
    assert store.train.tokens.dtype == np.uint16


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=2, max_size=12))
@settings(max_examples=25)
def test_any_text_goes_in_and_comes_out(tmp_path_factory, tokenizer: Tokenizer, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("round")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    expected = [ids for text in texts if text.strip() and (ids := plainly(tokenizer, text))]
    try:
        store = prepare([folder / "a.jsonl"], tokenizer, heldout=0, cache=folder, workers=1)
    except UserError as error:
        assert not expected and "no text" in str(error)
    else:
        assert texts_of(store, tokenizer, "train") == expected
        assert store.heldout.n_documents == 0 and store.heldout.n_tokens == 0


def plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    plain = Tokenizer.from_str(tokenizer.backend.to_str())
    plain.backend.encode_special_tokens = True
    return plain.encode(text)


def test_names_of_special_tokens_are_text_in_a_corpus(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the [MASK] cat\n\nthe [SEP] mat")
    store = prepare([tmp_path / "a.txt"], tokenizer, heldout=0, cache=tmp_path)
    assert not np.isin(store.train.tokens, [0, 2, 3, 4]).any()


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    big = train_tokenizer([" ".join(f"w{i}" for i in range(66_000))], kind="word", vocab_size=66_000)
    (tmp_path / "a.txt").write_text("w65000 w1\n\nw65990 w2")
    store = prepare([tmp_path / "a.txt"], big, heldout=0, cache=tmp_path)
    assert store.train.tokens.dtype == np.uint32
    assert [big.token(i) for i in store.train.tokens] == ["w65000", "w1", "w65990", "w2"]


def test_one_side_is_never_left_empty(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS[:5]))
    few = prepare([tmp_path / "a.txt"], tokenizer, heldout=1e-9, cache=tmp_path)
    lowest = min(TEXTS[:5], key=lambda text: blake2b(text.encode(), digest_size=8).digest()[::-1])
    assert texts_of(few, tokenizer, "heldout") == [tokenizer.encode(lowest)] and few.train.n_documents == 4
    most = prepare([tmp_path / "a.txt"], tokenizer, heldout=1 - 1e-9, cache=tmp_path)
    assert most.train.n_documents == 1 and most.heldout.n_documents == 4
    (tmp_path / "b.txt").write_text(TEXTS[0])
    with pytest.raises(UserError, match="single document"):
        prepare([tmp_path / "b.txt"], tokenizer, cache=tmp_path)
    assert prepare([tmp_path / "b.txt"], tokenizer, heldout=0, cache=tmp_path).train.n_documents == 1


@pytest.mark.usefixtures("small")
def test_words_can_be_limited(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for limit in (1, 100, 1000, 10**9):
        for workers in (1, 2) if limit == 1000 else (1,):
            made = prepare(
                [corpus], tokenizer, heldout=0, max_words=limit, cache=tmp_path / str(workers), workers=workers
            )
            expected, words = [], 0
            for text in TEXTS:
                if words >= limit:
                    break
                expected.append(text)
                words += count_words(text)
            assert made.train.n_documents == len(expected) and made.words == words


# However it is made.


@pytest.mark.usefixtures("small")
def test_the_number_of_workers_changes_no_byte(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    stores = [prepare([corpus], tokenizer, cache=tmp_path / str(n), workers=n) for n in (1, 2, 3)]
    assert files_of(stores[0]) == files_of(stores[1]) == files_of(stores[2])
    assert [s.manifest for s in stores[1:]] == [stores[0].manifest] * 2
    for store in stores:
        store.verify()
        assert os.listdir(tmp_path / "1" / "stores") == [store.fingerprint]


@pytest.mark.usefixtures("small")
def test_the_same_is_made_once(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    first = prepare([corpus], tokenizer, cache=tmp_path, workers=1, progress=lambda *at: seen.append(at))
    assert len(seen) > 10 and seen == sorted(seen) and seen[-1] == (seen[0][1], seen[0][1])
    monkeypatch.setattr(store_module, "_make_shards", None)
    moved = corpus.rename(tmp_path / "moved")
    assert prepare([moved], tokenizer, cache=tmp_path).folder == first.folder
    (moved / "c000.txt").write_text("changed")
    with pytest.raises(TypeError):
        prepare([moved], tokenizer, cache=tmp_path)
    with pytest.raises(TypeError):
        prepare([moved], tokenizer, cache=tmp_path, heldout=0.5)


@pytest.mark.usefixtures("small")
def test_what_was_finished_is_not_done_again(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare([corpus], tokenizer, cache=tmp_path / "whole", workers=1)
    real, made = shards.make_shard, []

    def killed(encoder, how, task, path):
        if task.number == 7 and not made.count("again"):
            raise KeyboardInterrupt
        made.append(task.number)
        return real(encoder, how, task, path)

    monkeypatch.setattr(shards, "make_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare([corpus], tokenizer, cache=tmp_path / "c", workers=1)
    assert os.listdir(tmp_path / "c" / "stores") == []
    (damaged,) = (tmp_path / "c" / "preparing").glob("*/000003.npz")
    damaged.write_bytes(damaged.read_bytes()[:-30])
    done = set(made)
    made[:] = ["again"]
    store = prepare([corpus], tokenizer, cache=tmp_path / "c", workers=1)
    assert not (done - {3}) & set(made) and {3, 7} <= set(made)
    assert files_of(store) == files_of(whole)


@pytest.mark.usefixtures("small")
def test_a_killed_preparation_leaves_nothing_behind_and_goes_on(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = prepare([corpus], tokenizer, cache=tmp_path / "whole", workers=1)
    tokenizer.save(tmp_path / "t")
    code = f"""
import bertkin.text.readers as r, bertkin.text.shards as s, bertkin.text.store as st, bertkin.text.sources as o, time
r.BLOCK = s.BLOCK = st.BLOCK = 1000; o.CHUNK = 300; r.cut_blocks.__kwdefaults__["size"] = 1000
from bertkin.text.tokenizer import Tokenizer
st.prepare([{str(corpus)!r}], Tokenizer.load({str(tmp_path / "t")!r}), cache={str(tmp_path / "c")!r}, workers=2,
           progress=lambda *_: (print("on", flush=True), time.sleep(0.02)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert child.stdout
    for _ in range(5):
        assert child.stdout.readline() == b"on\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert os.listdir(tmp_path / "c" / "stores") == []
    assert list((tmp_path / "c" / "preparing").glob("*/*.npz"))
    store = prepare([corpus], tokenizer, cache=tmp_path / "c", workers=2)
    assert files_of(store) == files_of(whole)
    assert not [path for path in (tmp_path / "c" / "preparing").iterdir() if path.is_dir()]


def test_two_at_once_make_one(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: prepare([corpus], tokenizer, cache=tmp_path, workers=1).folder, range(4)))
    assert len(set(made)) == 1


def test_hashes_are_remembered_but_not_trusted_when_young(corpus: Path, tmp_path: Path) -> None:
    from bertkin.text.readers import list_sources

    sources = list_sources([corpus / "a.txt", corpus / "b.jsonl.gz"])
    os.utime(corpus / "a.txt", (1, 1))
    tmp_path.joinpath("c").mkdir()
    first = cache.hash_sources(sources, tmp_path / "c")
    known = json.loads((tmp_path / "c" / "hashes.json").read_text())
    assert [Path(path).name for path in known] == ["a.txt"]
    (tmp_path / "c" / "hashes.json").write_text("garbage")
    assert cache.hash_sources(sources, tmp_path / "c") == first


# Mistakes.


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small")
def test_the_first_mistake_in_reading_order_is_told(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    lines = (corpus / "a.txt").read_bytes()
    (corpus / "a.txt").write_bytes(lines[:9000] + b"\xff" + lines[9000:])
    (corpus / "c050.txt").write_bytes(b"\xff")
    with pytest.raises(UserError) as caught:
        prepare([corpus], tokenizer, cache=tmp_path, workers=workers)
    assert f"a.txt@{9000}:" in str(caught.value) and "0xff" in str(caught.value)
    assert os.listdir(tmp_path / "stores") == []
    store = prepare([corpus], tokenizer, cache=tmp_path, workers=workers, encoding_errors="replace")
    assert store.train.n_documents + store.heldout.n_documents == 299  # \ufffd alone has no tokens


def test_a_corpus_without_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n \u200b\n")
    with pytest.raises(UserError, match="no text"):
        prepare([tmp_path / "a.txt"], tokenizer, cache=tmp_path / "c")
    assert os.listdir(tmp_path / "c" / "stores") == []


def test_numbers_out_of_range_are_refused(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for wrong in ({"heldout": 1.0}, {"heldout": -0.1}, {"max_words": 0}, {"workers": 0}):
        with pytest.raises(UserError):
            prepare([corpus], tokenizer, cache=tmp_path, **wrong)  # type: ignore[arg-type]


def test_damage_is_noticed(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = prepare([corpus], tokenizer, cache=tmp_path, workers=1)

    def damaged() -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(store.folder, tmp_path / "copy"))

    for name in store.manifest["files"]:
        folder = damaged()
        with open(folder / name, "ab") as file:
            file.write(b"x")
        with pytest.raises(UserError, match="bytes long"):
            Store.open(folder)
        (folder / name).unlink()
        with pytest.raises(UserError, match="missing"):
            Store.open(folder)
        folder = damaged()
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match="changed"):
            Store.open(folder).verify()
    for content, message in (("{", "damaged"), ("[]", "damaged"), ('{"format": 99, "files": {}}', "format 99")):
        (damaged() / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=message):
            Store.open(tmp_path / "copy")
    with pytest.raises(UserError, match="not a token store"):
        Store.open(tmp_path)


def test_a_damaged_store_is_made_again(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = prepare([corpus], tokenizer, cache=tmp_path, workers=1)
    before = files_of(store)
    (store.folder / "train.tokens").write_bytes(b"")
    assert files_of(prepare([corpus], tokenizer, cache=tmp_path, workers=1)) == before


def test_a_store_knows_its_tokenizer(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = prepare([corpus], tokenizer, cache=tmp_path, workers=1)
    store.check_tokenizer(tokenizer)
    with pytest.raises(UserError, match="another tokenizer"):
        store.check_tokenizer(train_tokenizer(TEXTS, lowercase=False))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_and_nothing_stays(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store_module._Writer._write

    def full(self: store_module._Writer, part: str, array: np.ndarray) -> None:
        self._files[part].close()
        self._files[part] = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        real(self, part, array)

    monkeypatch.setattr(store_module._Writer, "_write", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare([corpus], tokenizer, cache=tmp_path / "c", workers=1)
    assert os.listdir(tmp_path / "c" / "stores") == []


def test_a_place_that_cannot_be_written_is_told(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="not a folder"):
        prepare([corpus], tokenizer, cache=tmp_path / "file" / "cache")


def test_workers_end_with_their_parent(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    worker = shards._Worker(tokenizer.backend.to_str(), shards.How("text", "auto", "strict"))
    worker._to.close()
    for _ in range(500):
        if worker._process.poll() is not None:
            break
        time.sleep(0.02)
    assert worker._process.returncode == 0
    worker._from.close()


# Tokenizers by content.


def test_a_tokenizer_is_trained_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.tokenizer_for([corpus], cache=tmp_path)
    monkeypatch.setattr(cache, "train_tokenizer", None)
    assert cache.tokenizer_for([corpus], cache=tmp_path).fingerprint == first.fingerprint
    with pytest.raises(TypeError):
        cache.tokenizer_for([corpus], cache=tmp_path, lowercase=False)
    with pytest.raises(TypeError):
        cache.tokenizer_for([corpus], cache=tmp_path, max_words=100)
