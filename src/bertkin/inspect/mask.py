"""Who may see whom, drawn: `bertkin inspect mask gpt2-mini`.

Nothing is restated here. A small text goes through the objective's own maker, and each grid is what the one attention
gives weight to when all tokens are alike: `attention_weights` of zeros, on the maker's layout, under a layer's own rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bertkin.config import AUTO, Model, Objective, Recipe, merge
from bertkin.errors import UserError
from bertkin.inspect.words import described
from bertkin.models import presets
from bertkin.models.attention import Rule, attention_weights
from bertkin.models.configs import read_config
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import find_folder
from bertkin.models.transformer import Stack
from bertkin.objectives.make import MAKERS, check_tokenizer
from bertkin.text.batches import Batch, Ints, Specials, cut
from bertkin.text.layout import Layout
from bertkin.text.sentences import sentences
from bertkin.text.shuffle import mix
from bertkin.text.tokenizer import Tokenizer, train_tokenizer
from bertkin.train.setup import complete
from bertkin.train.start import grown_by

TEXT = "The cat sat on the mat. Then it saw a dog."
LONGEST = 40
"""Tokens of a grid that is drawn token by token; longer ones are drawn from afar."""
AFAR = 24
"""Rows of a grid drawn from afar."""
TRIES = 96
"""Rows that are made of the text, so that every kind of sequence turns up."""
SEES = {"both": "both sides", "left": "the left", "beginning": "a beginning from both sides, the rest from the left"}

Grid2 = NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """One part of the model, one kind of layer, one kind of sequence."""

    part: str
    """stack; or encoder, decoder, cross."""
    layers: tuple[int, ...]
    """Which layers, from 1."""
    sees: str
    """How the sequence is seen: both, left, beginning."""
    rows: tuple[str, ...]
    """The tokens that look."""
    columns: tuple[str, ...]
    """The tokens that are looked at."""
    answers: tuple[str, ...]
    """What each row's token is asked for; empty where it is not asked."""
    seen: tuple[tuple[bool, ...], ...]
    """[rows][columns]."""
    step: int = 1
    """Every how many-th token is drawn."""


@dataclass(frozen=True)
class Masks:
    """All grids of a model under an objective, and the same in words."""

    name: str
    family: str
    objective: str
    grids: tuple[Grid, ...]
    words: dict[str, str]
    """who, hidden, answers."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; a grid's cells are 1 where the row's token sees the column's."""
        plain = asdict(self)
        for grid in plain["grids"]:
            grid["seen"] = [[int(cell) for cell in row] for row in grid["seen"]]
        return plain

    def draw(self, *, ascii: bool = False) -> str:
        """The grids and the words as text for a terminal, readable without colour."""
        out = [f"{self.name} · {self.objective}: rows look, columns are looked at"]
        for grid in self.grids:
            out += ["", _title(grid), *_lines(grid, ascii)]
        width = max(map(len, self.words))
        drawn = "\n".join([*out, "", *(f"{name:<{width}}  {text}" for name, text in self.words.items())])
        return drawn.translate({ord("·"): "-", ord("–"): "-"}) if ascii else drawn

    def __str__(self) -> str:
        return self.draw()


def inspect_mask(
    what: str | Path,
    *,
    text: str | None = None,
    objective: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Masks:
    """Who may see whom in a model, in training with an objective.

    Args:
        what: a preset; or a run folder, a model folder or a hub id.
        text: what the grids are drawn of.
        objective: fields of `bertkin.config.Objective`; by default the run's own, or the family's.
        model: fields of `bertkin.config.Model`, for a preset.

    Raises:
        UserError: no such model, an objective it cannot serve, or no text.
    """
    from bertkin.config import from_mapping

    asked = from_mapping(Objective, dict(objective or {}), "--objective")
    shape = from_mapping(Model, dict(model or {}), "--model")
    if text is not None and not text.split():
        raise UserError("no text to draw", where="--text", mend="give some words")
    if str(what) in presets.names():
        recipe = complete(Recipe(preset=str(what), objective=asked, model=shape))
        a = presets.architecture(presets.resolve_model(recipe.model, recipe.model.vocab_size or 1024))
        tokenizer = None
    else:
        if any(value is not AUTO for value in vars(shape).values()):
            raise UserError("the shape of a model that is there is what it is", where="--model", mend="name a preset")
        folder = _folder_of(str(what))
        a = read_config(folder / "config.json")[0]
        own = _trained_as(Path(what), asked)
        recipe = complete(Recipe(preset=f"{a.family}-tiny", objective=own))
        tokenizer = Tokenizer.load(folder, a.vocab_size)
    tokenizer = tokenizer or _words_of(text or TEXT, sentinels=a.family == "t5")
    with torch.device("meta"):  # the rules are wanted, not the weights
        lm = LanguageModel(a)
    drawn = _Drawn(lm, recipe.objective, tokenizer, text or TEXT)
    kind = str(recipe.objective.kind)
    longest = drawn.batch.layout.max_length
    if longest > a.max_length:
        problem = f"the text has {longest:,} tokens, the model reads {a.max_length:,}"
        raise UserError(problem, where="--text", mend="give a shorter one")
    grids = tuple(drawn.grids(far=text is None))
    return Masks(str(what), a.family, _named(recipe.objective), grids, described(a, recipe.objective, kind))


def _folder_of(what: str) -> Path:
    """The folder of a model; a name that is nearly a preset's is told so."""
    try:
        return find_folder(what)
    except UserError:
        if not Path(what).exists() and get_close_matches(what, presets.names()):
            presets.preset(what)  # says which presets there are
        raise


def _trained_as(path: Path, asked: Objective) -> Objective:
    """What a run was asked, with what is asked here over it; where another kind is asked, only that."""
    recipe = grown_by(path) if asked.kind is AUTO else None
    merged: Objective = asked if recipe is None else merge(recipe.objective, asked)
    return merged


def _named(objective: Objective) -> str:
    return f"{objective.kind} ({objective.noise})" if objective.kind == "denoise" else str(objective.kind)


def _words_of(text: str, *, sentinels: bool) -> Tokenizer:
    """A tokenizer of a text's own words, for presets, which have none."""
    return train_tokenizer([text], kind="word", sentinels=16 if sentinels else 0)


@dataclass(frozen=True)
class _OneText:
    """A text as the only document of a split."""

    tokens: Ints
    documents: Ints
    sentences: Ints
    marks: None = None

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.documents) - 1


