"""Write: go on with a text, or, with an encoder–decoder, write one for another.

writer = open_writer("runs/gpt")                                  a run folder, a model folder, or a hub id
print(generate(writer, "Once upon a time")[0])
for piece in stream(writer, "Once upon a time"): print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bertkin.errors import UserError, nearest
from bertkin.models.generate import Decoding, Manner, write
from bertkin.models.heads import LanguageModel
from bertkin.models.steps import Steps
from bertkin.models.writers import start_of
from bertkin.tasks.fill import Loaded, load, own_marks
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision

Precision = Literal["auto", "float32", "bfloat16", "int8"]
Truncate = Literal["left"] | None
AT_ONCE = 32
"""Sequences written side by side."""
CONTEXT = 8
"""Tokens of the prompt that decide how the first written ones read (blanks, bytes of one character)."""
_UNFINISHED = "\ufffd"
WRITERS = "gpt2, llama, bart and t5 can, and encoders trained with --objective causal, prefix, hybrid or unilm"


@dataclass(frozen=True)
class Writer:
    """A model that can write, its tokenizer, and how it was taught to."""

    folder: Path
    model: LanguageModel
    tokenizer: Tokenizer
    manner: Manner
    steps: Steps | None = None
    """The weights once more, laid out for fast steps, where the processor has the products for it."""

    @property
    def goes_on(self) -> bool:
        """Whether it goes on with a prompt, and does not write a text for it."""
        return not self.model.architecture.both

    def __repr__(self) -> str:
        return f"Writer({str(self.folder)!r}, {self.model.architecture.family}, {self.tokenizer})"


@dataclass(frozen=True)
class Generated:
    """A prompt and what was written after it, or for it."""

    prompt: str
    text: str
    """What was written."""
    tokens: int
    """How many tokens that cost."""
    ended: Literal["end", "stop", "length"]
    """Why it ends: the model ended it, a stop string came, or there was no room for more."""
    goes_on: bool = True
    """Whether the text goes on where the prompt ends (and is not a text of its own)."""

    def __str__(self) -> str:
        return self.prompt + self.text if self.goes_on else self.text

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"prompt": self.prompt, "text": self.text, "tokens": self.tokens, "ended": self.ended}


def open_writer(model: Writer | Loaded | str | Path, *, precision: Precision = "auto") -> Writer:
    """Open a model that can write.

    Args:
        model: a run folder, a model folder (ours or transformers'), a hub id, or what is open already, which keeps the
            precision it has.
        precision: of the weights in memory; auto is bfloat16 where the processor gains by it. int8 halves what is read
            for each token once more, for a little less exact scores.

    Raises:
        UserError: there is none, it is damaged, it cannot write, or int8 is not possible here.
    """
    if isinstance(model, Writer):
        return model
    loaded = model if isinstance(model, Loaded) else load(model)
    manner = _manner(loaded)
    if loaded is not model:
        if precision not in get_args(Precision):
            mend = nearest(str(precision), get_args(Precision))
            raise UserError(f"{precision!r} is not a choice", where="--precision", mend=mend)
        loaded.model.to(torch.bfloat16 if precision == "int8" else pick_precision(precision))
    int8 = precision == "int8"
    steps = Steps(loaded.model, int8=int8) if Steps.usable(loaded.model) else None
    if int8 and steps is None:
        problem = "int8 needs a processor with bfloat16 products, a C++ compiler, and widths that are multiples of 32"
        raise UserError(problem, where="--precision", mend="choose auto")
    return Writer(loaded.folder, loaded.model, loaded.tokenizer, manner, steps)


def _manner(loaded: Loaded) -> Manner:
    """How a model was taught to write: by its family, and by the objective that its folder names.

    Raises:
        UserError: it was not.
    """
    a, tokenizer, objective = loaded.model.architecture, loaded.tokenizer, loaded.objective
    if a.both:
        return Manner(start=start_of(a, tokenizer))
    if objective == "unilm":
        return Manner(blank=tokenizer.mask_id)
    if a.causal or objective in ("causal", "hybrid", "prefix"):
        return Manner(both_sides=objective == "prefix")
    what = "finds replaced tokens" if loaded.model.head is None else "fills blanks"
    raise UserError(f"this model {what} and cannot write", where=loaded.folder, mend=WRITERS)


def generate(
    model: Writer | Loaded | str | Path,
    prompts: str | Sequence[str],
    how: Decoding = Decoding(),  # noqa: B008
    *,
    num: int = 1,
    stop: Sequence[str] = (),
    truncate: Truncate = None,
) -> list[Generated]:
    """What the model writes after each prompt, or for it.

    Args:
        model: from `open_writer`, or what that takes.
        prompts: one or many. A text does not depend on the others beside it.
        num: texts for each prompt, by chance, which lie next to each other in the answer.
        stop: strings that end a text; they are not part of it.
        truncate: "left" lets a prompt that is too long lose its beginning; otherwise it is refused.

    Raises:
        UserError: a prompt longer than the model reads, or a number out of its range.
    """
    return list(generate_stream(model, prompts, how, num=num, stop=stop, truncate=truncate))


def generate_stream(
    model: Writer | Loaded | str | Path,
    prompts: str | Sequence[str],
    how: Decoding = Decoding(),  # noqa: B008
    *,
    num: int = 1,
    stop: Sequence[str] = (),
    truncate: Truncate = None,
) -> Iterator[Generated]:
    """`generate`, a batch of texts at a time."""
    writer, texts = open_writer(model), [prompts] if isinstance(prompts, str) else list(prompts)
    check(how, num, stop)
    coded = {number: _encode(writer, text, number + 1, how, truncate) for number, text in enumerate(texts)}
    wanted = [(number, sample) for number in range(len(texts)) for sample in range(num)]
    for first in range(0, len(wanted), AT_ONCE):
        batch = wanted[first : first + AT_ONCE]
        pieces = [_Pieces(writer, coded[number], stop) for number, _ in batch]
        for _ in _steps(writer, how, batch, coded, pieces):
            pass
        for (number, _), one in zip(batch, pieces, strict=True):
            yield one.generated(texts[number])


def stream(
    model: Writer | Loaded | str | Path,
    prompt: str,
    how: Decoding = Decoding(),  # noqa: B008
    *,
    number: int = 0,
    sample: int = 0,
    stop: Sequence[str] = (),
    truncate: Truncate = None,
) -> Iterator[str]:
    """The text that `generate` writes for a prompt, piece by piece as it comes; whole characters only.

    Args:
        number, sample: which of several prompts this is, and which of its texts: what `generate` would draw there.

    Raises:
        UserError: as `generate`.
    """
    writer = open_writer(model)
    check(how, 1, stop)
    coded = {number: _encode(writer, prompt, number + 1, how, truncate)}
    piece = _Pieces(writer, coded[number], stop, live=True)
    for _ in _steps(writer, how, [(number, sample)], coded, [piece]):
        if new := piece.new():
            yield new
    if new := piece.new(last=True):
        yield new


def _steps(
    writer: Writer,
    how: Decoding,
    batch: Sequence[tuple[int, int]],
    coded: Mapping[int, list[int]],
    pieces: list[_Pieces],
) -> Iterator[None]:
    """Write a batch of (prompt, sample) into `pieces`, a step at a time."""
    live = any(one.live for one in pieces)
    stopped: Callable[[int, int], bool] | None = None
    if live and how.beams == 1:
        stopped = lambda row, token: pieces[row].add(token)  # noqa: E731
    ends = {writer.tokenizer.sep_id, writer.model.architecture.sep_id}
    numbers = [number + (sample << 32) for number, sample in batch]
    prompts = [coded[number] for number, _ in batch]
    for written in write(
        writer.model,
        prompts,
        how,
        ends=ends,
        manner=writer.manner,
        numbers=numbers,
        stopped=stopped,
        steps=writer.steps,
    ):
        if stopped is None:
            for row, token in written:
                pieces[row].add(token)
        yield


def check(how: Decoding, num: int = 1, stop: Sequence[str] = ()) -> None:
    """Refuse numbers that no text can be written by.

    Raises:
        UserError: naming the option.
    """
    infinite = float("inf")
    for name, low, high in [
        ("max_new_tokens", 1, 1 << 31),
        ("temperature", 0.0, infinite),
        ("top_k", 0, 1 << 31),
        ("min_p", 0.0, 1.0),
        ("beams", 1, 1024),
    ]:
        if not low <= getattr(how, name) <= high or getattr(how, name) == infinite:
            among = f"from {low:g} to {high:g}" if high not in (infinite, 1 << 31) else f"of at least {low:g}"
            raise _out_of_range(name, getattr(how, name), f"a number {among}")
    if not abs(how.length_penalty) <= 10:
        raise _out_of_range("length_penalty", how.length_penalty, "a number from -10 to 10")
    if not -(1 << 63) <= how.seed < 1 << 63:
        raise _out_of_range("seed", how.seed, "a whole number of 64 bits")
    for name, value in (("top_p", how.top_p), ("repetition_penalty", how.repetition_penalty)):
        if not 0 < value < infinite or (name == "top_p" and value > 1):
            raise _out_of_range(name, value, "a share above 0, up to 1" if name == "top_p" else "a number above 0")
    if num < 1:
        raise _out_of_range("num", num, "1 or more")
    if num > 1 and (how.greedy or how.beams > 1):
        way = "greedy" if how.greedy else "beams"
        raise UserError(f"{num} texts would be the same, without chance", where="--num", mend=f"leave out --{way}")
    if any(not one for one in stop):
        raise UserError("an empty stop string", where="--stop", mend="give at least one character")


def _out_of_range(name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{value!r} is out of range", where=f"--{name.replace('_', '-')}", mend=f"choose {wanted}")


def decoding(**options: Any) -> Decoding:
    """A `Decoding` from options by name.

    Raises:
        UserError: one that we do not know.
    """
    known = [f.name for f in fields(Decoding)]
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name!r}", mend=nearest(name, known))
    return Decoding(**options)


def _encode(writer: Writer, text: str, number: int, how: Decoding, truncate: Literal["left"] | None) -> list[int]:
    """The prompt as the model reads it."""
    a, tokenizer = writer.model.architecture, writer.tokenizer
    ids = tokenizer.encode(own_marks(tokenizer, text) if a.both and tokenizer.has("mask") else text)
    first = [] if a.both and len(tokenizer.sentinels) else [tokenizer.cls_id]
    last = [tokenizer.sep_id] if a.both else []
    frame = len(first) + len(last) + (writer.manner.blank is not None)
    room = a.max_length - frame
    if len(ids) > room:
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        if truncate is None:
            raise UserError(
                f"{shown!r} has {len(ids) + frame:,} tokens, the model reads {a.max_length:,}",
                where=f"prompt {number}",
                mend="give a shorter one, or --truncate left to keep its end",
            )
        kept = room if a.both else max(1, room - min(how.max_new_tokens, room // 2))
        ids = ids[-kept:]
    return [*first, *ids, *last]


class _Pieces:
    """One text as it comes out of its tokens: whole characters, up to a stop string.

    What the last tokens read alone is not what they read after others (blanks, halves of characters), so each part is
    the difference between two readings of a few tokens.

    Args:
        prompt: what the text goes on from; an encoder–decoder's does not.
        live: whether each token is read as it comes, and not all in the end; needed for stop strings.
    """

    def __init__(self, writer: Writer, prompt: list[int], stop: Sequence[str], *, live: bool = False) -> None:
        tokenizer, self.goes_on = writer.tokenizer, writer.goes_on
        self.decode, self.stop, self.live = tokenizer.decode, tuple(stop), live or bool(stop)
        marks = [tokenizer.special(role) for role in ("cls", "sep", "pad") if tokenizer.has(role)]
        self.hidden = frozenset({*marks, writer.model.architecture.sep_id})
        self.ends = frozenset({tokenizer.sep_id, writer.model.architecture.sep_id})
        self.ids = [] if not self.goes_on else [i for i in prompt[-CONTEXT:] if i not in self.hidden]
        self.begin, self.read = 0, len(self.ids)
        self.text, self.shown, self.count = "", 0, 0
        self.ended: Literal["end", "stop", "length"] = "length"

    def add(self, token: int) -> bool:
        """One more token; whether a stop string is there now."""
        if self.ended != "length":  # beams bring all of a text at once
            return True
        self.count += 1
        if token in self.ends:
            self.ended = "end"
            return False
        if token not in self.hidden:
            self.ids.append(token)
        return self.live and self._read()

    def _read(self, *, last: bool = False) -> bool:
        before, now = self.decode(self.ids[self.begin : self.read]), self.decode(self.ids[self.begin :])
        if len(now) <= len(before) or (now.endswith(_UNFINISHED) and not last):
            return False
        searched = max(0, len(self.text) - max(map(len, self.stop), default=1) + 1)
        self.text += now[len(before) :]
        self.begin, self.read = self.read, len(self.ids)
        found = [at for one in self.stop if (at := self.text.find(one, searched)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], "stop"
            self.begin = self.read = len(self.ids)
        return bool(found)

    def new(self, *, last: bool = False) -> str:
        """What may be shown and was not yet: nothing that might become a stop string."""
        if last and self.ended != "stop":
            self._read(last=True)
        held = 0
        if not last and self.ended != "stop":
            lengths = range(1, max(map(len, self.stop), default=1))
            held = max((n for n in lengths if any(s.startswith(self.text[-n:]) for s in self.stop)), default=0)
        upto = max(self.shown, len(self.text) - held)
        piece, self.shown = self.text[self.shown : upto], upto
        return piece

    def generated(self, prompt: str) -> Generated:
        """The whole, when no token comes any more."""
        self.new(last=True)
        return Generated(prompt, self.text, self.count, self.ended, self.goes_on)
