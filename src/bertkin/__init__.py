"""bertkin: language models of the BERT and GPT family, grown from raw text on the machine you have.

The functions below are imported when they are first used, so that `import bertkin` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertkin.api import (
        adapt,
        check_data,
        embed,
        evaluate,
        fill,
        finetune,
        finetune_together,
        generate,
        load,
        make_recipe,
        merge,
        pairs,
        predict,
        predict_all,
        predict_table,
        prepare,
        pretrain,
        prompt,
        resume,
        train_tokenizer,
    )
    from bertkin.config import Recipe
    from bertkin.errors import UserError
    from bertkin.text.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Tokenizer",
    "UserError",
    "__version__",
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

_HOMES = {"Recipe": "bertkin.config", "UserError": "bertkin.errors", "Tokenizer": "bertkin.text.tokenizer"}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'bertkin' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "bertkin.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
