"""The command line: one verb, one function. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from bertkin import __version__, asking, tasking
from bertkin.config import Data, Documents, Model, Objective, TokenizerKind, Train, dump_recipe
from bertkin.errors import UserError, disk_errors
from bertkin.options import STDIN, given, said, typed
from bertkin.overseeing import check
from bertkin.terminal import Flag, Quiet, listener, texts_of, whole_text

if TYPE_CHECKING:
    from bertkin.text.tokenizer import Tokenizer
    from bertkin.train.loop import Result

ROOM = re.compile(r"^--(objective|strategy)(?==|$)")
"""Written alone it means the room's kind, where the parser would read all of its fields."""
INTERRUPTED, PIPE_CLOSED = 130, 141
"""What a shell expects of a program stopped by Ctrl-C, and of one whose reader has gone."""

app = App(
    name="bertkin",
    help="Grow a BERT from raw text, on the machine you have. Start with: bertkin demo",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
tokenizers = App(name="tokenizer", sort_key=2, help="Train a tokenizer on a corpus, or look at one.")
app.command(tokenizers)
inspect = App(name="inspect", sort_key=9, help="Look inside a model: who may see whom.")
app.command(inspect)
app.command(check)

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


@app.command(sort_key=3)
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


@app.command(sort_key=4)
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


@app.command(sort_key=5)
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
    if os.environ.get("RANK", "0") == "0":
        print(table(result.run))
    _show(result)


@app.command(sort_key=5)
def resume(run: Path, /, *, quiet: Quiet = False) -> None:
    """Go on with a run that was stopped; it ends with the same weights as one that never was.

    Parameters
    ----------
    run
        The run folder.
    """
    from bertkin.tasks import finetune
    from bertkin.train import pretraining

    if finetune.is_tuning(run):
        tasking.show(finetune.resume(run, listener=listener(quiet)))
    else:
        _show(pretraining.resume(run, listener=listener(quiet)))


@app.command(sort_key=6)
def fill(
    model: str,
    /,
    *texts: str,
    file: Path | None = None,
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 5,
    order: Literal["once", "confident"] = "once",
    json: Annotated[bool, Flag] = False,
) -> None:
    """Fill the blanks of texts: bertkin fill runs/mine "Paris is the [MASK] of France."

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    texts
        Texts with [MASK] where a word is to be found; without any (or with -) lines are read from standard input.
    file
        A file with a text on each line.
    top_k
        Answers for each blank.
    order
        once: all blanks as if the others stayed blank. confident: the surest first, then the text is read again.
    json
        Write a JSON object a line.
    """
    from bertkin.tasks.fill import fill_stream, load

    wanted = texts_of(texts, file, "text to fill", "Paris is the [MASK] of France.")
    for number, filled in enumerate(fill_stream(load(model), wanted, top_k=top_k, order=order)):
        print(_json(filled.as_dict()) if json else f"{chr(10) if number else ''}{filled}")


@app.command(sort_key=7)
def generate(
    model: str,
    /,
    *prompts: str,
    file: Path | None = None,
    fields: str | None = None,
    want: str | None = None,
    max_new_tokens: int = 64,
    greedy: Annotated[bool, Flag] = False,
    temperature: float = 0.8,
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 0,
    top_p: float = 0.95,
    min_p: float = 0.0,
    beams: int = 1,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: Annotated[list[str] | None, Parameter(negative="")] = None,
    num: Annotated[int, Parameter(name=["--num", "-n"])] = 1,
    seed: int = 0,
    truncate: Literal["left"] | None = None,
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    stream: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Go on with texts: bertkin generate runs/gpt "Once upon a time". An encoder–decoder writes a text for each.

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    prompts
        How a text begins; without any (or with -) lines are read from standard input.
    file
        A file with a prompt on each line.
    fields
        Of a model trained with --fields: what is given, as title=A cat is found,date=2019.
    want
        The fields to write, as body or title,body. [default: all that are not given]
    max_new_tokens
        Tokens to write at most.
    greedy
        Always take the likeliest token; without it, tokens are drawn by chance.
    temperature
        What scores are divided by: below 1 the likely gets likelier, and 0 is --greedy.
    top_k
        Draw among the k likeliest tokens; 0 for all.
    top_p
        Draw among the likeliest tokens that together have this chance.
    min_p
        Draw among tokens with at least this share of the likeliest one's chance.
    beams
        More than 1: search the likeliest text with so many beginnings side by side.
    length_penalty
        Of beams: above 1 favours longer texts.
    repetition_penalty
        Above 1: what was there already gets less likely.
    stop
        A string that ends the text; may be given several times.
    num
        Texts for each prompt.
    seed
        Of what is drawn.
    truncate
        left: a prompt longer than the model reads loses its beginning instead of being refused.
    precision
        Of the weights; auto is bfloat16 where the processor gains by it. int8 is faster and a little less exact.
    stream
        Show the text as it comes.
    json
        Write a JSON object a line.
    """
    from bertkin.models.generate import Decoding
    from bertkin.tasks import generate as room

    framed = fields is not None or want is not None
    if stream and json:
        raise UserError("JSON lines come whole", where="--stream", mend="leave out --stream or --json")
    if framed and (prompts or file or stop or stream):
        what = "--fields and --want make the prompt and say where it stops"
        raise UserError(what, mend="leave out prompts, --file, --stop and --stream")
    wanted = [] if framed else texts_of(prompts, file, "prompt", "Once upon a time")
    how = Decoding(
        max_new_tokens,
        0.0 if greedy else temperature,
        top_k,
        top_p,
        min_p,
        beams,
        length_penalty,
        repetition_penalty,
        seed,
    )
    room.check(how, num, stop or ())
    writer = room.open_writer(model, precision=precision)
    if framed:
        from bertkin.tasks.fields import write_given

        for record in write_given(writer, whole_text(fields or ""), want, how, num=num):
            print(_json(record.as_dict()) if json else record)
        return
    if stream:
        for number, sample in product(range(len(wanted)), range(num)):
            prompt = wanted[number]
            print(f"{chr(10) if number or sample else ''}{prompt if writer.goes_on else ''}", end="", flush=True)
            pieces = room.stream(writer, prompt, how, number=number, sample=sample, stop=stop or (), truncate=truncate)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
        return
    made = room.generate_stream(writer, wanted, how, num=num, stop=stop or (), truncate=truncate)
    for number, text in enumerate(made):
        print(_json(text.as_dict()) if json else f"{chr(10) if number else ''}{text}")


@inspect.command(name="mask")
def inspect_mask(
    what: str,
    /,
    *,
    text: str | None = None,
    ascii: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    model: Annotated[ModelOptions, Parameter(group=Group("Model", sort_key=2))] = ModelOptions(),  # type: ignore[valid-type]  # noqa: B008
    objective: Annotated[ObjectiveOptions, Parameter(group=Group("Objective", sort_key=3))] = ObjectiveOptions(),  # type: ignore[valid-type]  # noqa: B008
) -> None:
    """Draw who may see whom: rows look, columns are looked at. bertkin inspect mask gpt2-mini --objective.kind hybrid

    Parameters
    ----------
    what
        A preset, a run folder, a model folder, or a hub id.
    text
        What it is drawn of. [default: two short sentences]
    ascii
        Draw with # and . alone.
    json
        Write one JSON object.
    """
    from bertkin.inspect.mask import inspect_mask as draw

    masks = draw(what, text=text and whole_text(text), model=typed(model), objective=typed(objective))
    print(_json(masks.as_dict()) if json else masks.draw(ascii=ascii))


app.command(asking.pairs, sort_key=8)
app.command(tasking.finetune, sort_key=10)
app.command(tasking.evaluate, sort_key=10)
app.command(tasking.predict, sort_key=11)
app.command(tasking.embed, sort_key=12)
app.command(asking.prompt, sort_key=8)


@app.command(sort_key=1)
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

    if os.environ.get("RANK", "0") != "0":
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


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what a person did wrong is one line on standard error.

    Returns:
        The exit code: 0; 2 for a mistake; 130 after Ctrl-C; 141 when nobody reads what we print.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end a run
            stream.reconfigure(errors="replace")
    try:
        with _one_line_warnings(), disk_errors("."):
            app(_arguments(tokens), exit_on_error=False, print_error=False)
            sys.stdout.flush()
    except CycloptsError as error:
        return _complain(said(error, _verbs(tokens)))
    except UserError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print(
            "\nbertkin: interrupted; what was prepared is kept, so the same command goes on from there", file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not complain again
        return PIPE_CLOSED
    except OSError as error:  # what no room foresaw, such as a folder that went away
        if error.filename is None:
            raise
        return _complain(UserError((error.strerror or str(error)).lower(), where=error.filename, mend="check the path"))
    except Exception as error:
        if type(error).__name__ != "Stopped":  # raised by bertkin.train.loop, which is not imported for this alone
            raise
        print(f"bertkin: {error}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _complain(error: UserError) -> int:
    print(f"bertkin: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


def _arguments(tokens: Sequence[str]) -> list[str]:
    """The arguments with a lone - before any -- made safe from the parser, and --objective in full."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    safe = [STDIN if token == "-" and i < end else token for i, token in enumerate(tokens)]
    full = [ROOM.sub(r"--\1.kind", token) if i < end else token for i, token in enumerate(safe)]
    joined: list[str] = []
    for i, token in enumerate(full):
        # A flag takes no word after it, so `--train.tensorboard true` would read a corpus called true.
        answers = i < end and token in ("true", "false") and joined and joined[-1].startswith("--")
        if answers and "=" not in joined[-1] and not Path(token).exists():
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


def _verbs(tokens: Sequence[str]) -> list[str]:
    """The names that were possible for the first word that is no verb."""
    inside = {"tokenizer": tokenizers, "inspect": inspect, "check": check}.get(tokens[0] if tokens else "", app)
    return [name for name in inside if not name.startswith("-")]


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Libraries' warnings are for programmers; people see their text alone."""
    import warnings

    old = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_more: f"bertkin: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = old
