"""Documents of the right domain, by one embedding, and answers that say what they stand on."""

import json
import subprocess
import sys

import chromadb
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import BaseModel, ValidationError

from one4all_lc import One4All
from one4all_lc.answering import answer_from_documents
from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.retrieval import DomainRetriever
from one4all_lc.routing import embeddings as default
from one4all_lc.routing.embeddings import PassageEmbeddings, QuestionEmbeddings
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_expert, fake_library

EXEMPLARS = {
    "fruit": ["How sour is a lemon?", "Are plums in season?", "Which apple is sweetest?"],
    "space": ["How far is Mars?", "What is a comet made of?", "How old is the moon?"],
}
DOCUMENTS = {
    "fruit": ["A lemon is sour.", "Plums ripen in August.", "This apple is sweet.", "Pears keep."],
    "space": ["The moon is old.", "Mars is far.", "A comet is ice.", "This novel moon of Mars."],
}
SOUR = "How sour is this lemon?"
OLD = "How old is the moon of Mars?"
NOBODYS = "Who wrote this novel?"


class Counting(Embeddings):
    """Keeps what reaches an embedder, call by call."""

    def __init__(self) -> None:
        self.inner = FakeEmbeddings()
        self.calls: list[list[str]] = []

    def embed_documents(self, texts):
        self.calls.append(list(texts))
        return self.inner.embed_documents(texts)

    def embed_query(self, text):
        return self.embed_documents([text])[0]


class Distances(InMemoryVectorStore):
    """Scores by distance: less is nearer."""

    def similarity_search_with_score_by_vector(self, embedding, k=4, filter=None, **rest):  # noqa: A002
        found = super().similarity_search_with_score_by_vector(embedding, k, filter, **rest)
        return [(document, 1 - score) for document, score in found]


class Hidden(VectorStore):
    """Searches by text alone."""

    def __init__(self, inner: VectorStore) -> None:
        self.inner = inner

    def similarity_search(self, query, k=4, **rest):
        return self.inner.similarity_search(query, k, **rest)

    @classmethod
    def from_texts(cls, *args, **rest):
        raise NotImplementedError


class Unscored(Hidden):
    """Searches by vectors, and does not say how near."""

    def similarity_search_by_vector(self, embedding, k=4, **rest):
        return self.inner.similarity_search_by_vector(embedding, k, **rest)


class Tracer(BaseTracer):
    """Keeps every run by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, list] = {}

    def _persist_run(self, run):
        self._keep(run)

    def _keep(self, run):
        self.runs.setdefault(run.name, []).append(run)
        for child in run.child_runs:
            self._keep(child)


def make_router(library=None, embeddings=None) -> SemanticRouter:
    experts = [fake_expert(name, exemplars=texts) for name, texts in EXEMPLARS.items()]
    return SemanticRouter(
        library=fake_library(*experts) if library is None else library,
        embeddings=embeddings or FakeEmbeddings(),
        client=chromadb.EphemeralClient(),
    )


def a_store_each(kind=InMemoryVectorStore) -> dict[str, VectorStore]:
    return {
        name: kind.from_texts(texts, FakeEmbeddings(), [{"n": i} for i in range(len(texts))])
        for name, texts in DOCUMENTS.items()
    }


def one_store(key: str = "domain") -> InMemoryVectorStore:
    return InMemoryVectorStore.from_documents(
        [Document(text, metadata={key: name}) for name in DOCUMENTS for text in DOCUMENTS[name]],
        FakeEmbeddings(),
    )


def texts_of(documents) -> list[str]:
    return [document.page_content for document in documents]


@pytest.fixture
def router():
    return make_router()


@pytest.fixture
def retriever(router):
    return DomainRetriever(router=router, stores=a_store_each())


def make_one(router, answers=None) -> One4All:
    return One4All(engine=FakeEngine(answers), router=router)


# LangChain's own suite


class TestAStoreForEachDomain(RetrieversIntegrationTests):
    retriever_constructor = DomainRetriever
    retriever_query_example = SOUR

    @property
    def retriever_constructor_params(self):
        return {"router": make_router(), "stores": a_store_each()}


class TestOneStoreForAll(TestAStoreForEachDomain):
    @property
    def retriever_constructor_params(self):
        return {"router": make_router(), "stores": one_store()}


class TestWhereTheRouterAbstains(TestAStoreForEachDomain):
    retriever_query_example = NOBODYS


# Retrieving


async def test_a_question_is_embedded_once():
    """Lost: half of the time to the first token, for the same vector again."""
    embeddings = Counting()
    router = make_router(embeddings=embeddings)
    retriever = DomainRetriever(router=router, stores=a_store_each())
    router.refresh()
    embeddings.calls.clear()
    for question in (SOUR, NOBODYS):
        retriever.invoke(question)
        await retriever.ainvoke(question)
    assert embeddings.calls == [[SOUR], [SOUR], [NOBODYS], [NOBODYS]]


@pytest.mark.parametrize("make", [a_store_each, one_store])
@pytest.mark.parametrize(("question", "domain"), [(SOUR, "fruit"), (OLD, "space")])
async def test_only_the_domains_documents_are_found(router, make, question, domain):
    """Lost: an expert that is told about another's subject."""
    retriever = DomainRetriever(router=router, stores=make(), k=8)
    found = retriever.retrieve(question)
    assert found.route.best == domain
    assert found.route.reason == "matched"
    assert sorted(texts_of(found.documents)) == sorted(DOCUMENTS[domain])
    assert found.documents[0].page_content == DOCUMENTS[domain][0]
    assert {document.metadata["domain"] for document in found.documents} == {domain}
    assert await retriever.aretrieve(question) == found
    assert retriever.invoke(question) == await retriever.ainvoke(question) == found.documents


