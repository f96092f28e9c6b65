"""The verbs that grow models from text: `bertkin tokenizer`, `prepare`, `pretrain`, `adapt`, `resume`, `demo`. See
`bertkin.cli`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from bertkin.config import Data, Documents, Model, Objective, TokenizerKind, Train, dump_recipe
from bertkin.errors import UserError
from bertkin.options import STDIN, given, typed
from bertkin.terminal import Flag, Quiet, leads, listener, whole_text

if TYPE_CHECKING:
    from bertkin.text.tokenizer import Tokenizer
    from bertkin.train.loop import Result

tokenizers = App(name="tokenizer", help="Train a tokenizer on a corpus, or look at one.")

CORPUS_HELP = "Files, folders or globs of text (.txt .jsonl .csv .tsv .parquet, .gz .zst …), or - for standard input."
Corpus = Annotated[str, Parameter(help=CORPUS_HELP)]

DataOptions = given(Data, leave_out=["corpus"], short=["encoding_errors", "fields", "grow_vocab", "keep_text"])
NO_READING = ("corpus", "grow_vocab", "keep_text")
ReadingOptions = given(Data, leave_out=NO_READING, short=[f for f in Data.__dataclass_fields__ if f not in NO_READING])
ModelOptions, ObjectiveOptions, TrainOptions = given(Model), given(Objective), given(Train)


@tokenizers.command(name="train")
def tokenizer_train(
    *corpus: Corpus,
    out: Path = Path("tokenizer"),
    kind: TokenizerKind = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    normal_form: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None,
    split_chinese: bool = True,
    sentinels: int = 0,
    field: str = "text",
    documents: Documents = "auto",
    encoding_errors: Literal["strict", "replace"] = "strict",
    max_words: int | None = None,
    overwrite: Annotated[bool, Flag] = False,
) -> None:
    """Train a tokenizer on a corpus, save it, and report how well it fits.

    Parameters
    ----------
    out
        Folder to save it in; transformers opens it too.
    kind
        wordpiece (BERT), bpe, byte-bpe (RoBERTa, GPT-2), unigram (SentencePiece), character (Chinese), or word.
    vocab_size
        Tokens; by default 8,192 near 10M words, 16,384 near 100M, 32,768 above.
    lowercase
        Lowercase the text (not bpe and byte-bpe).
    strip_accents
        Take accents off; by default when lowercasing.
    normal_form
        Unicode normal form applied first.
    split_chinese
        Make every Chinese character a word of its own.
    sentinels
        How many <extra_id_N> the vocabulary ends with, for T5 (which has 100).
    field
        Column or JSON field that holds the text.
    documents
        What a document is in a .txt file: the file, a block between blank lines, or a line.
    encoding_errors
        Stop at bytes that are not UTF-8, or replace them.
    max_words
        Read no more than about this many words.
    overwrite
        Replace a tokenizer that is there.
    """
    if (out / "tokenizer.json").exists() and not overwrite:
        raise UserError("holds a tokenizer already", where=out, mend="choose another --out or give --overwrite")
    from bertkin.api import train_tokenizer

    reading: dict[str, Any] = {"field": field, "documents": documents, "encoding_errors": encoding_errors}
    corpus = _named(corpus)
    tokenizer = train_tokenizer(
        corpus,
        out=out,
        kind=kind,
        vocab_size=vocab_size,
        lowercase=lowercase,
        strip_accents=strip_accents,
        normal_form=normal_form,
        split_chinese=split_chinese,
        sentinels=sentinels,
        max_words=max_words,
        **reading,
    )
    print(f"saved in {out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens")
    _report(tokenizer, corpus, reading)


@tokenizers.command(name="show")
def tokenizer_show(
    path: Path,
    /,
    *corpus: Corpus,
    text: Annotated[list[str] | None, Parameter(negative="")] = None,
    field: str = "text",
    documents: Documents = "auto",
    encoding_errors: Literal["strict", "replace"] = "strict",
) -> None:
    """Show what a tokenizer is, how well it fits a corpus, and what it makes of a text.

    Parameters
    ----------
    path
        A tokenizer.json, or a folder that holds one (a run or a model will do).
    text
        A text to cut into tokens; may be given several times.
    field
        Column or JSON field that holds the text.
    documents
        What a document is in a .txt file: the file, a block between blank lines, or a line.
    encoding_errors
        Stop at bytes that are not UTF-8, or replace them.
    """
    from bertkin.text.tokenizer import Tokenizer

    inner = path / "tokenizer"
    tokenizer = Tokenizer.load(inner if (inner / "tokenizer.json").exists() else path)
    specials = " ".join(f"{tokenizer.token(i)}={i}" for i in tokenizer.special_ids[:12])
    print(f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens; special: {specials or 'none'}")
    for one in text or ():
        ids = tokenizer.encode(whole_text(one))
        print(f"  {one}\n    → {' '.join(tokenizer.token(i) for i in ids)}\n      {' '.join(map(str, ids))}")
    if corpus:
        _report(tokenizer, _named(corpus), {"field": field, "documents": documents, "encoding_errors": encoding_errors})


def _report(tokenizer: Tokenizer, corpus: Sequence[str], reading: dict[str, Any]) -> None:
    from bertkin.text.readers import read_documents
    from bertkin.text.tokenizer import report

    print("\n".join(report(tokenizer, read_documents(corpus, **reading)).lines()))


def prepare(
    *corpus: Corpus,
    preset: str = "modern-mini",
    data: Annotated[ReadingOptions, Parameter(name="*")] = ReadingOptions(),  # type: ignore[valid-type]  # noqa: B008
    quiet: Quiet = False,
) -> None:
    """Turn a corpus into a token store now, so that a later pretrain with the same options starts at once.

    Parameters
    ----------
    preset
        Decides the kind of tokenizer to train, where none is given.
    """
    from bertkin import api

    store = api.prepare(_named(corpus), preset=preset, listener=listener(quiet), **typed(data))
    print(f"store    {store.folder}")
    for split, name in ((store.train, "train   "), (store.heldout, "held out")):
        print(f"{name} {split.n_documents:,} documents, {split.n_tokens:,} tokens")


def pretrain(
    *corpus: Corpus,
    preset: str | None = None,
    out: Path | None = None,
    config: Path | None = None,
    overwrite: Annotated[bool, Flag] = False,
    print_config: Annotated[bool, Flag] = False,
    quiet: Quiet = False,
    data: Annotated[DataOptions, Parameter(group=Group("Data", sort_key=1))] = DataOptions(),  # type: ignore[valid-type]  # noqa: B008
    model: Annotated[ModelOptions, Parameter(group=Group("Model", sort_key=2))] = ModelOptions(),  # type: ignore[valid-type]  # noqa: B008
    objective: Annotated[ObjectiveOptions, Parameter(group=Group("Objective", sort_key=3))] = ObjectiveOptions(),  # type: ignore[valid-type]  # noqa: B008
    train: Annotated[TrainOptions, Parameter(group=Group("Train", sort_key=4))] = TrainOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Grow a language model from raw text. What it costs is said first; Ctrl-C saves.

    A preset counts for less than a recipe file, and a recipe file for less than an option.

    Parameters
    ----------
    preset
        FAMILY-SIZE: bert, roberta, modern, albert, electra, gpt2, llama, bart or t5; tiny, mini, small, medium, base or
        large. [default: modern-mini]
    out
        Run folder to make. [default: runs/PRESET]
    config
        Recipe in YAML; see recipes/, or the recipe.yaml of any run.
    overwrite
        Empty the run folder first if it exists.
    print_config
        Print the whole recipe that would be used, and stop.
    """
    from bertkin.api import make_recipe

    options = {"data": typed(data), "model": typed(model), "objective": typed(objective), "train": typed(train)}
    recipe = make_recipe(_named(corpus), preset=preset, config=config, options=options)
    if print_config:
        from bertkin.train.setup import complete

        print(dump_recipe(complete(recipe)), end="")
        return
    from bertkin.train import pretraining

    out = out or Path("runs") / recipe.preset
    _show(pretraining.pretrain(recipe, out, listener=listener(quiet), overwrite=overwrite))


