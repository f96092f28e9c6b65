"""From rows to what a model is asked: batch = f(split, seed, row), whatever the objective.

`make_batch` is what training reads, `evaluation_batches` what every run is measured on. Both say which rows, cut them
out of the corpus, and leave the rest to the maker of the objective's kind (`MAKERS`). `SERVES` has which family of models
can be asked which kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bertkin.config import AUTO, Objective
from bertkin.errors import UserError
from bertkin.objectives.causal import causal, hybrid, prefix, unilm
from bertkin.objectives.denoise import check_noise, denoise
from bertkin.objectives.masked import masked
from bertkin.text.batches import Batch, Pieces, Specials, SplitLike, cut, plan, stream_length
from bertkin.text.shuffle import Bits, mix

Maker = Callable[[SplitLike, Specials, Pieces, Bits, Objective, float], Batch]
"""maker(split, ids, pieces, keys, objective, rate) makes rows of pieces [pieces], with keys [rows] for all that is random."""

MAKERS: dict[str, Maker] = {
    "masked": masked,
    "replaced": masked,  # the model does the replacing
    "causal": causal,
    "prefix": prefix,
    "hybrid": hybrid,
    "unilm": unilm,
    "denoise": denoise,
}

EVALUATION = Objective(kind="masked", unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
"""What every evaluation of a masked model asks: BERT's own 15% of tokens, 80% hidden, 10% replaced, 10% as they are."""
_EVALUATION_SEED = 15


def make_batch(
    split: SplitLike,
    ids: Specials,
    *,
    seed: int,
    first_row: int,
    n_rows: int,
    length: int,
    objective: Objective,
    rate: float | None = None,
) -> Batch:
    """Rows first_row … first_row + n_rows - 1 of training, with what is asked of them.

    A row depends on its number (and split, seed, length, objective) alone: batches of any size, made in any order by
    any process, hold the same rows.

    Args:
        first_row: counts on over the epochs, for each length apart (see `bertkin.text.batches.plan`).
        objective: with every field resolved.
        rate: share of the tokens that are asked at this point of training; by default objective.rate.

    Raises:
        UserError: next sentence prediction on a single document.
    """
    starts, keys = plan(split, seed=seed, first_row=first_row, n_rows=n_rows, length=length, static=objective.static)
    pieces, maker = cut(split, starts, length), _maker(objective)
    return maker(split, ids, pieces, keys, objective, objective.rate if rate is None else rate)


