"""What transformers calls each weight: a table for every family, read in both directions."""

from __future__ import annotations

import re

from bertkin.models.architecture import Architecture

PREFIX = {
    "bert": "bert.",
    "roberta": "roberta.",
    "modern": "model.",
    "albert": "albert.",
    "electra": "electra.",
    "gpt2": "transformer.",
    "llama": "model.",
    "bart": "model.",
    "t5": "",
}
"""What the names of a stack's weights begin with when a head is beside it; a bare stack's begin with nothing."""

_BERT = {
    "embeddings.tokens": "embeddings.word_embeddings.weight",
    "embeddings.positions": "embeddings.position_embeddings.weight",
    "embeddings.segments": "embeddings.token_type_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.attention.qkv": "encoder.layer.*.attention.self.query|key|value",
    "layers.*.attention.out": "encoder.layer.*.attention.output.dense",
    "layers.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "layers.*.feed_forward.up": "encoder.layer.*.intermediate.dense",
    "layers.*.feed_forward.down": "encoder.layer.*.output.dense",
    "layers.*.feed_forward_norm": "encoder.layer.*.output.LayerNorm",
}
_SHARED = "encoder.albert_layer_groups.*.albert_layers.0."
_BART = {
    "embeddings.positions": "embed_positions.weight",
    "embeddings.norm": "layernorm_embedding",
    "layers.*.attention.qkv": "layers.*.self_attn.q_proj|k_proj|v_proj",
    "layers.*.attention.out": "layers.*.self_attn.out_proj",
    "layers.*.attention_norm": "layers.*.self_attn_layer_norm",
    "layers.*.cross.qkv": "layers.*.encoder_attn.q_proj|k_proj|v_proj",
    "layers.*.cross.out": "layers.*.encoder_attn.out_proj",
    "layers.*.cross_norm": "layers.*.encoder_attn_layer_norm",
    "layers.*.feed_forward.up": "layers.*.fc1",
    "layers.*.feed_forward.down": "layers.*.fc2",
    "layers.*.feed_forward_norm": "layers.*.final_layer_norm",
}


def _t5(last: int, gated: bool) -> dict[str, str]:
    """T5 numbers the parts of a layer: 0 attention, 1 a look at the encoder, and last the feed-forward block."""
    return {
        "distances": "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "layers.*.attention.qkv": "block.*.layer.0.SelfAttention.q|k|v",
        "layers.*.attention.out": "block.*.layer.0.SelfAttention.o",
        "layers.*.attention_norm": "block.*.layer.0.layer_norm",
        "layers.*.cross.qkv": "block.*.layer.1.EncDecAttention.q|k|v",
        "layers.*.cross.out": "block.*.layer.1.EncDecAttention.o",
        "layers.*.cross_norm": "block.*.layer.1.layer_norm",
        "layers.*.feed_forward.up": f"block.*.layer.{last}.DenseReluDense.{'wi_0|wi_1' if gated else 'wi'}",
        "layers.*.feed_forward.down": f"block.*.layer.{last}.DenseReluDense.wo",
        "layers.*.feed_forward_norm": f"block.*.layer.{last}.layer_norm",
        "norm": "final_layer_norm",
    }


def _halves(encoder: dict[str, str], decoder: dict[str, str]) -> dict[str, str]:
    """The tables of an encoder–decoder: the decoder's names are our stack's, the encoder's our source's."""
    ours = {name: f"decoder.{theirs}" for name, theirs in decoder.items()}
    return ours | {f"source.{name}": f"encoder.{theirs}" for name, theirs in encoder.items()}


