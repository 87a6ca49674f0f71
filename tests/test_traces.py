"""Whoever watches a run is told who answers; caches keep apart what answers differently."""

from functools import partial

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler

from one4all_lc import ChatExpert, One4All
from one4all_lc.testing import fake_expert, fake_library
from tests.fakes import ASK, LIKELY, NOBODYS, Decided, Spied, deciding


@pytest.fixture
def engine():
    engine = Spied()
    yield engine
    engine.close()


@pytest.fixture
def make(engine):
    """Return a function that makes a One4All whose router finds what it is told to."""
    return partial(deciding, engine)


class Watcher(BaseCallbackHandler):
    def __init__(self):
        self.seen, self.data = [], []

    def on_custom_event(self, name, data, **facts):
        self.seen.append(name)
        self.data.append(data)

    def on_llm_new_token(self, token, **facts):
        self.seen.append("token")


def test_the_route_is_told_to_a_handler_before_the_answer(make):
    """An interface could not say who answers."""
    watcher = Watcher()
    make().invoke(ASK, {"callbacks": [watcher]})
    assert watcher.seen == ["route"]
    assert watcher.data[0]["expert"] == "sql"
    assert watcher.data[0]["route"]["best"] == "sql"


def test_the_route_is_told_once_before_the_first_token(make):
    """An interface could not say who answers until the answer is whole."""
    watcher = Watcher()
    list(make().stream(ASK, {"callbacks": [watcher]}))
    assert watcher.seen[0] == "route"
    assert watcher.seen.count("route") == 1
    assert len(watcher.seen) > 10
    assert watcher.data[0]["route"]["best"] == "sql"


@pytest.mark.parametrize("inside", [False, True])
async def test_the_route_is_an_event_before_the_first_tokens(make, inside):
    """A web page that shows events would name the expert too late, or never."""
    one = make()
    asked = RunnableLambda(one.invoke, one.ainvoke) if inside else one
    events = [event async for event in asked.astream_events(ASK, version="v2")]
    kinds = [event["event"] for event in events]
    told = events[kinds.index("on_custom_event")]
    assert kinds.count("on_custom_event") == 1
    assert kinds.index("on_custom_event") < kinds.index("on_chat_model_stream")
    assert told["name"] == "route"
    assert told["data"]["expert"] == "sql"


class Kept(BaseTracer):
    def __init__(self):
        super().__init__()
        self.runs = []

    def _persist_run(self, run):
        self.runs.append(run)


STREAMS = ("stream", "astream")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", *STREAMS])
@pytest.mark.parametrize("kind", [Kept, RunCollectorCallbackHandler])
async def test_traces_say_which_expert_of_which_version_answered_and_why(make, way, kind):
    """Nobody could tell from LangSmith which weights gave a bad answer."""
    tracer, one = kind(), make()
    config = {"callbacks": [tracer], "tags": ["mine"], "metadata": {"user": "u1"}}
    result = getattr(one, way)(ASK, config)
    if way == "ainvoke":
        await result
    elif way == "astream":
        [chunk async for chunk in result]
    else:
        list(result)
    (run,) = tracer.runs if kind is Kept else tracer.traced_runs
    metadata = run.extra["metadata"]
    assert (metadata["one4all_expert"], metadata["one4all_version"]) == ("sql", 1)
    assert metadata["one4all_route"]["best"] == "sql"
    assert metadata["user"] == "u1"
    assert {"mine", "expert:sql"} <= set(run.tags)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_what_answers_in_the_engines_place_is_a_part_of_the_trace(make, way):
    """A larger model's calls and costs would be missing from the trace."""
    tracer = Kept()
    larger = RunnableLambda(lambda _: AIMessage("ok"), name="larger")
    list(getattr(make(NOBODYS, fallback=larger), way)(ASK, {"callbacks": [tracer]}))
    assert [run.name for run in tracer.runs[0].child_runs] == ["larger"]


def test_settings_that_change_answers_change_the_key_of_caches(make, engine):
    """A cache would give the answer of another mode, expert or fallback."""
    other = ChatExpert(engine=engine, library=fake_library("tax", "law"), model="law")
    fallbacks = ["base", "ask", other, other.model_copy(update={"model": "tax"})]
    models = [make(), make(mode="all"), make(mode="blend"), make(most=2), make(at_least=0.2)]
    models += [make(fallback=item) for item in fallbacks[1:]]
    models += [make(synthesizer=item) for item in fallbacks[2:]]
    exemplar = fake_library(fake_expert("sql", exemplars=["another"]), "law")
    models.append(One4All(engine=engine, router=Decided(exemplar, LIKELY)))
    keys = [repr(model._identifying_params) for model in models]
    assert len(set(keys)) == len(keys)
    assert repr(make()._identifying_params) == keys[0]


def test_a_cache_tells_fallbacks_of_one_name_apart(make):
    """Another fallback's words would be given, for every function that is called `ask`."""

    def fallback(words):
        def ask(_):
            return AIMessage(words)

        return make(NOBODYS, fallback=RunnableLambda(ask))

    set_llm_cache(InMemoryCache())
    try:
        assert [fallback(words).invoke(ASK).text for words in ("one", "two")] == ["one", "two"]
    finally:
        set_llm_cache(None)


def test_a_cache_keeps_experts_and_modes_apart(make, engine):
    """One expert's words would be given as another's."""
    set_llm_cache(InMemoryCache())
    try:
        one = make()
        experts = [
            ChatExpert(engine=engine, library=one.library, model=name) for name in ("sql", "law")
        ]
        asked = [*experts, one.bind(mode="all"), one.bind(model="law"), make(mode="blend")]
        answers = [model.invoke(ASK).text for model in asked]
        assert [text.partition(" says")[0] for text in answers] == [
            *("sql", "law", "base", "law", "sql+law")
        ]
        count = len(engine.requests)
        assert [model.invoke(ASK).text for model in asked] == answers
        assert len(engine.requests) == count, "the second time the cache answers"
    finally:
        set_llm_cache(None)
