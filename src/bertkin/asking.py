"""The verbs that ask a trained model and train nothing: `bertkin pairs`, `bertkin prompt`. See `bertkin.cli`."""

from __future__ import annotations

import json as plain
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Flag = Parameter(negative="", show_default=False)


def pairs(
    model: str,
    folder: Path,
    /,
    *,
    method: Literal["auto", "masked", "causal", "decoder", "detect"] = "auto",
    within_word: Annotated[bool, Flag] = False,
    limit: int | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
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
    json
        Write one JSON object.
    """
    from bertkin.api import pairs as ask

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} pairs", end="\n" if done == total else "", file=sys.stderr, flush=True)

    scores = ask(model, folder, limit=limit, method=method, within_word=within_word, precision=precision, progress=told)
    print(plain.dumps(scores.to_mapping(), ensure_ascii=False) if json else scores)