@dataclass(frozen=True)
class _Drawn:
    model: LanguageModel
    objective: Objective
    tokenizer: Tokenizer
    text: str

    @cached_property
    def batch(self) -> Batch:
        """The text, many times, each time asked anew."""
        parts = [self.tokenizer.encode(sentence) for sentence in sentences(self.text)]
        parts = [part for part in parts if part]
        if not parts:
            raise UserError("the tokenizer sees nothing in it", where="--text", mend="give some words")
        ends = np.cumsum([len(part) for part in parts])
        tokens = np.concatenate(parts).astype(np.int64)
        split = _OneText(tokens, np.array([0, len(tokens)]), np.concatenate([[0], ends[:-1]]))
        ids = Specials.of(self.tokenizer)
        check_tokenizer(self.objective, ids)
        objective = self.objective
        if objective.sentence == "next":  # it needs other documents, and changes nothing in who sees whom
            objective = replace(objective, sentence="order")
        pieces, keys = cut(split, np.zeros(TRIES, np.int64), len(tokens) + 2), mix(9, np.arange(TRIES))
        return MAKERS[str(objective.kind)](split, ids, pieces, keys, objective, objective.rate)

    def grids(self, *, far: bool) -> Iterator[Grid]:
        """Every part, kind of layer and kind of sequence. Layers whose window is wider than the text are drawn from
        afar, where `far`."""
        batch, model = self.batch, self.model
        rule = model.stack.blocks[0].attention.rule
        kinds = _kinds(batch.layout, causal=rule is not None and rule.causal)
        if self.objective.kind == "prefix" and "beginning" in kinds:  # one token of beginning is no kind of its own
            kinds.pop("left", None)
        for sees, s in kinds.items():
            layout, start = batch.layout.take(s, s + 1), int(batch.layout.starts[s])
            here = slice(start, start + layout.n_tokens)
            names, answers = self._names(batch.ids[here]), self._answers(batch, here)
            source = batch.source
            if source is not None and model.source is not None:
                read, first = source.layout.take(s, s + 1), int(source.layout.starts[s])
                read_names = self._names(source.ids[first : first + read.n_tokens])
                yield from _of_stack("encoder", model.source, read, read_names, "both", far=far)
                yield from _of_stack("decoder", model.stack, layout, names, sees, answers, far=far)
                every = tuple(range(1, model.stack.depth + 1))
                yield Grid("cross", every, "both", names, read_names, answers, _tuples(seen(read, Rule(), layout)))
            else:
                yield from _of_stack("stack", model.stack, layout, names, sees, answers, far=far)

    def _names(self, ids: Ints) -> tuple[str, ...]:
        return tuple(self.tokenizer.token(int(i)) for i in ids)

    def _answers(self, batch: Batch, here: slice) -> tuple[str, ...]:
        judged = "replaced?" if self.objective.kind == "replaced" else ""
        answers = [judged] * (here.stop - here.start)
        for place, target in zip(batch.asked, batch.targets, strict=True):
            if here.start <= place < here.stop:
                answers[int(place) - here.start] = self.tokenizer.token(int(target))
        return tuple(answers)


