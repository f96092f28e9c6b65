"""The verbs that ask a trained model and train nothing: `bertkin fill`, `generate`, `pairs`, `prompt`. See `bertkin.cli`."""

from __future__ import annotations

import json as plain
import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bertkin.errors import UserError, disk_errors
from bertkin.terminal import Flag, see_file, texts_of, whole_text


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
        print(plain.dumps(filled.as_dict(), ensure_ascii=False) if json else f"{chr(10) if number else ''}{filled}")


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
        A file with a prompt on each line; with --fields or --want, with a record in JSON.
    fields
        Of a model trained with --fields: what is given, as title=A cat is found,date=2019; of a --file of records, which
        of their fields, as title,date. [default there: all that are not wanted]
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
    if framed and (prompts or stop or stream):
        what = "--fields and --want make the prompt and say where it stops"
        raise UserError(what, mend="leave out prompts, --stop and --stream")
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

        lines = None if file is None else texts_of((), file, "record", "")
        for record in write_given(writer, whole_text(fields or ""), want, how, lines=lines, num=num, truncate=truncate):
            print(plain.dumps(record.as_dict(), ensure_ascii=False) if json else record)
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
        print(plain.dumps(text.as_dict(), ensure_ascii=False) if json else f"{chr(10) if number else ''}{text}")


def pairs(
    model: str,
    folder: Path,
    /,
    *,
    method: Literal["auto", "masked", "causal", "decoder", "detect"] = "auto",
    within_word: Annotated[bool, Flag] = False,
    limit: int | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    out: Path | None = None,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Ask a model which of two sentences is right: bertkin pairs runs/mine blimp/

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    folder
        Minimal pairs such as BLiMP's: .jsonl files with sentence_good and sentence_bad, one file a paradigm.
    method
        How a sentence is scored. auto: as the model was taught; hybrid models know masked and causal.
    within_word
        Masked models: hide the later pieces of a word whose first one is asked.
    limit
        Pairs of each file at most.
    precision
        Of the computation; auto is bfloat16 where the processor gains by it.
    out
        A file to write the scores to, as one JSON object.
    json
        Write one JSON object.
    """
    from bertkin.api import pairs as ask
    from bertkin.train.state import write_text

    def told(done: int, total: int) -> None:
        _tell(f"{done:,} of {total:,} pairs" if done < total else "")

    if out is not None:
        see_file(out, "pairs.json")
        with disk_errors(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
    scores = ask(model, folder, limit=limit, method=method, within_word=within_word, precision=precision, progress=told)
    print(plain.dumps(scores.to_mapping(), ensure_ascii=False) if json else scores)
    if out is not None:
        write_text(out, plain.dumps({"model": model} | scores.to_mapping(), indent=1) + "\n")


def prompt(
    *models: str,
    examples: Path,
    task: str = "",
    test: Path | None = None,
    pattern: str = "{input} => {output}",
    shots: str = "0,1,4",
    seeds: int = 3,
    score: Literal["auto", "likelihood", "generation"] = "auto",
    normalise: Literal["none", "length", "calibrated"] = "none",
    choices: str | None = None,
    columns: str = "input,output",
    per_row: Annotated[bool, Flag] = False,
    limit: int | None = None,
    max_new_tokens: int = 32,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    json: Annotated[bool, Flag] = False,
    plot: Path | None = None,
) -> None:
    """Ask by example: bertkin prompt runs/gpt --task "Translate English to French" --examples words.tsv --shots 0,1,4

    Parameters
    ----------
    models
        Run folders, model folders (ours or transformers'), or hub ids; of several, sizes are compared.
    examples
        A .tsv, .csv or .jsonl file with a column input and a column output. Without --test its rows are asked, too, each
        without itself among the examples.
    task
        What stands above the examples.
    test
        A file like it, with other rows to ask.
    pattern
        How an example is written: translation, qa, summary, classification, a file, or "… {input} … {output}". With
        [MASK] instead of {output}, models that can do both fill a blank instead of going on.
    shots
        How many examples to show.
    seeds
        How often examples are drawn; the table has the mean and the standard deviation.
    score
        likelihood: the likeliest choice. generation: what the model writes. auto: what the outputs look like.
    normalise
        Of likelihoods. length: divided by the tokens. calibrated: by the likelihood after an input that says nothing.
    choices
        What to choose from, as yes,no; or a word for each output, as 1=great,0=bad. [default: the distinct outputs]
    columns
        Names of the two columns.
    per_row
        Draw examples for each row anew.
    limit
        Rows to ask at most.
    max_new_tokens
        Of a written answer.
    precision
        Of the computation; auto is bfloat16 where the processor gains by it.
    json
        Write one JSON object.
    plot
        A picture to draw: over shots and, of several models, over parameters (needs matplotlib).
    """
    if not models:
        raise UserError("no model", mend="name one or several, such as runs/gpt")
    from bertkin.api import prompt as ask

    numbers = [part.strip() for part in shots.split(",")]
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise UserError(f"{shots!r} is no list of numbers", where="--shots", mend="write it as 0,1,4")
    names = tuple(part.strip() for part in columns.split(","))
    if len(names) != 2 or not all(names):
        raise UserError(f"{columns!r} does not name two columns", where="--columns", mend="write it as input,output")
    if plot is not None:
        from bertkin.tasks.prompted import see_picture

        see_picture(plot)
    prompted = ask(
        models,
        examples,
        task=task.replace("\\n", "\n"),
        test=test,
        pattern=pattern,
        shots=[int(part) for part in numbers],
        seeds=seeds,
        score=score,
        normalise=normalise,
        choices=None if choices is None else _choices(choices),
        columns=names,
        per_row=per_row,
        limit=limit,
        max_new_tokens=max_new_tokens,
        precision=precision,
        progress=_tell,
    )
    _tell("")
    print(plain.dumps(prompted.to_mapping(), ensure_ascii=False) if json else prompted)
    if plot is not None:
        prompted.plot(plot)
        if not json:
            print(f"drawn in {plot}")


def _choices(text: str) -> list[str] | dict[str, str]:
    """Choices parted by commas; where each is written output=word, the words by output."""
    parts = [part.strip() for part in text.split(",")]
    worded = [part.partition("=") for part in parts]
    if not any(mark for _, mark, _ in worded):
        return parts
    words = {output.strip(): word.strip() for output, mark, word in worded if mark and output.strip() and word.strip()}
    if len(words) < len(parts):
        raise UserError(f"{text!r} has no word for each output", where="--choices", mend="write it as 1=great,0=bad")
    return words


def _tell(line: str) -> None:
    """Where a long work is, on a terminal's one line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
