"""How fast each member of the family is pretrained, beside the same model of transformers on the same machine.

    BERTKIN_DATA=shared/data python benchmarks/family.py                    # about 20 minutes
    python benchmarks/family.py corpus/ --members gpt2 bart --repeats 1
    python benchmarks/family.py corpus/ --device cuda --rows 256            # on a GPU; into family-cuda.json

Whole training steps of 32 rows (or --rows) of 128 tokens at size 4x256 with AdamW: reading, hiding, forward, backward,
update. The peer is the member's own class in transformers in a plain PyTorch loop that is handed ready batches, in float32
as a user gets it, and tuned (bfloat16 by autocast, torch.compile, and no dropout, as ours); as a user gets it, most drop
out 0.1, which the record says of each side. It does not pay for reading or hiding. ELECTRA is its two classes, the
generator's draw between them. Each side runs in a process of its own, in turn; the table gives medians and ratios of
medians. Results go into family.json beside this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter
from side_by_side import done, in_process, our_steps, wikipedia, write

from bertkin.config import Data, Model, Recipe, Train
from bertkin.errors import UserError
from bertkin.train.machine import settle_threads
from bertkin.train.setup import complete, gather

HERE = Path(__file__).parent
LENGTH = 128
LAYERS, HIDDEN, HEADS, WIDE = 4, 256, 4, 1024
MEMBERS = {
    "bert": 30_522,
    "gpt2": 50_257,
    "llama": 32_000,
    "albert": 30_000,
    "electra": 30_522,
    "bart": 50_265,
    "t5": 32_128,
}
"""Members and the vocabulary each is measured with, that of its first publication."""
SIDES = ("bertkin", "transformers", "tuned")
Told = dict[str, Any]
"""seconds: of each step; dropout: the largest of the model."""

app = App(help_format="plaintext")


@app.default
def main(
    *corpus: str,
    members: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = tuple(MEMBERS),
    repeats: int = 3,
    steps: int = 8,
    rows: int = 32,
    device: Literal["cpu", "cuda"] = "cpu",
    record: Path | None = None,
) -> None:
    """Seconds a training step of each member, ours and transformers'.

    Parameters
    ----------
    corpus
        Text to train on; by default the English Wikipedia of BERTKIN_DATA.
    members
        Which to measure.
    repeats
        Processes of each side, in turn.
    steps
        Timed steps of each process, after three that do not count.
    rows
        Of 128 tokens, in a step.
    device
        cpu or cuda.
    record
        Where the figures go; by default family.json or family-cuda.json beside this file.
    """
    settle_threads(None)
    record = record or HERE / ("family.json" if device == "cpu" else f"family-{device}.json")
    for member in members:
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        dropout: dict[str, float] = {}
        for turn in range(repeats):
            for side in SIDES:
                found = in_process(
                    __file__, "steps", member, side, str(steps), str(rows), device, *_data(corpus).corpus
                )
                seconds[side].append(median(found["seconds"]))
                dropout[side] = found["dropout"]
                print(f"{member} {side} turn {turn + 1}: {seconds[side][-1]:.3f} s a step", file=sys.stderr)
        rate = {side: rows * LENGTH / median(took) for side, took in seconds.items()}
        figures = {
            "vocab_size": MEMBERS[member],
            "rows": rows,
            "device": device,
            "dropout": dropout,
            "tokens_per_second": {side: round(value) for side, value in rate.items()},
            "seconds_a_step": {side: [round(s, 4) for s in took] for side, took in seconds.items()},
            "ratio": round(rate["bertkin"] / rate["transformers"], 2),
            "ratio_tuned": round(rate["bertkin"] / rate["tuned"], 2),
        }
        write(record, member, figures)
        shown = "  ".join(f"{side} {value:,.0f}" for side, value in rate.items())
        print(
            f"{member:8} {shown} tokens/s   {figures['ratio']:.1f}x   {figures['ratio_tuned']:.1f}x the tuned",
            flush=True,
        )


def _data(corpus: tuple[str, ...]) -> Data:
    return wikipedia(corpus, 8_192, words=3_000_000)


@app.command(show=False, name="steps")
def steps_of(member: str, side: str, count: int, rows: int, device: str, *corpus: str) -> None:
    """One side's seconds a step and its largest dropout, as JSON; what the benchmark starts."""
    settle_threads(None)
    if side == "bertkin":
        took = _ours(member, count, rows, device, _data(corpus))
    else:
        took = _theirs(member, count, rows, device, side == "tuned")
    print(json.dumps(took))


