"""Marks say which tokens belong together: as a reference that looks at one token after the other would, in bounded
memory, and made once."""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.text import collocations
from bertkin.text.batches import BEGINS, GOES_ON, Bools, Ints
from bertkin.text.chinese import is_chinese, segmented
from bertkin.text.collocations import Words, blocks, find_phrases
from bertkin.text.matching import Entries, marked, read_list
from bertkin.text.pieces import pieces_of, running, words_of
from bertkin.text.store import Store, prepare
from bertkin.text.tokenizer import Tokenizer, train_tokenizer
from bertkin.text.words import mark
from memory_split import MemorySplit, document_lengths, seeds, split_of

VOCAB = 12


def words_at(share: float, seed: int = 0, vocab: int = VOCAB) -> Words:
    generator = np.random.default_rng(seed)
    return Words(generator.random(vocab) < share, generator.random(vocab) < 0.2, np.ones(vocab, np.bool_))


def look(tokens: list[int], boundaries: Bools, entries: list[list[int]]) -> list[int]:
    """The marks, by looking for each entry everywhere, the longest first."""
    marks, taken, found = [0] * (len(tokens) + 1), [False] * len(tokens), []
    for length in sorted({len(entry) for entry in entries}, reverse=True):
        for at in range(len(tokens) - length + 1):
            fits = tokens[at : at + length] in [entry for entry in entries if len(entry) == length]
            whole = boundaries[at] and boundaries[at + length]
            if fits and whole and not any(taken[at : at + length]):
                taken[at : at + length] = [True] * length
                found.append((at, at + length))
    for _, end in found:
        marks[end] = BEGINS
    for first, end in found:
        marks[first:end] = [BEGINS] + [GOES_ON] * (end - first - 1)
    marks[0] = BEGINS
    return marks[:-1]


