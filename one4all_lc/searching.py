"""Searching vector stores by a vector that is known already, and merging what several found."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore

# What stores call a search by vector that gives scores: most of them, and Chroma.
SCORED = (
    "similarity_search_with_score_by_vector",
    "similarity_search_by_vector_with_relevance_scores",
)

Hits = list[tuple[Document, float | None]]
"""Documents with the scores that their store gave, nearest first."""


@dataclass(frozen=True)
class Place:
    """Where documents are searched.

    Attributes:
        store: The vector store.
        settings: What its search methods are given beside the vector and `k`.
        domain: The domain of what is found; None leaves that to each document.
        key: The metadata key in which a document has its domain.
    """

    store: VectorStore
    settings: Mapping[str, Any]
    domain: str | None
    key: str

    def labelled(self, hits: Iterable[tuple[Document, float | None]]) -> Hits:
        """Write the domain into the documents; copies of them, for stores hand out their own."""
        return [(self._labelled(document), score) for document, score in hits]

    def _labelled(self, document: Document) -> Document:
        domain = self.domain or document.metadata.get(self.key)
        return document.model_copy(update={"metadata": {**document.metadata, "domain": domain}})


@dataclass(frozen=True)
class Search:
    """One question's search.

    Attributes:
        vector: The question's embedding.
        text: The question, for stores that cannot be searched by a vector.
        k: How many documents to find at most.
    """

    vector: list[float]
    text: str
    k: int

    def run(self, place: Place, *, scored: bool) -> Hits:
        """Search a place, with scores if they are asked for and its store gives them."""
        store, settings = place.store, place.settings
        if scored and (method := _scored(store)):
            return place.labelled(method(self.vector, k=self._wide, **settings))
        try:
            documents = store.similarity_search_by_vector(self.vector, k=self.k, **settings)
        except NotImplementedError:
            documents = store.similarity_search(self.text, k=self.k, **settings)
        return place.labelled((document, None) for document in documents)

    async def arun(self, place: Place, *, scored: bool) -> Hits:
        """Search a place by its store's async methods."""
        store, settings = place.store, place.settings
        if scored and (amethod := _scored(store, "a")):
            return place.labelled(await amethod(self.vector, k=self._wide, **settings))
        if scored and _scored(store):
            return await run_in_executor(None, lambda: self.run(place, scored=True))
        try:
            documents = await store.asimilarity_search_by_vector(self.vector, k=self.k, **settings)
        except NotImplementedError:
            documents = await store.asimilarity_search(self.text, k=self.k, **settings)
        return place.labelled((document, None) for document in documents)

    @property
    def _wide(self) -> int:
        """As many as are needed to see from their order which scores are better."""
        return max(self.k, 2)


def merged(found: Sequence[Hits], k: int) -> list[Document]:
    """Merge what several places found, nearest first; of equals the earlier place's come first.

    Some stores score by similarity and others by distance, and none says which: the order in which
    it returns its finds does. Where that is unclear, or scores are missing, ranks decide.
    """
    better = _better(found)
    ordered = [
        (-better * (score or 0.0) if better else rank, document)
        for hits in found
        for rank, (document, score) in enumerate(hits)
    ]
    ordered.sort(key=lambda item: item[0])
    return [document for _, document in ordered[:k]]


def _better(found: Sequence[Hits]) -> int:
    """Return 1 if more is nearer, -1 if less is, 0 if that cannot be told."""
    scores = [[score for _, score in hits] for hits in found]
    if any(score is None for row in scores for score in row):
        return 0
    ends = [(row[0] or 0.0, row[-1] or 0.0) for row in scores if row]
    directions = {(first > last) - (first < last) for first, last in ends} - {0}
    return directions.pop() if len(directions) == 1 else 0


def _scored(store: VectorStore, prefix: str = "") -> Callable[..., Any] | None:
    methods = (getattr(store, prefix + name, None) for name in SCORED)
    return next((method for method in methods if method is not None), None)
