"""The fast step is the stack with a cache: the same scores up to rounding, for every family, however it is called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bertkin.models import kernels
from bertkin.models.generate import Decoding, Manner, Reader, write
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build
from bertkin.models.steps import Steps

from .support import VOCABULARY, lively, shape

pytestmark = [
    pytest.mark.usefixtures("multiplied_by"),
    pytest.mark.skipif(not kernels.has_dots(), reason="no bfloat16 products here"),
]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2 with sinusoids": ("gpt2", {"positions": "sinusoidal"}),
    "gpt2 with rotary positions": ("gpt2", {"positions": "rotary"}),
    "llama": ("llama", {}),
    "llama with shared keys": ("llama", {"kv_heads": 2}),
    "bart": ("bart", {"decoder_layers": 3}),
    "t5": ("t5", {"decoder_layers": 3}),
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "modern": ("modern", {"local_window": 8}),
}
PROMPTS = [list(range(5, 5 + n)) for n in (3, 12, 7, 1, 5, 9, 2, 11, 4, 20, 6, 8, 10)]


def models(kind: str) -> tuple[LanguageModel, LanguageModel]:
    """The same weights in bfloat16 and in float32; wide enough for vectors, and no width a whole number of groups."""
    family, changes = KINDS[kind]
    sizes = {"hidden": 96, "heads": 3 if "kv_heads" not in changes else 4, "intermediate": 160, "max_length": 64}
    if "kv_heads" in changes:
        sizes["hidden"] = 128
    model: LanguageModel = lively(build(shape(family, **(sizes | changes))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    return narrow, copy.deepcopy(narrow).float()


def manner(model: LanguageModel, **more: Any) -> Manner:
    return Manner(start=(model.architecture.start_id,) if model.architecture.both else (), **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_a_fast_step_is_no_further_from_float32_than_the_stack(kind: str, int8: bool) -> None:
    model, exact = models(kind)
    assert Steps.usable(model)
    ways = [{}] if model.architecture.both else [{}, {"both_sides": True}, {"blank": 4}]
    steps = Steps(model, int8=int8)
    for more in ways:
        how = manner(model, **more)
        readers = [Reader(exact, PROMPTS, 9, how), Reader(model, PROMPTS, 9, how)]
        fast = Reader(model, PROMPTS, 9, how, steps=steps)
        with torch.inference_mode():
            truth, slow, quick = (reader.first() for reader in (*readers, fast))
            for step in range(9):
                near = float((slow.float() - truth).abs().max())
                assert float((quick - truth).abs().max()) < (6 if int8 else 1.5) * near + 1e-3
                tokens = truth.argmax(-1)
                if step == 4:  # a text is over, and the last one takes its place
                    for reader in (*readers, fast):
                        reader.cache.drop(2)
                    tokens = torch.cat([tokens[:2], tokens[-1:], tokens[3:-1]])
                if step == 6:  # beams
                    rows = torch.tensor([0, 0, 5, 1, 3])
                    for reader in (*readers, fast):
                        reader.cache.pick(rows)
                    tokens = tokens[rows]
                truth, slow, quick = (reader.next(tokens) for reader in (*readers, fast))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_likeliest_token_is_that_with_the_highest_score(threads: int) -> None:
    """The first of equals, in whichever thread's part of the vocabulary; and the same with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in ("gpt2", "llama with shared keys", "t5"):
            model, _ = models(kind)
            with torch.no_grad():
                model.table[60] = model.table[7]
            steps = Steps(model)
            for n in (1, 2, 5, 6, 7, 13):
                one, other = (Reader(model, PROMPTS[:n], 6, manner(model), steps=steps) for _ in range(2))
                with torch.inference_mode():
                    tokens = one.first().argmax(-1)
                    other.first()
                    for _ in range(6):
                        best = other.likeliest(tokens).clone()
                        assert torch.equal(best, one.next(tokens).argmax(-1))
                        tokens = best
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("bart", "t5")]
)  # encoders read packed: rounding
def test_a_text_does_not_depend_on_its_company(kind: str) -> None:
    model, _ = models(kind)
    steps = Steps(model)
    ends = list(range(3, VOCABULARY, 11))
    for how in (Decoding(20, temperature=0), Decoding(20, temperature=0.9), Decoding(20, beams=3)):
        found = [
            list(write(model, [prompt], how, manner=manner(model), ends=ends, numbers=[i], steps=steps))
            for i, prompt in enumerate(PROMPTS)
        ]
        alone = [[token for step in texts for _, token in step] for texts in found]
        together: list[list[int]] = [[] for _ in PROMPTS]
        for step in write(model, PROMPTS, how, manner=manner(model), ends=ends, steps=steps):
            for place, token in step:
                together[place].append(token)
        assert together == alone


def test_what_it_cannot_take_is_left_to_the_stack() -> None:
    assert not Steps.usable(lively(build(shape("gpt2", hidden=128))))  # float32
    for changes in ({}, {"hidden": 96, "heads": 6}, {"hidden": 128, "intermediate": 100}):
        assert not Steps.usable(lively(build(shape("gpt2", **changes))).to(torch.bfloat16))
    assert not Steps.usable(lively(build(shape("albert", hidden=128, embedding=32))).to(torch.bfloat16))
    assert not Steps.usable(build(shape("electra", hidden=128)).model.to(torch.bfloat16))
