"""Prompting: a task, some examples and an input, and what a model answers, without training (Brown et al. 2020).

    evaluate_prompts(["runs/gpt"], "examples.tsv", task="Translate English to French", shots=(0, 1, 4))

Answers are chosen by their likelihood or written. Writers go on with the prompt. Masked models fill the blank in it
(cloze patterns: Schick & Schütze 2021), and so do encoder–decoders that were trained here to repair text, and any model
that can do both where the pattern says [MASK].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from bertkin.errors import UserError, nearest
from bertkin.tasks.asker import Asker, Normalise, Plan, fitted, likelihoods, open_asker, whole, written
from bertkin.tasks.fill import Loaded
from bertkin.tasks.patterns import READY, WRITTEN, Example, Pattern, drawn, read_examples, read_pattern
from bertkin.tasks.prompted import Prompted, Run, judged
from bertkin.tasks.scoring import Floats, Ints

Score = Literal["auto", "likelihood", "generation"]
Progress = Callable[[str], None]

CONTENT_FREE = "N/A"
"""The input that says nothing, whose answers tell what a model answers anyway (Zhao et al. 2021)."""
MOST_CHOICES = 100
FEW_CHOICES = 20
"""With no more different answers than that, each twice on average, they are taken for choices."""


def evaluate_prompts(
    models: Sequence[Loaded | str | Path],
    examples: str | Path | Sequence[Example],
    *,
    task: str = "",
    test: str | Path | Sequence[Example] | None = None,
    pattern: str | Pattern = "{input} => {output}",
    shots: Sequence[int] = (0, 1, 4),
    seeds: int = 3,
    score: Score = "auto",
    normalise: Normalise = "none",
    choices: Sequence[str] | Mapping[str, str] | None = None,
    columns: tuple[str, str] = ("input", "output"),
    per_row: bool = False,
    limit: int | None = None,
    max_new_tokens: int = 32,
    precision: str = "auto",
    progress: Progress | None = None,
) -> Prompted:
    """Ask models a labelled file, with so many examples before each input.

    Args:
        models: from `load`, or what `load` takes.
        examples: rows to draw from; also what is asked where `test` is not given, each row without itself among them.
        task: what stands above the examples.
        pattern: how an example is written; see `bertkin.tasks.patterns.read_pattern`. Under the name translation, what
            is written is judged by BLEU, too.
        shots: examples before each input; those that do not fit into the context are left out, the first ones first.
        seeds: how often examples are drawn (0 shots are asked once).
        score: likelihood of each choice, or generation, greedily; auto writes what the ready patterns qa and summary
            ask for, and outputs that hardly ever repeat.
        normalise: none compares the likelihoods of whole choices; length divides them by their tokens; calibrated
            by what the same prompt gives the choice for an input that says nothing (contextual calibration).
        choices: what to choose from, by default the distinct outputs; or a word for each output (PET's verbaliser), as
            {"0": "bad", "1": "great"}.
        columns: names of the input's and the output's column.
        per_row: draw examples for each row anew, and not once for all.
        limit: test rows at most, the first ones.
        max_new_tokens: of a written answer.
        precision: of the computation, of models that are opened here.
        progress: called with a line now and then.

    Raises:
        UserError: files that are no examples, a pattern without its parts, more shots than examples, choices of which
            one begins with another, a prompt longer than the context, or a model that cannot be prompted.
    """
    plan = _plan(examples, task, test, pattern, score, normalise, choices, columns, limit)
    plan = replace(plan, per_row=per_row, max_new_tokens=max_new_tokens)
    _check(plan, shots, seeds)
    if not models:
        raise UserError("no model", mend="name one or several")
    runs: list[Run] = []
    names = _names(models)
    for model, name in zip(models, names, strict=True):
        asker = open_asker(model, plan, precision)
        parameters = sum(parameter.numel() for parameter in asker.loaded.model.parameters())
        for k in dict.fromkeys(shots):
            for seed in range(seeds if k else 1):
                if progress:
                    progress(f"{name}, {k} shots, seed {seed}")
                scores, left_out = _ask(asker, plan, k, seed)
                runs.append(Run(name, parameters, k, seed, scores, left_out))
    counts = Counter(row.output for row in plan.test)
    baselines = {"majority": counts.most_common(1)[0][1] / len(plan.test)}
    if plan.choices:
        baselines["guessing"] = 1 / len(plan.choices)
    how = "answers written greedily"
    if plan.choices:
        how = f"by the likelihood of {len(plan.choices)} choices"
        how += {"none": "", "length": ", a token", "calibrated": f", calibrated by {CONTENT_FREE}"}[normalise]
    return Prompted(task, plan.pattern.text, how, len(plan.test), plan.choices, baselines, tuple(runs))


def _names(models: Sequence[Loaded | str | Path]) -> list[str]:
    """A name for each, none twice."""
    told = [str(model.folder if isinstance(model, Loaded) else model) for model in models]
    before = [told[:i].count(name) for i, name in enumerate(told)]
    return [f"{name} ({times + 1})" if times else name for name, times in zip(told, before, strict=True)]


def _plan(
    examples: str | Path | Sequence[Example],
    task: str,
    test: str | Path | Sequence[Example] | None,
    pattern: str | Pattern,
    score: Score,
    normalise: Normalise,
    choices: Sequence[str] | Mapping[str, str] | None,
    columns: tuple[str, str],
    limit: int | None,
) -> Plan:
    for value, known, option in ((score, Score, "--score"), (normalise, Normalise, "--normalise")):
        if value not in get_args(known):
            raise UserError(f"{value!r} is not a choice", where=option, mend=nearest(str(value), get_args(known)))
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} rows", where="--limit", mend="choose at least 1")
    taken = pattern if isinstance(pattern, Pattern) else read_pattern(pattern)
    shown = _rows(examples, columns)
    asked = shown if test is None else _rows(test, columns)
    if isinstance(choices, Mapping):
        if len(set(choices.values())) < len(choices):
            raise UserError("one word stands for two outputs", where="--choices", mend="give each its own")
        shown, asked = ([_worded(row, choices) for row in rows] for rows in (shown, asked))
        choices = list(choices.values())
    outputs = list(dict.fromkeys(row.output for row in (*shown, *asked)))
    asked = asked[:limit]
    if score == "auto":
        written_out = any(taken == READY[name] for name in WRITTEN)
        repeats = len(outputs) <= FEW_CHOICES and 2 * len(outputs) <= len(shown) + (len(asked) if test else 0)
        score = "generation" if not choices and (written_out or not repeats) else "likelihood"
    if score == "generation":
        if choices or normalise != "none":
            option = "--choices" if choices else "--normalise"
            raise UserError(
                "written answers are not chosen", where=option, mend="leave it out, or give --score likelihood"
            )
        if "{input}" not in taken.before:
            raise UserError(
                "the input stands after the output, so that it would not be read when the answer is written",
                where="--pattern",
                mend="put {input} first, or give --score likelihood",
            )
        return Plan(task, taken, shown, asked, test is not None, (), translated=pattern == "translation")
    named = [choice.strip() for choice in choices] if choices else outputs
    if any(not choice for choice in named):
        raise UserError("an empty choice", where="--choices", mend="give each a text")
    told = tuple(dict.fromkeys(named))
    if len(told) < 2:
        raise UserError(f"one choice alone, {told[0]!r}", where="--choices", mend="give two or more")
    if len(told) > MOST_CHOICES:
        raise UserError(
            f"{len(told):,} different outputs are too many to choose from",
            where="--score",
            mend="name the --choices, or give --score generation",
        )
    for row in (*shown, *asked):
        if row.output not in told:
            raise UserError(
                f"{row.output!r} is not among the choices",
                where=row.where or "--choices",
                mend=nearest(row.output, told),
            )
    return Plan(task, taken, shown, asked, test is not None, told, normalise)


def _worded(row: Example, words: Mapping[str, str]) -> Example:
    """The row with the word for its output."""
    if row.output not in words:
        mend = f"give {row.output}=WORD, too"
        raise UserError(f"no word for the output {row.output!r}", where=row.where or "--choices", mend=mend)
    return replace(row, output=words[row.output])


def _rows(given: str | Path | Sequence[Example], columns: tuple[str, str]) -> Sequence[Example]:
    rows = read_examples(given, columns) if isinstance(given, str | Path) else list(given)
    if not rows:
        raise UserError("no examples", mend="give at least one")
    return rows


def _check(plan: Plan, shots: Sequence[int], seeds: int) -> None:
    if not shots or min(shots) < 0:
        raise UserError("how many examples are shown?", where="--shots", mend="give numbers from 0 on, as 0,1,4")
    if seeds < 1:
        raise UserError(f"{seeds} seeds", where="--seeds", mend="choose at least 1")
    if plan.max_new_tokens < 1:
        raise UserError("no room for an answer", where="--max-new-tokens", mend="choose at least 1")
    able = len(plan.examples) - (not plan.apart)
    if max(shots) > able:
        besides = "" if plan.apart else " besides the row that is asked"
        raise UserError(
            f"{max(shots)} shots, but only {able} examples{besides}", where="--shots", mend="show fewer, or give more"
        )


def _ask(asker: Asker, plan: Plan, shots: int, seed: int) -> tuple[dict[str, float], int]:
    """The scores of all test rows with so many examples, and how many examples were left out."""
    n = len(plan.examples)
    wanted = [
        drawn(n, shots, seed=seed, but=None if plan.apart else row, row=row if plan.per_row else None)
        for row in range(len(plan.test))
    ]
    kept = fitted(asker, plan, wanted)
    left_out = sum(map(len, wanted)) - sum(map(len, kept))
    prompts = [whole(plan, some, row.input) for some, row in zip(kept, plan.test, strict=True)]
    answers = [row.output for row in plan.test]
    if not plan.choices:
        return judged(written(asker, plan, prompts), answers, translated=plan.translated), left_out
    scores, tokens = likelihoods(asker, plan, prompts)
    free = None
    if plan.normalise == "calibrated":
        distinct = list(dict.fromkeys(map(tuple, kept)))
        found, _ = likelihoods(asker, plan, [whole(plan, some, CONTENT_FREE) for some in distinct])
        at = {some: number for number, some in enumerate(distinct)}
        free = found[[at[tuple(some)] for some in kept]]
    if not np.isfinite(scores).all():
        raise UserError(
            "a choice's score is not a number",
            where=asker.loaded.folder,
            mend="see that the model's weights are finite",
        )
    best = normalised(scores, tokens, plan.normalise, free).argmax(axis=1)
    right = [plan.choices[i] == answer for i, answer in zip(best, answers, strict=True)]
    return {"accuracy": float(np.mean(right))}, left_out


def normalised(scores: Floats, tokens: Ints, how: Normalise, free: Floats | None = None) -> Floats:
    """What choices are compared by, [rows, choices]: the higher, the better.

    Args:
        scores: log-likelihoods.
        tokens: how many tokens they are sums of.
        free: log-likelihoods for an input that says nothing; for calibrated, which gives log q with q proportional to
            p / p_free, each normalised over the choices (Zhao et al. 2021: W = diag(p_free)^-1).
    """
    if how == "length":
        return scores / np.maximum(tokens, 1)
    if how == "calibrated":
        assert free is not None
        return _shares(_shares(scores) - _shares(free))
    return scores


def _shares(logs: Floats) -> Floats:
    """Log-probabilities that add up to 1 over each row."""
    top = logs.max(axis=1, keepdims=True)
    whole: Floats = logs - top - np.log(np.exp(logs - top).sum(axis=1, keepdims=True))
    return whole
