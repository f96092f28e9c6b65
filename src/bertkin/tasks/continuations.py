"""How likely a model takes a text for what follows a prompt, or for what a blank hides.

    score_continuations(writer, prompts, choices)    log p(choice | prompt): writers, and encoder–decoders for what they read
    score_blanks(model, blanks, choices)             the same of a blank between two texts: whoever fills blanks

Scores come with the number of tokens they are sums over, so that they can be divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bertkin.errors import UserError
from bertkin.models.generate import Manner, Reader
from bertkin.models.heads import LanguageModel
from bertkin.tasks.fill import Loaded, load, stretches
from bertkin.tasks.generate import Writer, open_writer
from bertkin.tasks.repairing import read_by_encoder, repair, written_first
from bertkin.tasks.scoring import ROWS, Floats, Ints, check_tokenizer, choose_way
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

T = TypeVar("T")
KEPT = 16_384
"""Tokens whose keys and values are kept at once."""


class Likelihoods(NamedTuple):
    """What each choice scores; [n] is choices."""

    scores: Floats
    """[n]: log-likelihood, in nats."""
    tokens: Ints
    """[n]: how many tokens it is the sum of."""


Blank = tuple[str, str]
"""What stands before a blank, and after it."""


def divided(tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and of each choice after it, cut at one place for all of them.

    A prompt's white space at its end belongs to the first word of what follows. Where a choice changes the tokens of the
    prompt itself (its last piece grows together with the first of the choice), the cut lies before them, for all choices.
    """
    text = prompt.rstrip()
    whole, *joined = tokenizer.encode_batch([text, *(prompt + choice for choice in choices)])
    cut = min((_common(whole, ids) for ids in joined), default=len(whole))
    return whole[:cut], [ids[cut:] for ids in joined]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def score_continuations(
    model: Writer | Loaded | str | Path, prompts: Sequence[str], choices: Sequence[str]
) -> Likelihoods:
    """The log-likelihood of each choice after its prompt; a prompt is read once for all choices that follow it.

    Args:
        model: from `bertkin.tasks.generate.open_writer`, or what that takes.
        prompts, choices: [n] each; the white space between them stands in either.

    Raises:
        UserError: a model that cannot write, or a prompt and choice longer than it reads.
    """
    writer = open_writer(model)
    check_tokenizer(writer.model, writer.tokenizer)
    tokenizer, manner = writer.tokenizer, writer.manner
    groups = []
    for prompt, members in grouped(prompts):
        told = [choices[n] for n in members]
        if writer.goes_on:
            begin, answers = divided(tokenizer, prompt, told)
            groups.append(_Group(members, [tokenizer.cls_id, *begin], answers, manner))
        else:
            read = read_by_encoder(tokenizer, tokenizer.encode(prompt))
            groups.append(_Group(members, read, tokenizer.encode_batch([c.strip() for c in told]), manner))
    return _read_on(writer.model, groups, len(prompts))


def score_blanks(model: Loaded | str | Path, blanks: Sequence[Blank], choices: Sequence[str]) -> Likelihoods:
    """The log-likelihood of each choice in its blank.

    Who fills blanks reads as many [MASK] as the choice has tokens and is asked for them from left to right, those that
    follow still hidden (as Kauf & Ivanova 2023 ask for the pieces of a word), so that none gives another away. An
    encoder–decoder reads the blank as it was taught to (`bertkin.tasks.repairing`) and writes what was there: T5
    after <extra_id_0>, BART after the text before it.

    Args:
        model: from `load`, or what that takes.
        blanks, choices: [n] each.

    Raises:
        UserError: a model that neither fills blanks nor repairs text, or a text longer than it reads.
    """
    loaded = model if isinstance(model, Loaded) else load(model)
    net, tokenizer = loaded.model, loaded.tokenizer
    check_tokenizer(net, tokenizer)
    if net.architecture.both:
        return _repaired(loaded, blanks, choices)
    choose_way(net, tokenizer, "masked", loaded.objective)
    shifted = loaded.objective == "hybrid"
    reads: dict[tuple[tuple[int, ...], int], int] = {}
    which, targets, owners = [], [], []
    counts = np.zeros(len(blanks), np.int64)
    for (before, after), members in grouped(blanks):
        begin, answers = divided(tokenizer, before, [choices[n] for n in members])
        rest = after_mark(tokenizer, tokenizer.mask_id, after)
        for n, answer in zip(members, answers, strict=True):
            counts[n] = len(answer)
            for place, token in enumerate(answer):
                hidden = [tokenizer.mask_id] * (len(answer) - place)
                ids = (tokenizer.cls_id, *begin, *answer[:place], *hidden, *rest, tokenizer.sep_id)
                which.append(reads.setdefault((ids, 1 + len(begin) + place), len(reads)))
                targets.append(token)
                owners.append(n)
    found = _asked(net, list(reads), np.array(which, np.int64), np.array(targets, np.int64), shifted)
    return Likelihoods(np.bincount(owners, weights=found, minlength=len(blanks)).astype(np.float64), counts)


