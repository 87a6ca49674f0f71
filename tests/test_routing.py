"""The router: every test says what a user would lose if it failed."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import chromadb
import numpy as np
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer

from one4all_lc.card import BaseFingerprint, ExpertCard
from one4all_lc.errors import InvalidInput
from one4all_lc.folder import CONFIG_FILE, WEIGHTS_FILE, Exemplar, sha256_of, write_exemplars
from one4all_lc.library import Library
from one4all_lc.routing.embeddings import default_embeddings
from one4all_lc.routing.exemplars import ExemplarStore, collection_name, fingerprint_of
from one4all_lc.routing.router import SemanticRouter

HERE = Path(__file__).parent
SHIPPED = ("mobile", "medical", "sql")
QUESTIONS = [
    json.loads(line)
    for line in (HERE / "routing_questions.jsonl").read_text(encoding="utf-8").splitlines()
]
SEED = "Which smartphone has the best camera in 2025?"
SEED_FA = "بهترین دوربین گوشی در 2025 کدام است؟"
FRUIT = ["How sour is a lemon?", "Are plums in season?", "Which apple is sweetest?"]
SPACE = ["How far is Mars?", "What is a comet made of?", "Does the moon have weather?"]


def make_expert(root: Path, name: str, questions, description: str = "An expert.") -> Path:
    """Write a real expert folder; its one LoRA layer does not matter to the router."""
    from safetensors.numpy import save_file

    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {layer.format("A"): np.ones((2, 4), "f4"), layer.format("B"): np.ones((4, 2), "f4")}
    save_file(factors, folder / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    ExpertCard(
        name=name,
        title=name,
        description=description,
        base="none/needed",
        fingerprint=BaseFingerprint("a", "b", "c", "d"),
        weights_sha256=sha256_of(folder / WEIGHTS_FILE),
    ).write(folder)
    items = [Exemplar(*item) if isinstance(item, tuple) else Exemplar(item) for item in questions]
    if items:
        write_exemplars(folder, items)
    return folder


class Counting(Embeddings):
    """Count the texts that reach an embedder."""

    def __init__(self, inner: Embeddings) -> None:
        self.inner = inner
        self.texts: list[str] = []
        self.calls = 0

    def embed_documents(self, texts):
        self.texts += texts
        self.calls += 1
        return self.inner.embed_documents(texts)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def fake(size: int = 16) -> Counting:
    return Counting(DeterministicFakeEmbedding(size=size))


@pytest.fixture
def client(tmp_path):
    return chromadb.PersistentClient(
        str(tmp_path / "chroma"), settings=chromadb.Settings(anonymized_telemetry=False)
    )


@pytest.fixture
def two(tmp_path) -> Library:
    """Build a library of two small experts."""
    make_expert(tmp_path / "experts", "fruit", FRUIT)
    make_expert(tmp_path / "experts", "space", SPACE)
    return Library(tmp_path / "experts")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> SemanticRouter:
    """Route among the shipped exemplars with the real embedder."""
    root = tmp_path_factory.mktemp("shipped")
    for name in SHIPPED:
        file = HERE.parent / "adapters" / name / "exemplars.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        make_expert(root / "experts", name, [(row["text"], row["language"]) for row in rows])
    client = chromadb.PersistentClient(
        str(root / "chroma"), settings=chromadb.Settings(anonymized_telemetry=False)
    )
    return SemanticRouter(library=Library(root / "experts"), client=client)


# The real embedder on real questions


def test_sixty_questions_go_where_they_should(shipped):
    """Lost otherwise: the right expert's answer."""
    routes = shipped.batch([row["text"] for row in QUESTIONS])
    wrong = [
        f"{row['text']} -> {route.best} instead of {row['expert']}: {route.explain()}"
        for row, route in zip(QUESTIONS, routes, strict=True)
        if route.best != row["expert"]
    ]
    assert len(QUESTIONS) == 60
    assert len(wrong) <= 5, "\n".join(wrong)