def test_documents_in_the_store_stay_as_they_are(router):
    """Lost: a store that is written to by reading it."""
    own = Document("A lemon is sour.", metadata={"n": 0})

    class HandsOutItsOwn(Unscored):
        def similarity_search_by_vector(self, embedding, k=4, **rest):
            return [own]

    stores = {"fruit": HandsOutItsOwn(one_store())}
    (found,) = DomainRetriever(router=router, stores=stores).invoke(SOUR)
    assert found.metadata == {"n": 0, "domain": "fruit"}
    assert own.metadata == {"n": 0}


def test_one_store_is_filtered_as_it_wants(router):
    """Lost: every store whose filters are no mappings, or whose key has another name."""
    asked = []

    class Remembering(Unscored):
        def similarity_search_by_vector(self, embedding, k=4, *, filter, **rest):  # noqa: A002
            asked.append((filter, rest))
            return [Document("x", metadata={"topic": "fruit"})]

    store = Remembering(one_store())
    settings = {"router": router, "stores": store, "domain_key": "topic"}
    (document,) = DomainRetriever(**settings, search_kwargs={"ef": 9}).invoke(SOUR)
    assert document.metadata == {"topic": "fruit", "domain": "fruit"}
    DomainRetriever(**settings, domain_filter=lambda name: f"topic is {name}").invoke(SOUR)
    assert asked == [({"topic": "fruit"}, {"ef": 9}), ("topic is fruit", {})]
    by_key = DomainRetriever(router=router, stores=one_store("topic"), domain_key="topic", k=8)
    assert sorted(texts_of(by_key.invoke(OLD))) == sorted(DOCUMENTS["space"])


@pytest.mark.parametrize("make", [a_store_each, lambda: a_store_each(Distances), one_store])
async def test_nobodys_question_finds_the_nearest_of_all_domains(router, make):
    """Lost: what is said about it, or the nearest of it behind a less likely domain's."""
    retriever = DomainRetriever(router=router, stores=make(), k=2)
    found = retriever.retrieve(NOBODYS)
    assert found.route.abstained
    assert [(item.page_content, item.metadata["domain"]) for item in found.documents] == [
        ("This novel moon of Mars.", "space"),
        ("This apple is sweet.", "fruit"),
    ]
    assert await retriever.aretrieve(NOBODYS) == found
    assert texts_of(retriever.invoke(NOBODYS, k=1)) == ["This novel moon of Mars."]


async def test_without_scores_ranks_decide(router):
    """Lost: all but one domain, if scores that are missing counted as some number."""
    stores = {name: Unscored(store) for name, store in a_store_each().items()}
    found = DomainRetriever(router=router, stores=stores).retrieve(NOBODYS)
    likelier, other = (candidate.name for candidate in found.route.experts)
    domains = [document.metadata["domain"] for document in found.documents]
    assert domains == [likelier, other, likelier, other]
    mixed = {"fruit": a_store_each()["fruit"], "space": a_store_each(Distances)["space"]}
    documents = await DomainRetriever(router=router, stores=mixed).ainvoke(NOBODYS)
    assert texts_of(documents) == texts_of(found.documents)


