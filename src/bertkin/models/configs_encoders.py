"""config.json of the families with one stack that sees both sides: BERT, RoBERTa, ModernBERT, ALBERT, ELECTRA.

A pair of functions a family: `read_…` makes an `Architecture` of transformers' fields, `write_…` the fields of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.fields import Fields

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu"}
"""transformers' names of what bends, and ours."""
BENDS = {"gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu"}


def _bert_shape(c: Fields, offset: int, act: str = "gelu", dropout: float = 0.1) -> dict[str, Any]:
    c.only("position_embedding_type", "absolute", None)
    c.only("is_decoder", False)
    c.only("add_cross_attention", False)
    c.only("tie_word_embeddings", True)
    return {
        "vocab_size": c.whole("vocab_size"),
        "hidden": c.whole("hidden_size"),
        "layers": c.whole("num_hidden_layers"),
        "heads": c.whole("num_attention_heads"),
        "intermediate": c.whole("intermediate_size"),
        "feed_forward": ACTIVATIONS[c.choice("hidden_act", act, ACTIVATIONS)],
        "max_length": c.whole("max_position_embeddings", 512) - offset,
        "position_offset": offset,
        "segments": c.whole("type_vocab_size", 2),
        "norm_eps": c.number("layer_norm_eps", 1e-12),
        "dropout": c.number("hidden_dropout_prob", dropout),
        "attention_dropout": c.number("attention_probs_dropout_prob", dropout),
    }


def read_bert(c: Fields) -> Architecture:
    ids = {"pad_id": c.number("pad_token_id", 0)} | _ends(c, "cls_token_id", 2, "sep_token_id", 3)
    return Architecture(family="bert", **_bert_shape(c, 0), **ids)


def read_roberta(c: Fields) -> Architecture:
    pad = c.number("pad_token_id", 1)
    ids = {"pad_id": pad} | _ends(c, "bos_token_id", 0, "eos_token_id", 2)
    return Architecture(family="roberta", **_bert_shape(c, pad + 1), **ids)


def _ends(c: Fields, first: str, first_id: int, last: str, last_id: int) -> dict[str, Any]:
    """The ids of what a sequence begins and ends with."""
    return {"cls_id": c.number(first, first_id), "sep_id": c.number(last, last_id)}


def read_modern(c: Fields) -> Architecture:
    c.only("hidden_activation", "gelu")
    c.only("classifier_activation", "gelu")
    c.only("tie_word_embeddings", True)
    layers = c.whole("num_hidden_layers")
    kinds = c.values.get("layer_types")
    if kinds is None:
        every = c.whole("global_attn_every_n_layers", 3)
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        where = f"{c.where}: layer_types"
        raise UserError(f"expected full_attention or sliding_attention for each layer, found {kinds!r}", where=where)
    window = c.whole("local_attention", 128)
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return Architecture(
        family="modern",
        vocab_size=c.whole("vocab_size"),
        hidden=c.whole("hidden_size"),
        layers=layers,
        heads=c.whole("num_attention_heads"),
        intermediate=c.whole("intermediate_size"),
        max_length=c.whole("max_position_embeddings", 8192),
        norm="pre",
        first_norm=False,
        feed_forward="geglu",
        positions="rotary",
        segments=0,
        windows=windows if any(windows) else (),
        global_theta=_theta(c, "full_attention", "global_rope_theta", 160_000.0),
        local_theta=_theta(c, "sliding_attention", "local_rope_theta", 10_000.0),
        attention_bias=c.flag("attention_bias", False),
        feed_forward_bias=c.flag("mlp_bias", False),
        norm_bias=c.flag("norm_bias", False),
        head_bias=c.flag("classifier_bias", False),
        decoder_bias=c.flag("decoder_bias", True),
        pooling="mean" if c.values.get("classifier_pooling") == "mean" else "first",
        norm_eps=c.number("norm_eps", 1e-5),
        dropout=c.number("mlp_dropout", 0.0),
        attention_dropout=c.number("attention_dropout", 0.0),
        pad_id=c.number("pad_token_id", 50283),
        cls_id=c.number("cls_token_id", 50281),
        sep_id=c.number("sep_token_id", 50282),
    )


