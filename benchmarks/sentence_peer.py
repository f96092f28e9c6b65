"""sentence-transformers' side of embedding.py, with what it needs and no more, so that another Python can run it.

    python benchmarks/sentence_peer.py float32 MODEL sentences.txt vectors.npy

Prints JSON: {"seconds": [of each pass over the sentences]}, or {"missing": what is not installed}. Ways: float32 is as a user
gets it; bfloat16; onnx and int8 are its ONNX backend (pip install "sentence-transformers[onnx]"), as exported, and with
weights and products of whole numbers by its own dynamic quantisation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

PASSES = 3


def opened(way: str, model: str) -> Any:
    """The model by one of its backends.

    Raises:
        ImportError: what the backend needs is not installed.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    if way == "float32":
        return SentenceTransformer(model, device="cpu")
    if way == "bfloat16":
        return SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    exported = SentenceTransformer(model, device="cpu", backend="onnx", model_kwargs={"export": True})
    if way == "onnx":
        return exported
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    kind = _instructions()
    with tempfile.TemporaryDirectory() as folder:
        exported.save_pretrained(folder)
        export_dynamic_quantized_onnx_model(exported, kind, folder)  # type: ignore[arg-type]
        name = next(path.name for path in Path(folder, "onnx").glob("*int8*.onnx"))
        return SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs={"file_name": f"onnx/{name}"})


def _instructions() -> str:
    """The quantisation that sentence-transformers names for this processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "avx2"
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512" if "avx512f" in flags else "avx2"


def main(way: str, model: str, sentences: str, out: str) -> dict[str, Any]:
    try:
        encoder = opened(way, model)
    except Exception as error:  # a backend that is not installed is no ImportError there
        if not isinstance(error, ImportError) and "requires installing" not in str(error):
            raise
        return {"missing": str(error).strip().splitlines()[0]}
    import numpy as np

    texts = Path(sentences).read_text(encoding="utf-8").splitlines()
    encoder.encode(texts[:64])
    took = []
    for _ in range(PASSES):
        begun = perf_counter()
        vectors = encoder.encode(texts)
        took.append(perf_counter() - begun)
    np.save(out, np.asarray(vectors, np.float32))
    return {"seconds": took}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