def _ours(member: str, count: int, rows: int, device: str, data: Data) -> Told:
    sizes: dict[str, Any] = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "vocab_size": MEMBERS[member]}
    if member in ("bert", "albert", "electra", "gpt2", "bart"):
        sizes["intermediate"] = WIDE
    if member == "t5":
        data = replace(data, sentinels=100)
    train = Train(steps=1000, batch_tokens=rows * LENGTH, length=LENGTH, optimizer="adamw")
    recipe = complete(Recipe(preset=f"{member}-mini", data=data, model=Model(**sizes), train=train))
    dropout = float(max(recipe.model.dropout, recipe.model.attention_dropout))
    return {"seconds": our_steps(gather(recipe, lambda *_: None), count, device), "dropout": dropout}


# The peer.


def _theirs(member: str, count: int, rows: int, device: str, tuned: bool) -> Told:
    import transformers as hf

    torch.manual_seed(0)
    modules, batch, loss = BUILDERS[member](hf, MEMBERS[member], rows)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    for module in modules:
        module.to(device).train()
    parameters = list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))
    if tuned:
        set_dropout(modules, 0.0)
    dropout = largest_dropout(modules)
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    run: Callable[..., Any] = torch.compile(loss) if tuned else loss
    took = []
    for _ in range(3 + count):
        begun = done(device)
        with torch.autocast(device, torch.bfloat16, enabled=tuned):
            value = run(**batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        took.append(done(device) - begun)
    return {"seconds": took[3:], "dropout": dropout}


FLOATS = ("dropout", "attention_dropout", "activation_dropout")
"""Where transformers' modules keep a probability that they hand to a function, beside torch's own modules."""


def set_dropout(modules: list[torch.nn.Module], chance: float) -> None:
    """Let every part of the models drop out so much."""
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, torch.nn.Dropout):
            part.p = chance
        for name in FLOATS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, chance)


def largest_dropout(modules: list[torch.nn.Module]) -> float:
    """The most that any part of the models drops out."""
    parts = [part for module in modules for part in module.modules()]
    chances = [part.p for part in parts if isinstance(part, torch.nn.Dropout)]
    told = [getattr(part, name, None) for part in parts for name in FLOATS]
    return max([0.0, *chances, *(value for value in told if isinstance(value, float))])


Built = tuple[list[torch.nn.Module], dict[str, torch.Tensor], Callable[..., torch.Tensor]]


def _rows(vocab_size: int, rows: int, rate: float = 0.15) -> dict[str, torch.Tensor]:
    """Random ids [rows, length], and labels at a share of the places."""
    ids = torch.randint(5, vocab_size, (rows, LENGTH))
    asked = torch.rand(ids.shape) < rate
    return {"input_ids": torch.where(asked, 4, ids), "labels": torch.where(asked, ids, -100)}


def _plain(model: Any, batch: dict[str, torch.Tensor]) -> Built:
    return [model], batch, lambda **given: model(**given).loss


def _bert(hf: Any, vocab: int, rows: int) -> Built:
    return _plain(hf.BertForMaskedLM(hf.BertConfig(vocab_size=vocab, **_bert_sizes())), _rows(vocab, rows))


