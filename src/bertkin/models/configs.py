"""config.json as transformers has it, read into an `Architecture` and written from one."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from bertkin.errors import UserError
from bertkin.models import configs_decoders as decoders
from bertkin.models import configs_encoders as encoders
from bertkin.models.architecture import Architecture, check
from bertkin.models.configs_both import HALVES, TYPE, read_both, write_both
from bertkin.models.fields import Fields, read_json

OURS = "bertkin"
"""The model_type of architectures that transformers does not have, such as BERT's stack with rotary positions."""


class Family(NamedTuple):
    """How transformers describes a family."""

    model_type: str
    read: Callable[[Fields], Architecture]
    write: Callable[[Architecture], dict[str, Any]]
    head: str
    """Its class with a head that answers in words."""


FAMILIES = {
    "bert": Family("bert", encoders.read_bert, encoders.write_bert, "BertForMaskedLM"),
    "roberta": Family("roberta", encoders.read_roberta, encoders.write_roberta, "RobertaForMaskedLM"),
    "modern": Family("modernbert", encoders.read_modern, encoders.write_modern, "ModernBertForMaskedLM"),
    "albert": Family("albert", encoders.read_albert, encoders.write_albert, "AlbertForMaskedLM"),
    "electra": Family("electra", encoders.read_electra, encoders.write_electra, "ElectraForMaskedLM"),
    "gpt2": Family("gpt2", decoders.read_gpt2, decoders.write_gpt2, "GPT2LMHeadModel"),
    "llama": Family("llama", decoders.read_llama, decoders.write_llama, "LlamaForCausalLM"),
    "bart": Family("bart", decoders.read_bart, decoders.write_bart, "BartForConditionalGeneration"),
    "t5": Family("t5", decoders.read_t5, decoders.write_t5, "T5ForConditionalGeneration"),
}
TASK_CLASSES = {
    "class": "ForSequenceClassification",
    "choice": "ForMultipleChoice",
    "tokens": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
"""What transformers' classes with a task's head end in."""
STEMS = {"modern": "ModernBert", "gpt2": "GPT2"}
"""What they begin with, where it is not the first head's name."""
SENTENCE_HEADS = {"bert": "BertForPreTraining", "albert": "AlbertForPreTraining"}

YOUNGER = {"pooling": "first"}
"""Fields of ours that older folders do not have, and what those mean by it."""


def _ours(c: Fields) -> Architecture:
    hints = typing.get_type_hints(Architecture)
    values: dict[str, Any] = {}
    for f in fields(Architecture):
        value = c.values.get(f.name, YOUNGER.get(f.name))
        if hints[f.name] is bool:
            values[f.name] = c.flag(f.name, False)
        elif hints[f.name] in (int, float):
            values[f.name] = c.number(f.name)
        else:
            values[f.name] = tuple(value) if isinstance(value, list) else value
    if not isinstance(values["windows"], tuple):
        raise UserError(f"expected a list of widths, found {values['windows']!r}", where=f"{c.where}: windows")
    return Architecture(**values)


READERS = {family.model_type: family.read for family in FAMILIES.values()} | {OURS: _ours, TYPE: read_both}


def read_config(path: Path) -> tuple[Architecture, str]:
    """The architecture that a config.json describes, and its model_type.

    Raises:
        UserError: no such file, not JSON, a family we do not read, a field of the wrong kind or that we cannot build.
    """
    if not path.exists():
        raise UserError("no config.json here", where=path.parent, mend="give the folder of a model")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"expected an object, found {type(values).__name__}", where=path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        said = "no model_type" if kind is None else f"a model of type {kind!r}"
        raise UserError(f"{said}; we read {', '.join(READERS)}", where=path)
    return check(READERS[kind](Fields(values, path)), f"{path}: "), kind


def write_config(a: Architecture, *, sentence: bool = False) -> dict[str, Any]:
    """The config.json of an architecture: transformers' own where that says all of it, else ours with our fields."""
    a = replace(a, generator=0.0)  # ELECTRA's generator is a model of its own
    if a.both and a.family in HALVES:
        both = write_both(a)
        return both if read_both(Fields(both, Path("config.json"))) == a else _as_ours(a)
    family = FAMILIES[a.family]
    head = SENTENCE_HEADS.get(a.family, family.head) if sentence else family.head
    head = "ElectraForPreTraining" if a.head == "detect" else head
    values = {"architectures": [head], **family.write(a), "tie_word_embeddings": a.tied, "torch_dtype": "float32"}
    if family.read(Fields(values, Path("config.json"))) != a:
        return _as_ours(a)
    return values


def _as_ours(a: Architecture) -> dict[str, Any]:
    return {"model_type": OURS, "architectures": ["LanguageModel"], **asdict(a)}


def task_class(a: Architecture, head: str) -> str:
    """The class of transformers for a family with the head of a task."""
    stem = STEMS.get(a.family) or FAMILIES[a.family].head.partition("For")[0]
    return stem + TASK_CLASSES[head]
