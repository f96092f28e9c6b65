"""config.json of an encoder joined with a decoder of its own kind: transformers' EncoderDecoderModel (Rothe et al. 2020).

BERT, RoBERTa and ELECTRA have such decoders there: their own layers, causal, with a look at the encoder in each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.configs_encoders import (
    read_bert,
    read_electra,
    read_roberta,
    write_bert,
    write_electra,
    write_roberta,
)
from bertkin.models.fields import Fields

TYPE = "encoder-decoder"
"""The model_type of both halves together."""


class Half(NamedTuple):
    """How transformers describes and calls a half."""

    read: Callable[[Fields], Architecture]
    write: Callable[[Architecture], dict[str, Any]]
    encoder: str
    decoder: str


HALVES = {
    "bert": Half(read_bert, write_bert, "BertModel", "BertLMHeadModel"),
    "roberta": Half(read_roberta, write_roberta, "RobertaModel", "RobertaForCausalLM"),
    "electra": Half(read_electra, write_electra, "ElectraModel", "ElectraForCausalLM"),
}
FREE = ("layers", "decoder_layers", "dropout", "attention_dropout", "pad_id", "cls_id", "sep_id", "start_id")
"""What the two halves may differ in."""


def read_both(c: Fields) -> Architecture:
    """Both halves as one architecture: they must be of one family and one shape, but for their number of layers."""
    encoder, decoder = (_half(c, name) for name in ("encoder", "decoder"))
    for field in fields(Architecture):
        one, two = getattr(encoder, field.name), getattr(decoder, field.name)
        if field.name not in FREE and one != two:
            problem = (
                f"encoder and decoder differ in {field.name} ({one!r} and {two!r}); we can only build halves alike"
            )
            raise UserError(problem, where=c.where)
    start = c.identity("decoder_start_token_id", encoder.cls_id)
    return replace(encoder, decoder_layers=decoder.layers, start_id=start)


def _half(c: Fields, name: str) -> Architecture:
    where = f"{c.where}: {name}"
    values = c.values.get(name)
    if not isinstance(values, dict):
        raise UserError("no such half", where=where)
    kind = values.get("model_type")
    if kind not in HALVES:
        raise UserError(f"a model of type {kind!r}; we read {', '.join(HALVES)} here", where=where)
    values = dict(values)
    if name == "decoder":
        for flag in ("is_decoder", "add_cross_attention"):
            if values.pop(flag, None) is not True:
                raise UserError("a decoder that does not look at its encoder", where=f"{where}: {flag}")
    values["architectures"] = ["ElectraForMaskedLM"]  # of the families, ELECTRA alone asks: it answers in words
    return HALVES[kind].read(Fields(values, type(c.where)(where)))


def write_both(a: Architecture) -> dict[str, Any]:
    """The configuration of an encoder and its decoder."""
    half = HALVES[a.family]
    common = {"tie_word_embeddings": a.tied, "torch_dtype": "float32"}
    encoder = half.write(a) | common | {"architectures": [half.encoder]}
    decoder = half.write(replace(a, layers=a.decoder_layers)) | common | {"architectures": [half.decoder]}
    return {
        "model_type": TYPE,
        "architectures": ["EncoderDecoderModel"],
        "encoder": encoder,
        "decoder": decoder | {"is_decoder": True, "add_cross_attention": True},
        "is_encoder_decoder": True,
        "decoder_start_token_id": a.start_id,
        "bos_token_id": a.cls_id,
        "eos_token_id": a.sep_id,
        "pad_token_id": a.pad_id,
        **common,
    }
