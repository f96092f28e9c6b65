"""Families and sizes: what differs between BERT, RoBERTa and a modern encoder can be read here in one sitting.

A preset is FAMILY-SIZE. A family is two short functions: one says how it is built (`bert`, `roberta`, `modern`), one how it is
trained here by default. A size is a row of three numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bertkin.config import AUTO, Data, Model, Objective, Recipe, Train, fill_auto
from bertkin.errors import UserError, nearest
from bertkin.models.architecture import Architecture, check

if TYPE_CHECKING:
    from bertkin.models.heads import MaskedLM


class Size(NamedTuple):
    """Layers, width of the residual stream, attention heads."""

    layers: int
    hidden: int
    heads: int


SIZES = {
    "tiny": Size(2, 128, 2),
    "mini": Size(4, 256, 4),
    "small": Size(4, 512, 8),
    "medium": Size(8, 512, 8),
    "base": Size(12, 768, 12),
    "large": Size(24, 1024, 16),
}
"""The sizes of Turc et al. (2019), with those of Devlin et al. (2019) at the end."""


def bert(m: Model) -> Architecture:
    """BERT (Devlin et al. 2019): norm after each sum, learned positions, two segments, GELU, biases everywhere."""
    return Architecture(family="bert", **_shape(m), norm="post", segments=2, norm_eps=1e-12)


def roberta(m: Model) -> Architecture:
    """RoBERTa (Liu et al. 2019): BERT's stack with one segment, its first two positions never used, and a larger eps."""
    return Architecture(
        family="roberta",
        **_shape(m),
        norm="post",
        segments=1,
        position_offset=2,
        norm_eps=1e-5,
        cls_id=0,
        pad_id=1,
        sep_id=2,
    )


def modern(m: Model) -> Architecture:
    """ModernBERT (Warner et al. 2024): norm before each block, rotary positions, GEGLU, no biases, mostly local layers."""
    return Architecture(
        family="modern",
        **_shape(m),
        norm="pre",
        feed_forward="geglu",
        segments=0,
        norm_eps=1e-5,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        head_bias=False,
    )


FAMILIES = {"bert": bert, "roberta": roberta, "modern": modern}


def _shape(m: Model) -> dict[str, Any]:
    windows = tuple(None if layer % m.global_every == 0 else m.local_window for layer in range(m.layers))
    return {
        "vocab_size": m.vocab_size,
        "hidden": m.hidden,
        "layers": m.layers,
        "heads": m.heads,
        "intermediate": m.intermediate,
        "max_length": m.max_length,
        "positions": m.positions,
        "windows": windows if any(windows) else (),
        "dropout": m.dropout,
        "attention_dropout": m.attention_dropout,
    }


def names() -> list[str]:
    """Every preset there is."""
    return [f"{family}-{size}" for family in FAMILIES for size in SIZES]


def preset(name: str) -> Recipe:
    """The recipe that a preset stands for: everything but the corpus, the budget, and what follows from other fields.

    Raises:
        UserError: there is no such preset; the nearest names are given.
    """
    if name not in names():
        raise UserError(f"unknown preset {name!r}", where="--preset", mend=nearest(name, names()))
    family, size = name.split("-")
    layers, hidden, heads = SIZES[size]
    # Vocabulary, feed-forward width and the like follow from other fields, so `resolve_model` fills them in last.
    model = Model(family=family, layers=layers, hidden=hidden, heads=heads)  # type: ignore[arg-type]
    recipe = {"bert": _train_bert, "roberta": _train_roberta, "modern": _train_modern}[family]()
    train = recipe.train
    if size in ("base", "large"):  # wide stacks leave the rails at the rates that small ones learn fastest with
        train = replace(train, lr=train.lr / 2, batch_tokens=4 * train.batch_tokens)
    return replace(recipe, preset=name, model=fill_auto(model, **_defaults(family)), train=train)


