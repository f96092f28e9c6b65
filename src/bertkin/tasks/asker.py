"""One model and a plan of prompts: what it is asked, what fits, how likely it takes each choice, what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bertkin.errors import UserError
from bertkin.models.generate import Decoding
from bertkin.tasks.continuations import divided, grouped, score_blanks, score_continuations
from bertkin.tasks.fill import Loaded, load
from bertkin.tasks.generate import Generated, Writer, generate, open_writer
from bertkin.tasks.patterns import Example, Pattern, prompt
from bertkin.tasks.repairing import repair
from bertkin.tasks.scoring import Floats, Ints, ways
from bertkin.train.machine import pick_precision

Normalise = Literal["none", "length", "calibrated"]

FRAME = 3
"""Tokens that may stand around a prompt: what begins it, what ends it, and a blank."""


@dataclass(frozen=True)
class Plan:
    """What is asked of every model."""

    task: str
    pattern: Pattern
    examples: Sequence[Example]
    test: Sequence[Example]
    apart: bool
    """Whether the test rows are other rows than the examples."""
    choices: tuple[str, ...]
    """What is chosen from; empty where answers are written."""
    normalise: Normalise = "none"
    per_row: bool = False
    max_new_tokens: int = 32
    translated: bool = False


@dataclass(frozen=True)
class Asker:
    """A model, and how it is asked."""

    loaded: Loaded
    writer: Writer | None
    blank: bool
    """Whether it fills a blank, and does not go on with the prompt."""


def open_asker(model: Loaded | str | Path, plan: Plan, precision: str) -> Asker:
    loaded = model if isinstance(model, Loaded) else load(model)
    if loaded.model.detect is not None:
        raise UserError(
            "this model finds replaced tokens and cannot be prompted",
            where=loaded.folder,
            mend="give one that writes or fills blanks",
        )
    if loaded is not model:
        loaded.model.to(pick_precision(precision))
    both, objective = loaded.model.architecture.both, loaded.objective
    if both or objective == "unilm" or "causal" in ways(loaded.model, loaded.tokenizer, objective):
        writer = open_writer(loaded)
        either = both or objective in ("hybrid", "unilm")
        asker = Asker(loaded, writer, blank=either and (plan.pattern.blank or objective == "denoise"))
    elif not plan.choices:
        raise UserError(
            "this model fills blanks and cannot write",
            where=loaded.folder,
            mend="give --score likelihood, with --choices where there are many, or a model that writes",
        )
    else:
        asker = Asker(loaded, None, blank=True)
    _check_choices(asker, plan)
    return asker


def _check_choices(asker: Asker, plan: Plan) -> None:
    """Refuse choices that the tokenizer cannot tell apart, or of which one begins with another.

    From left to right a choice is never likelier than its own beginning, whatever the input.
    """
    if not plan.choices:
        return
    before, after = prompt(plan.pattern, plan.task, (), plan.test[0].input)
    end = "" if asker.blank else after
    _, tokens = divided(asker.loaded.tokenizer, before, [choice + end for choice in plan.choices])
    for one, ids in zip(plan.choices, tokens, strict=True):
        for other, longer in zip(plan.choices, tokens, strict=True):
            if one == other:
                continue
            if not ids or ids == longer:
                raise UserError(
                    f"the tokenizer cannot tell the choices {one!r} and {other!r} apart",
                    where=str(asker.loaded.folder),
                    mend="word one of them otherwise",
                )
            if longer[: len(ids)] == ids and asker.writer is not None:
                raise UserError(
                    f"the choice {other!r} begins with the choice {one!r}, which would always be at least as likely",
                    where="--choices",
                    mend="word one of them otherwise, or end the pattern with a mark, as '{output}.'",
                )


def whole(plan: Plan, some: Sequence[int], given: str) -> tuple[str, str]:
    return prompt(plan.pattern, plan.task, [plan.examples[i] for i in some], given)


def fitted(asker: Asker, plan: Plan, wanted: Sequence[list[int]]) -> list[list[int]]:
    """The examples of each row that fit into the context: where there is no room, the first ones go.

    Raises:
        UserError: an input that does not fit without any.
    """
    tokenizer, longest = asker.loaded.tokenizer, asker.loaded.model.architecture.max_length
    answers = tokenizer.encode_batch([" " + choice + plan.pattern.after for choice in plan.choices])
    room = max(map(len, answers), default=0)
    if not plan.choices and (asker.writer is None or asker.writer.goes_on):
        room = min(plan.max_new_tokens, longest // 4)
    kept = [list(some) for some in wanted]
    open_rows = list(range(len(kept)))
    while open_rows:
        texts = ["".join(whole(plan, kept[row], plan.test[row].input)) for row in open_rows]
        sizes = [FRAME + len(ids) + room for ids in tokenizer.encode_batch(texts)]
        too_long = [(row, size) for row, size in zip(open_rows, sizes, strict=True) if size > longest]
        for row, size in too_long:
            if not kept[row]:
                raise UserError(
                    f"task, input and answer have {size:,} tokens, the model reads {longest:,}",
                    where=plan.test[row].where or f"row {row + 1}",
                    mend="shorten the input or --task, or take a model that reads more",
                )
            del kept[row][0]
        open_rows = [row for row, _ in too_long]
    return kept


def likelihoods(asker: Asker, plan: Plan, prompts: Sequence[tuple[str, str]]) -> tuple[Floats, Ints]:
    """Log-likelihoods [prompts, choices] and their tokens."""
    told = [choice for _ in prompts for choice in plan.choices]
    each = [one for one in prompts for _ in plan.choices]
    if asker.blank:
        found = score_blanks(asker.loaded, each, told)
    else:
        assert asker.writer is not None
        if asker.writer.goes_on:
            texts = [choice + after for choice, (_, after) in zip(told, each, strict=True)]
            found = score_continuations(asker.writer, [before for before, _ in each], texts)
        else:
            found = score_continuations(asker.writer, [before.rstrip() + after for before, after in each], told)
    shape = len(prompts), len(plan.choices)
    return found.scores.reshape(shape), found.tokens.reshape(shape)


def written(asker: Asker, plan: Plan, prompts: Sequence[tuple[str, str]]) -> list[str]:
    """What the model writes as the answer of each prompt, up to what follows an answer in the pattern."""
    writer, tokenizer = asker.writer, asker.loaded.tokenizer
    assert writer is not None
    how = Decoding(max_new_tokens=plan.max_new_tokens, temperature=0.0)
    one_line = not any("\n" in row.output for row in plan.examples)
    stop = ["\n" if one_line else plan.pattern.parting]
    stop += [plan.pattern.after] if plan.pattern.after.strip() and "{input}" not in plan.pattern.after else []
    if writer.goes_on:
        texts = [before.rstrip() for before, _ in prompts]
        made = generate(writer, texts, how, stop=[*stop, *_opening(plan.pattern)])
    elif not asker.blank:
        made = generate(writer, [before.rstrip() + after for before, after in prompts], how)
    else:
        taught = repair(tokenizer, asker.loaded.noise)
        if taught.each:
            raise UserError(
                "this model was taught to fill in as many words as there are [MASK], and nobody knows how many",
                where=asker.loaded.folder,
                mend="give --score likelihood",
            )
        mark = "" if taught.mark is None else tokenizer.token(taught.mark)
        if taught.opening:  # T5's: the next sentinel ends the span
            stop = [tokenizer.token(number) for number in tokenizer.sentinels[1:2]] + stop
        # Who writes the whole text again begins with what stands before its blank: those that begin alike go together.
        begins = [tuple(tokenizer.encode(before.rstrip())) if taught.whole else taught.opening for before, _ in prompts]
        found: dict[int, Generated] = {}
        for begin, members in grouped(begins):
            told = replace(writer, manner=replace(writer.manner, start=(*writer.manner.start, *begin)))
            texts = [prompts[i][0].rstrip() + mark + prompts[i][1] for i in members]
            found |= zip(members, generate(told, texts, how, stop=stop), strict=True)
        made = [found[i] for i in range(len(prompts))]
    return [one.text.strip() for one in made]


def _opening(pattern: Pattern) -> list[str]:
    """How the next example would begin, where the pattern begins with words: the answer is over there, too."""
    opening = pattern.before.split("{input}")[0].strip()
    return [opening] if opening else []
