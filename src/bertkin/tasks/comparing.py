"""How much two texts agree: exactly, in their words, as SQuAD and CMRC count; BLEU, chrF and ROUGE from their libraries.

exact(text, reference)         1 or 0, after SQuAD's normalisation (Rajpurkar et al. 2016)
overlap(text, reference)       F1 of their words; of characters in scripts without blanks
cmrc_exact, cmrc_overlap       the same as CMRC 2018 counts (Cui et al. 2019): F1 of the longest common piece
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkin.errors import MissingExtra
from bertkin.tasks.data.words import words_in
from bertkin.tasks.task import spaceless

Floats = NDArray[np.float64]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
"""What CMRC's count passes over. (Its list has "……" as one entry, which no single character is.)"""


def normalised(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation, articles and blanks too many."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def words_of(text: str) -> list[str]:
    """The words that count: parted by blanks; where there are none between words, each character, but punctuation."""
    found: list[str] = []
    for word in normalised(text).split():
        piece = ""
        for character in word:
            if spaceless(character):
                found += [piece] if piece else []
                piece = ""
                found += [] if unicodedata.category(character).startswith("P") else [character]
            else:
                piece += character
        found += [piece] if piece else []
    return found


def exact(text: str, reference: str) -> float:
    """1 where two texts are the same but for case, punctuation, articles and blanks (the wide punctuation, too, of a script
    that is written without blanks, which SQuAD's own count does not know)."""
    if any(map(spaceless, text + reference)):
        return float(words_of(text) == words_of(reference))
    return float(normalised(text) == normalised(reference))


def overlap(text: str, reference: str) -> float:
    """F1 of the words two texts have in common; 1 or 0 where one has none."""
    one, two = words_of(text), words_of(reference)
    if not one or not two:
        return float(one == two)
    common = (Counter(one) & Counter(two)).total()
    return 2 * common / (len(one) + len(two))


def cmrc_words(text: str) -> list[str]:
    """Han characters each, other runs by blanks; without punctuation. (CMRC's own script parts such runs by NLTK, which
    tells brackets and per cent signs from the words beside them.)"""
    spaced = "".join(
        "" if character in CMRC_PUNCTUATION else f" {character} " if "一" <= character <= "龥" else character
        for character in text.lower().strip()
    )
    return spaced.split()


def cmrc_exact(text: str, reference: str) -> float:
    """1 where two texts are the same but for case and punctuation."""

    def bare(one: str) -> str:
        return "".join(character for character in one.lower().strip() if character not in CMRC_PUNCTUATION)

    return float(bare(text) == bare(reference))


def cmrc_overlap(text: str, reference: str) -> float:
    """F1 of the longest piece that stands in both."""
    one, two = cmrc_words(text), cmrc_words(reference)
    longest = _longest_common(one, two)
    return 2 * longest / (len(one) + len(two)) if longest else 0.0


def _longest_common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest run of words in both."""
    best = 0
    before = [0] * (len(two) + 1)
    for word in one:
        row = [0] * (len(two) + 1)
        for at, other in enumerate(two):
            if word == other:
                row[at + 1] = before[at] + 1
        best, before = max(best, *row), row
    return best


def best_of(compare: Callable[[str, str], float], text: str, references: Sequence[str]) -> float:
    """The agreement with the reference that agrees most; references that say nothing count only where all do."""
    bare: Callable[[str], Any] = cmrc_words if compare in (cmrc_exact, cmrc_overlap) else normalised
    told = [reference for reference in references if bare(reference)] or ["" for _ in references[:1]] or [""]
    return max(compare(text, reference) for reference in told)


# Libraries.


def bleu_rows(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """[texts, 10]: n-grams found, n-grams written, both for n = 1 to 4, and the two lengths, as sacrebleu counts."""
    wanted = "".join(one for known in references for one in known)
    kana, without_blanks = sum("\u3041" <= one <= "\u30ff" for one in wanted), sum(map(spaceless, wanted))
    tokens = "char" if kana > len(wanted) / 10 else "zh" if without_blanks > len(wanted) / 10 else "13a"
    scorer = _sacrebleu().BLEU(effective_order=True, tokenize=tokens)
    rows = []
    for text, known in zip(texts, references, strict=True):
        found = scorer.sentence_score(text, list(known))
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows, np.float64)


def bleu_of(sums: Floats) -> Floats:
    """BLEU, 0 to 1, from sums of rows [..., 10]."""
    scorer = _sacrebleu().BLEU
    flat = sums.reshape(-1, 10).round().astype(int)
    # An order of which nothing was met counts as half of its half, and so on, as in sacrebleu's score of a corpus.
    scores = [
        scorer.compute_bleu(list(s[:4]), list(s[4:8]), int(s[8]), int(s[9]), smooth_method="exp").score / 100
        for s in flat
    ]
    return np.array(scores).reshape(sums.shape[:-1])


def chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF of a whole set, 0 to 1."""
    most = max(map(len, references))
    columns = [[known[at] if at < len(known) else None for known in references] for at in range(most)]
    return float(_sacrebleu().CHRF().corpus_score(list(texts), columns).score) / 100


def rouge_rows(texts: Sequence[str], references: Sequence[Sequence[str]], kind: str) -> Floats:
    """[texts, 2]: ROUGE's F1 with the best reference, and 1. `kind` is rouge1, rouge2 or rougeL."""
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise MissingExtra("rouge-score", "text-metrics", "ROUGE") from None
    scorer = rouge_scorer.RougeScorer([kind], tokenizer=_AnyScript())
    best = [
        max(scorer.score(reference, text)[kind].fmeasure for reference in known)
        for text, known in zip(texts, references, strict=True)
    ]
    return np.stack([np.array(best), np.ones(len(best))], axis=1)


class _AnyScript:
    """Words for ROUGE: those of its own tokenizer where that knows the letters (a to z), and the same of any other script,
    of which it would leave nothing."""

    def tokenize(self, text: str) -> list[str]:
        text = text.lower().replace("_", " ")
        found = [text[start:end] for start, end in words_in(text)]
        return [word for word in found if any(map(str.isalnum, word))]


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise MissingExtra("sacrebleu", "text-metrics", "BLEU and chrF") from None
    return sacrebleu