def _theta(c: Fields, kind: str, old_name: str, default: float) -> float:
    """The base of the rotary frequencies: by kind of layer in transformers 5, by a name of its own in 4."""
    ropes = c.values.get("rope_parameters") or {}
    rope = ropes.get(kind) if isinstance(ropes, dict) else None
    rope = Fields(rope if isinstance(rope, dict) else {}, Path(f"{c.where}: rope_parameters: {kind}"))
    rope.only("rope_type", "default")
    return float(rope.number("rope_theta", c.number(old_name, default)))


def write_bert(a: Architecture) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.intermediate,
        "hidden_act": BENDS[a.feed_forward],
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": a.attention_dropout,
        "max_position_embeddings": a.max_length + a.position_offset,
        "type_vocab_size": a.segments,
        "initializer_range": 0.02,
        "layer_norm_eps": a.norm_eps,
        "pad_token_id": a.pad_id,
        "cls_token_id": a.cls_id,
        "sep_token_id": a.sep_id,
    }


def write_roberta(a: Architecture) -> dict[str, Any]:
    return write_bert(a) | {"model_type": "roberta", "bos_token_id": a.cls_id, "eos_token_id": a.sep_id}


def write_modern(a: Architecture) -> dict[str, Any]:
    windows = [a.window(layer) for layer in range(a.layers)]
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    every = next((i for i, window in enumerate(windows) if i and window is None), a.layers)
    thetas = {"full_attention": a.global_theta, "sliding_attention": a.local_theta}
    return {
        "model_type": "modernbert",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.intermediate,
        "hidden_activation": "gelu",
        "max_position_embeddings": a.max_length,
        "initializer_range": 0.02,
        "initializer_cutoff_factor": 2.0,
        "norm_eps": a.norm_eps,
        "norm_bias": a.norm_bias,
        "attention_bias": a.attention_bias,
        "attention_dropout": a.attention_dropout,
        "embedding_dropout": a.dropout,
        "mlp_bias": a.feed_forward_bias,
        "mlp_dropout": a.dropout,
        "decoder_bias": a.decoder_bias,
        "classifier_bias": a.head_bias,
        "classifier_activation": "gelu",
        "classifier_pooling": "mean" if a.pooling == "mean" else "cls",
        "local_attention": next((window for window in windows if window), 128),
        # Both ways of saying which layers are local, and how fast they turn: transformers 5's and 4's.
        "layer_types": kinds,
        "global_attn_every_n_layers": every,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "global_rope_theta": a.global_theta,
        "local_rope_theta": a.local_theta,
        "pad_token_id": a.pad_id,
        "bos_token_id": a.cls_id,
        "cls_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "sep_token_id": a.sep_id,
    }


def read_albert(c: Fields) -> Architecture:
    c.only("inner_group_num", 1)
    shape = _bert_shape(c, 0, act="gelu_new", dropout=0.0)
    narrow = c.whole("embedding_size", 128)
    shape |= {"groups": c.whole("num_hidden_groups", 1), "embedding": 0 if narrow == shape["hidden"] else narrow}
    ids = {"pad_id": c.identity("pad_token_id", 0)} | _ends(c, "bos_token_id", 2, "eos_token_id", 3)
    return Architecture(family="albert", **shape, **ids)


def write_albert(a: Architecture) -> dict[str, Any]:
    own = {"model_type": "albert", "embedding_size": a.row_width, "num_hidden_groups": a.groups, "inner_group_num": 1}
    return write_bert(a) | own | {"bos_token_id": a.cls_id, "eos_token_id": a.sep_id}


def read_electra(c: Fields) -> Architecture:
    shape, narrow = _bert_shape(c, 0), c.whole("embedding_size", 128)
    shape |= {"embedding": 0 if narrow == shape["hidden"] else narrow}
    fills = "ElectraForMaskedLM" in (c.values.get("architectures") or [])
    head: dict[str, Any] = {"head": "transform"} if fills else {"head": "detect", "decoder_bias": False}
    ids = {"pad_id": c.identity("pad_token_id", 0)} | _ends(c, "cls_token_id", 2, "sep_token_id", 3)
    return Architecture(family="electra", **shape, **head, **ids)


def write_electra(a: Architecture) -> dict[str, Any]:
    return write_bert(a) | {"model_type": "electra", "embedding_size": a.row_width}