_T5_TABLE = {"embeddings.tokens": "shared.weight", "source.embeddings.tokens": "shared.weight"}
STACKS = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT | {"project": "embeddings_project"},
    "modern": {
        "embeddings.tokens": "embeddings.tok_embeddings.weight",
        "embeddings.norm": "embeddings.norm",
        "layers.*.attention.qkv": "layers.*.attn.Wqkv",
        "layers.*.attention.out": "layers.*.attn.Wo",
        "layers.*.attention_norm": "layers.*.attn_norm",
        "layers.*.feed_forward.up": "layers.*.mlp.Wi",
        "layers.*.feed_forward.down": "layers.*.mlp.Wo",
        "layers.*.feed_forward_norm": "layers.*.mlp_norm",
        "norm": "final_norm",
    },
    "albert": {name: theirs for name, theirs in _BERT.items() if name.startswith("embeddings")}
    | {
        "project": "encoder.embedding_hidden_mapping_in",
        "layers.*.attention.qkv": f"{_SHARED}attention.query|key|value",
        "layers.*.attention.out": f"{_SHARED}attention.dense",
        "layers.*.attention_norm": f"{_SHARED}attention.LayerNorm",
        "layers.*.feed_forward.up": f"{_SHARED}ffn",
        "layers.*.feed_forward.down": f"{_SHARED}ffn_output",
        "layers.*.feed_forward_norm": f"{_SHARED}full_layer_layer_norm",
    },
    "gpt2": {
        "embeddings.tokens": "wte.weight",
        "embeddings.positions": "wpe.weight",
        "layers.*.attention.qkv": "h.*.attn.c_attn",
        "layers.*.attention.out": "h.*.attn.c_proj",
        "layers.*.attention_norm": "h.*.ln_1",
        "layers.*.feed_forward.up": "h.*.mlp.c_fc",
        "layers.*.feed_forward.down": "h.*.mlp.c_proj",
        "layers.*.feed_forward_norm": "h.*.ln_2",
        "norm": "ln_f",
    },
    "llama": {
        "embeddings.tokens": "embed_tokens.weight",
        "layers.*.attention.qkv": "layers.*.self_attn.q_proj|k_proj|v_proj",
        "layers.*.attention.out": "layers.*.self_attn.o_proj",
        "layers.*.attention_norm": "layers.*.input_layernorm",
        "layers.*.feed_forward.up": "layers.*.mlp.gate_proj|up_proj",
        "layers.*.feed_forward.down": "layers.*.mlp.down_proj",
        "layers.*.feed_forward_norm": "layers.*.post_attention_layernorm",
        "norm": "norm",
    },
    "bart": {"embeddings.tokens": "shared.weight"} | _halves(_BART, _BART),
    "t5": _T5_TABLE | _halves(_t5(1, True), _t5(2, True)),
    "t5-plain": _T5_TABLE | _halves(_t5(1, False), _t5(2, False)),
}
TWINS = ("bert", "roberta", "electra")
"""Encoders that transformers joins with a decoder of their own kind (`bertkin.models.configs_both`)."""
_LOOK = {
    "layers.*.cross.qkv": "encoder.layer.*.crossattention.self.query|key|value",
    "layers.*.cross.out": "encoder.layer.*.crossattention.output.dense",
    "layers.*.cross_norm": "encoder.layer.*.crossattention.output.LayerNorm",
}


def _twins(family: str) -> dict[str, str]:
    """The table of an encoder and a decoder of a family that is one stack otherwise."""
    ours = {name: f"decoder.{PREFIX[family]}{theirs}" for name, theirs in (STACKS[family] | _LOOK).items()}
    return ours | {f"source.{name}": f"encoder.{theirs}" for name, theirs in STACKS[family].items()}


STACKS |= {f"{family}-both": _twins(family) for family in TWINS}
"""Our names under `stack.` (with `source.` in front of those of an encoder before it), and transformers' after the
prefix. `*` is the number of the layer, `|` parts that we keep as one tensor. A module's name stands for its weight and
bias."""

