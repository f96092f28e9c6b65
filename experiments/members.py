"""Every member of the family grown for the same minutes on the same words: one table, one plot.

    BERTKIN_DATA=shared/data python experiments/members.py
    python experiments/members.py corpus/ --blimp blimp/ --only gpt2 t5 --minutes 1 --limit 50

Size 4x256, 10 million words, one lowercased WordPiece vocabulary of 8,192 (T5's with sentinels at its end), rows of 128, every
member by its own preset and objective. The held-out loss is in a member's own terms (what it asks of whom), so losses
compare along a curve, not between members; the minimal pairs ask all the same. Members are trained one after the other,
each alone on the machine; a stopped one goes on, a finished one is used again, and --only grows some of them: the record keeps
what is in it, each with its machine. Evaluations take their time out of the minutes;
hybrid is measured three times (the mixture and each half), so on fewer rows.

Results go into members.json and members.png beside this file, and as tables into docs/members.md: the figures, and what each
answers to two sentences.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from growing import asked, draw, grown, vocabulary, wrote
from sharing import data, put, run

from bertkin.errors import UserError
from bertkin.train.machine import settle_threads

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "members.md"


@dataclass(frozen=True)
class Member:
    """A row of the table."""

    title: str
    preset: str
    options: dict[str, Any] = field(default_factory=dict)


MEMBERS = {
    "bert": Member("BERT", "bert-mini"),
    "bert-drawn": Member("BERT, drawn as published", "bert-mini", {"model.start": "random"}),
    "bert-nsp": Member("BERT, next sentence", "bert-mini", {"objective.sentence": "next"}),
    "roberta": Member("RoBERTa", "roberta-mini"),
    "modern": Member("modern (ModernBERT)", "modern-mini"),
    "words": Member("whole words", "modern-mini", {"objective.unit": "word"}),
    "phrases": Member("phrases (ERNIE)", "modern-mini", {"objective.unit": "phrase"}),
    "spans": Member("SpanBERT", "bert-mini", {"objective.unit": "span", "objective.boundary": True}),
    "albert": Member("ALBERT", "albert-mini"),
    "electra": Member("ELECTRA", "electra-mini"),
    "gpt2": Member("GPT-2", "gpt2-mini"),
    "llama": Member("Llama", "llama-mini"),
    "hybrid": Member("hybrid causal + masked", "modern-mini", {"objective.kind": "hybrid", "train.eval_rows": 96}),
    "unilm": Member("UniLM", "bert-mini", {"objective.kind": "unilm"}),
    "prefix": Member("prefix language model", "llama-mini", {"objective.kind": "prefix"}),
    "mass": Member("MASS", "bart-mini", {"objective.noise": "mass"}),
    "bart": Member("BART", "bart-mini"),
    "t5": Member("T5", "t5-mini"),
}

app = App(help_format="plaintext")


@app.default
def main(
    *corpus: str,
    blimp: Path | None = None,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(MEMBERS),
    minutes: float = 10.0,
    words: int = 10_000_000,
    limit: int = 250,
    out: Path = HERE.parent / "runs" / "members",
    record: Path = HERE / "members.json",
    page: Path | None = PAGE,
) -> None:
    """Grow the members that are not grown yet, ask them minimal pairs, and write down all there are.

    Args:
        corpus: text; by default the English Wikipedia of $BERTKIN_DATA.
        blimp: folder of minimal pairs; by default that of $BERTKIN_DATA.
        only: names of members.
        minutes: of training for each.
        words: of the corpus.
        limit: minimal pairs of each paradigm.
        out: folder for the runs.
        record: JSON to write; the picture goes beside it.
        page: page whose table is replaced.
    """
    strangers = [name for name in only if name not in MEMBERS]
    if strangers:
        raise UserError(f"no member {strangers[0]!r}", where="--only", mend=f"choose of {', '.join(MEMBERS)}")
    corpus, pairs = corpus or (data("text/enwiki.jsonl.gz"),), blimp or Path(data("blimp"))
    settle_threads(None)
    for name in only:
        member = MEMBERS[name]
        sentinels = member.preset.startswith("t5")
        common: dict[str, Any] = {"data.tokenizer": vocabulary(corpus, words, out, sentinels=sentinels)}
        common |= {"data.max_words": words, "train.minutes": minutes, "train.eval_every": 0.1}
        figures = grown(member.preset, common | member.options, corpus, out / name)
        scores = asked(out / name, pairs, limit)
        content = json.loads(record.read_text()) if record.exists() else {"members": {}}
        content |= {"command": "python experiments/members.py", "minutes": minutes, "words": words, "pairs": 20 * limit}
        content["members"][name] = {
            "title": member.title,
            **figures,
            "blimp": scores,
            "samples": wrote(out / name / "run"),
        }
        content["members"] = {key: content["members"][key] for key in MEMBERS if key in content["members"]}
        record.write_text(json.dumps(content, indent=1) + "\n")
        draw(content["members"], record.with_suffix(".png"))
        print(table(content))
        if page is not None and page.is_file():
            put(page, table(content))
            put(page, samples(content), "samples")


def table(content: dict[str, Any]) -> str:
    """A line a member, in Markdown; with the machine, where not all were grown on one."""
    several = len({one.get("machine") for one in content["members"].values()}) > 1
    lines = ["| member | parameters | tokens | tokens/s | held-out loss | accuracy | BLiMP | scored by |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---|")
    if several:
        lines = [lines[0] + " machine |", lines[1] + "---|"]
    for one in content["members"].values():
        own = f" ({one['generator'] / 1e6:.1f} M the generator's)" if "generator" in one else ""
        size = f"{one['parameters'] / 1e6:.1f} M{own} | {one['tokens'] / 1e6:.1f} M | {one['tokens_per_second']:,}"
        learnt = f"{one['loss']:.3f} | {one['accuracy']:.1%} | {one['blimp']['mean']:.1%} | {one['blimp']['method']}"
        where = f" {one.get('machine', 'not told')} |" if several else ""
        lines.append(f"| {one['title']} | {size} | {learnt} |{where}")
    return "\n".join(lines) + "\n"


def samples(content: dict[str, Any]) -> str:
    """What came out of each member: its answers to the first sentences that nobody trained on."""
    lines = ["| member | is given | answers | it was |", "|---|---|---|---|"]
    for one in content["members"].values():
        for sample in one.get("samples", []):
            said = sample.get("written") or ", ".join(
                f"{word} {chance:.0%}" for word, chance in sample.get("answers", [])
            )
            shown = sample["text"], said or "(nothing)", sample["truth"]
            cells = [cell.replace("|", "\\|").replace("<", "&lt;") for cell in shown]
            lines.append(f"| {one['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(app)
