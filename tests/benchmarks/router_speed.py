"""What routing costs beside embedding, and what a thousand domains cost beside ten."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from langchain_core.embeddings import Embeddings

from one4all_lc.folder import Exemplar
from one4all_lc.library import Library
from one4all_lc.routing.background import EVERYDAY
from one4all_lc.routing.embeddings import default_embeddings
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.routing.rows import held_out, read_labelled
from tests.benchmarks.harness import Bar, Rounds, rounds
from tests.test_routing import make_expert

EACH = 20  # exemplars of a domain
ASKED = 60  # questions in each case and round
DOMAINS = (10, 1000)


class Drawn(Embeddings):
    """Embeds questions with the real model; exemplars get vectors drawn around their domain's.

    What routing costs does not depend on what the vectors are.
    """

    def __init__(self) -> None:
        self.model = default_embeddings()
        self.model_name = "drawn"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the texts' vectors."""
        if not any(text.startswith("exemplar ") for text in texts):
            return self.model.embed_documents(texts)
        return [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a text's vector."""
        return self.embed_documents([text])[0]

    def _vector(self, text: str) -> list[float]:
        if not text.startswith("exemplar "):
            return self.model.embed_query(text)
        domain, number = (int(part) for part in text.split()[1:])
        centre = np.random.default_rng(domain).normal(size=384)
        vector = 2 + centre + np.random.default_rng([domain, number]).normal(size=384)
        return (vector / np.linalg.norm(vector)).tolist()


def router_of(count: int, root: Path) -> SemanticRouter:
    """Make a router of so many domains, its exemplars in a Chroma folder."""
    for domain in range(count):
        texts = [Exemplar(f"exemplar {domain} {number}").text for number in range(EACH)]
        make_expert(root / "experts", f"d{domain}", texts)
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(root / "chroma"), settings=settings)
    # Noticing what other processes change is no part of routing, and happens once a second.
    library = Library(root / "experts", notice_after=3600)
    return SemanticRouter(library=library, embeddings=Drawn(), client=client)


def case(ask: Callable[[str], object], texts: list[str]) -> Callable[[], float]:
    """Return a case: the median of seconds that questions take, none asked twice in a row."""
    questions = itertools.cycle(texts)

    def run() -> float:
        seconds = []
        for text in itertools.islice(questions, ASKED):
            started = time.perf_counter()
            ask(text)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    return run


def in_step(router: SemanticRouter, folder: Path) -> dict[str, Any]:
    """Add and remove an exemplar, and compare the collection with the exemplars in use."""
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder), settings=settings)
    (collection,) = client.list_collections()

    def kept() -> bool:
        found = set(collection.get(include=["documents"])["documents"])
        return found == {item.text for item in router.exemplars.exemplars} | set(EVERYDAY)

    steps = [kept()]
    started = time.perf_counter()
    router.add_exemplars("d7", ["exemplar 7 99"])
    seconds = time.perf_counter() - started
    steps.append(kept())
    router.remove_exemplars("d7", ["exemplar 7 99"])
    return {"chroma_in_step": all([*steps, kept()]), "seconds_to_add_an_exemplar": seconds}


def measured_speed(data: Path) -> tuple[Rounds, dict[str, Bar], dict[str, Any]]:
    """Time one routed question among ten and a thousand domains, and embedding alone."""
    rows = read_labelled([data / "clinc150" / "intents.jsonl"], "domain")
    texts = [row.text for row in held_out(rows)][: 10 * ASKED]
    with tempfile.TemporaryDirectory() as name:
        routers = {count: router_of(count, Path(name, str(count))) for count in DOMAINS}
        facts: dict[str, Any] = {}
        for count, router in routers.items():
            started = time.perf_counter()
            router.refresh()
            facts[f"seconds_to_fit_{count}_domains"] = time.perf_counter() - started
        model = default_embeddings()
        cases = {"embedding alone": case(model.embed_query, texts)} | {
            f"{count} domains": case(router.invoke, texts) for count, router in routers.items()
        }
        timed = rounds(cases, 7)
        facts |= in_step(routers[1000], Path(name, "1000", "chroma"))
    over = timed.ratio("10 domains", "embedding alone")
    many = timed.ratio("1000 domains", "10 domains")
    return (
        timed,
        {
            "route_over_embed": Bar(over, 1.10, at_most=True),
            "domains1000": Bar(many if facts["chroma_in_step"] else None, 1.5, at_most=True),
        },
        facts,
    )