def grouped(keys: Sequence[T]) -> list[tuple[T, list[int]]]:
    """The places of each distinct key."""
    groups: dict[T, list[int]] = {}
    for n, key in enumerate(keys):
        groups.setdefault(key, []).append(n)
    return list(groups.items())


# Writing on.


class _Group(NamedTuple):
    """A prompt and its choices."""

    members: list[int]
    """The numbers of the choices."""
    prompt: list[int]
    """What is read: by the encoder, where there is one."""
    answers: list[list[int]]
    manner: Manner


def _repaired(loaded: Loaded, blanks: Sequence[Blank], choices: Sequence[str]) -> Likelihoods:
    """`score_blanks` of an encoder–decoder."""
    net, tokenizer = loaded.model, loaded.tokenizer
    taught, first = repair(tokenizer, loaded.noise), written_first(loaded.tokenizer, loaded.model)
    groups = []
    for (before, after), members in grouped(blanks):
        begin, answers = divided(tokenizer, before, [choices[n] for n in members])
        rest = after_mark(tokenizer, taught.mark, after)
        manner = Manner(start=(*first, *(begin if taught.whole else taught.opening)))
        by_length = grouped([len(answer) if taught.each else 1 for answer in answers])
        for length, places in by_length:
            read = read_by_encoder(tokenizer, [*begin, *taught.hidden(length), *rest])
            groups.append(_Group([members[i] for i in places], read, [answers[i] for i in places], manner))
    return _read_on(net, groups, len(blanks))


def after_mark(tokenizer: Tokenizer, mark: int | None, after: str) -> list[int]:
    """The tokens of what follows a mark in a text; white space belongs to them as it does there."""
    if mark is None:
        return tokenizer.encode(after)
    ids = tokenizer.encode(tokenizer.token(mark) + after)
    return ids[ids.index(mark) + 1 :]


def _read_on(model: LanguageModel, groups: list[_Group], n: int) -> Likelihoods:
    """Read every prompt once and go on with each of its choices."""
    longest = model.architecture.max_length
    scores, counts = np.zeros(n), np.zeros(n, np.int64)
    for group in groups:
        extra = group.manner.blank is not None
        begin = group.manner.start if model.source is not None else group.prompt
        for number, answer in zip(group.members, group.answers, strict=True):
            counts[number] = len(answer)
            most = max(len(begin) + max(len(answer), 1) - 1 + extra, len(group.prompt) if model.source else 0)
            if most > longest:
                raise UserError(
                    f"prompt and choice have {most:,} tokens, the model reads {longest:,}",
                    where=f"choice {number + 1}",
                    mend="give a shorter prompt",
                )
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in _batches(groups, longest):
                _go_on(model, batch, scores)
    finally:
        model.train(was)
    return Likelihoods(scores, counts)


