"""Asking a trained model: blanks, texts, minimal pairs, prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from bertkin.tasks.fill import Filled, Loaded, Order
    from bertkin.tasks.generate import Generated, Precision, Writer
    from bertkin.tasks.pairs import Scores
    from bertkin.tasks.prompted import Prompted
    from bertkin.tasks.scoring import Method


def load(path: str | Path) -> Loaded:
    """Open a model: a run folder, a model folder (ours or transformers'), or a hub id.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from bertkin.tasks import fill as room

    return room.load(path)


@overload
def fill(  # type: ignore[overload-overlap]  # a str is a sequence of str too
    model: Loaded | str | Path, texts: str, *, top_k: int = 5, order: Order = "once"
) -> Filled: ...
@overload
def fill(
    model: Loaded | str | Path, texts: Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> list[Filled]: ...
def fill(
    model: Loaded | str | Path, texts: str | Sequence[str], *, top_k: int = 5, order: Order = "once"
) -> Filled | list[Filled]:
    """What a model puts where a text says [MASK].

    Args:
        model: from `load`, or what `load` takes.
        texts: one text or several.
        top_k: answers for each blank.
        order: "confident" fills in the surest blank and reads the text again, until none is left.

    Returns:
        One `Filled` for one text, a list for several. Printed, it shows the answers with their probabilities.

    Raises:
        UserError: a text without [MASK], or longer than the model reads.
    """
    from bertkin.tasks import fill as room

    filled = room.fill(model, texts, top_k=top_k, order=order)
    return filled[0] if isinstance(texts, str) else filled


@overload
def generate(  # type: ignore[overload-overlap]
    model: Writer | Loaded | str | Path,
    prompts: str,
    *,
    greedy: bool = False,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> Generated: ...
@overload
def generate(
    model: Writer | Loaded | str | Path,
    prompts: Sequence[str],
    *,
    greedy: bool = False,
    num: int = 1,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> list[Generated]: ...
def generate(
    model: Writer | Loaded | str | Path,
    prompts: str | Sequence[str],
    *,
    greedy: bool = False,
    num: int = 1,
    stop: str | Sequence[str] = (),
    truncate: Literal["left"] | None = None,
    precision: Precision = "auto",
    **how: Any,
) -> Generated | list[Generated]:
    """What a model writes after a text; an encoder–decoder, for it.

    Args:
        model: a run folder, a model folder, a hub id, or what is open: `load`, `bertkin.tasks.generate.open_writer`.
        prompts: one text or several.
        greedy: always take the likeliest token; short for temperature=0.
        num: texts for each prompt, by chance.
        stop: strings that end a text.
        truncate: "left" lets a prompt that is too long lose its beginning.
        precision: of the weights, where the model is opened here.
        how: fields of `bertkin.models.generate.Decoding`: max_new_tokens, temperature, top_k, top_p, min_p, beams,
            length_penalty, repetition_penalty, seed.

    Returns:
        One `Generated` for one prompt and num=1, otherwise a list.

    Raises:
        UserError: a model that cannot write, or a prompt longer than it reads.
    """
    from bertkin.tasks import generate as room

    chosen = room.decoding(**how, **({"temperature": 0.0} if greedy else {}))
    stops = [stop] if isinstance(stop, str) else stop
    writer = room.open_writer(model, precision=precision)
    written = room.generate(writer, prompts, chosen, num=num, stop=stops, truncate=truncate)
    return written[0] if isinstance(prompts, str) and num == 1 else written


def pairs(
    model: Loaded | str | Path,
    folder: str | Path,
    *,
    limit: int | None = None,
    method: Method = "auto",
    within_word: bool = False,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask a model which of two sentences is right, for every pair of a folder such as BLiMP's.

    Args:
        model: from `load`, or what `load` takes.
        folder: of .jsonl files with sentence_good and sentence_bad, one a paradigm.
        limit: pairs of each file at most.
        method, within_word: how a sentence is scored; see `bertkin.tasks.scoring.score_sentences`.
        precision: of the computation.
        progress: called with pairs done and pairs in all.

    Returns:
        Shares of pairs whose good sentence scored higher; printed, a table.

    Raises:
        UserError: no pairs there, or a model that cannot score a sentence that way.
    """
    from bertkin.tasks.fill import Loaded
    from bertkin.tasks.pairs import evaluate_pairs

    loaded = model if isinstance(model, Loaded) else load(model)
    return evaluate_pairs(
        loaded.model,
        loaded.tokenizer,
        folder,
        limit,
        method=method,
        objective=loaded.objective,
        noise=loaded.noise,
        within_word=within_word,
        precision=precision,
        progress=progress,
    )


def prompt(models: Loaded | str | Path | Sequence[Loaded | str | Path], examples: str | Path, **how: Any) -> Prompted:
    """Ask models by example: a task, some examples and an input, without training (Brown et al. 2020).

    Args:
        models: one or several, from `load`, or what `load` takes.
        examples: a .tsv, .csv or .jsonl file with a column input and a column output.
        how: task, test, pattern, shots, seeds, score, normalise, choices and more; see
            `bertkin.tasks.prompt.evaluate_prompts`.

    Returns:
        Scores by model, shots and seed. Printed, a table; `plot(path)` draws it.

    Raises:
        UserError: something about the files, the pattern, the choices or a model will not do.
    """
    from bertkin.tasks.fill import Loaded
    from bertkin.tasks.prompt import evaluate_prompts

    several = [models] if isinstance(models, Loaded | str | Path) else list(models)
    return evaluate_prompts(several, examples, **how)
