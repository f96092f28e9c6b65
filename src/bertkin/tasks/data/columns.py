"""Which column of a table is what: by the names people use, by what a column holds, or as the user says.

Every guess is said aloud (`Roles.said`), and `--text`, `--text2` and `--label` overrule it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from bertkin.errors import UserError, nearest
from bertkin.tasks.data.files import Table, is_count, is_number, normal

PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("premise", "question"), ("question1", "question2"),
    ("question", "sentence"), ("question", "passage"), ("question", "context"), ("article", "question"),
    ("text_a", "text_b"), ("text1", "text2"), ("texta", "textb"), ("#1_string", "#2_string"), ("sent1", "sent2"),
    ("s1", "s2"), ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"), ("text_1", "text_2"),
    ("query", "passage"), ("query", "document"), ("query", "text"), ("query", "title"), ("context", "query"),
    ("anchor", "positive"), ("claim", "evidence"), ("sequence1", "sequence2"),
)  # fmt: skip
TEXTS = (
    "text", "sentence", "review", "content", "comment", "tweet", "message", "body", "sequence", "document",
    "article", "utterance", "post", "text_a", "sentence1", "question", "query", "premise", "input", "source",
    "prompt", "instruction", "dialogue", "passage", "context", "abstract",
    "description", "title", "headline", "src", "review_body", "文本", "内容", "句子", "评论", "标题",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "category", "gold_label", "score", "is_duplicate", "quality", "similarity_score",
    "similarity", "sentiment", "rating", "stars", "polarity", "intent", "topic", "emotion", "target", "relation", "y",
    "answerkey", "categories", "genre_label", "toxic", "humor", "lang", "language", "标签", "类别", "情感",
)  # fmt: skip
CHOSEN_FOR = ("goal", "ctx", "question_stem")
"""What choices belong to, by names that say nothing where there are none."""
TARGETS = (
    "summary", "highlights", "translation", "target_text", "target", "output", "response", "completion", "answer", "tgt",
    "reference", "headline", "title", "摘要",
)  # fmt: skip
"""Columns that hold what is to be written; also labels, where their values repeat."""
IDS = ("id", "idx", "index", "guid", "uid", "qid", "pairid", "sent_id")
WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags", "pos_tags", "upos", "labels", "ner", "label", "tag", "pos")
ENTITIES = ("entities", "spans", "label", "labels", "annotations")
CHOICE = ("choice", "ending", "option", "sol", "answer", "alternative")
CHOICES = re.compile(rf"(?:{'|'.join(CHOICE)})_?(\d+|[a-e])")

KNOWN = tuple({*LABELS, *TEXTS, *CHOSEN_FOR, *IDS, *TARGETS, *TAGS, *WORDS, *(name for pair in PAIRS for name in pair)})
"""Names by which a first line is known to be a header."""
NUMBERED = tuple(f"{name}{bar}{at}" for name in CHOICE for bar in ("", "_") for at in range(10))
"""Those of choices, where choices are expected: elsewhere "answer 1" may be an answer."""


@dataclass(frozen=True)
class Columns:
    """What the user says of the columns; anything left "" is guessed.

    Attributes:
        text, text2: columns of the texts, by name or by number from 1.
        label: column of the answer.
        id: column of the rows' names.
    """

    text: str = ""
    text2: str = ""
    label: str = ""
    id: str = ""


@dataclass(frozen=True)
class Roles:
    """What each column is; "" and () for what there is none of.

    Attributes:
        texts: joined in this order.
        choices: a column for each choice, or one that holds a list.
        holds: what a row is: "" for texts and a label, else "words", "entities", "choices" or "answers" (spans).
        classes: names of the label's classes in order, where the file declares them.
        first: of choices: the number of the first one, where labels are numbers: 0 or 1, as the training data count, or
            `bertkin.tasks.data.labels.TEXTS`.
        form: what they are the columns of: "table", "conll", "conllu", "squad" or "folder".
    """

    texts: tuple[str, ...] = ()
    label: str = ""
    id: str = ""
    choices: tuple[str, ...] = ()
    holds: str = ""
    classes: tuple[str, ...] = ()
    first: int | None = None
    form: str = ""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any] | None) -> Roles | None:
        """Roles from their plain data, as JSON has them; None where there are none."""
        if values is None:
            return None
        known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)

    @property
    def said(self) -> str:
        """The roles in one line."""
        parts = [("text", self.texts), ("label", (self.label,)), ("choices", self.choices), ("id", (self.id,))]
        return ", ".join(f"{name} = {' + '.join(names)}" for name, names in parts if names and names[0])


def choose_roles(table: Table, given: Columns, output: str = "", inputs: int = 0, *, labelled: bool = True) -> Roles:
    """The roles of a table's columns.

    Args:
        given: what the user says.
        output: what the task's answer is, or "" where that is to be found out as well.
        inputs: how many texts the task joins, or 0.
        labelled: whether a label is looked for among columns whose names say nothing.

    Raises:
        UserError: a column that is not there, or texts that cannot be told.
    """
    named = {field.name: _find(table, getattr(given, field.name), field.name) for field in fields(given)}
    by_name = {normal(name): name for name in reversed(table.columns)}
    id_ = named["id"] or next((by_name[name] for name in IDS if name in by_name), "")
    special = _special(table, by_name, named, output)
    if special is not None:
        return replace(special, id=id_)
    label = named["label"] or _label_by_name(by_name, output, named)
    free = {key: name for key, name in by_name.items() if name not in (label, id_)}
    texts = tuple(name for name in (named["text"], named["text2"]) if name)
    if not named["text"]:
        texts = _texts_by_name(free, 2 if named["text2"] else inputs) or texts
        if named["text2"]:
            texts = (*[name for name in texts if name != named["text2"]][:1], named["text2"])
    if output == "sequence" and not label and labelled:  # a text like others, so that its values do not tell it
        left = [name for name in table.columns if name not in (*texts, id_)]
        label = left[-1] if len(left) > (not texts) else ""
        texts = texts or tuple(left[:1])
    if not texts or (not label and labelled):
        by_content = _by_content(table, [name for name in table.columns if name != named["label"]], inputs)
        texts = texts or by_content.texts
        label = label or (by_content.label if labelled else "")
    if label in texts and not named["label"]:
        label = ""
    if not texts:
        raise UserError(
            "no column looks like a text", where=f"{table.label}:1", mend=f"name it with --text; {there(table)}"
        )
    if inputs > len(texts):
        what = f"only one text ({texts[0]}), but the task joins {inputs}"
        raise UserError(what, where=f"{table.label}:1", mend=f"name the other with --text2; {there(table)}")
    return Roles(texts[:inputs] if inputs else texts, label, id_)


def asked_roles(
    table: Table, given: Columns, output: str, inputs: int, before: Roles | None, *, labelled: bool
) -> Roles:
    """The roles of a table whose rows are to be answered: those of the table that the model was trained on, or by the names
    of the columns, or, where there are as many as the model reads, the columns in order. What they hold decides nothing, as
    a few rows do not tell a text from an answer.

    Args:
        inputs: how many texts the task joins, choices apart.
        before: of the training data.
        labelled: whether answers are read, too; their column, where it is named, is no text either way.

    Raises:
        UserError: as `choose_roles`; or there are other columns than the texts.
    """
    named = {field.name: _find(table, getattr(given, field.name), field.name) for field in fields(given)}
    by_name = {normal(name): name for name in reversed(table.columns)}
    id_ = named["id"] or next((by_name[name] for name in IDS if name in by_name), "")
    own = tuple(name for name in (named["text"], named["text2"]) if name)
    first = before.first if before is not None else None
    usual = before is not None and before.form == "table" and bool(before.texts or before.choices) and not own
    if before is not None and usual and {*before.texts, *before.choices} <= {*table.columns}:
        label = named["label"] or (before.label if before.label in table.columns else "")
        return replace(before, label=label if labelled else "", id=id_ if id_ not in before.texts else "")
    special = _special(table, by_name, named, output)
    if special is not None:
        return replace(special, label=special.label if labelled else "", id=id_, first=first)
    left = [name for name in table.columns if name not in (*own, id_, named["label"])]
    free = {normal(name): name for name in reversed(left)}
    in_order = tuple(name for name in left if normal(name) not in LABELS)
    if len(own) == 2 or (own and inputs == 1):
        texts = own
    elif own:  # one of a pair
        at = 0 if named["text2"] else 1
        trained = before.texts[at] if before is not None and len(before.texts) == 2 else ""
        other = (trained,) if trained in left else _texts_by_name(free, 1) or in_order
        texts = (*other, *own) if named["text2"] else (*own, *other)
    else:
        by_names = _texts_by_name(free, inputs)
        texts = by_names if len(by_names) == inputs else in_order
    if len(texts) != inputs:
        what = f"cannot tell which of {len(left)} columns the model is to read" if not own else f"{len(texts)} texts"
        mend = f"name {'it' if inputs == 1 else 'them'} with --text{' and --text2' * (inputs > 1)}; {there(table)}"
        raise UserError(f"{what}, where the task joins {inputs}", where=f"{table.label}:1", mend=mend)
    label = named["label"] or _label_by_name({normal(name): name for name in left if name not in texts}, output, named)
    return Roles(texts, label if labelled else "", id_, holds="answers" if output == "span" else "")


def there(table: Table) -> str:
    """The columns of a table, for a mend."""
    names = ", ".join(" ".join(name.split())[:40] for name in table.columns[:20])
    return f"there are {names}" if table.header else f"there are {len(table.columns)}, called 1, 2, …"


def _find(table: Table, name: str, option: str) -> str:
    """The column a user means, by its name in any case, or by its number."""
    if not name or name in table.columns:
        return name
    for column in table.columns:
        if normal(column) == normal(name):
            return column
    if is_count(name) and 1 <= int(name) <= len(table.columns):
        return table.columns[int(name) - 1]
    guess = nearest(name, table.columns)
    mend = guess if guess.startswith("did you mean") else there(table)
    raise UserError(f"no column {name!r}", where=f"{table.label}:1 (--{option})", mend=mend)


@dataclass(frozen=True)
class _Seen:
    """What is seen of a table before its columns have roles.

    Attributes:
        by_name: its columns by their names as `normal` writes them.
        named: what the user says of columns, by option.
        output: what the task's answer is, or "".
        row: of each column the first value that holds anything.
    """

    table: Table
    by_name: dict[str, str]
    named: dict[str, str]
    output: str
    row: dict[str, Any]

    def first(self, names: Iterable[str], kind: type | tuple[type, ...] = object) -> str:
        """The first of these columns that is there and holds something of a kind."""
        known = (self.by_name[name] for name in names if name in self.by_name)
        return next((name for name in known if isinstance(self.row.get(name), kind)), "")

    @property
    def beside(self) -> tuple[str, ...]:
        """The text that is read before the one that is asked of."""
        return (self.named["text2"],) if isinstance(self.row.get(self.named["text2"]), str) else ()

    def may_be(self, output: str) -> bool:
        """Whether the task may have such an answer."""
        return self.output in ("", output)


def _special(table: Table, by_name: dict[str, str], named: dict[str, str], output: str) -> Roles | None:
    """The roles where a row is more than texts and a label, but for the column of names."""
    seen = _Seen(table, by_name, named, output, _typical(table))
    return _words(seen) or _answers(seen) or _entities(seen) or _choices(seen)


def _words(seen: _Seen) -> Roles | None:
    """A list of words, and perhaps of their tags."""
    text = seen.named["text"]
    words = text if isinstance(seen.row.get(text), list) else seen.first(WORDS, list)
    if not words or not seen.may_be("tokens") or (seen.named["text2"] and not seen.beside):
        return None
    tags = seen.named["label"] or seen.first([name for name in TAGS if seen.by_name.get(name) != words], list)
    return Roles((*seen.beside, words), tags, holds="words")


def _answers(seen: _Seen) -> Roles | None:
    """A question, a context, and answers in it."""
    read: tuple[str, ...] = ()
    if seen.output == "span" and seen.named["text"]:
        read = tuple(name for name in (seen.named["text"], seen.named["text2"]) if name)
    elif "context" in seen.by_name and seen.may_be("span"):
        read = tuple(seen.by_name[name] for name in ("question", "context") if name in seen.by_name)
    answers = seen.named["label"] or seen.first(("answers", "answer"), (dict, list)) if read else ""
    return Roles(read, answers, holds="answers") if read and (answers or seen.output == "span") else None


def _entities(seen: _Seen) -> Roles | None:
    """A text, and marks on it."""
    text = seen.named["text"] or seen.first(TEXTS, str)
    marks = seen.named["label"] or seen.first(ENTITIES, list)
    found = bool(text and marks) and seen.may_be("tokens") and _marks(seen.row.get(marks))
    return Roles((*seen.beside, text), marks, holds="entities") if found else None


def _choices(seen: _Seen) -> Roles | None:
    """Choices, in a column each or as a list, and perhaps what they are chosen for.

    Raises:
        UserError: no column looks like what they are chosen for, though one may be it.
    """
    by_name, named = seen.by_name, seen.named
    choices = tuple(by_name[name] for name in sorted(by_name, key=_counted) if CHOICES.fullmatch(name))
    listed = seen.first(("choices", "endings", "options"), (list, dict))
    if not seen.may_be("choice") or not (listed or len(choices) > 1):
        return None
    free = {key: name for key, name in by_name.items() if name not in choices}
    texts = _texts_by_name(free, 0) or tuple(free[name] for name in CHOSEN_FOR if name in free)[:1]
    texts = (named["text"], *([named["text2"]] if named["text2"] else [])) if named["text"] else texts
    label = named["label"] or _label_by_name(free, "", named)
    left = [name for name in free.values() if name not in (listed, label, named["id"]) and normal(name) not in IDS]
    if not texts and (odd := [name for name in left if _tells(seen.table, name)]):
        what = f"choices, and no column that looks like what they are chosen for ({', '.join(odd[:8])})"
        raise UserError(what, where=f"{seen.table.label}:1", mend="name it with --text")
    return Roles(texts, label, choices=(listed,) if listed else choices, holds="choices")


def _typical(table: Table) -> dict[str, Any]:
    """Of each column the first value that holds anything."""
    found: dict[str, Any] = {}
    for row in table.rows[:1000]:
        for name, value in row.values.items():
            if found.get(name) in (None, "", []):
                found[name] = value
    return found


def _tells(table: Table, name: str) -> bool:
    """Whether a column may be what choices are of: texts, and hardly any of them twice."""
    values = [row.values.get(name) for row in table.rows[:1000]]
    told = {value for value in values if isinstance(value, str) and value}
    return not normal(name).endswith("id") and len(told) > len(values) / 2


def _counted(name: str) -> list[tuple[int, str]]:
    """What to sort names by whose numbers count: choice2 before choice10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _marks(value: Any) -> bool:
    """Whether a value is a list of [start, end, type] or {"start": …, "end": …}; an empty one may be."""
    if not isinstance(value, list):
        return False
    return all(
        (isinstance(mark, list) and len(mark) == 3 and isinstance(mark[0], int))
        or (isinstance(mark, dict) and {"start", "end"} <= {*mark})
        for mark in value
    )


