"""Families and sizes: what differs between BERT, GPT and T5 can be read here in one sitting.

A preset is FAMILY-SIZE. A family is two short functions: one says how it is built (`bert`, `gpt2`, `t5` …), one how it is
trained here by default. A size is a row of three numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bertkin.config import AUTO, Data, Model, Objective, Recipe, Train, fill_auto
from bertkin.errors import UserError, nearest
from bertkin.models.architecture import Architecture, check

if TYPE_CHECKING:
    from bertkin.models.heads import AnyModel


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
        first_norm=False,
        feed_forward="geglu",
        segments=0,
        norm_eps=1e-5,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        head_bias=False,
        pooling="mean",  # pretraining that asks for hidden words alone leaves nothing in the first token (docs/log.md)
    )


def albert(m: Model) -> Architecture:
    """ALBERT (Lan et al. 2020): BERT's stack whose layers share their weights in groups, and narrow token rows."""
    shape = _shape(m) | {"feed_forward": "gelu-tanh", "groups": m.groups, "embedding": _narrow(m)}
    return Architecture(family="albert", **shape, norm="post", segments=2, norm_eps=1e-12)


def electra(m: Model) -> Architecture:
    """ELECTRA (Clark et al. 2020): BERT's stack, asked of every token whether a small generator put it there."""
    narrow: dict[str, Any] = {"embedding": _narrow(m), "generator": m.generator}
    return Architecture(family="electra", **_shape(m), **narrow, head="detect", decoder_bias=False)


def generator(a: Architecture) -> Architecture:
    """ELECTRA's generator: as deep, but a share as wide; it answers like BERT."""
    heads = max(1, round(a.heads * a.generator))
    hidden = max(heads, round(a.hidden * a.generator / heads) * heads)
    wide = max(1, round(a.intermediate * a.generator))
    narrow = 0 if a.row_width == hidden else a.row_width
    sizes: dict[str, Any] = {"hidden": hidden, "heads": heads, "intermediate": wide, "embedding": narrow}
    return replace(a, **sizes, generator=0.0, head="transform", decoder_bias=True)


def gpt2(m: Model) -> Architecture:
    """GPT-2 (Radford et al. 2019): what came before alone, norm before each block, learned positions, tanh GELU."""
    return Architecture(
        family="gpt2",
        **_shape(m) | {"feed_forward": "gelu-tanh"},
        causal=True,
        norm="pre",
        segments=0,
        embedding_norm=False,
        norm_eps=1e-5,
        head="plain",
        decoder_bias=False,
    )


def llama(m: Model) -> Architecture:
    """Llama (Touvron et al. 2023): GPT with rotary positions, RMS norms, SwiGLU, no biases, shared keys and values."""
    return Architecture(
        family="llama",
        **_shape(m) | {"feed_forward": "swiglu", "kv_heads": 0 if m.kv_heads == m.heads else m.kv_heads},
        causal=True,
        norm="pre",
        rms=True,
        segments=0,
        embedding_norm=False,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        norm_eps=1e-5,
        head="plain",
        decoder_bias=False,
    )


def bart(m: Model) -> Architecture:
    """BART (Lewis et al. 2020): BERT's stack twice, the second one writing from the left and looking at the first."""
    return Architecture(
        family="bart",
        **_shape(m),
        decoder_layers=m.decoder_layers,
        norm="post",
        segments=0,
        position_offset=2,
        norm_eps=1e-5,
        head="plain",
        cls_id=0,
        pad_id=1,
        sep_id=2,
        start_id=2,
    )


def t5(m: Model) -> Architecture:
    """T5 1.1 (Raffel et al. 2020; Shazeer 2020): two pre-norm stacks, relative positions, RMS norms, GEGLU, no biases."""
    return Architecture(
        family="t5",
        **_shape(m) | {"feed_forward": "geglu-tanh"},
        decoder_layers=m.decoder_layers,
        norm="pre",
        rms=True,
        scaled=False,
        segments=0,
        embedding_norm=False,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        norm_eps=1e-6,
        head="plain",
        decoder_bias=False,
        logit_scale=m.hidden**-0.5,
    )