async def test_scores_under_chromas_name_and_async_ones_are_asked_for(router):
    """Lost: the nearest documents of all domains, and an event loop that is not held up."""
    asked = []

    class Scoring(Unscored):
        def similarity_search_by_vector_with_relevance_scores(self, embedding, k=4):
            asked.append("sync")
            return Distances.similarity_search_with_score_by_vector(self.inner, embedding, k)

        async def asimilarity_search_by_vector_with_relevance_scores(self, embedding, k=4):
            asked.append("async")
            return Distances.similarity_search_with_score_by_vector(self.inner, embedding, k)

    stores = {name: Scoring(store) for name, store in a_store_each(Distances).items()}
    retriever = DomainRetriever(router=router, stores=stores, k=1)
    for documents in (retriever.invoke(NOBODYS), await retriever.ainvoke(NOBODYS)):
        assert texts_of(documents) == ["This novel moon of Mars."]
    assert asked == ["sync"] * 2 + ["async"] * 2


async def test_nobodys_question_may_find_nothing(router):
    """Lost: the base answers small talk out of leaflets."""
    for stores in (a_store_each(), one_store()):
        retriever = DomainRetriever(router=router, stores=stores, on_abstain="none")
        assert retriever.invoke(NOBODYS) == await retriever.ainvoke(NOBODYS) == []
        assert retriever.retrieve(NOBODYS).route.reason == "below_threshold"
        assert retriever.invoke(SOUR)


async def test_an_expert_without_a_store_has_no_documents(router):
    """Lost: the questions of an expert that needs none."""
    retriever = DomainRetriever(router=router, stores={"fruit": a_store_each()["fruit"]})
    found = retriever.retrieve(OLD)
    assert (found.route.best, found.documents) == ("space", [])
    assert await retriever.aretrieve(OLD) == found


async def test_a_store_that_knows_no_vectors_is_asked_by_text(router):
    """Lost: every store that embeds on its own."""
    plain, hidden = (
        DomainRetriever(router=router, stores=stores)
        for stores in (a_store_each(), {k: Hidden(v) for k, v in a_store_each().items()})
    )
    assert texts_of(hidden.invoke(SOUR)) == texts_of(plain.invoke(SOUR))
    assert texts_of(await hidden.ainvoke(SOUR)) == texts_of(plain.invoke(SOUR))


def test_without_experts_everything_is_searched(router):
    """Lost: documents, because no expert is there yet."""
    empty = make_router(fake_library())
    found = DomainRetriever(router=empty, stores=one_store()).retrieve(SOUR)
    assert found.route.reason == "empty"
    assert found.documents[0].page_content == "A lemon is sour."


