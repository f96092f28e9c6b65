"""A grown vocabulary: new words are one token, old ids stay, and nothing else of a text changes."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from bertkin.errors import UserError
from bertkin.text.encoder import Encoder
from bertkin.text.growing import grown, own_words
from bertkin.text.tokenizer import Tokenizer, report, train_tokenizer

TEXTS = [topics[name] for name in sorted(topics)]
OLD, NEW = TEXTS[:15], TEXTS[15:40]
KINDS = ("wordpiece", "bpe", "byte-bpe", "unigram", "word")


@pytest.fixture(scope="module", params=[(kind, sentinels) for kind in KINDS for sentinels in (0, 3)], ids=str)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    kind, sentinels = request.param
    return train_tokenizer(OLD, kind=kind, vocab_size=700 + sentinels, sentinels=sentinels)


def expanded(tokenizer: Tokenizer, words: list[Any], ids: list[int]) -> list[int]:
    """Ids with each new word put back as its pieces."""
    pieces = {tokenizer.vocab_size + i: word.pieces for i, word in enumerate(words)}
    return [piece for number in ids for piece in pieces.get(number, (number,))]


def test_new_words_are_one_token_and_old_ids_stay(tokenizer: Tokenizer) -> None:
    words = own_words(tokenizer, NEW, 80)
    new = grown(tokenizer, words)
    assert len(words) == 80 and new.vocab_size == tokenizer.vocab_size + 80
    assert [new.backend.token_to_id(word.text) for word in words] == list(range(tokenizer.vocab_size, new.vocab_size))
    assert all(new.token(number) == tokenizer.token(number) for number in range(tokenizer.vocab_size))
    assert new.special_ids.tolist() == tokenizer.special_ids.tolist()
    assert new.sentinels.tolist() == tokenizer.sentinels.tolist()
    for word in words[:20]:
        spelt = word.text.strip("Ġ▁")
        lead = "" if '"ByteLevel"' in new.backend.to_str() and word.text == spelt else "word "  # GPT-2's first word
        assert tokenizer.vocab_size + words.index(word) in new.encode(f"{lead}{spelt} word")


def test_put_back_as_pieces_a_text_is_what_it_was(tokenizer: Tokenizer) -> None:
    words = own_words(tokenizer, NEW, 80)
    new = grown(tokenizer, words)
    for text in (*NEW, *OLD):
        put_back = expanded(tokenizer, words, new.encode(text))
        if tokenizer.kind == "WordPiece":  # the longest match comes first, so a new word also begins longer ones
            assert tokenizer.decode(put_back) == tokenizer.decode(tokenizer.encode(text))
        else:
            assert put_back == tokenizer.encode(text)


def test_they_are_those_that_save_most(tokenizer: Tokenizer) -> None:
    words = own_words(tokenizer, NEW, 60)
    gains = [word.count * max(len(word.pieces) - 1, 1) for word in words]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0
    before, after = (report(one, NEW).fertility for one in (tokenizer, grown(tokenizer, words)))
    assert after < before or tokenizer.kind == "WordLevel"  # an unknown word was one token before
    assert all(word.text.strip("Ġ▁").isalpha() for word in words)
    assert [word.text for word in own_words(tokenizer, NEW, 10)] == [word.text for word in words[:10]]


def test_it_is_saved_read_and_used_by_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    new = grown(tokenizer, own_words(tokenizer, NEW, 40))
    new.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == new.fingerprint != tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(NEW[0], add_special_tokens=False).input_ids == new.encode(NEW[0])


def test_corpora_are_prepared_with_it_as_with_any(tokenizer: Tokenizer) -> None:
    new = grown(tokenizer, own_words(tokenizer, NEW, 80))
    assert Encoder(new).encode(NEW).ids.tolist() == [number for text in NEW for number in new.encode(text)]


def test_it_can_grow_again(tokenizer: Tokenizer) -> None:
    once = grown(tokenizer, own_words(tokenizer, NEW, 30))
    more = own_words(once, NEW, 30)
    assert not {word.text for word in more} & set(once.backend.get_vocab())
    twice = grown(once, more)
    assert twice.vocab_size == tokenizer.vocab_size + 60
    assert all(twice.token(number) == once.token(number) for number in range(once.vocab_size))


def test_a_text_it_cuts_nowhere_has_none() -> None:
    tokenizer = train_tokenizer(["one two three"] * 30)
    assert own_words(tokenizer, ["one two three three"], 10) == []


def test_who_has_no_words_cannot_grow() -> None:
    with pytest.raises(UserError, match="single characters"):
        own_words(train_tokenizer(OLD, kind="character"), NEW, 5)
    plain = train_tokenizer(OLD, kind="bpe", vocab_size=300)
    plain.backend.pre_tokenizer = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="does not cut text into words"):
        own_words(Tokenizer(plain.backend), NEW, 5)
    with pytest.raises(UserError, match="cannot grow by 0"):
        own_words(train_tokenizer(OLD, vocab_size=300), NEW, 0)
