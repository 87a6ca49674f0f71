"""Very many exemplars: what a user would lose if a test failed."""

import chromadb
import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from one4all_lc import SemanticRouter
from one4all_lc.routing import candidates
from one4all_lc.routing.candidates import FLOOR, Candidates, products
from one4all_lc.testing import fake_expert, fake_library

EXPERTS, EACH, SIZE = 120, 25, 48


class Synthetic(Embeddings):
    """Vectors around a middle for each expert, in the narrow cone of real embedders."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.cone = generator.normal(size=SIZE)
        self.middles = generator.normal(size=(EXPERTS, SIZE))

    def embed_query(self, text):
        number, _, _ = text.partition(" ")
        generator = np.random.default_rng(list(text.encode()))
        middle = self.middles[int(number)] if number.isdecimal() else 0
        return (3 * self.cone + middle + 0.8 * generator.normal(size=SIZE)).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def routers(client, monkeypatch):
    """One that compares everything, and one that asks the index first."""
    library = fake_library(
        *(
            fake_expert(f"x{n}", exemplars=[f"{n} question {i}" for i in range(EACH)])
            for n in range(EXPERTS)
        )
    )
    exact, indexed = (
        SemanticRouter(library=library, embeddings=Synthetic(), client=client) for _ in range(2)
    )
    exact.refresh()
    monkeypatch.setattr(candidates, "EXACT", 1000)
    indexed.refresh()
    return exact, indexed


@pytest.mark.parametrize("kept", ["client", "folder"])
def test_candidates_agree_with_comparing_everything(kept, monkeypatch, tmp_path):
    """A router would answer worse the more it knows."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path))
    client = chromadb.EphemeralClient() if kept == "client" else None
    exact, indexed = routers(client, monkeypatch)
    asked = [f"{n} asked {i}" for n in range(EXPERTS) for i in range(3)]
    asked += [f"stranger {i}" for i in range(60)]
    expected, found = exact.batch(asked), indexed.batch(asked)
    same = [
        (a.experts[0].name, a.best) == (b.experts[0].name, b.best)
        for a, b in zip(expected, found, strict=True)
    ]
    assert np.mean(same) >= 0.98
    right = [route.experts[0].name == f"x{i // 3}" for i, route in enumerate(found[:-60])]
    assert np.mean(right) > 0.9
    # A candidate's score is exact, not an estimate from the few exemplars that the index named.
    scores = [
        (a.in_scope, b.in_scope) for a, b, alike in zip(expected, found, same, strict=True) if alike
    ]
    first, second = np.array(scores).T
    assert np.median(np.abs(first - second)) < 1e-3
    # What is added now is found by the index too.
    indexed.add_exemplars("x7", ["stranger of a new kind"])
    assert indexed.invoke("stranger of a new kind").nearest[0].expert == "x7"


def test_only_candidates_are_compared():
    """A million exemplars would be read for every question."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 8)).astype("f4")
    questions = generator.normal(size=(3, 8)).astype("f4")
    found = products(questions, vectors, [np.array([1, 2]), np.array([], int), np.arange(50)])
    whole = products(questions, vectors)
    np.testing.assert_allclose(found[0, [1, 2]], whole[0, [1, 2]], rtol=1e-5)
    assert (np.delete(found[0], [1, 2]) == FLOOR).all()
    np.testing.assert_allclose(found[1:], whole[1:], rtol=1e-4, atol=1e-5)


def test_an_index_that_fails_costs_time_and_nothing_else(monkeypatch, caplog):
    """A broken index would stop every answer."""
    from chromadb.errors import InternalError

    exact, indexed = routers(chromadb.EphemeralClient(), monkeypatch)

    def broken(*_, **__):
        raise InternalError("index")

    monkeypatch.setattr(chromadb.Collection, "query", broken)
    asked = ["3 asked 1", "stranger 2"]
    assert [r.best for r in indexed.batch(asked)] == [r.best for r in exact.batch(asked)]
    assert "all are compared" in caplog.text


def test_few_exemplars_need_no_index(monkeypatch):
    """A server would be asked for every question where a product would do."""
    exact, _ = routers(chromadb.EphemeralClient(), monkeypatch)
    monkeypatch.setattr(candidates, "EXACT", EXPERTS * EACH)
    assert Candidates.of(exact._store, exact.exemplars) is None