async def test_the_retrievers_run_shows_documents_and_route(retriever):
    """Lost: a trace that does not say what was found, and why there."""
    for ask in (retriever.retrieve, retriever.invoke):
        tracer = Tracer()
        ask(SOUR, {"callbacks": [tracer], "tags": ["mine"]})
        (run,), (routing,) = tracer.runs["DomainRetriever"], tracer.runs["SemanticRouter"]
        assert len(run.outputs["documents"]) == 4
        assert run.tags == ["mine"]
        assert routing.outputs["output"].best == "fruit"
        assert routing.parent_run_id == run.id
    tracer = Tracer()
    await retriever.aretrieve(SOUR, {"callbacks": [tracer]})
    assert tracer.runs["SemanticRouter"][0].parent_run_id == tracer.runs["DomainRetriever"][0].id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stores": {}}, r"stores is \{\}: give a vector store, or a mapping"),
        ({"stores": None}, "stores is None: give"),
        ({"stores": {"fruit": 3}}, "The store of 'fruit' is a int: give a vector store"),
        ({"stores": one_store(), "search_kwargs": {"filter": 1}}, "search_kwargs holds filter"),
        ({"stores": one_store(), "search_kwargs": {"k": 1}}, "search_kwargs holds k,"),
        ({"stores": one_store(), "k": 0}, "greater than or equal to 1"),
        ({"stores": one_store(), "on_abstain": "maybe"}, "'all' or 'none'"),
        ({"stores": one_store(), "kk": 2}, "kk"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(router, arguments, message):
    """Lost: an error in the first call, or nothing found in silence."""
    with pytest.raises(ValidationError, match=message):
        DomainRetriever(router=router, **arguments)


async def test_bad_names_numbers_and_questions_get_one_sentence(router, retriever):
    """Lost: a typing error in a name, that just never finds anything."""
    with pytest.raises(UnknownExpert, match=r"'fruits', but there is no such .* fruit, space"):
        DomainRetriever(router=router, stores={"fruits": one_store()})
    with pytest.raises(InvalidInput, match="k is 0: ask for 1"):
        retriever.invoke(SOUR, k=0)
    with pytest.raises(InvalidInput, match="k is -1: ask for 1"):
        await retriever.aretrieve(SOUR, k=-1)
    for ask in (retriever.invoke, retriever.retrieve):
        with pytest.raises(InvalidInput, match="question is empty"):
            ask("  ")


async def test_the_router_gives_away_the_vector_that_it_scored():
    """Lost: a search by another vector than the route's."""
    embeddings = Counting()
    router = make_router(embeddings=embeddings)
    expected = embeddings.inner.embed_query(SOUR)
    for vector, route in (
        router.embed_and_route({"question": SOUR}),
        await router.aembed_and_route(SOUR),
    ):
        assert vector == pytest.approx(expected, abs=1e-6)
        assert route == router.invoke(SOUR)
    with pytest.raises(InvalidInput, match="empty"):
        await router.aembed_and_route(" ")


def test_documents_and_questions_get_e5s_own_prefixes(monkeypatch):
    """Lost: some of what E5 has learnt about questions and their answers."""

    class Model(BaseModel):
        encode_kwargs: dict = {"prompt": default.PROMPT, "normalize_embeddings": True}

        def embed_documents(self, texts):
            assert self.encode_kwargs["normalize_embeddings"]
            return [self.encode_kwargs["prompt"] + text for text in texts]

    monkeypatch.setattr(default, "load_embedder", lambda name: Model())
    questions = QuestionEmbeddings()
    passages = PassageEmbeddings(questions)
    assert passages.embed_documents(["a", "b"]) == ["passage: a", "passage: b"]
    assert passages.embed_query("a") == questions.embed_query("a") == "query: a"
    assert PassageEmbeddings().questions is default.default_embeddings()


def test_importing_the_retriever_imports_no_model_library():
    """Lost: seconds wherever documents are only searched."""
    code = (
        "import json, sys, one4all_lc.answering, one4all_lc.retrieval;"
        "print(json.dumps([m for m in ('torch', 'chromadb') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# Answering


async def test_the_domains_expert_answers_from_numbered_documents(router, retriever):
    """Lost: the expert, the documents or their numbers."""
    prompts = []
    one = make_one(router, lambda asked: prompts.append(asked.prompt) or f"{asked.expert} [2]")
    chain = answer_from_documents(one, retriever)
    answer = chain.invoke(SOUR)
    assert answer["answer"] == "fruit [2]"
    assert answer["route"].best == "fruit"
    assert answer["documents"] == retriever.invoke(SOUR)
    assert answer["cited"] == [2]
    assert answer["sources"] == [answer["documents"][1]]
    assert await chain.ainvoke(SOUR) == answer
    assert prompts[0] == prompts[1]
    given = "\n\n".join(f"[{i}] {doc.page_content}" for i, doc in enumerate(answer["documents"], 1))
    assert given in prompts[0]
    assert prompts[0].rstrip("\n").endswith(f"user\n{SOUR}<|im_end|>\n<|im_start|>assistant")


@pytest.mark.parametrize(
    ("said", "cited"),
    [
        ("So it is [2][1], as [2] says.", [2, 1]),
        ("So it is [1, 3] [ 4 ].", [1, 3, 4]),
        ("چنین است [۲، ۳].", [2, 3]),
        ("In [2020] or [0] or [9] or [x1].", []),
        ("It is so.", []),
    ],
)
def test_sources_are_what_the_answer_cites(router, retriever, said, cited):
    """Lost: whether a document stands behind an answer, and which."""
    answer = answer_from_documents(make_one(router, lambda _: said), retriever).invoke(SOUR)
    assert answer["cited"] == cited
    given = answer["documents"]
    assert len(given) == 4
    assert answer["sources"] == ([given[i - 1] for i in cited] or given)


async def test_the_answer_streams_and_adds_up(router, retriever):
    """Lost: a user who waits for the whole answer, or a stream without its sources."""
    chain = answer_from_documents(make_one(router, {"fruit": "Very sour [1]."}), retriever)
    parts = list(chain.stream(SOUR))
    pieces = [part["answer"] for part in parts if part.get("answer")]
    assert len(pieces) > 5
    assert "".join(pieces) == "Very sour [1]."
    assert parts[0]["route"].best == "fruit"
    assert list(parts[-1]) == ["cited", "sources"]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    assert whole == chain.invoke(SOUR)
    assert [part async for part in chain.astream(SOUR)] == parts


async def test_the_base_answers_where_the_router_abstains(router):
    """Lost: an expert that answers out of its domain."""
    one, stores = make_one(router), a_store_each()
    chain = answer_from_documents(one, DomainRetriever(router=router, stores=stores))
    answer = chain.invoke(NOBODYS)
    assert answer["answer"] == f"base: {NOBODYS}"
    assert {document.metadata["domain"] for document in answer["sources"]} == {"fruit", "space"}

    seen = []
    one = make_one(router, lambda asked: seen.append(asked.prompt) or "x")
    nothing = DomainRetriever(router=router, stores=stores, on_abstain="none")
    answer = await answer_from_documents(one, nothing).ainvoke(NOBODYS)
    assert answer["documents"] == answer["sources"] == answer["cited"] == []
    assert "documents" not in seen[0]


def test_an_expert_that_is_gone_leaves_the_answer_to_the_base(router, retriever):
    """Lost: an answer, because an expert was taken out of use after the routing."""
    one = One4All(engine=FakeEngine(), router=router, library=fake_library("space"))
    answer = answer_from_documents(one, retriever).invoke(SOUR)
    assert answer["answer"].startswith("base: ")
    assert (answer["route"].reason, answer["route"].best) == ("removed", None)


@pytest.mark.parametrize(
    "asked",
    [
        SOUR,
        {"question": SOUR},
        {"input": SOUR, "more": 1},
        HumanMessage(SOUR),
        [("human", SOUR)],
        {"messages": [HumanMessage(SOUR)]},
        ChatPromptTemplate.from_template(SOUR).invoke({}),
    ],
)
def test_a_question_may_have_any_form_that_the_router_takes(router, retriever, asked):
    """Lost: chains that hand over something else than text."""
    answer = answer_from_documents(make_one(router), retriever).invoke(asked)
    assert answer["answer"] == f"fruit: {SOUR}"
    assert answer["messages"] == [HumanMessage(SOUR)]


def test_the_whole_conversation_is_asked(router, retriever):
    """Lost: what was said before."""
    prompts = []
    one = make_one(router, lambda asked: prompts.append(asked.prompt) or "x")
    said = [HumanMessage("I have a lime."), AIMessage("Good."), HumanMessage(SOUR)]
    answer = answer_from_documents(one, retriever).invoke(said)
    assert answer["messages"] == said
    assert answer["route"].question == SOUR
    assert prompts[0].index("I have a lime.") < prompts[0].index("Good.") < prompts[0].index(SOUR)


async def test_callbacks_tags_and_metadata_reach_the_experts_run(router, retriever):
    """Lost: traces, costs and filters of whoever runs the chain."""
    chain = answer_from_documents(make_one(router), retriever)
    for asynchronous in (False, True):
        tracer = Tracer()
        config = {"callbacks": [tracer], "tags": ["mine"], "metadata": {"user": "u1"}}
        _ = await chain.ainvoke(SOUR, config) if asynchronous else chain.invoke(SOUR, config)
        (run,) = tracer.runs["One4All"]
        assert "mine" in run.tags
        assert run.extra["metadata"]["user"] == "u1"
        assert run.extra["metadata"]["ls_model_name"] == "fruit"
        (whole,) = tracer.runs["AnswerFromDocuments"]
        assert run.trace_id == tracer.runs["DomainRetriever"][0].trace_id == whole.id


async def test_it_composes_and_batches(router, retriever):
    """Lost: a part of a chain that only works alone."""
    chain = answer_from_documents(make_one(router), retriever) | RunnableLambda(
        lambda answer: answer["answer"]
    )
    answers = [f"fruit: {SOUR}", f"space: {OLD}"]
    assert chain.batch([SOUR, OLD]) == await chain.abatch([SOUR, OLD]) == answers
    assert chain.get_input_jsonschema()
    assert chain.first.get_output_jsonschema()["type"] == "object"


def test_the_prompt_may_be_another(router, retriever):
    """Lost: whoever wants other words, or a prompt that leaves the documents out in silence."""
    prompt = ChatPromptTemplate.from_template("Read:\n{documents}\nTell in French: {question}")
    answer = answer_from_documents(make_one(router), retriever, prompt=prompt).invoke(SOUR)
    assert answer["answer"].startswith("fruit: Read:\n[1] A lemon is sour.")
    assert answer["answer"].endswith(f"Tell in French: {SOUR}")
    for text in ("{question}", "{documents}", "{documents} {question} {context}"):
        prompt = ChatPromptTemplate.from_template(text)
        with pytest.raises(InvalidInput, match="it must take documents, and messages or question"):
            answer_from_documents(make_one(router), retriever, prompt=prompt)
