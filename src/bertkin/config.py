"""The recipe of a run: four frozen dataclasses, one a room, whose field docstrings are help text and documentation.

A field left at `AUTO` is filled in later: by the preset (`bertkin.models.presets`), by the corpus (vocabulary size) or
by the budget (steps). What a run really used is written out whole in its `recipe.yaml`.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bertkin.errors import UserError, nearest

AUTO: Any = None
BUDGETS = ("steps", "tokens", "epochs", "minutes")
"""Fields of `Train` of which one is given."""

Documents = Literal["auto", "file", "blank", "line"]
TokenizerKind = Literal["wordpiece", "bpe", "byte-bpe", "unigram", "character", "word"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Data:
    """What is read: the corpus, how it is cut into documents and tokens, and what is held out."""

    corpus: tuple[str, ...] = ()
    """Files, folders, globs, or - for standard input."""
    field: str = "text"
    """Column or JSON field that holds the text."""
    fields: str = AUTO
    """Several fields, as title,body: a document is all of them in any order, each between marks of its own, so that each
    can be written given the others."""
    documents: Documents = "auto"
    """What a document is in a .txt file: the whole file, a block between blank lines, or a line. auto: a blank-line block."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8: stop and say where, or replace them and go on."""
    max_words: int = AUTO
    """Read no more than about this many words (whole documents, in order)."""
    tokenizer: str = AUTO
    """A tokenizer.json or a folder that holds one; by default one is trained on the corpus."""
    tokenizer_kind: TokenizerKind = AUTO
    """Kind of tokenizer to train when none is given."""
    vocab_size: int = AUTO
    """Vocabulary size; by default 8,192 near 10M words, 16,384 near 100M, 32,768 above."""
    sentinels: int = AUTO
    """Tokens <extra_id_N> that stand for hidden spans, for T5; by default 100 with a t5 preset, else none."""
    lowercase: bool = AUTO
    """Lowercase the text (WordPiece, Unigram, word and character tokenizers); by default yes, but for t5."""
    grow_vocab: int = 0
    """How many of the corpus's own words the tokenizer of --train.init is given, each as one token."""
    keep_text: str = AUTO
    """Other text, such as what --train.init learnt from, whose held-out loss is measured beside the corpus's."""
    heldout: float = 0.01
    """Share of the documents held out for evaluation, chosen by a hash of their text."""
    workers: int = AUTO
    """Processes that prepare the corpus; by default one a core."""
    cache: str = AUTO
    """Folder for prepared corpora; by default ~/.cache/bertkin (or $BERTKIN_CACHE)."""


@dataclass(frozen=True)
class Model:
    """What reads: the shape of the Transformer. See `bertkin.models.presets` for the families."""

    family: Literal["bert", "roberta", "modern", "albert", "electra", "gpt2", "llama", "bart", "t5"] = AUTO
    """Architecture family; set by --preset."""
    layers: int = AUTO
    """Transformer layers; of the encoder, where there is a decoder too."""
    decoder_layers: int = AUTO
    """Layers of the decoder (bart, t5); by default as many as the encoder's."""
    hidden: int = AUTO
    """Width of the residual stream."""
    heads: int = AUTO
    """Attention heads; must divide the width."""
    kv_heads: int = AUTO
    """Heads of the keys and values, each shared by a group of heads (llama); must divide the heads."""
    intermediate: int = AUTO
    """Width inside the feed-forward block."""
    positions: Literal["learned", "sinusoidal", "rotary", "relative"] = AUTO
    """How position enters: a learned table, fixed sinusoids, rotation of queries and keys, or offsets of the attention
    scores by distance (t5)."""
    start: Literal["neighbours", "random"] = AUTO
    """How the first layer's heads begin: each looking at one neighbour (by default where positions are learned: bert,
    roberta, gpt2; bart can too), or drawn like all else, as published."""
    max_length: int = AUTO
    """Longest sequence, in tokens."""
    dropout: float = AUTO
    """Dropout after embeddings, attention and feed-forward."""
    attention_dropout: float = AUTO
    """Dropout on attention weights."""
    local_window: int = AUTO
    """Width of the sliding window of local layers (modern), in tokens."""
    global_every: int = AUTO
    """Every n-th layer sees the whole sequence, the others the window (modern)."""
    embedding: int = AUTO
    """Width of the token rows before they are projected to the hidden width (albert, electra)."""
    groups: int = AUTO
    """Groups of layers that share their weights (albert)."""
    generator: float = AUTO
    """Width of the generator as a share of the model's (electra)."""
    vocab_size: int = AUTO
    """Rows of the embedding table; set from the tokenizer."""


