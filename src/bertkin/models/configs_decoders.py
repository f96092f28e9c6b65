"""config.json of the families that write: GPT-2 and Llama, which are one stack, BART and T5, which are two.

A pair of functions a family, as in `bertkin.models.configs_encoders`.
"""

from __future__ import annotations

from typing import Any

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.configs_encoders import ACTIVATIONS, BENDS
from bertkin.models.fields import Fields


def _ids(c: Fields, begin: int, end: int, pad: int) -> dict[str, Any]:
    """What a sequence begins with, ends with, and is filled up with."""
    last = c.identity("eos_token_id", end)
    return {
        "cls_id": c.identity("bos_token_id", begin),
        "sep_id": last,
        "pad_id": c.identity("pad_token_id", pad),
    }


def read_gpt2(c: Fields) -> Architecture:
    c.only("scale_attn_weights", True)
    c.only("scale_attn_by_inverse_layer_idx", False)
    c.only("add_cross_attention", False)
    hidden = c.whole("n_embd", 768)
    return Architecture(
        family="gpt2",
        vocab_size=c.whole("vocab_size", 50257),
        hidden=hidden,
        layers=c.whole("n_layer", 12),
        heads=c.whole("n_head", 12),
        intermediate=c.whole("n_inner", 4 * hidden),
        max_length=c.whole("n_positions", 1024),
        causal=True,
        norm="pre",
        embedding_norm=False,
        feed_forward=ACTIVATIONS[c.choice("activation_function", "gelu_new", ACTIVATIONS)],  # type: ignore[arg-type]
        segments=0,
        head="plain",
        decoder_bias=False,
        tied=c.flag("tie_word_embeddings", True),
        norm_eps=c.number("layer_norm_epsilon", 1e-5),
        dropout=c.number("resid_pdrop", 0.1),
        attention_dropout=c.number("attn_pdrop", 0.1),
        **_ids(c, 50256, 50256, c.identity("eos_token_id", 50256)),
    )


def write_gpt2(a: Architecture) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": a.vocab_size,
        "n_embd": a.hidden,
        "n_layer": a.layers,
        "n_head": a.heads,
        "n_inner": a.intermediate,
        "n_positions": a.max_length,
        "activation_function": BENDS.get(a.feed_forward, "gelu_new"),
        "layer_norm_epsilon": a.norm_eps,
        "resid_pdrop": a.dropout,
        "embd_pdrop": a.dropout,
        "attn_pdrop": a.attention_dropout,
        "initializer_range": 0.02,
        "bos_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "pad_token_id": a.pad_id,
    }