@pytest.mark.parametrize("question", [SEED, SEED_FA], ids=["English", "Persian"])
def test_seed_question_goes_to_mobile(shipped, question):
    """Lost otherwise: the first command of the README answers without the expert."""
    route = shipped.invoke(question)
    assert route.best == "mobile", route.explain()


def test_no_question_of_the_test_set_is_an_exemplar(shipped):
    """Lost otherwise: the sixty questions prove nothing."""
    known = {item.text for expert in shipped.library for item in expert.exemplars}
    assert not known & {SEED, SEED_FA, *(row["text"] for row in QUESTIONS)}


def test_persian_small_talk_is_not_taken_for_the_only_persian_expert(shipped):
    """Lost otherwise: all Persian questions go to the only expert with Persian exemplars."""
    asked = [f"{verb} {thing}؟" for verb in ("معنی شعر", "تاریخ") for thing in ("حافظ", "مغول")]
    asked += ["فردا باران می‌بارد؟", "حال شما چطور است؟", "پایتخت فرانسه کجاست؟"]
    routes = shipped.batch(asked)
    assert sum(route.best == "mobile" for route in routes) <= 1


def test_route_tells_why(shipped):
    """Lost otherwise: nobody can see why a question went where it went."""
    taken, refused = shipped.batch([SEED, "What is the capital of Mongolia?"])
    assert taken.reason == "matched"
    assert taken.in_scope >= taken.threshold
    assert next(item.name for item in taken.experts) == "mobile"
    assert sum(item.probability for item in taken.experts) == pytest.approx(1, abs=1e-5)
    assert len(taken.nearest) == 3
    assert taken.nearest[0].text in taken.explain()
    assert refused.abstained
    assert refused.best is None
    assert refused.reason == "below_threshold"
    assert refused.in_scope < refused.threshold
    assert json.loads(json.dumps(taken.as_dict()))["best"] == "mobile"


async def test_batch_and_async_give_the_same_routes(shipped):
    """Lost otherwise: an answer that depends on how the chain was called."""
    asked = [row["text"] for row in QUESTIONS[::12]]
    one_by_one = [shipped.invoke(question) for question in asked]
    others = {
        "batch": shipped.batch(asked),
        "abatch": await shipped.abatch(asked),
        "ainvoke": [await shipped.ainvoke(question) for question in asked],
        "stream": [next(iter(shipped.stream(question))) for question in asked],
    }
    for way, routes in others.items():
        assert [route.best for route in routes] == [route.best for route in one_by_one], way
        for route, single in zip(routes, one_by_one, strict=True):
            assert route.in_scope == pytest.approx(single.in_scope, abs=1e-4), way


def test_long_question_is_routed_by_its_beginning(shipped):
    """Lost otherwise: a pasted document takes minutes in the tokenizer."""
    assert shipped.invoke(SEED + " " + "word " * 40_000).question.startswith(SEED)


def test_threads_share_the_default_embedder(shipped):
    """Lost otherwise: `chain.batch` fails with "Already borrowed" from the tokenizer."""
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(shipped.invoke(SEED).best)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["mobile"] * 8


