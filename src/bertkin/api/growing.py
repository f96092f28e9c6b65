"""Growing models from text: tokenizers, stores, pretraining, going on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertkin.config import AUTO, BUDGETS, Recipe, TokenizerKind, from_mapping, load_recipe, merge
from bertkin.errors import UserError

if TYPE_CHECKING:
    from bertkin.text.store import Store
    from bertkin.text.tokenizer import NormalForm, Tokenizer
    from bertkin.train.loop import Result
    from bertkin.train.progress import Listener


Paths = str | Path | Sequence[str | Path]


def make_recipe(
    corpus: Paths = (),
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe from a file and from what is said beside it, which counts for more.

    Args:
        corpus: files, folders, globs; by default the file's.
        preset: FAMILY-SIZE; by default the file's, or modern-mini.
        config: a recipe in YAML.
        options: fields by dotted name, {"train.minutes": 1}, or by room, {"train": {"minutes": 1}}.

    Raises:
        UserError: a field we do not know or cannot use.
    """
    recipe = load_recipe(config) if config else Recipe()
    given = _nested(options or {})
    checked = from_mapping(Recipe, given, "options")
    for room, values in given.items():
        kept = getattr(recipe, room)
        if room == "train" and any(name in BUDGETS for name in values):  # a new budget takes the place of the old
            kept = replace(kept, **dict.fromkeys(BUDGETS, AUTO))
        changes = {name: getattr(getattr(checked, room), name) for name in values}
        recipe = replace(recipe, **{room: replace(kept, **changes)})
    if preset is not None:
        recipe = replace(recipe, preset=preset)
    sources = listed(corpus)
    if sources:
        recipe = replace(recipe, data=replace(recipe.data, corpus=sources))
    return recipe


def _nested(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by room; one that is in no room is refused."""
    rooms = [f.name for f in fields(Recipe) if f.name != "preset"]
    nested: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        room, _, field = name.partition(".")
        if room in rooms and (field or isinstance(value, Mapping)):
            nested.setdefault(room, {}).update({field: value} if field else value)
        else:
            raise UserError(
                f"unknown option {name!r}", mend=f"name a field of {', '.join(rooms)}, such as train.minutes"
            )
    return nested


def listed(paths: Paths) -> tuple[str, ...]:
    return (os.fspath(paths),) if isinstance(paths, str | Path) else tuple(os.fspath(path) for path in paths)


def train_tokenizer(
    corpus: Paths,
    *,
    out: str | Path | None = None,
    kind: TokenizerKind = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    normal_form: NormalForm | None = None,
    split_chinese: bool = True,
    sentinels: int = 0,
    **reading: Any,
) -> Tokenizer:
    """Train a tokenizer on a corpus and, if `out` is given, save it there.

    Args:
        corpus: files, folders, globs.
        out: a folder, which `transformers` opens too.
        kind, vocab_size, lowercase, strip_accents, normal_form, split_chinese, sentinels:
            see `bertkin.text.tokenizer.train_tokenizer`.
        reading: field, documents, encoding_errors, max_words, cache; see `bertkin.config.Data`.

    Raises:
        UserError: the corpus cannot be read, or cannot fill the vocabulary.
    """
    from bertkin.text.cache import tokenizer_for

    tokenizer = tokenizer_for(
        listed(corpus),
        kind=kind,
        vocab_size=vocab_size,
        lowercase=lowercase,
        strip_accents=strip_accents,
        normal_form=normal_form,
        split_chinese=split_chinese,
        sentinels=sentinels,
        **reading,
    )
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def prepare(corpus: Paths, *, preset: str = "modern-mini", listener: Listener | None = None, **data: Any) -> Store:
    """Turn a corpus into a token store, so that a pretraining with the same options finds it made.

    Args:
        corpus: files, folders, globs.
        preset: decides the kind of tokenizer, where none is given.
        listener: who is told how it goes.
        data: fields of `bertkin.config.Data`.

    Raises:
        UserError: anything about the corpus.
    """
    from bertkin.models.presets import preset as preset_recipe
    from bertkin.train.progress import QuietListener
    from bertkin.train.setup import read_corpus

    asked = make_recipe(corpus, preset=preset, options={"data": data}).data
    listener = listener or QuietListener()
    try:
        return read_corpus(merge(preset_recipe(preset).data, asked), listener.preparing)[1]
    finally:
        listener.close()


def pretrain(
    corpus: Paths = (),
    *,
    out: str | Path,
    preset: str | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Grow a language model from raw text into a run folder.

    Args:
        corpus: files, folders, globs; by default what the recipe file says.
        out: the run folder.
        preset: FAMILY-SIZE, such as modern-mini or bert-base.
        config: a recipe in YAML.
        overwrite: empty the run folder first.
        listener: who is told how it goes; by default a bar on standard error.
        options: any field of `bertkin.config`, as train={"minutes": 1} or **{"train.minutes": 1}.

    Raises:
        UserError: something about the recipe, the corpus or the disk will not do.
    """
    recipe = make_recipe(corpus, preset=preset, config=config, options=options)
    from bertkin.train import pretraining
    from bertkin.train.progress import RichListener

    return pretraining.pretrain(recipe, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def adapt(
    model: str | Path,
    corpus: Paths = (),
    /,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Go on pretraining a model on new text (Gururangan et al. 2020) into a run folder.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        options: as for `pretrain`; data.grow_vocab gives the model words of the corpus's own, data.keep_text names
            other text whose held-out loss is measured too. `bertkin.train.changes` reads what changed.

    Raises:
        UserError: the model cannot be trained on, or as for `pretrain`.
    """
    train = {**options.pop("train", {}), "init": os.fspath(model)}
    return pretrain(
        corpus, out=out, config=config, overwrite=overwrite, listener=listener, **{**options, "train": train}
    )


def resume(run: str | Path, *, listener: Listener | None = None) -> Result:
    """Go on with a run that was stopped; it ends with the same weights as one that never was.

    Raises:
        UserError: not a run folder, or its corpus has changed.
    """
    from bertkin.tasks import finetune as tuning
    from bertkin.tasks import search, together
    from bertkin.tasks.joining import is_together
    from bertkin.train import pretraining
    from bertkin.train.progress import RichListener

    if search.is_search(Path(run)):
        search.resume_search(Path(run), listener=listener or RichListener())  # whose best trial is then the run
    go_on = tuning.resume if tuning.is_tuning(Path(run)) else pretraining.resume
    go_on = together.resume_together if is_together(Path(run)) else go_on
    return go_on(Path(run), listener=listener or RichListener())