def _bert_sizes() -> dict[str, int]:
    return {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": WIDE}


def _gpt2(hf: Any, vocab: int, rows: int) -> Built:
    config = hf.GPT2Config(vocab_size=vocab, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=WIDE)
    ids = torch.randint(5, vocab, (rows, LENGTH))
    return _plain(hf.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})


def _llama(hf: Any, vocab: int, rows: int) -> Built:
    sizes = _bert_sizes() | {"intermediate_size": 704, "num_key_value_heads": 2}
    ids = torch.randint(5, vocab, (rows, LENGTH))
    config = hf.LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **sizes)
    return _plain(hf.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids})


def _albert(hf: Any, vocab: int, rows: int) -> Built:
    config = hf.AlbertConfig(vocab_size=vocab, embedding_size=128, **_bert_sizes())
    batch = _rows(vocab, rows) | {"sentence_order_label": torch.randint(0, 2, (rows,))}
    return _plain(hf.AlbertForPreTraining(config), batch)


def _electra(hf: Any, vocab: int, rows: int) -> Built:
    sizes = _bert_sizes()
    small = sizes | {"hidden_size": HIDDEN // 4, "num_attention_heads": HEADS // 4, "intermediate_size": WIDE // 4}
    generator = hf.ElectraForMaskedLM(hf.ElectraConfig(vocab_size=vocab, embedding_size=128, **small))
    model = hf.ElectraForPreTraining(hf.ElectraConfig(vocab_size=vocab, embedding_size=128, **sizes))
    generator.electra.embeddings = model.electra.embeddings

    def loss(input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        guess = generator(input_ids=input_ids, labels=labels)
        asked = labels >= 0
        with torch.no_grad():
            chances = guess.logits[asked].float().softmax(-1)
            drawn = torch.multinomial(chances, 1).squeeze(1)
        seen = input_ids.masked_scatter(asked, drawn)
        wrong = torch.zeros_like(input_ids).masked_scatter(asked, (drawn != labels[asked]).long())
        found: torch.Tensor = model(input_ids=seen, labels=wrong).loss
        return guess.loss + 50 * found  # type: ignore[no-any-return]

    return [generator, model], _rows(vocab, rows), loss


def _bart(hf: Any, vocab: int, rows: int) -> Built:
    sizes: dict[str, int] = {"d_model": HIDDEN, "max_position_embeddings": 512}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": LAYERS, f"{half}_attention_heads": HEADS, f"{half}_ffn_dim": WIDE}
    model = hf.BartForConditionalGeneration(hf.BartConfig(vocab_size=vocab, **sizes))
    # Of 126 tokens ours hides 30%, 38, in spans of 3 on average, each behind one [MASK]: the encoder reads 126 - 38 + 12
    # and [CLS] and [SEP]; the decoder writes the whole row.
    return _plain(model, _seq2seq(vocab, rows, 102, LENGTH))


def _t5(hf: Any, vocab: int, rows: int) -> Built:
    sizes = {"d_model": HIDDEN, "d_kv": HIDDEN // HEADS, "d_ff": 704, "num_layers": LAYERS, "num_heads": HEADS}
    config = hf.T5Config(vocab_size=vocab, feed_forward_proj="gated-gelu", **sizes)
    # Of 127 tokens ours hides 15%, 19, in 6 spans of 3: the encoder reads 127 - 19 + 6 sentinels and an end; the decoder
    # writes 19 + 6 sentinels and an end.
    return _plain(hf.T5ForConditionalGeneration(config), _seq2seq(vocab, rows, 115, 26))


def _seq2seq(vocab: int, rows: int, read: int, written: int) -> dict[str, torch.Tensor]:
    """A source [rows, read] and what is to be written [rows, written]: as much as ours has in a whole row."""
    source, target = torch.randint(5, vocab, (rows, read)), torch.randint(5, vocab, (rows, written))
    return {"input_ids": source, "labels": target}


BUILDERS = {
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "albert": _albert,
    "electra": _electra,
    "bart": _bart,
    "t5": _t5,
}


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        sys.exit(f"family: {error}")