def _label_by_name(by_name: dict[str, str], output: str, named: dict[str, str]) -> str:
    taken = (named["text"], named["text2"], named["id"])
    names = (*TARGETS, *LABELS) if output == "sequence" else (*LABELS, *TARGETS)
    found = [by_name[name] for name in names if name in by_name and by_name[name] not in taken]
    return found[0] if found else ""


def _texts_by_name(free: dict[str, str], inputs: int) -> tuple[str, ...]:
    for one, two in PAIRS if inputs != 1 else ():
        if one in free and two in free:
            return free[one], free[two]
    return next(((free[name],) for name in TEXTS if name in free), ())


def _by_content(table: Table, names: Sequence[str], inputs: int) -> Roles:
    """The roles of columns whose names say nothing: texts are long, labels few."""
    rows = [row.values for row in table.rows[:2000]]
    values = {name: ["" if row.get(name) in (None, [], {}) else str(row.get(name)) for row in rows] for name in names}
    filled = {name: found for name, found in values.items() if found and all(found)}
    few = {name: len(set(found)) for name, found in filled.items()}
    labels = [name for name in few if 1 < few[name] <= max(2, min(60, len(rows) // 2))]
    label = min(labels, key=lambda name: (few[name], not all(map(is_number, values[name])))) if labels else ""
    lengths = {
        name: sum(map(len, found)) / len(found)
        for name, found in values.items()
        if found and name != label and not all(map(is_number, found))
    }
    longest = max(lengths, key=lambda name: lengths[name], default="")
    if not longest:
        return Roles()
    worded = [
        name for name in lengths if lengths[name] > 0.25 * lengths[longest] and len(set(values[name])) > len(rows) // 4
    ]
    both = (inputs == 2 or (inputs == 0 and lengths[longest] > 20)) and len(worded) == 2
    return Roles(tuple(worded) if both else (longest,), label)
