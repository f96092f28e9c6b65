"""The Python face: what the command line does, as functions. `import bertkin` has them all.

import bertkin
bertkin.train_tokenizer("corpus/", out="tokenizer")
bertkin.pretrain("corpus/", out="runs/mine", **{"data.tokenizer": "tokenizer", "train.minutes": 30})
bertkin.resume("runs/mine")
print(bertkin.fill("runs/mine", "Paris is the [MASK] of France."))
"""

from __future__ import annotations

from bertkin.api.asking import fill, generate, load, pairs, prompt
from bertkin.api.growing import adapt, make_recipe, prepare, pretrain, resume, train_tokenizer
from bertkin.api.tasks import (
    check_data,
    embed,
    evaluate,
    finetune,
    finetune_together,
    merge,
    predict,
    predict_all,
    predict_table,
)

__all__ = [
    "adapt",
    "check_data",
    "embed",
    "evaluate",
    "fill",
    "finetune",
    "finetune_together",
    "generate",
    "load",
    "make_recipe",
    "merge",
    "pairs",
    "predict",
    "predict_all",
    "predict_table",
    "prepare",
    "pretrain",
    "prompt",
    "resume",
    "train_tokenizer",
]