sequences = st.lists(st.lists(st.integers(5, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=12)


@given(document_lengths, sequences, seeds, st.integers(1, 40))
def test_entries_are_marked_longest_first_in_whole_words_of_one_document(
    lengths: list[int], entries: list[list[int]], seed: int, block: int
) -> None:
    split, words = split_of(lengths, vocab=VOCAB, seed=seed), words_at(0.8, seed)
    counts = np.zeros(len(entries), np.int64)
    table = Entries.of([(entry, number) for number, entry in enumerate(entries)], VOCAB)
    marks = np.concatenate(list(marked(split, words, table, counts)))
    tokens = split.tokens.astype(np.int64)
    boundaries = np.append(words.starts(tokens), True)
    boundaries[split.documents] = True
    # As text: a phrase may not run over the end of a document even where it reads on.
    expected = [
        mark
        for first, last in zip(split.documents[:-1], split.documents[1:], strict=True)
        for mark in look(tokens[first:last].tolist(), boundaries[first : last + 1], entries)
    ]
    assert marks.tolist() == expected
    assert np.array_equal(marks, np.concatenate(list(_in_blocks(split, words, table, block))))


def _in_blocks(split: MemorySplit, words: Words, table: Entries, size: int) -> list[np.ndarray]:
    """The marks of each document by itself."""
    found = []
    for first, last in zip(split.documents[:-1], split.documents[1:], strict=True):
        one = MemorySplit(split.tokens[first:last], np.array([0, last - first]), np.zeros(1, np.int64))
        found += list(marked(one, words, table, np.zeros(99, np.int64)))
    return found


@given(document_lengths, st.integers(1, 80))
def test_blocks_are_the_split_and_cut_documents_only_when_they_must(lengths: list[int], size: int) -> None:
    split = split_of(lengths)
    found = blocks(split, size)
    assert [first for first, _ in found] == [0, *(last for _, last in found[:-1])]
    assert found[-1][1] == split.n_tokens
    for first, last in found:
        assert 0 < last - first <= size
        inside = split.documents[(split.documents > first) & (split.documents <= min(first + size, split.n_tokens))]
        assert last in inside or not len(inside)


# Phrases.


def text_of(seed: int, phrases: list[list[int]], n: int = 6000, vocab: int = 60) -> MemorySplit:
    """Random words in sentences, with each phrase put in now and then."""
    generator = np.random.default_rng(seed)
    tokens: list[int] = []
    sentences = []
    while len(tokens) < n:
        sentences.append(len(tokens))
        for _ in range(int(generator.integers(4, 12))):
            if generator.random() < 0.15:
                tokens += phrases[int(generator.integers(len(phrases)))]
            else:
                tokens.append(int(generator.integers(20, vocab)))
    documents = np.append(sentences[:: max(1, len(sentences) // 9)], len(tokens))
    return MemorySplit(np.array(tokens, np.uint16), documents.astype(np.int64), np.array(sentences))


PLANTED = [[5, 6], [7, 8, 9], [10, 11, 12, 13]]
ALL_WORDS = Words(np.ones(60, np.bool_), np.zeros(60, np.bool_), np.ones(60, np.bool_))


@settings(max_examples=20)
@given(seeds, st.sampled_from([50, 333, 10**6]))
def test_phrases_that_were_planted_are_found_and_no_others(seed: int, block: int) -> None:
    split = text_of(seed, PLANTED)
    whole = find_phrases(split, ALL_WORDS)
    assert sorted(phrase.tokens for phrase in whole) == [tuple(phrase) for phrase in PLANTED]
    with pytest.MonkeyPatch.context() as patch:  # a split read in small blocks gives the same
        patch.setattr(collocations, "blocks", lambda split: blocks(split, block))
        assert find_phrases(split, ALL_WORDS) == whole
    text = split.tokens.tolist()
    for phrase in whole:
        n = len(phrase.tokens)
        assert phrase.count == sum(tuple(text[i : i + n]) == phrase.tokens for i in range(len(text)))


def test_the_score_is_normalised_pointwise_mutual_information() -> None:
    split = text_of(3, [[5, 6]])
    split.tokens[np.flatnonzero(split.tokens == 5)[:40]] = np.arange(20, 60)  # so 6 stands alone, and 5 never does
    (phrase,) = find_phrases(split, ALL_WORDS)
    n, together = split.n_tokens, phrase.count
    a, b = (int((split.tokens == word).sum()) for word in (5, 6))
    expected = math.log(together * n / (a * b)) / -math.log(together / n)
    assert phrase.tokens == (5, 6) and a == together < b
    assert phrase.score == pytest.approx(expected)


def test_no_phrase_runs_over_the_end_of_a_sentence_or_has_a_word_without_letters() -> None:
    split = text_of(1, [[5, 6], [7, 8]])
    beginnings = np.union1d(split.sentences, np.flatnonzero(split.tokens == 6))
    apart = MemorySplit(split.tokens, split.documents, beginnings)
    assert [phrase.tokens for phrase in find_phrases(apart, ALL_WORDS)] == [(7, 8)]
    letters = np.arange(60) != 7
    assert [phrase.tokens for phrase in find_phrases(split, Words(ALL_WORDS.begins, ALL_WORDS.ends, letters))] == [
        (5, 6)
    ]


def test_words_of_several_tokens_are_joined_whole() -> None:
    begins = np.arange(60) % 2 == 1  # 5 6 is a word, and so is 7 8
    split = text_of(2, [[5, 6, 7, 8]])
    split.tokens[split.tokens >= 20] |= 1
    found = find_phrases(split, Words(begins, ALL_WORDS.ends, ALL_WORDS.letters))
    assert [phrase.tokens for phrase in found] == [(5, 6, 7, 8)]


def test_counting_in_bounded_memory_keeps_what_is_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collocations, "MOST_KEYS", 100)
    counter, generator = collocations._Counter(), np.random.default_rng(0)
    for block in range(50):
        rare = generator.integers(1000, 2**63, 60, dtype=np.uint64)
        counter.add(np.concatenate([np.arange(10, dtype=np.uint64).repeat(block % 3 + 2), rare]))
        assert len(counter.keys) <= 170
    counts = dict(zip(counter.keys.tolist(), counter.counts.tolist(), strict=True))
    assert [counts[key] for key in range(10)] == [sum(block % 3 + 2 for block in range(50))] * 10


# A tokenizer's pieces.

ENGLISH = "The New York office of the United Nations (the old one) isn't open. Naïve New York, he said; 1999 was it."
CHINESE = "我们在北京大学学习自然语言处理。他说：今天天气很好，我们去公园 play football 吧！" * 3
KINDS: list[Any] = ["wordpiece", "bpe", "byte-bpe", "unigram", "character", "word"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_pieces_together_are_the_text(kind: Any, text: str) -> None:
    tokenizer = train_tokenizer([text] * 5, kind=kind)
    pieces = pieces_of(tokenizer)
    written = b"".join(pieces[number] for number in tokenizer.encode(text)).decode()
    normal = text if tokenizer.backend.normalizer is None else tokenizer.backend.normalizer.normalize_str(text)
    assert "".join(written.split()) == "".join(normal.split())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "character"])
def test_words_end_at_punctuation_whatever_the_tokenizer(kind: Any) -> None:
    tokenizer = train_tokenizer([ENGLISH] * 5, kind=kind)
    words, pieces = words_of(tokenizer), pieces_of(tokenizer)
    ids = np.array(tokenizer.encode(ENGLISH))
    at = np.append(np.flatnonzero(words.starts(ids)), len(ids))
    found = [b"".join(pieces[i] for i in ids[a:b]).decode().strip() for a, b in pairwise(at)]
    assert {"York", "York,"} & {word.title() for word in found} == {"York"}
    assert "said" in found and "(" in found


# Stores.


def store_of(folder: Path, text: str, **options: Any) -> tuple[Store, Tokenizer]:
    folder.mkdir(exist_ok=True)
    path = folder / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer(text.splitlines(), **options)
    return prepare([path], tokenizer, heldout=0.2, workers=1, cache=folder / "cache"), tokenizer


def news(n: int = 60) -> str:
    generator = np.random.default_rng(0)
    words = [
        "the",
        "a",
        "house",
        "sees",
        "tree",
        "small",
        "river",
        "walks",
        "over",
        "under",
        "man",
        "woman",
        "bread",
        "old",
    ]
    lines = []
    for _ in range(n):
        line = [str(word) for word in generator.choice(words, 12)]
        line.insert(int(generator.integers(12)), "New York" if generator.random() < 0.7 else "prime minister")
        lines.append(" ".join(line) + ".")
    return "\n\n".join(lines)


def units_of(store: Store, tokenizer: Tokenizer) -> Counter[str]:
    """What is marked as one, written out."""
    found: Counter[str] = Counter()
    for split in (store.train, store.heldout):
        assert split.marks is not None
        heads = np.flatnonzero(split.marks != GOES_ON)
        for first, last in zip(heads, np.append(heads[1:], split.n_tokens), strict=True):
            if last - first > 1:
                found[tokenizer.decode(split.tokens[first:last]).strip()] += 1
    return found


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "unigram"])
def test_phrases_of_a_corpus_are_marked_and_can_be_read(tmp_path: Path, kind: Any) -> None:
    store, tokenizer = store_of(tmp_path, news(), kind=kind)
    marked = mark(store, tokenizer, "phrase", None)
    found = units_of(marked, tokenizer)
    assert {phrase.lower() for phrase in found} == {"new york", "prime minister"}
    assert sum(found.values()) == 60
    lines = (marked.marks / "phrases.txt").read_text().splitlines()  # type: ignore[operator]
    assert {line.split("\t")[0].lower() for line in lines} == {"new york", "prime minister"}


def test_phrases_that_were_found_can_be_edited_and_given_back(tmp_path: Path) -> None:
    store, tokenizer = store_of(tmp_path, news())
    marked = mark(store, tokenizer, "phrase", None)
    again = mark(store, tokenizer, "phrase", marked.marks / "phrases.txt")  # type: ignore[operator]
    assert again.marks != marked.marks
    assert units_of(again, tokenizer) == units_of(marked, tokenizer)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "unigram"])
