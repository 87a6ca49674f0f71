"""Very many exemplars: what a user would lose if a test failed."""

import chromadb
import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from one4all_lc import SemanticRouter
from one4all_lc.routing import candidates
from one4all_lc.routing.candidates import Near
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
    pairs = list(zip(expected, found, strict=True))
    assert np.mean([a.best == b.best for a, b in pairs]) >= 0.98
    # Of strangers, who are refused, only the likeliest of unlikely experts may be another.
    own = [(a.experts[0].name, b.experts[0].name) for a, b in pairs[:-60]]
    assert np.mean([a == b for a, b in own]) >= 0.98
    assert np.mean([b == f"x{i // 3}" for i, (_, b) in enumerate(own)]) > 0.9
    assert np.mean([route.abstained for route in found[-60:]]) > 0.8
    first, second = np.array([(a.in_scope, b.in_scope) for a, b in pairs]).T
    assert np.median(np.abs(first - second)) < 0.02 * np.std(first)
    # What is added now is found by the index too.
    indexed.add_exemplars("x7", ["stranger of a new kind"])
    assert indexed.invoke("stranger of a new kind").nearest[0].expert == "x7"


def test_only_candidates_are_compared():
    """A million exemplars would be read for every question."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 8)).astype("f4")
    questions = generator.normal(size=(3, 8)).astype("f4")
    owners = np.arange(50) // 10
    means = np.stack([vectors[owners == owner].mean(0) for owner in range(5)])
    rows = [np.array([1, 2]), np.array([], int), np.arange(50)]
    found = Near(rows, owners, means, np.zeros(50, "f4")).products(questions, vectors)
    whole = questions @ vectors.T
    np.testing.assert_allclose(found[0, [1, 2]], whole[0, [1, 2]], rtol=1e-5)
    np.testing.assert_allclose(found[0, 40:], np.full(10, whole[0, 40:].mean()), rtol=1e-4)
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
    exact.refresh()
    assert exact._current().candidates is None