FAMILIES = {
    "bert": bert,
    "roberta": roberta,
    "modern": modern,
    "albert": albert,
    "electra": electra,
    "gpt2": gpt2,
    "llama": llama,
    "bart": bart,
    "t5": t5,
}
GATED = ("modern", "llama", "t5")
"""Families whose feed-forward block multiplies two halves."""


def _narrow(m: Model) -> int:
    """The width of the token rows, where it is not the hidden width."""
    return 0 if m.embedding == m.hidden else int(m.embedding)


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
    # All else follows from the family and from these fields, whatever they are set to; `resolve_model` fills it in last.
    model = Model(family=family, layers=layers, hidden=hidden, heads=heads)  # type: ignore[arg-type]
    recipe = TRAINED[family]()
    train = recipe.train
    if size in ("base", "large"):  # wide stacks leave the rails at the rates that small ones learn fastest with
        train = replace(train, lr=train.lr / 2, batch_tokens=4 * train.batch_tokens)
    return replace(recipe, preset=name, model=model, train=train)


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


def _train_narrow(*, matrix_lr: float) -> Recipe:
    """BERT's, but for tables whose rows are narrower than the model: they learn what is frequent only at a higher rate."""
    recipe = _train_bert()
    return replace(recipe, train=replace(recipe.train, lr=3e-3, matrix_lr=matrix_lr))


def _train_albert() -> Recipe:
    recipe = _train_narrow(matrix_lr=0.01)
    return replace(recipe, objective=replace(recipe.objective, sentence="order"))


def _train_electra() -> Recipe:
    recipe = _train_narrow(matrix_lr=0.02)
    return replace(recipe, objective=replace(recipe.objective, kind="replaced"))


def _train_gpt() -> Recipe:
    # The masks are for the hybrid objective; GPT itself hides nothing but what comes next.
    objective = _masking(kind="causal", rate=0.15, rate_end=0.15)
    return replace(_train_modern(), data=Data(tokenizer_kind="byte-bpe"), objective=objective)


def _train_bart() -> Recipe:
    # Masks and the share of the infilled as published; the post-norm stack wants the rates of bert.
    objective = _masking(kind="denoise", noise="permutation+infilling", rate=0.30, rate_end=0.30)
    return replace(_train_bert(), data=Data(tokenizer_kind="byte-bpe"), objective=objective)


def _train_t5() -> Recipe:
    objective = _masking(kind="denoise", noise="spans", rate=0.15, rate_end=0.15)
    data = Data(tokenizer_kind="unigram", sentinels=100, lowercase=False)
    train = replace(_train_modern().train, matrix_lr=0.01)  # slowly: nothing divides the scores of its queries
    return Recipe(data=data, objective=objective, train=train)


TRAINED = {
    "bert": _train_bert,
    "roberta": _train_roberta,
    "modern": _train_modern,
    "albert": _train_albert,
    "electra": _train_electra,
    "gpt2": _train_gpt,
    "llama": _train_gpt,
    "bart": _train_bart,
    "t5": _train_t5,
}


def _masking(*, rate: float, rate_end: float, kind: Any = "masked", noise: str = AUTO) -> Objective:
    shares: dict[str, Any] = {"mask_share": 0.8, "random_share": 0.1}
    return Objective(kind=kind, noise=noise, unit="token", rate=rate, rate_end=rate_end, sentence="none", **shares)


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


