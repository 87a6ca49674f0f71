"""Experts in LangChain's expression language: composed, configured, copied, batched, cancelled."""

import asyncio
import copy
import os
import pickle
import threading
import time
from operator import itemgetter

import chromadb
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)

from one4all_lc import ChatExpert, One4All, SemanticRouter
from one4all_lc.errors import EngineClosed, InvalidInput
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_expert, fake_library
from tests.fakes import Spied

TEAMS = "How many teams are there?"
LAW = "What does indemnify mean?"
NOBODYS = "Xyzzy plugh."
EXPERTS = (
    fake_expert("sql", exemplars=[TEAMS, "How many players are from Spain?"]),
    fake_expert("law", exemplars=[LAW, "What does estoppel mean?"], system_prompt="Cite the law."),
)
LENGTH = 100
STEP = 0.01


def long(asked):
    """What a slow or a broken engine does depends on the question."""
    if "bad" in asked.question:
        msg = "the device is out of memory"
        raise RuntimeError(msg)
    return f"{asked.expert}: ".ljust(LENGTH, "x")


class Gated(Spied):
    """Takes no step before `gate` requests are there; so it shows what is asked together."""

    def __init__(self, gate=1, pause=0.0, patience=5):
        super().__init__(long)
        real, self.gate, self.pause, self.together = self._decoder.forward, gate, pause, 0

        def forward(rows, adapters):
            end = time.monotonic() + patience
            while len(self.requests) < self.gate and time.monotonic() < end:
                time.sleep(0.001)
            self.together = self.together or len(self.requests)
            self.gate = 0
            time.sleep(self.pause)
            return real(rows, adapters)

        self._decoder.forward = forward


@pytest.fixture(scope="module")
def router():
    library = fake_library(*EXPERTS)
    client = chromadb.EphemeralClient()
    return SemanticRouter(library=library, embeddings=FakeEmbeddings(), client=client)


@pytest.fixture
def make(router):
    """Return a function that makes an engine and, on it, experts and all of them together."""
    engines = []

    def made(engine=None):
        engines.append(engine or FakeEngine())
        shared = {"engine": engines[-1], "library": router.library}
        models = {name: ChatExpert(**shared, model=name) for name in ("sql", "law", "base")}
        return {**models, "one": One4All(engine=engines[-1], router=router)}

    yield made
    for engine in engines:
        engine.close()


async def test_a_router_and_experts_make_a_branch(make, router):
    """Whoever composes the parts by hand would get another answer than One4All's."""
    models = make()
    asked = itemgetter("question")
    branch = {"route": router, "question": RunnablePassthrough()} | RunnableBranch(
        (lambda x: x["route"].best == "sql", asked | models["sql"]),
        (lambda x: x["route"].best == "law", asked | models["law"]),
        asked | models["base"],
    )
    table = router | RunnableLambda(
        lambda route: RunnableLambda(lambda r: r.question) | models[route.best or "base"]
    )
    for question, name in ((TEAMS, "sql"), (LAW, "law"), (NOBODYS, "base")):
        for chain in (branch, table, models["one"]):
            answer = chain.invoke(question)
            assert answer.text == f"{name}: {question}"
            assert answer.response_metadata["expert"] == name
            assert (await chain.ainvoke(question)).text == answer.text
            assert "".join(chunk.text for chunk in chain.stream(question)) == answer.text


async def test_experts_in_parallel_share_a_batch(make):
    """Two experts would take twice the time of one."""
    engine = Gated(gate=2)
    models = make(engine)
    both = RunnableParallel(sql=models["sql"], law=models["law"])
    answers = both.invoke(TEAMS)
    assert [answers[name].text[:3] for name in ("sql", "law")] == ["sql", "law"]
    assert engine.together == 2
    assert engine.stats().steps < 2 * LENGTH
    engine.gate = 4
    assert set(await both.ainvoke(TEAMS)) == {"sql", "law"}
    assert engine.stats().steps < 3 * LENGTH


