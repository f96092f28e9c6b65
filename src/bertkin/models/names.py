"""What transformers calls each weight: a table for every family, read in both directions."""

from __future__ import annotations

import re

PREFIX = {"bert": "bert.", "roberta": "roberta.", "modern": "model."}
"""What the names of an encoder's weights begin with when a head is beside it; a bare encoder's begin with nothing."""

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
ENCODERS = {
    "bert": _BERT,
    "roberta": _BERT,
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
}
"""Our names under `encoder.`, and transformers' after the prefix. `*` is the number of the layer, `|` parts that we keep
as one tensor. A module's name stands for its weight and bias."""

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
}
"""The same for what answers, without a prefix. What is not here is called the same on both sides: ModernBERT's head, and
sentence heads that transformers has no place for."""

UNREAD = re.compile(r"position_ids$|token_type_ids$|\.pooler\.|rotary_emb\.")
"""Tensors inside an encoder that we need no place for: constants, and a pooler that no sentence head reads."""


def theirs(name: str, family: str) -> tuple[str, ...]:
    """The names on disk of what we call `name`, such as `encoder.layers.0.attention.qkv.weight`: several where one
    tensor of ours is several of theirs, to be put one after the other.

    Families that transformers does not have keep our names.
    """
    if family not in ENCODERS:
        return (name,)
    inside = name.startswith("encoder.")
    table, prefix = (ENCODERS[family], PREFIX[family]) if inside else (HEADS[family], "")
    stem, suffix = name.removeprefix("encoder.") if inside else name, ""
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
    """Names as `theirs` gives them, each with what it is called in the file: a bare encoder's have no prefix there, and
    the oldest BERT folders call a norm's weight and bias gamma and beta."""
    prefix = PREFIX.get(family, "")
    if any(name.startswith(prefix) for name in names):
        prefix = ""
    greek = {".gamma": ".weight", ".beta": ".bias"}
    return {prefix + re.sub(r"\.(gamma|beta)$", lambda m: greek[m.group()], name): name for name in names}
