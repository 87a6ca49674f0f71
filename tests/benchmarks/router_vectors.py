"""Vectors of the router benchmark's texts: each is embedded once, and kept in the cache folder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray

from one4all_lc.base.embedded import cache_folder
from one4all_lc.routing.embeddings import MODEL, QuestionEmbeddings

MODELS = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "e5": MODEL}


class KeptEmbeddings(Embeddings):
    """An embedder that looks texts up in a file, and embeds and adds those that it lacks.

    The file is keyed by model and text, so that it serves any seed, any data set and the next run.

    Args:
        name: One of `MODELS`.
    """

    def __init__(self, name: str) -> None:
        self.model = QuestionEmbeddings(MODELS[name])
        self._file = cache_folder() / "benchmarks" / f"router-{name}.npz"
        self._known: dict[str, NDArray[np.float32]] = {}
        if self._file.is_file():
            with np.load(self._file) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors (n, d)."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
        if missing:
            rows = np.array(self.model.embed_documents(list(missing.values())), "f4")
            self._known |= dict(zip(missing, rows, strict=True))
            self._keep()
        return np.stack([self._known[key] for key in keys])

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' vectors."""
        return self.vectors(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return a text's vector."""
        return self.embed_documents([text])[0]

    def _keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{self._file}.{os.getpid()}.npz")
        np.savez(
            partial, keys=np.array(list(self._known)), vectors=np.stack([*self._known.values()])
        )
        partial.replace(self._file)