HEADS = {
    "bert": {
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.bias": "cls.predictions.bias",
        "sentence.dense": "bert.pooler.dense",
        "sentence.classifier": "cls.seq_relationship",
    },
    "roberta": {
        "head.dense": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "head.bias": "lm_head.bias",
    },
    "modern": {"head.bias": "decoder.bias"},
    "albert": {
        "head.dense": "predictions.dense",
        "head.norm": "predictions.LayerNorm",
        "head.bias": "predictions.bias",
        "sentence.dense": "albert.pooler",
        "sentence.classifier": "sop_classifier.classifier",
    },
    "electra": {
        "head.dense": "generator_predictions.dense",
        "head.norm": "generator_predictions.LayerNorm",
        "head.bias": "generator_lm_head.bias",
        "detect.dense": "discriminator_predictions.dense",
        "detect.classifier": "discriminator_predictions.dense_prediction",
    },
    "gpt2": {"head.table": "lm_head.weight"},
    "llama": {"head.table": "lm_head.weight"},
    "bart": {"head.table": "lm_head.weight", "head.bias": "final_logits_bias"},
    "t5": {"head.table": "lm_head.weight"},
    "t5-plain": {"head.table": "lm_head.weight"},
}
HEADS |= {
    f"{family}-both": {ours: f"decoder.{theirs}" for ours, theirs in HEADS[family].items() if ours.startswith("head.")}
    for family in TWINS
}
"""The same for what answers, without a prefix. What is not here is called the same on both sides: ModernBERT's head, and
sentence heads that transformers has no place for."""