def read_llama(c: Fields) -> Architecture:
    c.only("hidden_act", "silu")
    bias = c.flag("attention_bias", False)
    if bias or c.flag("mlp_bias", False):
        raise UserError("we cannot build biases in this family", where=f"{c.where}: attention_bias or mlp_bias")
    hidden, heads = c.whole("hidden_size", 4096), c.whole("num_attention_heads", 32)
    rope = c.values.get("rope_parameters") or c.values.get("rope_scaling") or {}
    inside = Fields(rope if isinstance(rope, dict) else {}, c.where)
    inside.only("rope_type", "default")
    few, width = c.whole("num_key_value_heads", heads), c.whole("head_dim", max(1, hidden // heads))
    return Architecture(
        family="llama",
        vocab_size=c.whole("vocab_size", 32000),
        hidden=hidden,
        layers=c.whole("num_hidden_layers", 32),
        heads=heads,
        kv_heads=0 if few == heads else few,
        head_width=0 if width * heads == hidden else width,
        intermediate=c.whole("intermediate_size", 11008),
        max_length=c.whole("max_position_embeddings", 2048),
        causal=True,
        norm="pre",
        rms=True,
        embedding_norm=False,
        feed_forward="swiglu",
        positions="rotary",
        global_theta=float(inside.number("rope_theta", c.number("rope_theta", 10_000.0))),
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        segments=0,
        head="plain",
        decoder_bias=False,
        tied=c.flag("tie_word_embeddings", False),
        norm_eps=c.number("rms_norm_eps", 1e-6),
        attention_dropout=c.number("attention_dropout", 0.0),
        **_ids(c, 1, 2, c.identity("eos_token_id", 2)),
    )


def write_llama(a: Architecture) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.key_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.intermediate,
        "max_position_embeddings": a.max_length,
        "hidden_act": "silu",
        "rms_norm_eps": a.norm_eps,
        # Both ways of saying how fast positions turn: transformers 5's and that of 4 and of llama.cpp.
        "rope_parameters": {"rope_type": "default", "rope_theta": a.global_theta},
        "rope_theta": a.global_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": a.attention_dropout,
        "initializer_range": 0.02,
        "bos_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "pad_token_id": a.pad_id,
    }


def read_bart(c: Fields) -> Architecture:
    c.only("scale_embedding", False)
    heads, wide = c.whole("encoder_attention_heads", 16), c.whole("encoder_ffn_dim", 4096)
    c.only("decoder_attention_heads", heads)
    c.only("decoder_ffn_dim", wide)
    return Architecture(
        family="bart",
        vocab_size=c.whole("vocab_size", 50265),
        hidden=c.whole("d_model", 1024),
        layers=c.whole("encoder_layers", 12),
        decoder_layers=c.whole("decoder_layers", 12),
        heads=heads,
        intermediate=wide,
        max_length=c.whole("max_position_embeddings", 1024),
        feed_forward=ACTIVATIONS[c.choice("activation_function", "gelu", ACTIVATIONS)],  # type: ignore[arg-type]
        position_offset=2,
        segments=0,
        head="plain",
        tied=c.flag("tie_word_embeddings", True),
        norm_eps=1e-5,
        dropout=c.number("dropout", 0.1),
        attention_dropout=c.number("attention_dropout", 0.0),
        **_ids(c, 0, 2, 1),
        start_id=c.identity("decoder_start_token_id", 2),
    )


def write_bart(a: Architecture) -> dict[str, Any]:
    bend = BENDS.get(a.feed_forward, "gelu")
    return {
        "model_type": "bart",
        "vocab_size": a.vocab_size,
        "d_model": a.hidden,
        "encoder_layers": a.layers,
        "decoder_layers": a.decoder_layers,
        "encoder_attention_heads": a.heads,
        "decoder_attention_heads": a.heads,
        "encoder_ffn_dim": a.intermediate,
        "decoder_ffn_dim": a.intermediate,
        "max_position_embeddings": a.max_length,
        "activation_function": bend,
        "dropout": a.dropout,
        "attention_dropout": a.attention_dropout,
        "activation_dropout": 0.0,
        "init_std": 0.02,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        "bos_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "pad_token_id": a.pad_id,
        "decoder_start_token_id": a.start_id,
        "forced_eos_token_id": None,
    }


T5_BLOCKS = {
    "relu": "relu",
    "gated-gelu": "geglu-tanh",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gated-silu": "swiglu",
}


def read_t5(c: Fields) -> Architecture:
    hidden, heads = c.whole("d_model", 512), c.whole("num_heads", 8)
    layers, width = c.whole("num_layers", 6), c.whole("d_kv", 64)
    block = T5_BLOCKS[c.choice("feed_forward_proj", "relu", T5_BLOCKS)]
    # The first T5 answers with its token table, scaled down; 1.1 with a table of its own. Version 5 of transformers
    # writes the scale as a field and ties whatever the file holds alike.
    tied = c.flag("tie_word_embeddings", True)
    scaled = c.flag("scale_decoder_outputs", tied)
    return Architecture(
        family="t5",
        vocab_size=c.whole("vocab_size", 32128),
        hidden=hidden,
        layers=layers,
        decoder_layers=c.whole("num_decoder_layers", layers),
        heads=heads,
        head_width=0 if width * heads == hidden else width,
        intermediate=c.whole("d_ff", 2048),
        max_length=c.whole("n_positions", 512),
        norm="pre",
        rms=True,
        embedding_norm=False,
        feed_forward=block,  # type: ignore[arg-type]
        positions="relative",
        buckets=c.whole("relative_attention_num_buckets", 32),
        farthest=c.whole("relative_attention_max_distance", 128),
        scaled=False,
        attention_bias=False,
        feed_forward_bias=False,
        norm_bias=False,
        segments=0,
        head="plain",
        decoder_bias=False,
        tied=tied,
        logit_scale=hidden**-0.5 if scaled else 1.0,
        norm_eps=c.number("layer_norm_epsilon", 1e-6),
        dropout=c.number("dropout_rate", 0.1),
        attention_dropout=c.number("dropout_rate", 0.1),
        **_ids(c, 0, 1, 0),
        start_id=c.identity("decoder_start_token_id", 0),
    )


def write_t5(a: Architecture) -> dict[str, Any]:
    block = next((name for name, ours in T5_BLOCKS.items() if ours == a.feed_forward), "relu")
    return {
        "model_type": "t5",
        "vocab_size": a.vocab_size,
        "d_model": a.hidden,
        "d_kv": a.head_dim,
        "d_ff": a.intermediate,
        "num_layers": a.layers,
        "num_decoder_layers": a.decoder_layers,
        "num_heads": a.heads,
        "n_positions": a.max_length,
        "relative_attention_num_buckets": a.buckets,
        "relative_attention_max_distance": a.farthest,
        "feed_forward_proj": block,
        "layer_norm_epsilon": a.norm_eps,
        "dropout_rate": a.dropout,
        "is_encoder_decoder": True,
        "bos_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "pad_token_id": a.pad_id,
        "decoder_start_token_id": a.start_id,
        "scale_decoder_outputs": a.logit_scale != 1.0,
    }
