"""A router with an embedder of its own: every test says what a user would lose if it failed."""

import pickle

import chromadb
import numpy as np
import pytest

from one4all_lc.errors import InvalidInput
from one4all_lc.folder import Exemplar
from one4all_lc.library import Library
from one4all_lc.routing.embeddings import QuestionEmbeddings
from one4all_lc.routing.exemplars import ExemplarSet
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.routing.scoring import Scorer
from one4all_lc.routing.spaces import unit
from one4all_lc.routing.tuned import TunedEmbeddings, TunedScorer, _held_out
from one4all_lc.routing.tuning import TuningRecipe
from one4all_lc.testing import FakeEmbeddings
from tests.test_routing import FRUIT, SPACE, make_expert
from tests.test_routing_scoring import blobs

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHORT = TuningRecipe(rank=4, most_steps=6, epochs=6, learning_rate=1e-3)
ASKED = ["Is a pear sweet?", "How hot is Venus?", "Who won the match?"]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Build a library of two small experts."""
    root = tmp_path_factory.mktemp("experts")
    make_expert(root, "fruit", FRUIT)
    make_expert(root, "space", SPACE)
    return Library(root)


@pytest.fixture(scope="module")
def tuned(library) -> SemanticRouter:
    """Train an adapter for a few steps."""
    router = SemanticRouter(
        library=library, embeddings=QuestionEmbeddings(MINILM), client=chromadb.EphemeralClient()
    )
    with pytest.MonkeyPatch.context() as patched:
        # Six exemplars cannot tell whether an adapter helps.
        patched.setattr("one4all_lc.routing.tuned.WEIGHTS", (0.5,))
        return router.fit(finetune=True, recipe=SHORT)


def within(vectors):
    """Return the mean cosine of exemplars of one expert, less that of different ones."""
    cosines = vectors @ vectors.T
    same = np.kron(np.eye(2, dtype=bool), np.ones((3, 3), bool)) & ~np.eye(6, dtype=bool)
    return cosines[same].mean() - cosines[:3, 3:].mean()


def test_the_adapter_draws_an_experts_exemplars_together(tuned):
    """Lost otherwise: minutes of training for the embedder that was there before."""
    vectors = np.array(tuned._embedder.embed_documents(FRUIT + SPACE))
    plain, own = (unit(half) for half in np.split(vectors, 2, axis=1))
    expected = QuestionEmbeddings(MINILM).embed_documents(FRUIT + SPACE)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    assert within(own) > within(plain) + 0.05


def test_whether_anybody_takes_a_question_is_decided_as_before(library, tuned):
    """Lost otherwise: thresholds set on exemplars that the adapter knows refuse new questions."""
    router = SemanticRouter(
        library=library, embeddings=QuestionEmbeddings(MINILM), client=chromadb.EphemeralClient()
    )
    for text in ASKED:
        one, other = tuned.invoke(text), router.invoke(text)
        mine = {item.name: (item.in_scope, item.threshold) for item in one.experts}
        for item in other.experts:
            assert mine[item.name] == pytest.approx((item.in_scope, item.threshold), abs=1e-3)
        assert one.fingerprint != other.fingerprint


async def test_documents_are_searched_by_the_vector_they_were_stored_by(tuned):
    """Lost otherwise: a retriever finds nothing, or anything, after a fine-tuning."""
    expected = QuestionEmbeddings(MINILM).embed_query(ASKED[0])
    vector, route = tuned.embed_and_route(ASKED[0])
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    again, other = await tuned.aembed_and_route(ASKED[0])
    assert (again, other) == (vector, route)


def test_the_adapter_is_saved_with_the_fit_and_can_be_given_up(library, tuned, tmp_path):
    """Lost otherwise: minutes of training at every start."""
    tuned.save(tmp_path)
    client = chromadb.EphemeralClient()
    again = SemanticRouter(library=library, embeddings=QuestionEmbeddings(MINILM), client=client)
    assert again.load(tmp_path, refit=False) is None
    copy = pickle.loads(pickle.dumps(tuned))
    copy._client, copy._store._client = client, client
    for text in ASKED:
        route = tuned.invoke(text)
        for other in (again.invoke(text), copy.invoke(text)):
            assert [item.name for item in other.experts] == [item.name for item in route.experts]
            assert other.experts[0].score == pytest.approx(route.experts[0].score, abs=1e-3)
    assert not isinstance(again.fit(finetune=False)._embedder, TunedEmbeddings)
    again.save(tmp_path)
    assert not (tmp_path / "embedder").exists()


def test_what_cannot_be_tuned_is_refused(library, tmp_path):
    """Lost otherwise: a traceback from inside a trainer."""
    router = SemanticRouter(
        library=library, embeddings=FakeEmbeddings(), client=chromadb.EphemeralClient()
    )
    with pytest.raises(InvalidInput, match="QuestionEmbeddings"):
        router.fit(finetune=True)
    make_expert(tmp_path, "fruit", FRUIT)
    single = SemanticRouter(
        library=Library(tmp_path),
        embeddings=QuestionEmbeddings(MINILM),
        client=chromadb.EphemeralClient(),
    )
    with pytest.raises(InvalidInput, match="another expert"):
        single.fit(finetune=True)


def test_an_adapter_that_does_not_help_is_not_used(library, monkeypatch):
    """Lost otherwise: accuracy, and twice the time for every question."""
    monkeypatch.setattr("one4all_lc.routing.tuned._rehearse", lambda *_: (0.0, 1.0))
    router = SemanticRouter(
        library=library, embeddings=QuestionEmbeddings(MINILM), client=chromadb.EphemeralClient()
    )
    assert router.fit(finetune=True)._embedder is router.embeddings


def test_held_out_exemplars_say_what_an_adapter_is_worth():
    """Lost otherwise: an adapter that only knows its exemplars by heart decides everything."""
    vectors, labels = blobs({"a": 30, "b": 30}, spread=1.2)
    owners = np.array([label == "b" for label in labels], int)
    kept = np.arange(2, 60, 3)
    rest = np.setdiff1d(np.arange(60), kept)
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype("f4")
    clean = _held_out(vectors, owners, rest, kept)
    noisy = _held_out(unit(noise), owners, rest, kept)
    assert clean[1] < noisy[1]


def test_the_halves_together_say_whose_and_the_plain_one_whether_anybodys():
    """Lost otherwise: the adapter is trained, and what it learnt is not used."""
    plain, labels = blobs({"a": 12, "b": 12}, seed=1)
    own, _ = blobs({"a": 12, "b": 12}, seed=2)
    everyday, _ = blobs({str(index): 1 for index in range(30)}, seed=3)
    both = np.concatenate([plain, own], 1)
    known = ExemplarSet(
        tuple(Exemplar(f"{label} {number}") for number, label in enumerate(labels)),
        tuple(labels),
        both,
        np.concatenate([everyday, everyday], 1),
        both[:0],
    )
    found = TunedScorer.fit(known, 0.95, 2.0).score(both)
    whose = Scorer.fit(both, labels, background=known.background).score(both)
    anybodys = Scorer.fit(plain, labels, background=everyday).score(plain)
    np.testing.assert_allclose(found.class_score, whose.class_score, atol=1e-3)
    np.testing.assert_allclose(found.in_scope, anybodys.in_scope, atol=1e-3)
