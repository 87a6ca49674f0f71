"""A router measured on labelled questions: its exemplars, its routes, its figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from one4all_lc.card import BaseFingerprint, ExpertCard
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import OOS, Exemplar, Expert
from one4all_lc.library import Library
from one4all_lc.routing.evaluation import Outcome
from one4all_lc.routing.nowhere import KeepsNothing
from one4all_lc.routing.route import Route
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.routing.rows import Labelled

CHUNK = 256  # questions between two signs of progress


@dataclass(frozen=True)
class Measured:
    """What a router did.

    Attributes:
        outcome: Its decisions, as numbers.
        rows: The n questions.
        routes: Their routes, with the names of the router's own library.
        router: The router.
    """

    outcome: Outcome
    rows: Sequence[Labelled]
    routes: Sequence[Route]
    router: SemanticRouter

    def label(self, name: str | None) -> str:
        """Return the label of an expert of the router's library; `oos` for none."""
        names = self.router.library.names
        return OOS if name is None else self.outcome.labels[names.index(name)]


def library_from(exemplars: Mapping[str, Sequence[Exemplar]]) -> tuple[Library, tuple[str, ...]]:
    """Make a library of experts that have exemplars and nothing else, for a router alone.

    Labels may be any text, experts' names may not: experts are numbered. Exemplars labelled `oos`
    go to the first expert, marked as nobody's.

    Returns:
        The library, and the labels in its order.

    Raises:
        InvalidInput: There is no label but `oos`.
    """
    labels = tuple(label for label in exemplars if label != OOS)
    if not labels:
        msg = "No row of split 'train' has a label but 'oos': there is nothing to route to."
        raise InvalidInput(msg)
    negatives = tuple(replace(item, label=OOS) for item in exemplars.get(OOS, ()))
    experts = [
        _expert(index, label, (*exemplars[label], *(negatives if index == 0 else ())))
        for index, label in enumerate(labels)
    ]
    return Library.of(experts), labels


def measure(
    library: Library,
    labels: Sequence[str],
    rows: Sequence[Labelled],
    *,
    embeddings: Embeddings | None = None,
    client: Any = None,
    progress: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> Measured:
    """Route labelled questions among a library's experts.

    Args:
        library: The experts.
        labels: Their labels, in the library's order.
        rows: The questions; a label that no expert has is nobody's.
        embeddings: The router's embedder; None takes multilingual-e5-small.
        client: The Chroma client; None keeps nothing of the rows.
        progress: Is told how many questions are done.
        **settings: Other arguments of the router.

    Raises:
        InvalidInput: The router cannot be used with them.
    """
    router = SemanticRouter(
        library=library, embeddings=embeddings, client=client or KeepsNothing(), **settings
    )
    router.refresh()
    routes = list(_routed(router, [row.text for row in rows], progress))
    names = dict(zip(labels, library.names, strict=True))
    wanted = [names.get(row.label, OOS) for row in rows]
    outcome = Outcome.of(library.names, routes, wanted)
    return Measured(replace(outcome, labels=tuple(labels)), rows, routes, router)


def _routed(
    router: SemanticRouter, texts: Sequence[str], progress: Callable[[int], None]
) -> Iterator[Route]:
    for start in range(0, len(texts), CHUNK):
        yield from router.batch(list(texts[start : start + CHUNK]))
        progress(min(start + CHUNK, len(texts)))


def _expert(index: int, label: str, exemplars: Sequence[Exemplar]) -> Expert:
    card = ExpertCard(
        name=f"label-{index}",
        title=label,
        description=label,
        base="none",
        fingerprint=BaseFingerprint("", "", "", ""),
        weights_sha256="0" * 64,
        languages=tuple(dict.fromkeys(item.language for item in exemplars)) or ("en",),
    )
    return Expert(Path(card.name), card, tuple(exemplars), {}, card.name)