@dataclass(frozen=True)
class Objective:
    """What is hidden, and what answers."""

    kind: Literal["masked", "causal", "prefix", "hybrid", "unilm", "replaced", "denoise"] = AUTO
    """masked (BERT), causal (GPT), prefix (a read beginning, a written rest), hybrid (causal and masked by turns), unilm
    (both sides, left only, prefix), replaced (ELECTRA), denoise (BART, T5, MASS: see noise)."""
    noise: str = AUTO
    """What an encoder–decoder repairs: masking, deletion, infilling, permutation or rotation (joined by + they are done one
    after the other), mass, spans, drop or prefix; noise:share pairs are mixed, as in spans:0.5,prefix:0.5."""
    causal_share: float = 0.5
    """Share of the sequences that hybrid reads from the left only."""
    unit: Literal["token", "word", "span", "phrase", "entity"] = AUTO
    """What is hidden at once: a token, a whole word, a span of words of geometric length, a phrase found in the corpus, or
    an entity of a list."""
    phrases: str = AUTO
    """A file with a phrase or entity on each line; by default phrases are found in the corpus by collocation."""
    boundary: bool = False
    """Ask each hidden token a second time, of the tokens beside its span alone (SpanBERT)."""
    adaptive: float = 0.0
    """How much more often tokens that are predicted badly are hidden; 0 for all alike."""
    rate: float = AUTO
    """Share of the tokens that are asked."""
    rate_end: float = AUTO
    """Share at the end of training, reached linearly; by default the same as the rate."""
    mask_share: float = AUTO
    """Of the asked tokens, the share replaced by [MASK]."""
    random_share: float = AUTO
    """Of the asked tokens, the share replaced by a random token; the rest stay as they are."""
    span_mean: float = 3.0
    """Mean span length: in words for unit span, in tokens for infilling and spans."""
    static: bool = False
    """Draw each row's mask once and keep it in every epoch, as the original BERT; otherwise anew each time."""
    sentence: Literal["none", "next", "order"] = AUTO
    """A second objective on sentence pairs: next sentence prediction (BERT) or sentence order (ALBERT)."""
    sentence_weight: float = 1.0
    """Weight of the sentence objective in the sum."""
    replaced_weight: float = 50.0
    """Weight of finding replaced tokens beside the generator's loss (ELECTRA)."""


@dataclass(frozen=True)
class Train:
    """How it learns: budget, batch, optimiser, schedule, and what is kept."""

    init: str = AUTO
    """A model to go on with, instead of weights drawn anew: a run folder, a model folder, or a hub id."""
    steps: int = AUTO
    """Budget in optimiser steps."""
    tokens: int = AUTO
    """Budget in tokens."""
    epochs: float = AUTO
    """Budget in passes over the corpus."""
    minutes: float = AUTO
    """Budget in minutes of training; the schedule follows the clock."""
    batch_tokens: int = AUTO
    """Tokens a step, over all processes and accumulation."""
    length: int = AUTO
    """Tokens a row."""
    lengths: str = AUTO
    """Length curriculum as length:share pairs, such as 128:0.7,256:0.2,512:0.1."""
    batch_ramp: float = 0.0
    """Share of the budget over which the batch grows from a quarter to its full size."""
    accumulate: int = 1
    """Split each step into this many passes to save memory."""
    optimizer: Literal["adamw", "lamb", "muon"] = AUTO
    """adamw; lamb (large batches); muon (orthogonalised matrices, AdamW on the rest)."""
    lr: float = AUTO
    """Peak learning rate (for muon: of everything but the matrices)."""
    matrix_lr: float = AUTO
    """Peak learning rate of Muon's matrices."""
    table_lr: float = AUTO
    """Peak learning rate of the table of tokens; by default that of all; in pretraining, divided by what scales the logits
    (T5)."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = AUTO
    """Shape of the rate after warm-up; wsd stays at the peak and falls over the last part."""
    warmup: float = AUTO
    """Share of the budget spent warming up."""
    decay: float = 0.3
    """Share of the budget over which wsd falls."""
    layer_decay: float = 1.0
    """Rate of each layer as a share of that of the layer above it; 1 for one rate (ULMFiT, Howard & Ruder 2018)."""
    unfreeze: float = 0.0
    """Share of the budget over which layers begin to learn one after the other, from the top, the embeddings last; 0 for
    all from the start."""
    weight_decay: float = AUTO
    """Decoupled weight decay, on matrices only."""
    beta2: float = AUTO
    """Second-moment decay of AdamW and LAMB."""
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is saved; 0 for none."""
    z_loss: float = 0.0
    """Weight of the squared log-partition penalty."""
    precision: Precision = "auto"
    """Compute type; auto measures which is faster here. Master weights are float32 always."""
    eval_every: float = AUTO
    """Evaluate every this many steps, or, below 1, every such share of the budget."""
    eval_rows: int = 256
    """Held-out rows an evaluation reads."""
    patience: int = 0
    """Stop after this many evaluations without a better score; 0 for never."""
    final: Literal["best", "last"] = AUTO
    """Weights that are there at the end: those of the best evaluation (fine-tuning) or the last ones (pretraining)."""
    checkpoint_every: int = AUTO
    """Write a checkpoint every this many steps; by default about every 2 minutes."""
    keep: int = 2
    """Newest checkpoints kept, besides the best."""
    seed: int = 0
    """Seed of everything random."""
    threads: int = AUTO
    """Processor threads; by default all cores."""
    device: str = "auto"
    """cpu, cuda or auto."""
    tensorboard: bool = False
    """Write TensorBoard files beside log.jsonl."""


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a run what it is."""

    preset: str = "modern-mini"
    """FAMILY-SIZE: bert, roberta, modern, albert, electra, gpt2, llama, bart or t5; tiny, mini, small, medium, base or
    large."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    train: Train = field(default_factory=Train)