def adapt(
    model: str,
    /,
    *corpus: Corpus,
    out: Path | None = None,
    config: Path | None = None,
    overwrite: Annotated[bool, Flag] = False,
    quiet: Quiet = False,
    data: Annotated[DataOptions, Parameter(group=Group("Data", sort_key=1))] = DataOptions(),  # type: ignore[valid-type]  # noqa: B008
    objective: Annotated[ObjectiveOptions, Parameter(group=Group("Objective", sort_key=3))] = ObjectiveOptions(),  # type: ignore[valid-type]  # noqa: B008
    train: Annotated[TrainOptions, Parameter(group=Group("Train", sort_key=4))] = TrainOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Go on pretraining a model on new text: bertkin adapt bert-base-uncased corpus/ --grow-vocab 500

    It is asked what it was asked before, at a tenth of the rates. Held-out loss is measured before and after.

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    out
        Run folder to make. [default: runs/adapted]
    config
        Recipe in YAML.
    overwrite
        Empty the run folder first if it exists.
    """
    from bertkin.api import adapt as go_on
    from bertkin.train.changes import table

    options = {"data": typed(data), "objective": typed(objective), "train": typed(train)}
    out = out or Path("runs") / "adapted"
    result = go_on(
        model, _named(corpus), out=out, config=config, overwrite=overwrite, listener=listener(quiet), **options
    )
    if leads():
        print(table(result.run))
    _show(result)


def resume(run: Path, /, *, quiet: Quiet = False) -> None:
    """Go on with a run that was stopped; it ends with the same weights as one that never was.

    Parameters
    ----------
    run
        The run folder.
    """
    from bertkin.tasking import show, show_search, show_together
    from bertkin.tasks import finetune, search, together
    from bertkin.tasks.joining import is_together
    from bertkin.train import pretraining

    if is_together(run):
        show_together(together.resume_together(run, listener=listener(quiet)))
    elif search.is_search(run):
        show_search(search.resume_search(run, listener=listener(quiet)))
    elif finetune.is_tuning(run):
        show(finetune.resume(run, listener=listener(quiet)))
    else:
        _show(pretraining.resume(run, listener=listener(quiet)))


def demo(
    *,
    minutes: float = 4.0,
    out: Path | None = None,
    preset: str = "modern-mini",
    words: int = 3_000_000,
) -> None:
    """Grow a small BERT from the documentation in your own Python, and see what it has learnt.

    Parameters
    ----------
    minutes
        Time to train.
    out
        Run folder to make. [default: runs/demo, or the next that is free]
    preset
        FAMILY-SIZE of the model.
    words
        Words of documentation to read at most.
    """
    from bertkin.tasks.demo import run

    run(minutes=minutes, out=out, preset=preset, words=words)


def _show(result: Result) -> None:
    """How a run ended, where it is, and what to do with it."""
    from bertkin.objectives.make import FILLERS, WRITERS

    if not leads():
        return
    learnt = [f"held-out loss {result.loss:.3f}"] if math.isfinite(result.loss) else []
    learnt += [f"accuracy {result.accuracy:.1%}"] if math.isfinite(result.accuracy) else []
    spent = [f"{result.step:,} steps", f"{result.tokens:,} tokens", f"{result.minutes:.1f} minutes"]
    print(" · ".join(learnt + spent))
    print(f"run      {result.run} (report.html shows how it went)")
    if result.kind in FILLERS:
        print(f'next     bertkin fill {result.run} "Text with a [MASK] in it."')
    if result.kind in WRITERS:
        print(f'next     bertkin generate {result.run} "How a text begins"')


def _named(corpus: Sequence[str]) -> tuple[str, ...]:
    return tuple("-" if path == STDIN else path for path in corpus)