def seen(layout: Layout, rule: Rule, asking: Layout | None = None) -> Grid2:
    """What attention gives weight to in the only sequence of a layout, bool [queries, keys].

    Args:
        asking: the layout of those who look, where it is another sequence (cross attention).
    """
    look = layout if asking is None else asking
    q, k = torch.zeros(look.n_tokens, 1, 2), torch.zeros(layout.n_tokens, 1, 2)
    other = None if asking is None else asking.to("cpu")
    weights = attention_weights(q, k, layout.to("cpu"), rule, asking=other)
    found: Grid2 = (weights[0, 0] > 0).numpy()
    return found


def _kinds(layout: Layout, *, causal: bool) -> dict[str, int]:
    """For each way of seeing a sequence, one that is seen so; of beginnings, the one nearest to half the text."""
    found: dict[str, int] = {}
    best = np.inf
    for s in range(layout.n_sequences):
        here = layout.take(s, s + 1)
        n = here.n_tokens
        reach = here.reach if here.reach is not None else here.positions + 1 if causal else np.full(n, n)
        first = int(reach[0])
        if first == n:
            found.setdefault("both", s)
        elif first == 1:
            found.setdefault("left", s)
        elif abs(first - n / 2) < best:
            best, found["beginning"] = abs(first - n / 2), s
    return {sees: found[sees] for sees in SEES if sees in found}


def _of_stack(
    part: str,
    stack: Stack,
    layout: Layout,
    names: tuple[str, ...],
    sees: str,
    answers: tuple[str, ...] = (),
    *,
    far: bool,
) -> Iterator[Grid]:
    """A grid for each rule that the layers of a stack have."""
    by_rule: dict[Rule, list[int]] = {}
    for number, block in enumerate(stack.blocks, start=1):
        assert block.attention.rule is not None
        by_rule.setdefault(block.attention.rule, []).append(number)
    answers = answers or ("",) * len(names)
    for rule, layers in by_rule.items():
        drawn = Grid(part, tuple(layers), sees, names, names, answers, _tuples(seen(layout, rule)))
        window = rule.window
        yield _from_afar(drawn, layout, rule) if far and window and window >= len(names) - 1 else drawn


def _from_afar(near: Grid, layout: Layout, rule: Rule) -> Grid:
    """A sequence long enough to show the window, every n-th token of it; seen as the short one is."""
    assert rule.window is not None
    step = max(1, rule.window // 4)
    n = step * AFAR
    reach = {"both": np.full(n, n), "left": np.arange(1, n + 1)}.get(near.sees)
    if reach is None:
        reach = np.maximum(np.arange(1, n + 1), n // 2)
    long = Layout.from_lengths([n], reach=None if layout.reach is None else reach.astype(np.int32))
    names = tuple(str(number) for number in range(1, n + 1, step))
    few = seen(long, rule)[::step, ::step]
    return replace(near, rows=names, columns=names, answers=("",) * len(names), seen=_tuples(few), step=step)


def _tuples(grid: Grid2) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(bool(cell) for cell in row) for row in grid)


# On paper.


def _title(grid: Grid) -> str:
    layers = f"{'layer' if len(grid.layers) == 1 else 'layers'} {_ranges(grid.layers)}"
    what = {"stack": "", "encoder": "encoder, ", "decoder": "decoder, ", "cross": "decoder looks at the encoder, "}
    how = "all of the source" if grid.part == "cross" else SEES[grid.sees]
    far = f"; every {grid.step}th token of a longer text" if grid.step > 1 else ""
    return f"{what[grid.part]}{layers}: sees {how}{far}" if grid.part != "stack" else f"{layers}: {how}{far}"


def _ranges(numbers: tuple[int, ...]) -> str:
    """1, 4, 7 or 1–12."""
    if len(numbers) > 2 and numbers == tuple(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _lines(grid: Grid, ascii: bool) -> list[str]:
    every = max(1, -(-len(grid.rows) // LONGEST), -(-len(grid.columns) // LONGEST))
    rows, columns = range(0, len(grid.rows), every), range(0, len(grid.columns), every)
    yes, no = ("##", " .") if ascii else ("██", " ·")
    width = min(12, max(len(grid.rows[i]) for i in rows))
    marks = "".join(f"{j + 1:>2}"[-2:] for j in columns) if grid.step == every == 1 else ""
    out = [f"{'':>{width + 4}}{marks}"] if marks else []
    arrow = "->" if ascii else "→"
    for i in rows:
        cells = "".join(yes if grid.seen[i][j] else no for j in columns)
        answer = f"  {arrow} {grid.answers[i]}" if grid.answers[i] else ""
        number = f"{i + 1:>2}" if marks else "  "
        out.append(f"{number} {grid.rows[i][:12]:<{width}} {cells}{answer}")
    if grid.part == "cross":
        out.append(f"{'':>{width + 4}}columns: {' '.join(grid.columns[j] for j in columns)}")
    return out
