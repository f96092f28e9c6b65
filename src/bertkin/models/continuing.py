"""A model that was trained before, made ready to be trained on: whole, with the heads it is asked for, with room for
new words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from bertkin.config import AUTO, Model
from bertkin.errors import UserError
from bertkin.models.architecture import Architecture
from bertkin.models.embeddings import Embeddings
from bertkin.models.heads import AnyModel, BoundaryHead, LanguageModel, Replaced, SentenceHead, VocabularyHead
from bertkin.models.initial import initialise
from bertkin.models.pals import Projected
from bertkin.models.pretrained import GENERATOR, find_folder, load_model
from bertkin.models.transformer import Attention, Stack


def load_whole(path: str | Path, *, sentence: bool = False, boundary: bool = False) -> AnyModel:
    """What a folder holds, as it was trained: of an ELECTRA, generator and all. Float32, in evaluation mode.

    Args:
        path: as for `load_model`.
        sentence, boundary: give it these heads, drawn anew, if it has none.

    Raises:
        UserError: as `load_model`; or an ELECTRA without its other half.
    """
    folder = find_folder(path)
    model = load_model(folder)
    a = model.architecture
    if a.both and not a.one_table:
        what = "an encoder with a decoder that was made for a task; pretraining has no objective for it"
        raise UserError(what, where=folder, mend="fine-tune it, or go on with the encoder it was begun from")
    if a.family == "electra":
        return _with_generator(model, folder)
    with torch.no_grad():
        if sentence and model.sentence is None:
            model.sentence = SentenceHead(a)
            initialise(model.sentence, a, torch.Generator().manual_seed(1))
        if boundary and model.boundary is None:
            model.boundary = BoundaryHead(a)
            initialise(model.boundary, a, torch.Generator().manual_seed(2))
    return model


def _with_generator(model: LanguageModel, folder: Path) -> Replaced:
    """Both halves of an ELECTRA, reading with one table."""
    if model.detect is None:
        what = "only an ELECTRA's generator, which is trained beside the model that finds replaced tokens"
        raise UserError(what, where=folder, mend=f"give that model's folder, with this one inside as {GENERATOR}/")
    if not (folder / GENERATOR / "config.json").is_file():
        what = "an ELECTRA without its generator cannot be trained on"
        raise UserError(what, where=folder, mend=f"put the generator's folder inside, as {GENERATOR}/")
    small = load_model(folder / GENERATOR)
    a, g = model.architecture, small.architecture
    if small.head is None or (g.family, g.vocab_size, g.row_width) != ("electra", a.vocab_size, a.row_width):
        what = "not the generator of this ELECTRA: it reads with another table"
        raise UserError(what, where=folder / GENERATOR, mend="put the one it was trained with there")
    a = replace(a, generator=g.hidden / a.hidden)
    with torch.device("meta"):
        whole = Replaced(a, g)
    model.architecture = a
    whole.model, whole.generator = model, small
    whole.tie()
    return whole.eval()


def shape_of(a: Architecture) -> Model:
    """An architecture in the words of a recipe, for people to read: the folder itself says what is built."""
    windows = [window for window in a.windows if window]
    return Model(
        family=a.family,
        layers=a.layers,
        decoder_layers=a.decoder_layers,
        hidden=a.hidden,
        heads=a.heads,
        kv_heads=a.key_heads,
        intermediate=a.intermediate,
        positions=a.positions,  # type: ignore[arg-type]
        start="random",
        max_length=a.max_length,
        dropout=0.0,
        attention_dropout=0.0,
        local_window=windows[0] if windows else AUTO,
        global_every=a.windows.index(None, 1) if windows and None in a.windows[1:] else 1,
        embedding=a.embedding,
        groups=a.groups,
        generator=a.generator,
        vocab_size=a.vocab_size,
    )


def set_dropout(model: nn.Module, dropout: float, attention_dropout: float) -> None:
    """Let a model drop out these shares when it trains; its configuration keeps what it came with."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            attends = isinstance(module, Attention | Projected)
            module.dropout = attention_dropout if attends else dropout  # type: ignore[assignment]


def grow_vocabulary(model: AnyModel, first: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give new words rows of their own in every table over the vocabulary: the means of their pieces' rows.

    So a new word is read, and answered, as its pieces were on average.

    Args:
        first: id of the first new word; rows from there on, if there are any, belong to no token.
        pieces: for each new word, the ids it was cut into.
    """
    size = max(first + len(pieces), _size(model))
    seen: dict[int, nn.Parameter] = {}

    def wider(parameter: nn.Parameter) -> nn.Parameter:
        """One parameter that several modules share stays one."""
        return seen.setdefault(id(parameter), nn.Parameter(_with_rows(parameter.data, first, pieces, size)))

    for module in list(model.modules()):
        if isinstance(module, Embeddings):
            module.tokens = wider(module.tokens)
        if isinstance(module, VocabularyHead):
            module.table = None if module.table is None else wider(module.table)
            module.bias = None if module.bias is None else wider(module.bias)
        if isinstance(module, LanguageModel | Replaced | Stack):
            module.architecture = replace(module.architecture, vocab_size=size)


def _size(model: AnyModel) -> int:
    return model.architecture.vocab_size


def _with_rows(table: Tensor, first: int, pieces: Sequence[Sequence[int]], size: int) -> Tensor:
    """[rows, …] as [size, …], with the mean of each word's pieces from `first` on."""
    wide = table.new_zeros(size, *table.shape[1:])
    wide[: len(table)] = table
    for number, word in enumerate(pieces, start=first):
        wide[number] = table[list(word)].mean(dim=0)
    return wide