def test_entities_of_a_list_are_marked(tmp_path: Path, kind: Any) -> None:
    store, tokenizer = store_of(tmp_path, news() + "\n\nNew York, (New York) and NewYorker.", kind=kind)
    path = tmp_path / "list.txt"
    path.write_text("\ufeffNew York\r\n\r\n  New York  \nAtlantis\n", encoding="utf-8")
    assert read_list(path) == ["New York", "Atlantis"]
    marked = mark(store, tokenizer, "entity", path)
    found = units_of(marked, tokenizer)
    assert {entity.lower() for entity in found} == {"new york"}
    assert sum(found.values()) == news().count("New York") + 2
    listed = (marked.marks / "phrases.txt").read_text()  # type: ignore[operator]
    assert listed == f"New York\t{sum(found.values())}\nAtlantis\t0\n"


def test_marks_are_made_once_and_again_if_they_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tokenizer = store_of(tmp_path, news())
    marked = mark(store, tokenizer, "phrase", None)
    before = np.array(marked.train.marks)
    made: list[str] = []
    mark(store, tokenizer, "phrase", None, lambda done, total, what: made.append(what))
    assert not made
    (marked.marks / "train.marks").write_bytes(b"")  # type: ignore[operator]
    again = mark(store, tokenizer, "phrase", None, lambda done, total, what: made.append(what))
    assert set(made) == {"finding phrases", "marking phrases"}
    assert np.array_equal(again.train.marks, before)
    assert mark(store, tokenizer, "word", None) == store  # English words need no marks
    assert not [file for file in (tmp_path / "cache" / "marks").iterdir() if file.suffix[1:].isdigit()]