def _batches(groups: Sequence[_Group], longest: int) -> Iterator[list[_Group]]:
    """Groups of one manner, so many that what is kept of them stays within bounds; a large group is cut."""
    cut = []
    for group in groups:
        length = min(len(group.prompt) + max(map(len, group.answers)), longest)
        few = max(1, KEPT // length)
        for first in range(0, len(group.members), few):
            last = first + few
            cut.append(group._replace(members=group.members[first:last], answers=group.answers[first:last]))
    cut.sort(key=lambda group: (group.manner.start, len(group.prompt)))
    batch: list[_Group] = []
    for group in cut:
        together = [*batch, group]
        rows = len(together) * max(len(one.answers) for one in together)
        length = max(len(one.prompt) for one in together) + max(len(a) for one in together for a in one.answers)
        if batch and (group.manner != batch[0].manner or rows * length > KEPT):
            yield batch
            together = [group]
        batch = together
    if batch:
        yield batch


def _go_on(model: LanguageModel, batch: list[_Group], scores: Floats) -> None:
    """Add what a batch's choices score, the longest first, so that those that are over lie at the end."""
    pairs = [(n, row, ids) for row, group in enumerate(batch) for n, ids in zip(*group[:1], group.answers, strict=True)]
    pairs = sorted((pair for pair in pairs if pair[2]), key=lambda pair: -len(pair[2]))
    if not pairs:
        return
    longest = len(pairs[0][2])
    copies = max(len(group.answers) for group in batch) if longest > 1 else 1
    reader = Reader(model, [group.prompt for group in batch], longest, batch[0].manner, copies)
    logits = reader.first()
    rows = torch.tensor([row for _, row, _ in pairs], device=logits.device)
    _add(scores, pairs, chances(logits[rows], [ids[0] for *_, ids in pairs]))
    pairs = [pair for pair in pairs if len(pair[2]) > 1]
    if pairs:
        reader.cache.pick(rows[: len(pairs)])
    for step in range(1, longest):
        for _ in range(len(pairs) - sum(len(ids) > step for *_, ids in pairs)):
            pairs.pop()
            reader.cache.drop(len(pairs))
        logits = reader.next(torch.tensor([ids[step - 1] for *_, ids in pairs], device=rows.device))
        _add(scores, pairs, chances(logits, [ids[step] for *_, ids in pairs]))


def _add(scores: Floats, pairs: list[tuple[int, int, list[int]]], found: Floats) -> None:
    for (n, *_), value in zip(pairs, found, strict=True):
        scores[n] += value


def chances(logits: Tensor, tokens: Sequence[int] | Ints) -> Floats:
    """float64 [n]: the log-probability of one token in each row of logits [n, vocab]."""
    wide = logits.float()
    picked = wide.gather(1, torch.as_tensor(tokens, device=wide.device).view(-1, 1)).squeeze(1)
    return (picked - wide.logsumexp(dim=-1)).double().cpu().numpy()


# Filling in.


def _asked(
    model: LanguageModel, reads: list[tuple[tuple[int, ...], int]], which: Ints, targets: Ints, shifted: bool
) -> Floats:
    """The log-probability of each target at the place that is asked in the text it is asked of.

    Args:
        reads: texts and their places.
        which: [questions], the number of the text.
        targets: [questions].
        shifted: the token before answers, and all is seen from both sides.
    """
    longest = model.architecture.max_length
    for ids, _ in reads:
        if len(ids) > longest:
            raise UserError(
                f"the text around a blank has {len(ids):,} tokens, the model reads {longest:,}",
                mend="give a shorter one",
            )
    found = np.zeros(len(which))
    by_read = np.argsort(which, kind="stable")
    edges = np.searchsorted(which[by_read], np.arange(len(reads) + 1))
    was, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for first, last in stretches([len(ids) for ids, _ in reads]):
                sizes = np.array([len(ids) for ids, _ in reads[first:last]])
                reach = np.repeat(sizes, sizes).astype(np.int32) if shifted else None
                layout = Layout.from_lengths(sizes, reach=reach)
                flat = np.concatenate([np.array(ids, np.int64) for ids, _ in reads[first:last]])
                places = layout.starts[:-1] + np.array([place for _, place in reads[first:last]]) - shifted
                asked = torch.from_numpy(places.astype(np.int64)).to(device)
                hidden = model.hidden(torch.from_numpy(flat).to(device), layout.to(device), asked)
                questions = by_read[edges[first] : edges[last]]
                for part in np.array_split(questions, max(1, -(-len(questions) // ROWS))):
                    rows = torch.from_numpy(which[part] - first).to(device)
                    unique, place = rows.unique(return_inverse=True)
                    found[part] = chances(model.answer(hidden[unique])[place], targets[part])
    finally:
        model.train(was)
    return found
