"""What stands in for a Chroma client where nothing is to be kept."""

from typing import Any


class KeepsNothing:
    """A client for `SemanticRouter(client=)`: what is embedded stays in the router alone.

    Chroma's own client in memory will not do: there is one in a process, with one set of settings,
    which whoever else uses it has chosen.
    """

    def get_or_create_collection(self, name: str, **_: Any) -> "KeepsNothing":
        """Return the one collection, which is empty."""
        self.name = name
        return self

    @property
    def configuration(self) -> dict[str, Any]:
        """Cosines, as everywhere."""
        return {"hnsw": {"space": "cosine"}}

    def get(self, **_: Any) -> dict[str, Any]:
        """Return that there is nothing."""
        return {"ids": [], "embeddings": []}

    def query(self, query_embeddings: Any, **_: Any) -> dict[str, Any]:
        """Return no candidate for each question: all exemplars are compared."""
        return {"ids": [[] for _ in query_embeddings]}

    def upsert(self, **_: Any) -> None:
        """Keep nothing."""

    def delete(self, **_: Any) -> None:
        """Delete nothing."""