def test_bad_lists_are_refused_in_one_line(tmp_path: Path) -> None:
    store, tokenizer = store_of(tmp_path, news())
    empty, other, binary = (tmp_path / name for name in ("empty.txt", "other.txt", "binary.txt"))
    empty.write_text("\n  \n")
    other.write_text("Atlantis\nEl Dorado\n")
    binary.write_bytes(b"\xff\xfe\x00\x01")
    cases = [
        ("entity", None, "there is none"),
        ("entity", tmp_path / "absent.txt", "no such list"),
        ("phrase", empty, "the list is empty"),
        ("entity", binary, "cannot be read"),
        ("entity", tmp_path, "cannot be read"),
        ("entity", other, "none of its 2 entries occurs"),
        ("token", other, "not for unit token"),
    ]
    for unit, path, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            mark(store, tokenizer, unit, path)
        assert "\n" not in str(caught.value) and caught.value.mend
    tiny, other_tokenizer = store_of(tmp_path / "tiny", "one two three\n\nfour five six")
    with pytest.raises(UserError, match="no words stand together"):
        mark(tiny, other_tokenizer, "phrase", None)


# Chinese.


@pytest.mark.parametrize("kind", ["character", "wordpiece", "byte-bpe", "unigram"])
def test_tokens_go_on_with_the_chinese_word_they_are_inside_of(kind: Any) -> None:
    tokenizer = train_tokenizer([CHINESE] * 5, kind=kind, vocab_size=290 if kind == "byte-bpe" else None)
    ids = np.array(tokenizer.encode(CHINESE))
    pieces = running(tokenizer)
    words = ["我们", "在", "北京大学", "学习", "自然语言", "处理", "天气", "公园"]

    def cut(text: str) -> list[str]:  # a segmenter that knows these words alone
        found, at = [], 0
        while at < len(text):
            word = next((word for word in words if text.startswith(word, at)), text[at])
            found.append(word)
            at += len(word)
        return found

    marks = segmented(ids, pieces, cut)
    text = b"".join(pieces[i] for i in ids)
    at = 0
    expected: dict[int, int] = {}
    for word in cut(text.decode()):
        chinese = "\u4e00" <= word[0] <= "\u9fff"
        size = len(word.encode())
        expected[at] = BEGINS if chinese else expected.get(at, 0)
        expected |= dict.fromkeys(range(at + 1, at + size), GOES_ON if chinese else 0)
        at += size
        expected[at] = BEGINS if chinese else 0
    lengths = np.array([len(pieces[i]) for i in ids])
    starts = np.cumsum(lengths) - lengths
    blank = np.append(False, lengths[:-1] == 0)  # SentencePiece's ▁ alone goes before what it belongs to
    assert marks[~blank].tolist() == [expected[start] for start in starts[~blank].tolist()]
    assert (marks[blank] != BEGINS).all()
    assert (marks == BEGINS).any() and (marks == GOES_ON).any()


def test_a_token_that_is_no_whole_letter_does_not_shift_the_others() -> None:
    pieces = ["我".encode(), "们".encode(), b"\xe5", b"\x8c", b"x"]
    ids = np.array([2, 0, 1, 3, 0, 1, 4, 0, 1])
    marks = segmented(ids, pieces, lambda text: text.replace("我们", "|我们|").split("|"))
    assert marks.tolist() == [0, BEGINS, GOES_ON] * 1 + [BEGINS, BEGINS, GOES_ON, BEGINS, BEGINS, GOES_ON]


def test_chinese_words_are_hidden_whole_by_the_segmenter(tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    text = "\n\n".join(["我们在北京大学学习自然语言处理。", "今天天气很好，我们去公园。"] * 6)
    store, tokenizer = store_of(tmp_path, text, kind="character")
    said: list[str] = []
    marked = mark(store, tokenizer, "word", None, lambda done, total, what: said.append(what))
    found = units_of(marked, tokenizer)
    assert set(said) == {"segmenting words"}
    assert {"我们", "北京大学", "学习", "公园"} <= {word.replace(" ", "") for word in found}


def test_chinese_words_without_a_segmenter_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, tokenizer = store_of(tmp_path, "我们学习。\n\n" * 8 + "今天天气很好", kind="character")
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(UserError, match="segmenter") as caught:
        mark(store, tokenizer, "word", None)
    assert "bertkin[chinese]" in str(caught.value)
    assert mark(store, tokenizer, "token", None) is store


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        (ENGLISH, False),
        (CHINESE, True),
        ("それは私の本です。今日は天気がいいですね。東京大学で勉強します。", False),
        (ENGLISH + "北京", False),
        ("《红楼梦》，中国古典小说。Dream of", True),
    ],
)
def test_a_corpus_is_chinese_by_its_letters(text: str, chinese: bool) -> None:
    tokenizer = train_tokenizer([text] * 3, kind="character")
    ids: Ints = np.array(tokenizer.encode(text))
    split = MemorySplit(ids, np.array([0, len(ids)]), np.zeros(1, np.int64))
    assert is_chinese(split, tokenizer) is chinese
