"""Who sees whom, what is hidden and what answers, in a line each, for every family and objective."""

from __future__ import annotations

from bertkin.config import Objective
from bertkin.models.architecture import Architecture

STACKS = {
    "bert": "one stack, norms after each sum, learned positions, two segments",
    "roberta": "one stack as BERT's, with one segment",
    "modern": "one stack, rotary positions, most layers see a window only",
    "albert": "one stack as BERT's, whose layers share their weights",
    "electra": "one stack as BERT's, beside a small generator with the same view",
    "gpt2": "one stack, learned positions",
    "llama": "one stack, rotary positions, keys and values shared by groups of heads",
    "bart": "an encoder and a decoder that looks at it in every layer",
    "t5": "an encoder and a decoder that looks at it in every layer, positions as distances",
}
WHO = {
    "masked": "every token sees its whole document",
    "replaced": "every token sees its whole document",
    "causal": "a token sees itself and those before it",
    "prefix": "a beginning of random length sees itself from both sides; after it, a token sees itself and those before",
    "hybrid": "{share:.0%} of the sequences are seen from the left, the others from both sides",
    "unilm": "a third of the sequences from both sides, a third from the left, a third as a beginning and what follows",
    "denoise": "the encoder sees all of the spoilt text; the decoder sees what it has written, and all of the encoder",
}
HIDDEN = {
    "masked": "{rate:.0%} of the tokens, in units of a {unit}: {mask:.0%} of them [MASK], {random:.0%} random, the rest left",
    "replaced": "{rate:.0%} of the tokens, which the generator then replaces by its guesses",
    "causal": "nothing but what comes next",
    "prefix": "nothing but what comes next",
    "hybrid": "what comes next; in the sequences seen from both sides, {rate:.0%} of the tokens",
    "unilm": "{rate:.0%} of the tokens, whichever way they are seen",
    "denoise": "the text is spoilt by {noise}, {rate:.0%} of it where the noise has a share",
}
ANSWERS = {
    "masked": "the hidden token's own place",
    "replaced": "every place: was this token replaced? (and the generator, at the hidden places: which token was it?)",
    "causal": "every token: what comes next?",
    "prefix": "every token after the beginning: what comes next?",
    "hybrid": "the token before: what comes next, or is hidden there?",
    "unilm": "the hidden token's own place",
    "denoise": "every token of the decoder: what comes next in the text it repairs?",
}


def described(a: Architecture, objective: Objective, kind: str) -> dict[str, str]:
    """The stack, who sees whom, what is hidden and what answers."""
    facts = {
        "share": objective.causal_share,
        "rate": objective.rate,
        "unit": objective.unit,
        "mask": objective.mask_share,
        "random": objective.random_share,
        "noise": objective.noise,
    }
    sees = WHO[kind].format(**facts) + "; never another document"
    windows = sorted({w for w in a.windows if w})
    if windows:
        sees += f"; local layers see {' or '.join(str(w // 2) for w in windows)} tokens to each side"
    return {
        "built": STACKS[a.family],
        "who sees whom": sees,
        "hidden": HIDDEN[kind].format(**facts),
        "answers": ANSWERS[kind].format(**facts),
    }
