"""T5's comparison of what to hide (Raffel et al. 2020, section 3.3), all at equal budget: style, rate, span length.

    BERTKIN_DATA=shared/data python experiments/corruptions.py
    python experiments/corruptions.py corpus/ --blimp blimp/ --only style --minutes 2

Grows t5-mini once for each row (rows that are one recipe, such as "15% hidden" and "spans of 3 tokens", share a run), for the
same minutes on the same words, one after the other. The paper judges by tasks
that follow; here each model is asked minimal pairs (the decoder's likelihood of a sentence, given an emptied input), and
its loss is given in its own terms. Tokens written a row is what a style costs: the decoder of one that writes the whole
text again works seven times as long as one that writes what was hidden.

Results go into corruptions.json and corruptions.png beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from growing import asked, draw, grown, vocabulary
from sharing import data, run

from bertkin.train.machine import settle_threads

HERE = Path(__file__).parent
Part = Literal["style", "rate", "span"]

ROWS: dict[Part, dict[str, dict[str, Any]]] = {
    "style": {
        "prefix language model": {"objective.noise": "prefix"},
        "BERT-style, whole text again": {"objective.noise": "masking"},
        "shuffled sentences": {"objective.noise": "permutation"},
        "MASS": {"objective.noise": "mass"},
        "hidden spans behind sentinels": {"objective.noise": "spans"},
        "hidden tokens dropped": {"objective.noise": "drop"},
    },
    "rate": {
        f"{rate:.0%} hidden": {"objective.noise": "spans", "objective.rate": rate} for rate in (0.10, 0.15, 0.25, 0.50)
    },
    "span": {
        f"spans of {mean:g} tokens": {"objective.noise": "spans", "objective.span_mean": float(mean)}
        for mean in (2, 3, 5, 10)
    },
}
app = App(help_format="plaintext")


@app.default
def main(
    *corpus: str,
    blimp: Path | None = None,
    only: Annotated[tuple[Part, ...], Parameter(consume_multiple=True)] = ("style", "rate", "span"),
    preset: str = "t5-mini",
    minutes: float = 10.0,
    words: int = 10_000_000,
    limit: int = 250,
    out: Path = HERE.parent / "runs" / "corruptions",
    record: Path = HERE / "corruptions.json",
) -> None:
    """Grow a model for each row that is not there yet, and write down all there are.

    Args:
        corpus: text; by default the English Wikipedia of $BERTKIN_DATA.
        blimp: folder of minimal pairs; by default that of $BERTKIN_DATA.
        only: parts of the comparison.
        preset: t5 or bart of a size.
        minutes: of training for each row.
        words: of the corpus.
        limit: minimal pairs of each paradigm.
        out: folder for the runs.
        record: JSON to write; the picture goes beside it.
    """
    corpus, pairs = corpus or (data("text/enwiki.jsonl.gz"),), blimp or Path(data("blimp"))
    settle_threads(None)
    tokenizer = vocabulary(corpus, words, out, sentinels=preset.startswith("t5"))
    for part in only:
        for number, title in enumerate(ROWS[part]):
            common: dict[str, Any] = {"data.tokenizer": tokenizer, "data.max_words": words}
            common |= {"train.minutes": minutes, "train.eval_every": 0.1}
            folder = out / _first(options_of(part, title))
            figures = grown(preset, common | options_of(part, title), corpus, folder)
            scores = asked(folder, pairs, limit)
            content = json.loads(record.read_text()) if record.exists() else {"rows": {}}
            content |= {"command": "python experiments/corruptions.py", "preset": preset, "minutes": minutes}
            content["rows"][f"{part}-{number}"] = {"part": part, "title": title, **figures, "blimp": scores}
            record.write_text(json.dumps(content, indent=1) + "\n")
            draw(content["rows"], record.with_suffix(".png"))
            print(table(content))


def options_of(part: Part, title: str) -> dict[str, Any]:
    """All of what a row hides: 15%, in spans of 3 where there are spans, unless it says otherwise; the same to the end."""
    options = {"objective.rate": 0.15, "objective.span_mean": 3.0} | ROWS[part][title]
    return options | {"objective.rate_end": options["objective.rate"]}


def _first(options: dict[str, Any]) -> str:
    """The folder of the first row that hides so; rows that are one recipe share its run."""
    rows = [(f"{part}-{number}", options_of(part, title)) for part in ROWS for number, title in enumerate(ROWS[part])]
    return next(name for name, found in rows if found == options)


def table(content: dict[str, Any]) -> str:
    """A line a row: what was hidden, tokens, loss in its own terms, share of the minimal pairs."""
    lines = [f"{'':34}{'tokens':>9}{'tokens/s':>10}{'loss':>8}{'accuracy':>10}{'BLiMP':>8}"]
    for row in content["rows"].values():
        numbers = f"{row['tokens'] / 1e6:8.1f}M{row['tokens_per_second']:10,}{row['loss']:8.3f}"
        lines.append(f"{row['title']:34}{numbers}{row['accuracy']:10.1%}{row['blimp']['mean']:8.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(app)
