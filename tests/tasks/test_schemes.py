"""Entities as tags: what is written is read back, in every scheme, and broken tags are read as conlleval reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertkin.errors import UserError
from bertkin.tasks.data.schemes import NAMES, Span, as_called, convert, faults, guess_scheme, spans_of, tags_of

scheme = st.sampled_from(NAMES)


@st.composite
def sentences(draw: st.DrawFn) -> tuple[tuple[Span, ...], int]:
    """Spans that do not overlap, some side by side, and how long the sentence is."""
    spans, at = [], 0
    for gap, size, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["PER", "B-x", "ORG", "组织"])))
    ):
        spans.append(Span(at + gap, at + gap + size, kind))
        at += gap + size
    return tuple(spans), at + draw(st.integers(0, 2))


@given(sentences(), scheme)
def test_what_is_encoded_decodes_to_the_same_spans(sentence: tuple[tuple[Span, ...], int], scheme: str) -> None:
    spans, length = sentence
    tags = tags_of(spans, length, scheme)
    assert len(tags) == length
    assert spans_of(tags) == spans
    assert faults(tags, scheme) == ()


@given(sentences(), scheme, scheme)
def test_a_scheme_is_converted_to_another_and_back(sentence: tuple[tuple[Span, ...], int], one: str, two: str) -> None:
    tags = tags_of(*sentence, one)
    assert convert(convert(tags, two), one) == tags


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "E-x", "S-x", "M-x", "I-y", "E-y", "B-y", "L-y", "U-x"])), scheme)
def test_any_tags_at_all_become_spans_that_do_not_overlap_and_can_be_written(tags: list[str], scheme: str) -> None:
    spans = spans_of(tags)
    assert spans_of(tags_of(spans, len(tags), scheme)) == spans
    covered = {at for span in spans for at in range(span.start, span.end)}
    assert covered == {at for at, tag in enumerate(tags) if tag != "O"}


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O I-x I-x O", [(1, 3, "x")]),  # no beginning: begins one all the same
        ("B-x I-y", [(0, 1, "x"), (1, 2, "y")]),
        ("I-x B-x I-x", [(0, 1, "x"), (1, 3, "x")]),
        ("S-x I-x", [(0, 1, "x"), (1, 2, "x")]),
        ("B-x E-x E-x", [(0, 2, "x"), (2, 3, "x")]),
        ("B-x O E-x", [(0, 1, "x"), (2, 3, "x")]),
        ("B M E S", [(0, 3, ""), (3, 4, "")]),
        ("B-x L-x U-y", [(0, 2, "x"), (2, 3, "y")]),
    ],
)
def test_broken_and_foreign_tags_are_read_as_conlleval_reads_them(tags: str, spans: list[tuple[int, int, str]]) -> None:
    assert [tuple(span) for span in spans_of(tags.split())] == spans


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ("O I-x I-x B-x O", "iob1"),
        ("O B-x I-x B-x", "iob2"),
        ("B-x E-x S-y O", "bioes"),
        ("B-x L-x U-y O", "bioes"),
        ("B M M E S", "bmes"),
        ("NOUN VERB O", ""),
        ("O O O", ""),
        ("B-x NOUN", ""),
        ("B-x I", ""),
    ],
)
def test_the_scheme_is_told_by_its_letters(tags: str, name: str) -> None:
    assert guess_scheme([tags.split()]) == name


def test_what_does_not_fit_a_scheme_is_pointed_at() -> None:
    assert faults(["O", "I-x", "I-x"], "iob2") == (1,)
    assert faults(["B-x", "I-x", "O"], "bioes") == (1,)
    assert faults(["B-x", "I-x", "I-y"], "iob2") == (2,)
    assert faults(["NOUN", "VERB"], "") == ()


@pytest.mark.parametrize("spans", [[(0, 2, "x"), (1, 3, "x")], [(0, 0, "x")], [(2, 9, "x")], [(-1, 1, "x")]])
def test_spans_that_cannot_be_written_are_refused(spans: list[tuple[int, int, str]]) -> None:
    with pytest.raises(UserError):
        tags_of(spans, 4)


@pytest.mark.parametrize(
    ("labels", "called"),
    [
        ("O B-X I-X", "B-X I-X O B-X"),
        ("O I-X", "I-X I-X O I-X"),
        ("O B-X I-X E-X S-X", "B-X E-X O S-X"),
        ("O B-X M-X E-X S-X", "B-X E-X O S-X"),
        ("O B-X I-X L-X U-X", "B-X L-X O U-X"),
    ],
)
def test_tags_are_called_as_a_model_calls_them(labels: str, called: str) -> None:
    for scheme in ("iob1", "iob2", "bioes", "bmes"):
        tags = convert(("B-X", "I-X", "O", "B-X"), scheme)
        assert as_called(tags, labels.split()) == tuple(called.split())


def test_a_scheme_that_is_none_names_those_there_are() -> None:
    with pytest.raises(UserError, match="bioes"):
        tags_of([], 1, "bieos")