async def test_a_chain_streams_through_prompt_and_parser(make):
    """A page would stay empty until the answer is whole."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    chain = prompt | make()["one"] | StrOutputParser()
    whole = chain.invoke({"question": TEAMS})
    assert whole == f"sql: {TEAMS}"
    streamed = list(chain.stream({"question": TEAMS}))
    assert "".join(streamed) == whole
    assert len(streamed) > 10
    later = [text async for text in chain.astream({"question": TEAMS})]
    assert "".join(later) == whole
    assert len(later) > 10


async def test_fallbacks_and_retries_take_over_from_a_broken_engine(make):
    """One fault of a device would be every user's error."""
    faults = iter([RuntimeError("once"), RuntimeError("again")])

    def flaky(asked):
        fault = next(faults, None)
        if fault:
            raise fault
        return "at last"

    model = make(FakeEngine(flaky))["sql"]
    patient = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    assert patient.invoke(TEAMS).text == "at last"
    broken = make(FakeEngine(long))["sql"]
    other = RunnableLambda(lambda _: AIMessage("another model"))
    assert broken.with_fallbacks([other]).invoke("bad").text == "another model"
    assert (await broken.with_fallbacks([other]).ainvoke("bad")).text == "another model"
    assert broken.with_fallbacks([other]).invoke(TEAMS).text.startswith("sql")


class Starts(BaseCallbackHandler):
    def __init__(self):
        self.facts = []

    def on_chat_model_start(self, serialized, messages, **facts):
        self.facts.append(facts)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_tags_and_metadata_of_a_config_reach_the_handlers(make, way):
    """Runs could not be found again in a trace."""
    handler = Starts()
    config = {"tags": ["t"], "metadata": {"user": "u"}, "callbacks": [handler], "run_name": "mine"}
    list(getattr(make()["one"].with_config(config), way)(TEAMS))
    (facts,) = handler.facts
    assert "t" in facts["tags"]
    assert facts["metadata"]["user"] == "u"
    assert facts["metadata"]["ls_provider"] == "one4all"
    assert facts["name"] == "mine"


@pytest.mark.parametrize("name", ["sql", "one"])
def test_a_copy_shares_the_engine(make, name):
    """A copied chain would load the base once more."""
    model = make()[name].model_copy(update={"max_tokens": 5})
    copied = copy.deepcopy(model)
    assert copied.engine is model.engine
    assert copied.max_tokens == 5
    assert copied.invoke(TEAMS).text == model.invoke(TEAMS).text == "sql: "


@pytest.mark.parametrize("name", ["sql", "one"])
def test_a_pickled_model_answers_as_the_original_does(make, name, tmp_path, monkeypatch):
    """A chain could not be sent to a worker process."""
    monkeypatch.setenv("ONE4ALL_CACHE", str(tmp_path))
    engine = FakeEngine({"sql": "SELECT 1"})
    model = make(engine)[name].bind(temperature=0)
    loaded = pickle.loads(pickle.dumps(model))
    try:
        answer = loaded.invoke(TEAMS)
        assert answer.text == "SELECT 1"
        assert answer.response_metadata["expert"] == "sql"
    finally:
        loaded.bound.engine.close()


WAYS = {
    "batch": lambda model, questions: model.batch(questions),
    "abatch": lambda model, questions: asyncio.run(model.abatch(questions)),
    "chain": lambda model, questions: (RunnablePassthrough() | model).batch(questions),
    "map": lambda model, questions: model.map().invoke(questions),
    "as completed": lambda model, questions: list(model.batch_as_completed(questions)),
}


@pytest.mark.parametrize("way", WAYS)
def test_many_questions_reach_the_engine_together(make, way, monkeypatch):
    """On two cores 32 questions would take as long as six times six answers."""
    for name in ("cpu_count", "process_cpu_count"):
        monkeypatch.setattr(os, name, lambda: 2, raising=False)
    engine = Gated(gate=32, patience=1)
    assert len(WAYS[way](make(engine)["sql"], [TEAMS] * 32)) == 32
    assert engine.together == 32
    assert engine.stats().steps < 2 * LENGTH


