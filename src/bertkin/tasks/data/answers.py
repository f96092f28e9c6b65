"""Questions whose answer stands in a text: SQuAD's JSON (v1, v2, CMRC, XQuAD), and the same as flat rows.

An answer is looked for where its offset says. Where it is not there, the nearest place that has it is taken, blanks
not counting; an answer that is nowhere in its text is kept to be compared with, and points nowhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bertkin.errors import UserError
from bertkin.tasks.data.files import Gate
from bertkin.tasks.data.raw import Raw

MOVED, NOWHERE = "answers moved to where their text is", "answers that are not in their text, kept for scoring only"
LONGEST = 400
"""Characters of an answer that is also looked for with other blanks."""
Span = tuple[int, int]


def read_squad(label: str, text: str, gate: Gate, *, answered: bool = True) -> list[Raw]:
    """The questions of a file in SQuAD's format, each with its paragraph.

    Args:
        label: name of the file.
        gate: is told of answers that are not where they should be.
        answered: whether answers are read.

    Raises:
        UserError: another format, or a question with answers none of which is in its text.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        why = getattr(error, "msg", "nested too deeply")
        raise UserError(f"not JSON ({why})", where=f"{label}:{line}", mend="save or download it again") from None
    found = []
    line, at = 1, 0
    for title, context, question in _questions(label, data):
        name = str(question.get("id", ""))
        named = question.get("id") if isinstance(question.get("id"), str) else question["question"]
        places = (text.find(json.dumps(named, ensure_ascii=ascii), at) for ascii in (False, True))
        place = next((place for place in places if place >= 0), None)
        if place is not None:
            line, at = line + text.count("\n", at, place), place
        where = f"{label}:{line}" + (f" (question {name})" if name else f" ({title})" if title else "")
        answers = [] if question.get("is_impossible") else question.get("answers")
        raw = question_of(question["question"], context, answers if answered else None, where, gate, name)
        if raw is not None:
            found.append(raw)
    return found


def _questions(label: str, data: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(title, context, question) of each question."""

    def wrong(what: str) -> UserError:
        return UserError(what, where=label, mend="give SQuAD's format: data, paragraphs, context, qas")

    articles = data.get("data") if isinstance(data, dict) else data
    if not isinstance(articles, list):
        raise wrong("no list of articles under 'data'")
    for number, article in enumerate(articles, 1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise wrong(f"article {number} has no list 'paragraphs'")
        title = str(article.get("title", ""))
        for paragraph in paragraphs:
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("context"), str):
                raise wrong(f"a paragraph of article {number} has no 'context'")
            if not isinstance(paragraph.get("qas"), list):
                raise wrong(f"a paragraph of article {number} has no list 'qas'")
            for question in paragraph["qas"]:
                if not isinstance(question, dict) or not isinstance(question.get("question"), str):
                    raise wrong(f"something under 'qas' of article {number} has no 'question'")
                yield title, paragraph["context"], question


def question_of(question: str, context: str, answers: Any, where: str, gate: Gate, name: str = "") -> Raw | None:
    """A question with the places of its answers; None where it is left out.

    Args:
        answers: None where they are not known; [] for none; a list of {"text", "answer_start"}, of texts, or such
            columns as {"text": [...], "answer_start": [...]}.
    """
    if answers is None:
        return Raw((question, context), None, where, id=name)
    spans: dict[Span, None] = {}
    texts: list[str] = []
    lost = ""
    for text, given in _listed(answers):
        start = given if isinstance(given, int) else None
        if not isinstance(text, str):
            gate.refuse("an answer without a text", where, "write it {text, answer_start}")
            return None
        if not text.strip():
            continue
        texts.append(text)
        span = locate(text, context, start)
        if span is None:
            outside = start is not None and not -1 <= start < len(context)
            place = f" at character {start} of a text of {len(context)}" if outside else ""
            lost = lost or f"the answer {_short(text)}{place} is not in its text"
            gate.note(NOWHERE, where)
        else:
            if start is not None and span[0] != start:
                gate.note(MOVED, where)
            spans[span] = None
    if lost and not spans:
        gate.refuse(lost, where, "correct the answer")
        return None
    return Raw((question, context), tuple(spans), where, id=name, answers=tuple(texts))


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "…")


def _listed(answers: Any) -> Iterable[tuple[Any, Any]]:
    """(text, start) of each answer, however they are written."""
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        starts = answers.get("answer_start")
        starts = starts if isinstance(starts, list) else []
        return [(text, starts[at] if at < len(starts) else None) for at, text in enumerate(answers["text"])]
    if isinstance(answers, dict | str):
        answers = [answers]
    if not isinstance(answers, list):
        return [(answers, None)]
    return [(a.get("text"), a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in answers]


def locate(text: str, context: str, start: int | None = None) -> Span | None:
    """Where `text` is in `context`: at `start`, else the place nearest to it, else with other blanks, else None.

    Blanks at the edges of `text` do not belong to the span.
    """
    if start is not None and start >= 0 and context.startswith(text, start):
        at: int | None = start
    else:
        at = _nearest(text, context, start)
    if at is not None and text.strip():
        lead = len(text) - len(text.lstrip())
        return at + lead, at + lead + len(text.strip())
    stripped = text.strip()
    if not stripped or len(stripped) > LONGEST:
        return None
    pattern = r"\s*".join(re.escape(character) for character in stripped if not character.isspace())
    spans = [match.span() for match in re.finditer(pattern, context)]
    return min(spans, key=lambda span: abs(span[0] - (start or 0)), default=None)


def _nearest(text: str, context: str, start: int | None) -> int | None:
    """Where `text` begins in `context`, nearest to `start`."""
    if not text:
        return None
    wanted = max(0, start or 0)
    after = context.find(text, wanted)
    before = context.rfind(text, 0, wanted + len(text))
    places = [place for place in (after, before) if place >= 0]
    return min(places, key=lambda place: abs(place - wanted), default=None)