def test_importing_the_router_imports_no_model_library():
    """Lost otherwise: seconds at the start of every command."""
    code = (
        "import sys, one4all_lc.routing.router;"
        "print([m for m in ('torch', 'chromadb', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What is embedded, and when


def test_exemplars_are_embedded_once(two, client):
    """Lost otherwise: every start embeds everything again."""
    first = fake()
    SemanticRouter(library=two, embeddings=first, client=client).refresh()
    assert set(FRUIT + SPACE) <= set(first.texts)
    second = fake()
    router = SemanticRouter(library=two, embeddings=second, client=client)
    router.invoke("Is it ripe?")
    router.invoke("Is it far?")
    assert not set(FRUIT + SPACE) & set(second.texts)


def test_changed_exemplars_are_noticed_and_only_they_are_embedded(two, client):
    """Lost otherwise: an expert's new domain, or seconds at every change."""
    embeddings = fake()
    two.notice_after = 3600
    router = SemanticRouter(library=two, embeddings=embeddings, client=client)
    before = router.invoke("Is rhubarb a fruit?")
    embeddings.texts.clear()
    write_exemplars(two["fruit"].folder, [Exemplar(FRUIT[0]), Exemplar("Is rhubarb a fruit?")])
    assert router.invoke("Is rhubarb a fruit?").nearest == before.nearest  # not looked at yet
    two.replace(two["fruit"].folder)
    embeddings.texts.clear()
    after = router.invoke("Is rhubarb a fruit?")
    assert embeddings.texts == ["Is rhubarb a fruit?"] * 2  # the new exemplar, the question
    assert after.nearest[0].text == "Is rhubarb a fruit?"
    assert after.fingerprint != before.fingerprint


def test_removed_expert_is_not_routed_to(two, client):
    """Lost otherwise: questions go to an expert that is gone."""
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    assert router.invoke(SPACE[0]).experts[0].name == "space"
    two.remove("space")
    route = router.invoke(SPACE[0])
    assert [item.name for item in route.experts] == ["fruit"]
    assert all(item.expert == "fruit" for item in route.nearest)


def test_another_embedder_never_reuses_vectors(two, client):
    """Lost otherwise: questions are compared with vectors of another model."""
    first, other = fake(), Counting(DeterministicFakeEmbedding(size=24))
    ExemplarStore(first, client).sync(two)
    kept = ExemplarStore(other, client).sync(two)
    assert set(FRUIT + SPACE) <= set(other.texts)
    assert kept.vectors.shape == (6, 24)

    class Shouting(Counting):  # same size and inner model, other vectors
        def embed_documents(self, texts):
            return super().embed_documents([text.upper() for text in texts])

    assert fingerprint_of(Shouting(first.inner)) != fingerprint_of(first)
    assert fingerprint_of(fake()) == fingerprint_of(first)


def test_stored_vectors_are_the_embedders_own(two, client):
    """Lost otherwise: an exemplar with another one's vector, routed wrong for ever."""
    embeddings = DeterministicFakeEmbedding(size=16)
    ExemplarStore(embeddings, client).sync(two)
    kept = ExemplarStore(embeddings, client).sync(two)
    expected = embeddings.embed_documents([item.text for item in kept.exemplars])
    np.testing.assert_allclose(kept.vectors, expected, rtol=1e-5)
    assert kept.experts == ("fruit",) * 3 + ("space",) * 3


def test_collection_without_cosine_is_refused(two, client):
    """Lost otherwise: squared distances in a store that other tools read as cosines."""
    embeddings = fake()
    client.create_collection(
        collection_name(fingerprint_of(embeddings)), configuration={"hnsw": {"space": "l2"}}
    )
    with pytest.raises(InvalidInput, match=r"'l2'.*'cosine'"):
        SemanticRouter(library=two, embeddings=embeddings, client=client).invoke("Anything?")


def test_default_store_lies_in_the_cache_folder(two, tmp_path, monkeypatch):
    """Lost otherwise: exemplars embedded anew in every process."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "cache"))
    ExemplarStore(fake()).sync(two)
    again = fake()
    ExemplarStore(again).sync(two)
    assert (tmp_path / "cache" / "exemplars" / "chroma.sqlite3").exists()
    assert not set(FRUIT) & set(again.texts)


def test_unusable_cache_folder_is_one_sentence(two, tmp_path, monkeypatch):
    """Lost otherwise: a traceback from SQLite."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InvalidInput, match=r"cannot keep the exemplars.*ONE4ALL_CACHE"):
        SemanticRouter(library=two, embeddings=fake()).invoke("Is it ripe?")


def test_two_processes_fill_one_store(two, tmp_path):
    """Lost otherwise: two commands at once corrupt the store or fail."""
    code = (
        "import sys; from langchain_core.embeddings import DeterministicFakeEmbedding;"
        "from one4all_lc.library import Library;"
        "from one4all_lc.routing.exemplars import ExemplarStore;"
        "store = ExemplarStore(DeterministicFakeEmbedding(size=16), folder=sys.argv[2]);"
        "print(store.sync(Library(sys.argv[1])).vectors.shape)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "experts"), str(tmp_path / "store")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert out.strip() == "(6, 16)"
    after = Counting(DeterministicFakeEmbedding(size=16))
    reader = ExemplarStore(after.inner, folder=tmp_path / "store")
    reader.embeddings = after
    reader._fingerprint = fingerprint_of(after.inner)
    assert reader.sync(two).vectors.shape == (6, 16)
    assert after.texts == []


def test_fingerprint_is_known_without_the_embedder(two, client):
    """Lost otherwise: a call that names its expert waits for an embedder that it does not need."""
    embeddings = fake()
    router = SemanticRouter(library=two, embeddings=embeddings, client=client)
    before = router.fingerprint
    assert embeddings.texts == []
    assert router.invoke(FRUIT[0]).fingerprint == before
    two.remove("space")
    assert router.fingerprint != before
    stricter = SemanticRouter(library=two, embeddings=embeddings, target_retention=0.8)
    assert stricter.fingerprint != router.fingerprint


# Libraries of every size


def test_empty_library_abstains(client):
    """Lost otherwise: the base cannot be used before there is an expert."""
    embeddings = fake()
    router = SemanticRouter(library=Library(), embeddings=embeddings, client=client)
    route = router.invoke("Anything?")
    assert (route.best, route.reason, route.experts) == (None, "empty", ())
    assert route.explain() == "No expert is in use."
    assert embeddings.texts == []
    json.dumps(route.as_dict(), allow_nan=False)


def test_first_expert_is_noticed(tmp_path, client):
    """Lost otherwise: a restart for every new expert."""
    library = Library()
    router = SemanticRouter(library=library, embeddings=fake(), client=client)
    assert router.invoke(FRUIT[0]).reason == "empty"
    library.add(make_expert(tmp_path, "fruit", FRUIT))
    assert router.invoke(FRUIT[0]).best == "fruit"


def test_single_expert_still_refuses_what_is_not_its_own(shipped, client):
    """Lost otherwise: one expert answers the whole world's questions."""
    library = Library()
    library.add(shipped.library["medical"].folder)
    router = SemanticRouter(library=library, client=client)
    own = [row["text"] for row in QUESTIONS if row["expert"] == "medical"]
    others = [row["text"] for row in QUESTIONS if row["expert"] is None]
    assert sum(route.best == "medical" for route in router.batch(own)) >= 12
    assert sum(route.abstained for route in router.batch(others)) >= 12


def test_expert_without_exemplars_is_known_by_its_description(tmp_path, client):
    """Lost otherwise: an expert downloaded without exemplars is never asked."""
    library = Library()
    library.add(make_expert(tmp_path, "fruit", [], description=FRUIT[0]))
    library.add(make_expert(tmp_path, "space", SPACE))
    route = SemanticRouter(library=library, embeddings=fake(), client=client).invoke(FRUIT[0])
    assert route.best == "fruit"
    assert route.nearest[0].text == FRUIT[0]


def test_lone_exemplar_has_a_threshold(tmp_path, client):
    """Lost otherwise: an expert of one exemplar takes everything, or infinity stands in JSON."""
    library = Library()
    library.add(make_expert(tmp_path, "fruit", FRUIT[:1]))
    router = SemanticRouter(library=library, embeddings=fake(), client=client)
    own, other = router.batch([FRUIT[0], SPACE[0]])
    assert (own.best, own.margin) == ("fruit", 1.0)
    assert other.in_scope < own.in_scope
    assert np.isfinite(own.threshold)
    assert own.threshold < own.in_scope
    json.dumps(own.as_dict(), allow_nan=False)


# What a chain may hand over


@pytest.mark.parametrize(
    "given",
    [
        SPACE[0],
        {"question": SPACE[0]},
        {"input": SPACE[0], "other": 1},
        {"messages": [HumanMessage(FRUIT[0]), AIMessage("Yes."), HumanMessage(SPACE[0])]},
        [SystemMessage(FRUIT[0]), HumanMessage(SPACE[0]), AIMessage("...")],
        [HumanMessage([{"type": "text", "text": SPACE[0]}])],
        [("system", FRUIT[0]), ("human", SPACE[0])],
        ChatPromptTemplate.from_messages([("system", FRUIT[0]), ("human", "{q}")]).invoke(
            {"q": SPACE[0]}
        ),
    ],
    ids=["text", "question", "input", "messages", "list", "blocks", "tuples", "prompt"],
)
def test_question_is_found(two, client, given):
    """Lost otherwise: the router fits into no chain but its own."""
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    assert router.invoke(given).question == SPACE[0]


@pytest.mark.parametrize(
    "given", ["", " \n", {"q": "?"}, [AIMessage("Hello.")], [], 7, {"question": None}, [3]]
)
async def test_no_question_is_refused(two, client, given):
    """Lost otherwise: the embedding of nothing decides who answers."""
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    with pytest.raises(InvalidInput):
        router.invoke(given)
    with pytest.raises(InvalidInput):
        await router.ainvoke(given)


async def test_one_bad_question_does_not_spoil_the_batch(two, client):
    """Lost otherwise: a batch of a thousand fails for one blank line."""
    embeddings = fake()
    router = SemanticRouter(library=two, embeddings=embeddings, client=client)
    router.refresh()
    embeddings.calls = 0
    asked = [FRUIT[0], " ", SPACE[0]]
    for results in (
        router.batch(asked, return_exceptions=True),
        await router.abatch(asked, return_exceptions=True),
    ):
        assert isinstance(results[1], InvalidInput)
        assert [results[0].best, results[2].best] == ["fruit", "space"]
    assert embeddings.calls == 2  # one for each batch
    with pytest.raises(InvalidInput):
        router.batch(asked)


async def test_async_uses_the_embedders_own_async(two, client):
    """Lost otherwise: a remote embedder blocks the event loop."""

    class Remote(Counting):
        async def aembed_documents(self, texts):
            self.awaited = texts
            return self.inner.embed_documents(texts)

    embeddings = Remote(DeterministicFakeEmbedding(size=16))
    router = SemanticRouter(library=two, embeddings=embeddings, client=client)
    await router.ainvoke(SPACE[0])
    assert embeddings.awaited == [SPACE[0]]


def test_route_stands_in_the_trace_and_in_a_chain(two, client):
    """Lost otherwise: traces that do not say who was asked."""

    class Tracer(BaseTracer):
        def _persist_run(self, run):
            self.root = run

    tracer = Tracer()
    router = SemanticRouter(library=two, embeddings=fake(), client=client)
    chain = router | RunnableLambda(lambda route: route.best)
    assert chain.invoke(SPACE[0], {"callbacks": [tracer]}) == "space"
    run = tracer.root.child_runs[0]
    assert run.name == "SemanticRouter"
    assert run.outputs["output"].best == "space"


@pytest.mark.parametrize("rows", [[[1.0, 2.0]] * 2, [[float("nan")] * 4]])
def test_broken_embedder_is_named(two, client, rows):
    """Lost otherwise: NaN compares false with every threshold, in silence."""

    class Broken(Embeddings):
        def embed_documents(self, texts):
            return rows

        def embed_query(self, text):
            return rows[0]

    with pytest.raises(InvalidInput, match="Broken"):
        SemanticRouter(library=two, embeddings=Broken(), client=client).invoke("Anything?")


@pytest.mark.parametrize("retention", [0, 1, -0.5])
def test_retention_is_a_share(two, retention):
    """Lost otherwise: a router that takes all or nothing."""
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        SemanticRouter(library=two, embeddings=fake(), target_retention=retention)


def test_default_embedder_is_one_per_process_and_normalised():
    """Lost otherwise: half a gigabyte for every router."""
    assert default_embeddings() is default_embeddings()
    vectors = np.array(default_embeddings().embed_documents([SEED, SEED_FA]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert vectors[0] @ vectors[1] > 0.85