def _defaults(family: str, hidden: int | None) -> dict[str, Any]:
    """What a family's fields are when nobody says otherwise."""
    wide = (hidden or 0) >= 768  # ELECTRA base and large have rows as wide as the model, and base a larger generator
    own: dict[str, dict[str, Any]] = {
        "modern": {"positions": "rotary", "local_window": 128, "global_every": 3},
        "llama": {"positions": "rotary"},
        "t5": {"positions": "relative"},
        "albert": {"groups": 1, "embedding": 128},
        "electra": {"embedding": hidden if wide else 128, "generator": 1 / 3 if hidden == 768 else 0.25},
    }
    # The papers drop out 0.1; when nearly every batch is seen for the first time that only slows learning.
    common = {"max_length": 512, "dropout": 0.0, "attention_dropout": 0.0, "positions": "learned", "global_every": 1}
    return common | own.get(family, {})


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
    model = fill_auto(model, vocab_size=vocab_size, **_defaults(model.family, model.hidden))
    for name in ("layers", "hidden", "vocab_size", "global_every"):
        value = getattr(model, name)
        if value is AUTO:
            raise UserError("is not set", where=f"model.{name}", mend="choose a --preset or set it")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"model.{name}")
    model = fill_auto(
        model,
        heads=model.hidden // 64 if model.hidden % 64 == 0 else 1,
        intermediate=_gated_width(model.hidden) if model.family in GATED else 4 * model.hidden,
        decoder_layers=model.layers if model.family in ("bart", "t5") else 0,
    )
    model = fill_auto(
        model, start="neighbours" if model.family in NEIGHBOURS and model.positions == "learned" else "random"
    )
    model = fill_auto(
        model, kv_heads=model.heads // 2 if model.family == "llama" and model.heads % 2 == 0 else model.heads
    )
    _refuse_strangers(model)
    architecture(model)
    return model


ONLY = {
    "decoder_layers": ("bart", "t5"),
    "kv_heads": ("llama",),
    "embedding": ("albert", "electra"),
    "groups": ("albert",),
    "generator": ("electra",),
}
"""Fields that some families alone have."""

NEIGHBOURS = ("bert", "roberta", "gpt2")
"""Families whose heads begin by looking at neighbours (`bertkin.models.initial.look_around`): those that it helped."""


def _refuse_strangers(model: Model) -> None:
    for name, families in ONLY.items():
        value, idle = getattr(model, name), (AUTO, 0, model.heads if name == "kv_heads" else 0)
        if value not in idle and model.family not in families:
            kinds = " and ".join(families)
            raise UserError(f"{model.family} has no such thing", where=f"model.{name}", mend=f"it is for {kinds} alone")
    if model.start == "neighbours" and (model.positions != "learned" or model.family not in (*NEIGHBOURS, "bart")):
        raise UserError(
            f"{model.family} with {model.positions} positions cannot begin by looking at neighbours",
            where="model.start",
            mend=f"leave it out: it is for {', '.join(NEIGHBOURS)} and bart with learned positions",
        )


def _gated_width(hidden: int) -> int:
    """The feed-forward width with which GEGLU's three matrices weigh about as much as two of width 4 x hidden."""
    return max(1, round(hidden * 8 / 3 / 64)) * 64


def architecture(model: Model) -> Architecture:
    """What to build for a resolved model.

    Raises:
        UserError: the fields do not go together.
    """
    return check(FAMILIES[model.family](model))


def build(model: Model, *, sentence: bool = False, boundary: bool = False, seed: int = 0) -> AnyModel:
    """A freshly drawn model in float32.

    Args:
        model: resolved (`resolve_model`).
        sentence: with a classifier of sentence pairs.
        boundary: with a head that answers from a span's sides.
        seed: the same seed draws the same weights.
    """
    import torch

    from bertkin.models.heads import LanguageModel, Replaced
    from bertkin.models.initial import initialise, look_around

    a = architecture(model)
    with torch.device("meta"):  # so that nothing is drawn twice
        built: AnyModel
        built = Replaced(a, generator(a)) if a.generator else LanguageModel(a, sentence=sentence, boundary=boundary)
    built.to_empty(device="cpu")
    built.tie()
    initialise(built, a, torch.Generator().manual_seed(seed))
    if model.start == "neighbours":
        look_around(built)
    return built