def rooted(path: str) -> str:
    """A path from the root, so that it means the same from anywhere; none as it is."""
    return path and str(Path(os.path.expanduser(path)).absolute())  # ~backup.tsv is a name like others


def merge(base: Any, over: Any) -> Any:
    """`base` with every field that `over` sets (differs from its class default), dataclass by dataclass."""
    changes = {}
    for f in fields(base):
        mine, theirs = getattr(base, f.name), getattr(over, f.name)
        if is_dataclass(mine):
            changes[f.name] = merge(mine, theirs)
        elif theirs != f.default:
            changes[f.name] = theirs
    return replace(base, **changes)


def fill_auto(config: Any, **defaults: Any) -> Any:
    """`config` with each named field that is still `AUTO` set to its default."""
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is AUTO})


def from_mapping(cls: type, mapping: Any, where: str) -> Any:
    """Build a config dataclass from nested plain data, refusing unknown names and wrong types.

    Raises:
        UserError: naming the field, what it holds and what it should.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"expected a table of fields, found {type(mapping).__name__}", where=where)
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in known:
            raise UserError(f"unknown field {name!r}", where=where, mend=nearest(str(name), sorted(known)))
        values[name] = _checked(hints[name], value, f"{where}: {name}")
    return cls(**values)


def _checked(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value if value is not None else {}, where)
    if value is None:
        return AUTO
    origin = typing.get_origin(hint)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{value!r} is not a choice", where=where, mend=nearest(str(value), typing.get_args(hint)))
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise UserError(f"expected a list of words, found {value!r}", where=where)
        return tuple(items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 5e-4 as a word
        try:
            return float(value)
        except ValueError:
            pass
    kind = origin or hint
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"expected {kind.__name__}, found {value!r}", where=where)
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """The plain data of a config, ready for YAML or JSON; the inverse of `from_mapping`."""
    plain = dataclasses.asdict(config)
    return typing.cast(dict[str, Any], _plain(plain))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def load_yaml(path: str | Path, missing: str = "no such recipe", mend: str = "see recipes/ for some") -> Any:
    """The plain data of a YAML file.

    Args:
        missing, mend: what is said where there is no such file.

    Raises:
        UserError: the file is missing, or is not YAML.
    """
    import yaml

    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing, where=path, mend=mend) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"not YAML: {problem}", where=f"{path}{line}") from None
    except ValueError as error:  # a YAML date or number that Python cannot hold
        raise UserError(f"not YAML: {error}", where=path) from None


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from YAML.

    Raises:
        UserError: as `load_yaml`; or it has a field we do not know or cannot use.
    """
    return typing.cast(Recipe, from_mapping(Recipe, {} if (found := load_yaml(path)) is None else found, str(path)))


def dump_recipe(recipe: Any) -> str:
    """A recipe, of pretraining or of fine-tuning, as YAML, every field written out."""
    import yaml

    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)
