"""From a recipe to everything a training needs: tokenizer, store, model, all of it resolved and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from bertkin.config import AUTO, Data, Objective, Recipe, fill_auto, merge
from bertkin.errors import UserError
from bertkin.models.presets import architecture, preset, resolve_model
from bertkin.objectives.make import SERVES, check_objective, check_tokenizer
from bertkin.objectives.sentence import check_sentences
from bertkin.text.batches import Specials, check_enough
from bertkin.text.cache import tokenizer_for
from bertkin.text.fields import check_found, parse_fields, with_frames
from bertkin.text.matching import check_list
from bertkin.text.readers import list_sources, read_documents
from bertkin.text.store import Store, prepare
from bertkin.text.tokenizer import Tokenizer
from bertkin.text.words import mark
from bertkin.train.checking import ZERO, check_ranges, check_train, with_budget
from bertkin.train.schedule import parse_lengths
from bertkin.train.start import continued, with_table_rate

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Materials:
    """A recipe with nothing left open, and what it is cooked from."""

    recipe: Recipe
    tokenizer: Tokenizer
    store: Store
    kept: Store | None = None
    """Of other text, whose held-out loss is measured too."""


def complete(recipe: Recipe) -> Recipe:
    """The recipe with its preset underneath, its budget and lengths checked; corpus and vocabulary are still open.

    Raises:
        UserError: no corpus, two budgets, a length the model cannot read, or a number out of its range.
    """
    _check_start(recipe)
    recipe = continued(recipe) if recipe.train.init else recipe
    full = merge(preset(recipe.preset), recipe)
    model = full.model
    if not full.train.init:
        # The vocabulary is the tokenizer's; any size will do for the check of the shape.
        shape = resolve_model(model, model.vocab_size or 1024)
        model = replace(shape, vocab_size=model.vocab_size)
        full = replace(full, train=with_table_rate(full.train, architecture(shape)))
    train = with_budget(full.train, minutes=30.0)
    train = fill_auto(train, eval_every=0.1, matrix_lr=preset("modern-mini").train.matrix_lr)
    objective = _objective(full.objective, recipe.objective, str(model.family))
    for length, _ in parse_lengths(train):
        if length > model.max_length:
            raise UserError(
                f"rows of {length} tokens, but the model reads at most {model.max_length}",
                where="--train.length",
                mend=f"choose at most {model.max_length}, or raise --model.max-length",
            )
    rows = [
        ("objective.rate", objective.rate, 0.0, 1.0),
        ("objective.rate-end", objective.rate_end, 0.0, 1.0),
        ("objective.mask-share", objective.mask_share, ZERO, 1.0 + 1e-9),
        ("objective.random-share", objective.random_share, ZERO, 1.0 - objective.mask_share + 1e-9),
        ("objective.span-mean", objective.span_mean, 1.0 - 1e-9, 1e3),
        ("objective.sentence-weight", objective.sentence_weight, ZERO, 1e6),
        ("objective.causal-share", objective.causal_share, ZERO, 1.0 + 1e-9),
        ("objective.adaptive", objective.adaptive, ZERO, 1e3),
        ("objective.replaced-weight", objective.replaced_weight, ZERO, 1e6),
        ("data.heldout", full.data.heldout, 0.0, 1.0),
        ("model.dropout", model.dropout, ZERO, 1.0),
        ("model.attention-dropout", model.attention_dropout, ZERO, 1.0),
    ]
    check_ranges(rows)
    check_train(train)
    data = fill_auto(full.data, lowercase=True)
    return replace(full, data=data, model=model, train=train, objective=objective)


def _check_start(recipe: Recipe) -> None:
    where = "--data.grow-vocab"
    if recipe.data.grow_vocab and not recipe.train.init:
        mend = "leave it out, or name a model to go on with: --train.init"
        raise UserError("only a model that is gone on with has a vocabulary to grow", where=where, mend=mend)
    if recipe.data.grow_vocab < 0:
        raise UserError(f"cannot grow by {recipe.data.grow_vocab} words", where=where, mend="ask for 1 or more")


def _objective(objective: Objective, given: Objective, family: str) -> Objective:
    """The objective with every field that a model of the family needs, checked.

    Args:
        objective: the preset's, with what was `given` over it.
    """
    objective = fill_auto(objective, kind=SERVES[family][0])
    if given.sentence is AUTO and objective.kind != "masked":  # the preset's sentence pairs are for its own kind
        objective = replace(objective, sentence="none")
    if given.rate is not AUTO and given.rate_end is AUTO:  # whoever names one rate means it to the end
        objective = replace(objective, rate_end=given.rate)
    objective = fill_auto(objective, unit="token", rate=0.15, mask_share=0.8, random_share=0.1, sentence="none")
    check_objective(objective, family)
    check_list(objective.unit, objective.phrases)
    return cast(Objective, fill_auto(objective, rate_end=objective.rate))


def gather(
    recipe: Recipe, progress: Callable[[int, int, str], None], *, tokenizer: Tokenizer | None = None
) -> Materials:
    """Train or load the tokenizer, prepare the corpus (or find it prepared), and fill in the rest of the recipe.

    Args:
        recipe: from `complete`.
        progress: called with bytes done, bytes in all, and what is being done.
        tokenizer: that of a run that is resumed.

    Raises:
        UserError: anything about the corpus, or a corpus smaller than one batch.
    """
    tokenizer, store = read_corpus(recipe.data, progress, tokenizer)
    train = recipe.train
    for length, _ in parse_lengths(train):
        check_enough(store.train, length, max(1, train.batch_tokens // length))
    check_sentences(store.train, recipe.objective.sentence)
    store = mark(store, tokenizer, recipe.objective.unit, recipe.objective.phrases, progress)
    check_tokenizer(recipe.objective, Specials.of(tokenizer))
    recipe = replace(
        recipe,
        data=fill_auto(recipe.data, vocab_size=tokenizer.vocab_size),
        model=recipe.model if train.init else resolve_model(recipe.model, tokenizer.vocab_size),
    )
    return Materials(recipe, tokenizer, store, read_kept(recipe.data, progress, tokenizer))


def read_kept(data: Data, progress: Callable[[int, int, str], None], tokenizer: Tokenizer) -> Store | None:
    """The token store of the text whose held-out loss is measured too, if there is one."""
    if not data.keep_text:
        return None
    return read_corpus(replace(data, corpus=(data.keep_text,), max_words=AUTO), progress, tokenizer)[1]


def read_corpus(
    data: Data, progress: Callable[[int, int, str], None], tokenizer: Tokenizer | None = None
) -> tuple[Tokenizer, Store]:
    """The tokenizer and the token store of a corpus, made, or found where they were made before.

    Args:
        data: with the preset's kind of tokenizer filled in.
        progress: as for `gather`.
        tokenizer: by default the one that `data` names, or one trained on the corpus.

    Raises:
        UserError: anything about the corpus.
    """
    if not data.corpus:
        raise UserError("no corpus", mend="name files or folders of text, or - for standard input")
    list_sources(data.corpus)  # what is not there is said before anything is begun
    named = parse_fields(data.fields)
    reading: dict[str, Any] = {
        "field": named or data.field,
        "documents": data.documents,
        "encoding_errors": data.encoding_errors,
        "max_words": data.max_words,
        "cache": data.cache,
    }
    if named:
        documents = read_documents(data.corpus, **{name: reading[name] for name in ("field", "encoding_errors")})
        check_found(named, documents, ", ".join(data.corpus))
    if tokenizer is None and data.tokenizer:
        tokenizer = Tokenizer.load(data.tokenizer)
    tokenizer = with_frames(tokenizer, named) if tokenizer else None
    if tokenizer is None:
        progress(0, 0, "training a tokenizer")
        kind = data.tokenizer_kind or "wordpiece"
        tokenizer = tokenizer_for(
            data.corpus,
            kind=kind,
            vocab_size=data.vocab_size,
            lowercase=fill_auto(data, lowercase=True).lowercase,
            sentinels=data.sentinels or 0,
            **reading,
        )
    store = prepare(
        data.corpus,
        tokenizer,
        heldout=data.heldout,
        workers=data.workers,
        progress=lambda done, total: progress(done, total, "preparing the corpus"),
        **reading,
    )
    store.check_tokenizer(tokenizer)
    return tokenizer, store