def _train_bert() -> Recipe:
    return Recipe(
        data=Data(tokenizer_kind="wordpiece"),
        # Next sentence prediction is left out: RoBERTa and others found that it does not help.
        objective=_masking(rate=0.15, rate_end=0.15),
        # AdamW, the original's, stays on the unigram plateau far longer (docs/log.md).
        train=_common(optimizer="muon", lr=1e-3, matrix_lr=0.02, warmup=0.06),
    )


def _train_roberta() -> Recipe:
    return replace(_train_bert(), data=Data(tokenizer_kind="byte-bpe"))


def _train_modern() -> Recipe:
    return Recipe(
        data=Data(tokenizer_kind="wordpiece"),
        objective=_masking(rate=0.30, rate_end=0.15),
        train=_common(optimizer="muon", lr=2e-3, matrix_lr=0.03, warmup=0.02),
    )


def _masking(*, rate: float, rate_end: float) -> Objective:
    return Objective(unit="token", rate=rate, rate_end=rate_end, mask_share=0.8, random_share=0.1, sentence="none")


def _common(*, optimizer: Any, lr: float, warmup: float, matrix_lr: float = AUTO) -> Train:
    return Train(
        batch_tokens=32 * 128,
        length=128,
        optimizer=optimizer,
        lr=lr,
        matrix_lr=matrix_lr,
        schedule="linear",
        warmup=warmup,
        weight_decay=0.01,
        beta2=0.98,
    )


def _defaults(family: str) -> dict[str, Any]:
    """What a family's fields are when nobody says otherwise."""
    rotary = {"positions": "rotary", "local_window": 128, "global_every": 3}
    learned = {"positions": "learned", "global_every": 1}
    # The papers drop out 0.1; when nearly every batch is seen for the first time that only slows learning.
    return {"max_length": 512, "dropout": 0.0, "attention_dropout": 0.0} | (rotary if family == "modern" else learned)


def resolve_model(model: Model, vocab_size: int | None = None) -> Model:
    """The model with every field filled in and checked.

    Args:
        vocab_size: of the tokenizer; the model's own, where that is set, must be at least as large.

    Raises:
        UserError: a field is missing or impossible; names the field and what to choose.
    """
    if model.family not in FAMILIES:
        raise UserError(
            f"unknown family {model.family!r}", where="model.family", mend=nearest(str(model.family), FAMILIES)
        )
    if vocab_size is not None and model.vocab_size is not AUTO and model.vocab_size < vocab_size:
        raise UserError(
            f"a table of {model.vocab_size} rows cannot hold the tokenizer's {vocab_size} tokens",
            where="model.vocab_size",
            mend=f"choose at least {vocab_size}, or leave it out",
        )
    model = fill_auto(model, vocab_size=vocab_size, **_defaults(model.family))
    for name in ("layers", "hidden", "vocab_size", "global_every"):
        value = getattr(model, name)
        if value is AUTO:
            raise UserError("is not set", where=f"model.{name}", mend="choose a --preset or set it")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"model.{name}")
    model = fill_auto(
        model,
        heads=model.hidden // 64 if model.hidden % 64 == 0 else 1,
        intermediate=_gated_width(model.hidden) if model.family == "modern" else 4 * model.hidden,
    )
    architecture(model)
    return model


def _gated_width(hidden: int) -> int:
    """The feed-forward width with which GEGLU's three matrices weigh about as much as two of width 4 x hidden."""
    return max(1, round(hidden * 8 / 3 / 64)) * 64


def architecture(model: Model) -> Architecture:
    """What to build for a resolved model.

    Raises:
        UserError: the fields do not go together.
    """
    return check(FAMILIES[model.family](model))


def build(model: Model, *, sentence: bool = False, seed: int = 0) -> MaskedLM:
    """A freshly drawn model in float32.

    Args:
        model: resolved (`resolve_model`).
        sentence: with a classifier of sentence pairs.
        seed: the same seed draws the same weights.
    """
    import torch

    from bertkin.models.heads import MaskedLM
    from bertkin.models.transformer import initialise

    a = architecture(model)
    with torch.device("meta"):  # so that nothing is drawn twice
        built = MaskedLM(a, sentence=sentence)
    built.to_empty(device="cpu")
    initialise(built, a, torch.Generator().manual_seed(seed))
    return built
