"""config.json as transformers has it, read into an `Architecture` and written from one, a pair of functions a family."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture, check

OURS = "bertkin"
"""The model_type of architectures that transformers does not have, such as BERT's stack with rotary positions."""


class _Fields:
    """A config.json, each of whose fields is checked when it is asked for."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where

    def number(self, name: str, default: float | None = None) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = "is missing" if value is None else f"expected a number, found {value!r}"
            raise UserError(found, where=f"{self.where}: {name}")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise UserError(f"expected a whole number of at least 1, found {value!r}", where=f"{self.where}: {name}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise UserError(f"expected true or false, found {value!r}", where=f"{self.where}: {name}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The first of `allowed` is the default; nothing else can be built here."""
        value = self.values.get(name, allowed[0])
        if value not in allowed:
            raise UserError(f"we cannot build {value!r}, only {allowed[0]!r}", where=f"{self.where}: {name}")


def _bert_shape(c: _Fields, offset: int) -> dict[str, Any]:
    c.only("hidden_act", "gelu")
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
        "max_length": c.whole("max_position_embeddings", 512) - offset,
        "position_offset": offset,
        "segments": c.number("type_vocab_size", 2),
        "norm_eps": c.number("layer_norm_eps", 1e-12),
        "dropout": c.number("hidden_dropout_prob", 0.1),
        "attention_dropout": c.number("attention_probs_dropout_prob", 0.1),
    }


def _bert(c: _Fields) -> Architecture:
    ids = {"pad_id": c.number("pad_token_id", 0)} | _ends(c, "cls_token_id", 2, "sep_token_id", 3)
    return Architecture(family="bert", **_bert_shape(c, 0), **ids)


def _roberta(c: _Fields) -> Architecture:
    pad = c.number("pad_token_id", 1)
    ids = {"pad_id": pad} | _ends(c, "bos_token_id", 0, "eos_token_id", 2)
    return Architecture(family="roberta", **_bert_shape(c, pad + 1), **ids)


def _ends(c: _Fields, first: str, first_id: int, last: str, last_id: int) -> dict[str, Any]:
    """The ids of what a sequence begins and ends with."""
    return {"cls_id": c.number(first, first_id), "sep_id": c.number(last, last_id)}


def _modern(c: _Fields) -> Architecture:
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
        norm_eps=c.number("norm_eps", 1e-5),
        dropout=c.number("mlp_dropout", 0.0),
        attention_dropout=c.number("attention_dropout", 0.0),
        pad_id=c.number("pad_token_id", 50283),
        cls_id=c.number("cls_token_id", 50281),
        sep_id=c.number("sep_token_id", 50282),
    )


def _theta(c: _Fields, kind: str, old_name: str, default: float) -> float:
    """The base of the rotary frequencies: by kind of layer in transformers 5, by a name of its own in 4."""
    ropes = c.values.get("rope_parameters") or {}
    rope = ropes.get(kind) if isinstance(ropes, dict) else None
    rope = _Fields(rope if isinstance(rope, dict) else {}, Path(f"{c.where}: rope_parameters: {kind}"))
    rope.only("rope_type", "default")
    return float(rope.number("rope_theta", c.number(old_name, default)))


def _ours(c: _Fields) -> Architecture:
    hints = typing.get_type_hints(Architecture)
    values: dict[str, Any] = {}
    for f in fields(Architecture):
        value = c.values.get(f.name)
        if hints[f.name] is bool:
            values[f.name] = c.flag(f.name, False)
        elif hints[f.name] in (int, float):
            values[f.name] = c.number(f.name)
        else:
            values[f.name] = tuple(value) if isinstance(value, list) else value
    if not isinstance(values["windows"], tuple):
        raise UserError(f"expected a list of widths, found {values['windows']!r}", where=f"{c.where}: windows")
    return Architecture(**values)


READERS = {"bert": _bert, "roberta": _roberta, "modernbert": _modern, OURS: _ours}


def read_config(path: Path) -> tuple[Architecture, str]:
    """The architecture that a config.json describes, and its model_type.

    Raises:
        UserError: no such file, not JSON, a family we do not read, a field of the wrong kind or that we cannot build.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no config.json here", where=path.parent, mend="give the folder of a model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot be read as JSON ({str(error).splitlines()[0]})", where=path) from None
    if not isinstance(values, dict):
        raise UserError(f"expected an object, found {type(values).__name__}", where=path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        said = "no model_type" if kind is None else f"a model of type {kind!r}"
        raise UserError(f"{said}; we read {', '.join(READERS)}", where=path)
    return check(READERS[kind](_Fields(values, path)), f"{path}: "), kind


def write_config(a: Architecture, *, sentence: bool = False) -> dict[str, Any]:
    """The config.json of an architecture: transformers' own where that says all of it, else ours with our fields."""
    values = {"bert": _write_bert, "roberta": _write_roberta, "modern": _write_modern}[a.family](a)
    if READERS[values["model_type"]](_Fields(values, Path("config.json"))) != a:
        return {"model_type": OURS, "architectures": ["MaskedLM"], **asdict(a)}
    heads = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM", "modern": "ModernBertForMaskedLM"}
    head = "BertForPreTraining" if sentence and a.family == "bert" else heads[a.family]
    return {"architectures": [head], **values, "tie_word_embeddings": True, "torch_dtype": "float32"}


def _write_bert(a: Architecture) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.intermediate,
        "hidden_act": "gelu",
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


def _write_roberta(a: Architecture) -> dict[str, Any]:
    return _write_bert(a) | {"model_type": "roberta", "bos_token_id": a.cls_id, "eos_token_id": a.sep_id}


def _write_modern(a: Architecture) -> dict[str, Any]:
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