def evaluation_batches(
    split: SplitLike,
    ids: Specials,
    *,
    length: int,
    n_rows: int,
    batch_rows: int,
    objective: Objective = EVALUATION,
    second: bool = False,
) -> Iterator[Batch]:
    """n_rows rows spread evenly over a split, in batches of batch_rows, the same and asked the same every time.

    A split too small for n_rows gives as many as it has, and one row, however short, at the least.

    Args:
        objective: the run's own; `measured` says what is asked for it.
        second: ask with its second question, as `asked_twice` has it.
    """
    objective = asked_twice(objective) if second else measured(objective)
    maker, around = _maker(objective), stream_length(split)
    n_rows = min(n_rows, max(1, around // length))
    for first in range(0, n_rows, batch_rows):
        number = np.arange(first, min(first + batch_rows, n_rows))
        starts = number * around // n_rows
        keys = mix(5, _EVALUATION_SEED, length, number)
        yield maker(split, ids, cut(split, starts, length), keys, objective, objective.rate)


def measured(objective: Objective) -> Objective:
    """What runs of an objective are measured on: as little of the recipe as can be, so that runs compare.

    masked, replaced: `EVALUATION`. causal, prefix: every token. hybrid, unilm: their own mixture, with EVALUATION's
    masks where something is masked; of the recipe, only causal_share. denoise: its own noise, rate and span_mean.
    """
    if objective.kind == "denoise":
        return objective
    kind = "masked" if objective.kind in (None, "replaced") else objective.kind
    return replace(EVALUATION, kind=kind, causal_share=objective.causal_share)


def asks_twice(objective: Objective, split: SplitLike) -> bool:
    """Whether a run has a second question beside its words, and a split can be asked it: a single document has no other to
    take a sentence from."""
    pairs = objective.sentence == "order" or (objective.sentence == "next" and split.n_documents > 1)
    return objective.kind in (None, "masked") and (objective.boundary or pairs)


def asked_twice(objective: Objective) -> Objective:
    """What the second question of a run is measured on: `EVALUATION` with it, and with spans where it is of their sides."""
    own = {name: getattr(objective, name) for name in ("sentence", "boundary", "span_mean")}
    return replace(EVALUATION, unit="span" if objective.boundary else EVALUATION.unit, **own)


def _maker(objective: Objective) -> Maker:
    return MAKERS["masked" if objective.kind is AUTO else objective.kind]


_ONE_STACK = ("masked", "causal", "prefix", "hybrid", "unilm")
_WRITER = ("causal", "prefix", "hybrid")
SERVES: dict[str, tuple[str, ...]] = {
    "bert": _ONE_STACK,
    "roberta": _ONE_STACK,
    "modern": _ONE_STACK,
    "albert": _ONE_STACK,
    "electra": ("replaced",),
    "gpt2": _WRITER,
    "llama": _WRITER,
    "bart": ("denoise",),
    "t5": ("denoise",),
}
"""The kinds of objective that each family of models can be asked; the first is what it is asked by default."""


FILLERS = ("masked", "unilm", "hybrid")
"""The kinds that teach a model to fill blanks with words; hybrid answers at the token before the blank."""
WRITERS = ("causal", "prefix", "hybrid", "unilm", "denoise")
"""The kinds that teach a model to go on with a text, or to write one for another."""
ASKED = {
    "masked": "15% masked",
    "replaced": "15% masked, the generator's",
    "causal": "every token",
    "prefix": "every token after a beginning",
    "hybrid": "its own mixture",
    "unilm": "15% masked, seen in three ways",
    "denoise": "what the decoder writes",
}
"""What the held-out loss of each kind is of (see `measured`)."""


def check_objective(objective: Objective, family: str) -> None:
    """Refuse an objective that the family cannot serve, or whose fields do not go together.

    Raises:
        UserError: saying what the family can be asked, and which families could.
    """
    o, kinds = objective, SERVES[family]
    if o.kind not in kinds:
        able = " or ".join(name for name, served in SERVES.items() if o.kind in served)
        raise UserError(
            f"{family} cannot be asked {o.kind}",
            where="--objective.kind",
            mend=f"choose {' or '.join(kinds)}, or a preset of {able}",
        )
    if o.sentence != "none" and o.kind != "masked":
        raise UserError(
            f"sentence pairs go with masked alone, not with {o.kind}", where="--objective.sentence", mend="choose none"
        )
    if o.boundary and (o.kind != "masked" or o.unit != "span" or o.sentence != "none"):
        raise UserError(
            "the boundary objective asks hidden spans, beside nothing else",
            where="--objective.boundary",
            mend="choose --objective.kind masked --objective.unit span --objective.sentence none, or leave it out",
        )
    hides = o.kind not in ("causal", "prefix", "denoise")
    if o.static and o.kind in ("causal", "prefix"):
        raise UserError(f"{o.kind} hides no tokens", where="--objective.static", mend="leave it out")
    if o.unit not in (AUTO, "token") and not hides:
        raise UserError(
            f"{o.kind} hides no units", where="--objective.unit", mend="leave it out, or choose masked or hybrid"
        )
    if o.adaptive and (not hides or o.static):
        raise UserError(
            "static masks are drawn once" if o.static else f"{o.kind} hides no tokens",
            where="--objective.adaptive",
            mend="leave it out" + (", or leave out --objective.static" if o.static else ", or choose masked"),
        )
    if o.noise is not AUTO and o.kind != "denoise":
        raise UserError(
            f"noise is for denoise, not for {o.kind}",
            where="--objective.noise",
            mend="leave it out, or choose bart or t5",
        )
    if o.kind == "denoise":
        check_noise(o)


def check_tokenizer(objective: Objective, ids: Specials) -> None:
    """Refuse a tokenizer that lacks what the objective hides tokens with.

    Raises:
        UserError: there is no [MASK], or no sentinels.
    """
    if objective.kind == "denoise":
        check_noise(objective, ids)
    masks = objective.kind in ("masked", "replaced", "unilm") or (
        objective.kind == "hybrid" and objective.causal_share < 1
    )
    if masks and ids.mask < 0:
        raise UserError(
            f"the tokenizer has no [MASK], and {objective.kind} hides tokens with it",
            where="--data.tokenizer",
            mend="leave it out to train one on the corpus, or ask causal or prefix of a preset that serves it",
        )


def side_count(batch: Batch, objective: Objective) -> int:
    """How many answers the second loss of a batch sums: pairs, judged tokens (replaced) or boundaries (SpanBERT)."""
    if objective.kind == "replaced":
        return len(batch.ids)
    return len(batch.pairs) if batch.edges is None else len(batch.asked)


def side_weight(objective: Objective) -> float:
    """The weight of the second loss beside the first, each a mean."""
    if objective.kind == "replaced":
        return objective.replaced_weight
    return 1.0 if objective.boundary else objective.sentence_weight
