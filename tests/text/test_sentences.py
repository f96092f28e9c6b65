"""Sentences: where they begin, in Latin and CJK scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.text.sentences import count_words, sentence_starts, sentences


@pytest.mark.parametrize(
    "parts",
    [
        ["It rains.", "It pours!", "Does it?", "Yes…", "It does."],
        ['"It rains."', "(So they say.)", "“Does it?”", "«Oui.»", "Yes."],
        ["Dr. Smith met Mrs. J. R. Jones of Acme Inc. and left.", "He was late."],
        ["The U.S. Army, e.g. its band, cost approx. $3.14 on example.com.", "It played."],
        ["He asked “why?” and left.", "She stayed... and waited.", "No!", "Wait..."],
        ["今天下雨。", "下得很大！", "你说什么？", "「没什么。」", "他走了。"],
        ["これは文です。", "(そうです。)", "はい｡"],
        ["A heading", "A paragraph without a full stop", "Another."],
        ["Он пришёл.", "Она ушла.", "Ça va?", "Élan vital."],
        ["He saw Fig. 3.  but it was late.", "Then she left."],
    ],
)
def test_sentences_are_found(parts: list[str]) -> None:
    between = "\n\n" if parts[0] == "A heading" else "" if ord(parts[0][0]) > 0x3000 else " "
    text = between.join(parts)
    assert [" ".join(s.split()) for s in sentences(f"  {text}\n")] == [" ".join(s.split()) for s in parts]


@given(st.text(st.sampled_from(list(" \n\t.!?…。！aAzé3\"')”]中文DrMs")), max_size=60))
def test_starts_increase_and_follow_white_space_or_cjk_full_stops(text: str) -> None:
    starts = sentence_starts(text)
    assert starts == sorted(set(starts))
    assert bool(starts) == bool(text.strip())
    for start in starts:
        assert not text[start].isspace()
    for start in starts[1:]:
        assert text[start - 1].isspace() or text[start - 1] in "。！.!?…\"')”]"


@given(st.text(max_size=60))
def test_any_text_is_covered(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_words_are_counted_in_both_worlds() -> None:
    assert count_words("two words") == 2
    assert count_words("größe und 中文 mixed中") == 6
    assert count_words(" \n") == 0


def test_time_grows_with_the_text_only() -> None:
    for text in ("." * 200_000, "\n" * 200_000, " . " * 100_000, '"' * 200_000, "a.b." * 100_000):
        sentence_starts(text)