async def test_a_batch_keeps_to_its_bounds_and_order(make):
    """A caller that shares the engine could not hold back."""
    engine = Spied(lambda asked: asked.question.ljust(40, "."))
    one = make(engine)["one"]
    questions = [TEAMS, LAW] * 4
    for answers in (
        one.batch(questions, {"max_concurrency": 2}),
        await one.abatch(questions, {"max_concurrency": 2}),
    ):
        assert [answer.text.strip(".") for answer in answers] == questions
    assert max(engine.rows) == 2


async def test_one_bad_question_does_not_spoil_a_batch(make):
    """One empty or unlucky question would lose 31 answers."""
    model = make(FakeEngine(long))["sql"]
    questions = [TEAMS, "", "bad", TEAMS]
    for answers in (
        model.batch(questions, return_exceptions=True),
        await model.abatch(questions, return_exceptions=True),
    ):
        assert [type(answer) for answer in answers] == [
            *(AIMessage, InvalidInput, RuntimeError, AIMessage)
        ]
    with pytest.raises(InvalidInput, match="empty"):
        model.batch(questions)
    done = dict(model.batch_as_completed(questions, return_exceptions=True))
    assert sorted(done) == [0, 1, 2, 3]


async def test_a_reader_that_leaves_frees_its_row_at_the_next_step(make):
    """A closed browser tab would keep the engine busy to the end of the answer."""
    engine = Gated(pause=STEP)
    model = make(engine)["sql"]

    async def is_free_after(steps):
        while engine.stats().running:
            await asyncio.sleep(0.001)
        assert engine.stats().steps - steps <= 2

    for chunk in model.stream(TEAMS):
        assert chunk.text
        break
    await is_free_after(engine.stats().steps)
    stream = model.astream(TEAMS)
    await anext(stream)
    await stream.aclose()
    await is_free_after(engine.stats().steps)
    task = asyncio.create_task(model.ainvoke(TEAMS))
    while not engine.stats().running:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await is_free_after(engine.stats().steps)


async def test_a_reader_that_leaves_while_the_queue_is_full_is_not_answered(make, monkeypatch):
    """A busy engine would go on to answer those who have long gone."""
    engine = Gated(pause=STEP)
    handles, real = [], engine.submit

    def submit(request, **settings):
        time.sleep(0.1)  # as if the queue were full
        handles.append(real(request, **settings))
        return handles[-1]

    monkeypatch.setattr(engine, "submit", submit)
    task = asyncio.create_task(make(engine)["sql"].ainvoke(TEAMS))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.2)
    assert not handles or handles[0].cancelled


async def test_a_fault_of_the_engine_is_heard_of_at_once(make):
    """A user would wait for an answer that never comes, and not learn why."""
    engine = FakeEngine(long)
    chain = make(engine)["one"] | StrOutputParser()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="out of memory"):
        chain.invoke(f"{TEAMS} bad")
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chain.stream(f"{TEAMS} bad"))
    with pytest.raises(RuntimeError, match="out of memory"):
        await chain.ainvoke(f"{TEAMS} bad")
    assert chain.invoke(TEAMS), "the engine goes on"
    assert time.monotonic() - started < 4


def test_closing_the_engine_ends_those_who_wait(make):
    """A server could not be stopped."""
    engine = Gated(pause=STEP)
    stream = make(engine)["sql"].stream(TEAMS)
    next(stream)
    threading.Timer(0.05, engine.close).start()
    with pytest.raises(EngineClosed):
        list(stream)


async def test_a_call_or_its_config_may_name_the_expert(make):
    """One chain per expert would be needed."""
    model = make()["base"]
    configured = model.configurable_fields(model=ConfigurableField(id="expert"))
    config = {"configurable": {"expert": "law"}}
    for chain in (configured, RunnablePassthrough() | configured):
        assert chain.invoke(TEAMS, config).text.startswith("law: ")
        assert (await chain.ainvoke(TEAMS, config)).text.startswith("law: ")
        assert chain.invoke(TEAMS).text.startswith("base: ")
    assert model.invoke(TEAMS, model="sql").text.startswith("sql: ")
    others = make()["sql"].configurable_alternatives(
        ConfigurableField(id="kind"), default_key="one", big=RunnableLambda(lambda _: "big")
    )
    assert others.with_config(configurable={"kind": "big"}).invoke(TEAMS) == "big"