_SPAN = {"classifier": "qa_outputs"}
_PLAIN = {"classifier": "classifier"}
TASK_HEADS = {
    "class": {
        "bert": {"dense": "bert.pooler.dense", "classifier": "classifier"},
        "roberta": {"dense": "classifier.dense", "classifier": "classifier.out_proj"},
        "albert": {"dense": "albert.pooler", "classifier": "classifier"},
        "electra": {"dense": "classifier.dense", "classifier": "classifier.out_proj"},
        "modern": {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"},
        "gpt2": {"classifier": "score"},
        "llama": {"classifier": "score"},
        "bart": {"dense": "classification_head.dense", "classifier": "classification_head.out_proj"},
        "t5": {"dense": "classification_head.dense", "classifier": "classification_head.out_proj"},
    },
    "choice": {
        "bert": {"dense": "bert.pooler.dense", "classifier": "classifier"},
        "roberta": {"dense": "roberta.pooler.dense", "classifier": "classifier"},
        "albert": {"dense": "albert.pooler", "classifier": "classifier"},
        "electra": {"dense": "sequence_summary.summary", "classifier": "classifier"},
        "modern": {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"},
    },
    "tokens": {
        **dict.fromkeys(("bert", "roberta", "albert", "electra", "gpt2", "t5"), _PLAIN),
        "modern": {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"},
        "llama": {"classifier": "score"},
    },
    "span": {
        **dict.fromkeys(("bert", "roberta", "albert", "electra", "gpt2", "llama", "bart", "t5"), _SPAN),
        "modern": {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"},
    },
}
"""What transformers calls the parts of a task's head, for each head and family it has."""
TASK_PREFIX = {"llama:span": "transformer.", "t5:class": "transformer.", "t5:tokens": "transformer."}
"""Where a family's stack is called otherwise under a task's head."""

CONV1D = re.compile(r"\.c_(attn|proj|fc)\.weight$")
"""GPT-2's weights that lie the other way round, [in, out]."""

UNREAD = re.compile(
    r"position_ids$|token_type_ids$|pooler\.|rotary_emb\.|\.attn\.(masked_)?bias$|embed_tokens\.weight$|(^|\.)lm_head\.weight$"
    r"|(^|\.)(predictions|lm_head)\.decoder\.(weight|bias)$|generator_lm_head\.weight$"
)
"""Tensors of a stack that we need no place for: constants, copies of a tied table, and a pooler that no head reads."""


def named(a: Architecture, head: str = "") -> str:
    """The table of names of an architecture: its family (or what T5's first version calls its feed-forward block), and
    after a colon the head of a task, where it has one. An encoder with a decoder of its kind has a table of its own."""
    if a.both and a.family in TWINS:
        return f"{a.family}-both"
    family = "t5-plain" if a.family == "t5" and not a.gated else a.family
    return f"{family}:{head}" if head else family


def turned(name: str, family: str) -> bool:
    """Whether a weight of ours lies the other way round on disk."""
    return family.startswith("gpt2") and CONV1D.search(theirs(name, family)[0]) is not None


def prefix_of(family: str) -> str:
    """What the names of a stack's weights begin with."""
    base = family.partition(":")[0]
    return TASK_PREFIX.get(family.replace("-plain", ""), PREFIX.get(base, ""))


def beginnings(family: str) -> tuple[str, ...]:
    """How every name of a stack's weights begins: with a prefix, or, of a family that has none, with one of its own parts."""
    prefix, table = prefix_of(family), STACKS[family.partition(":")[0]]
    return (prefix,) if prefix else tuple({f"{pattern.partition('.')[0]}." for pattern in table.values()})


OWN = ("stack.", "source.")
"""What our names of a stack's weights begin with: of the one that answers, and of an encoder before it."""


def in_stack(name: str) -> bool:
    """Whether a weight, by our name, is of a stack and not of what answers."""
    return name.startswith(OWN)


def theirs(name: str, family: str) -> tuple[str, ...]:
    """The names on disk of what we call `name`, such as `stack.layers.0.attention.qkv.weight`: several where one
    tensor of ours is several of theirs, to be put one after the other.

    Families that transformers does not have keep our names.

    Args:
        family: as `named` gives it.
    """
    base, _, head = family.partition(":")
    if base not in STACKS:
        return (name,)
    inside = in_stack(name)
    heads = TASK_HEADS[head][base.replace("-plain", "")] if head else HEADS[base]
    table, prefix = (STACKS[base], prefix_of(family)) if inside else (heads, "")
    stem, suffix = name.removeprefix("stack.") if inside else name, ""
    number = re.search(r"\.(\d+)\.", stem)
    stem = re.sub(r"\.\d+\.", ".*.", stem)
    if stem not in table:
        stem, _, suffix = stem.rpartition(".")
        suffix = f".{suffix}"
    if stem not in table:
        return (name,)
    pattern = table[stem].replace("*", number.group(1) if number else "*")
    head, _, parts = pattern.rpartition(".") if "|" in pattern else ("", "", pattern)
    return tuple(f"{prefix}{head}{'.' if head else ''}{part}{suffix}" for part in parts.split("|"))


def canonical(names: list[str], family: str) -> dict[str, str]:
    """Names as `theirs` gives them, each with what it is called in the file: a bare stack's have no prefix there, one under
    another head may have another, and the oldest BERT folders call a norm's weight and bias gamma and beta."""
    prefix, base = prefix_of(family), family.partition(":")[0]
    plain = base.replace("-plain", "")
    under = [other for head, other in TASK_PREFIX.items() if head.partition(":")[0] == plain]
    known = [one for one in (prefix, PREFIX.get(base, ""), *under) if one]
    there = next((one for one in known if any(name.startswith(one) for name in names)), "")
    tables = [table.get(plain, {}) for table in TASK_HEADS.values()]
    heads = {pattern.partition(".")[0] for table in tables for pattern in table.values()}
    greek = {".gamma": ".weight", ".beta": ".bias"}

    def called(name: str) -> str:
        name = re.sub(r"\.(gamma|beta)$", lambda m: greek[m.group()], name)
        if (there and not name.startswith(there)) or (not there and name.partition(".")[0] in heads):
            return name  # a head's
        return prefix + name.removeprefix(there)

    found = {called(name): name for name in names}
    table, copy = "stack.embeddings.tokens", "source.embeddings.tokens"
    if base not in STACKS and table in found and copy not in found:  # our own name for a table that both halves read
        found[copy] = found[table]
    return found
