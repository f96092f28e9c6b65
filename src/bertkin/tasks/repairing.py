"""How an encoder–decoder was taught to repair text, and so how it is asked for what is missing.

repair(tokenizer, noise)        what stands where something is missing, and what is written then
read_by_encoder(…)              the frames of both sides, as `bertkin.objectives.denoise` makes them
written_first(…)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bertkin.models.heads import LanguageModel
from bertkin.objectives.denoise import parse_noise
from bertkin.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Repair:
    """How an encoder–decoder was taught to repair what is missing."""

    mark: int | None
    """What stands in the source where something is missing; None for nothing."""
    each: bool
    """Whether there is one for each missing token, not one for all."""
    whole: bool
    """Whether the whole text is written again, not what is missing alone."""
    opening: tuple[int, ...]
    """What is written first, before what is missing."""

    def hidden(self, n: int) -> list[int]:
        """What stands in the source for n missing tokens."""
        return [] if self.mark is None else [self.mark] * (n if self.each else 1)


def repair(tokenizer: Tokenizer, noise: str | None = None) -> Repair:
    """How a model that was taught to repair a noise (`objective.noise`) is asked for what is missing.

    Of several noises, it is the one that hides most openly that counts. Without one: spans behind sentinels, where the
    tokenizer has them (T5), else BART's infilling.

    Raises:
        UserError: the tokenizer lacks the mark.
    """
    known = parse_noise(noise) if noise else ()
    names = {name for steps, _ in known for name in steps} or {"spans" if len(tokenizer.sentinels) else "infilling"}
    if "spans" in names and len(tokenizer.sentinels):
        blank = int(tokenizer.sentinels[0])
        return Repair(blank, each=False, whole=False, opening=(blank,))
    for name, each, whole in (("infilling", False, True), ("masking", True, True), ("mass", True, False)):
        if name in names:
            return Repair(tokenizer.mask_id, each=each, whole=whole, opening=())
    return Repair(None, each=False, whole=not names & {"drop", "prefix"}, opening=())


def read_by_encoder(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """What an encoder reads, in its frame (see `bertkin.objectives.denoise`)."""
    return [*([] if len(tokenizer.sentinels) else [tokenizer.cls_id]), *ids, tokenizer.sep_id]


def written_first(tokenizer: Tokenizer, model: LanguageModel) -> tuple[int, ...]:
    """What a decoder reads before the first word."""
    start = model.architecture.start_id
    return (start,) if len(tokenizer.sentinels) else (start, tokenizer.cls_id)
