"""Who answers in each mode, and who where the router abstains."""

import threading
from functools import partial

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool

from one4all_lc import ChatExpert
from one4all_lc.errors import Abstained, InvalidInput
from one4all_lc.testing import fake_library
from tests.fakes import ASK, NOBODYS, Spied, deciding, every_way


@pytest.fixture
def engine():
    engine = Spied()
    yield engine
    engine.close()


@pytest.fixture
def make(engine):
    """Return a function that makes a One4All whose router finds what it is told to."""
    return partial(deciding, engine)


async def test_best_asks_the_likeliest_expert_alone(make, engine):
    """A question would be answered by somebody else's expert."""
    for answer in await every_way(make()):
        assert answer.text.startswith("sql says")
        metadata = answer.response_metadata
        assert (metadata["expert"], metadata["version"], metadata["mode"]) == ("sql", 1, "best")
        assert metadata["route"]["best"] == "sql"
    assert {len(request.experts) for request in engine.requests} == {1}


async def test_a_blend_is_one_request_of_weights_that_add_up_to_one(make, engine):
    """A blend would cost as much as asking each, or shift the adapters' strength."""
    answers = await every_way(make(mode="blend"))
    assert len(engine.requests) == 4
    for request, answer in zip(engine.requests, answers, strict=True):
        mixed = {expert.name: weight for expert, weight in request.experts}
        assert list(mixed) == ["sql", "law"], "those under at_least have no say"
        assert sum(mixed.values()) == pytest.approx(1)
        assert mixed["sql"] == pytest.approx(2 / 3)
        metadata = answer.response_metadata
        assert metadata["expert"] == "sql+law"
        assert metadata["weights"] == mixed
        assert [item["name"] for item in metadata["experts"]] == ["sql", "law"]
        assert metadata["version"] is None


def test_most_and_at_least_bound_a_blend(make, engine):
    """Unlikely experts would water an answer down."""
    make(mode="blend", most=3, at_least=0).invoke(ASK)
    make(mode="blend", most=1).invoke(ASK)
    make(mode="blend", at_least=1).invoke(ASK)
    assert [len(request.experts) for request in engine.requests] == [3, 1, 1]


async def test_all_asks_every_likely_expert_in_one_batch_and_joins_their_answers(make, engine):
    """The experts would be asked one after the other, or an answer would have no sources."""
    answers = await every_way(make(mode="all"))
    asked = [[expert.name for expert, _ in request.experts] for request in engine.requests]
    assert asked == [["sql"], ["law"], []] * 4
    assert max(engine.rows) == 2
    joint_prompts = [prompt for prompt in engine.prompts if "Experts have answered" in prompt]
    assert len(joint_prompts) == 4
    for answer, joint in zip(answers, joint_prompts, strict=True):
        for name in ("sql", "law"):
            assert f"[{name}]\n{name} says something" in joint
        assert ASK in joint
        assert "name the expert in brackets" in joint
        assert answer.text.startswith("base says")
        said = answer.response_metadata["answers"]
        assert list(said) == ["sql", "law"]
        assert said["law"].startswith("law says")
        assert answer.response_metadata["expert"] == "sql+law"


async def test_a_given_synthesizer_gets_the_answers_and_its_words_are_the_answer(make, engine):
    """A larger model could not be the one that writes the answer."""
    larger = RunnableLambda(lambda messages: f"I read {messages[-1].content}", name="larger")
    for answer in await every_way(make(mode="all", synthesizer=larger)):
        assert answer.text.startswith(f"I read {ASK}")
        assert "[law]\nlaw says" in answer.text
        assert list(answer.response_metadata["answers"]) == ["sql", "law"]
    assert all(request.experts for request in engine.requests), "the base is not asked"


def test_only_the_last_answer_has_tools_and_forms(make, engine):
    """Experts would call tools whose results nobody gives them."""

    @tool
    def clock() -> str:
        """Tell the time."""

    make(mode="all").bind_tools([clock]).invoke(ASK)
    assert [bool(request.grammar) for request in engine.requests] == [False, False, True]
    assert ["<tools>" in prompt for prompt in engine.prompts] == [False, False, True]


def test_all_with_one_likely_expert_is_that_experts_answer(make, engine):
    """A clear question would be asked twice."""
    answer = make({"sql": 0.95, "law": 0.05}, mode="all").invoke(ASK)
    assert len(engine.requests) == 1
    assert answer.response_metadata["expert"] == "sql"


@pytest.mark.parametrize(
    "last",
    [
        [
            AIMessage("", tool_calls=[{"name": "clock", "args": {}, "id": "c1"}]),
            ToolMessage("It is noon.", tool_call_id="c1"),
        ],
        [SystemMessage("Say that it is noon.")],
    ],
)
def test_whoever_joins_the_answers_reads_the_whole_conversation(make, engine, last):
    """The result of an agent's tool would be lost, and the tool called for ever."""
    make(mode="all").invoke([HumanMessage(ASK), *last])
    assert "noon" in engine.prompts[-1]


def test_an_expert_that_cannot_be_asked_leaves_no_other_running(make, engine, monkeypatch):
    """A full engine would go on with answers that nobody reads."""
    handles, real = [], engine.submit

    def submit(request, **settings):
        if handles:
            raise InvalidInput("too long")
        handles.append(real(request, **settings))
        return handles[0]

    monkeypatch.setattr(engine, "submit", submit)
    with pytest.raises(InvalidInput, match="too long"):
        make(mode="all").invoke(ASK)
    assert handles[0].cancelled


async def test_asking_many_never_blocks_the_event_loop(make, engine):
    """A server would stand still while the engine's queue is full."""
    await make(mode="all").ainvoke(ASK)
    assert threading.main_thread() not in engine.threads


def test_the_usage_of_all_is_what_all_have_read_and_written(make, engine):
    """Three answers would be metered as one."""
    usage = make(mode="all").invoke(ASK).usage_metadata
    assert usage["input_tokens"] == sum(len(request.prompt) for request in engine.requests)


async def test_a_call_may_name_another_mode(make):
    """One model could not serve both quick and thorough questions."""
    one = make()
    assert one.invoke(ASK, mode="blend").response_metadata["expert"] == "sql+law"
    assert "answers" in (await one.ainvoke(ASK, mode="all")).response_metadata
    assert one.bind(mode="blend").invoke(ASK).response_metadata["mode"] == "blend"
    assert one.invoke(ASK).response_metadata["mode"] == "best"


async def test_a_mode_or_fallback_that_is_none_is_refused_with_those_that_are(make, engine):
    """A misspelt mode would be another one in silence."""
    with pytest.raises(InvalidInput, match="mode is 'bset': use 'best', 'blend' or 'all'"):
        make().invoke(ASK, mode="bset")
    with pytest.raises(InvalidInput, match="mode is 'bset'"):
        await make().ainvoke(ASK, mode="bset")
    with pytest.raises(ValueError, match="'best', 'blend' or 'all'"):
        make(mode="bset")
    with pytest.raises(ValueError, match="fallback is 'bass': use 'base', 'ask', 'error'"):
        make(fallback="bass")
    with pytest.raises(InvalidInput, match="does not take mode"):
        ChatExpert(engine=engine).invoke(ASK, mode="best")


async def test_nobodys_question_goes_to_the_base(make):
    """An expert would answer what it knows nothing of."""
    for answer in await every_way(make(NOBODYS)):
        assert answer.text.startswith("base says")
        assert answer.response_metadata["expert"] == "base"
        assert answer.response_metadata["route"]["reason"] == "below_threshold"


async def test_nobodys_question_may_be_asked_back(make, engine):
    """A user would not learn what can be asked."""
    for answer in await every_way(make(NOBODYS, fallback="ask")):
        assert "Questions about sql; Questions about law; Questions about art." in answer.text
        assert answer.response_metadata["expert"] == "ask"
        assert answer.response_metadata["route"]["abstained"]
    assert not engine.requests


async def test_nobodys_question_may_be_an_error(make):
    """A pipeline could not tell a guess from an expert's answer."""
    one = make(NOBODYS, fallback="error")
    for answers in (one.invoke, lambda q: list(one.stream(q))):
        with pytest.raises(Abstained, match=r"below_threshold.*Questions about sql"):
            answers(ASK)
    with pytest.raises(Abstained):
        await one.ainvoke(ASK)
    with pytest.raises(Abstained):
        [chunk async for chunk in one.astream(ASK)]
    handed_on = one.with_fallbacks([RunnableLambda(lambda _: AIMessage("mine"))])
    assert handed_on.invoke(ASK).text == "mine"


async def test_nobodys_question_may_go_to_any_runnable(make):
    """A larger model could not take what the experts leave."""
    larger = RunnableLambda(lambda messages: AIMessage(f"Larger: {messages[-1].content}"))
    for answer in await every_way(make(NOBODYS, fallback=larger, mode="all")):
        assert answer.text == f"Larger: {ASK}"
        assert answer.response_metadata["expert"] == "fallback"
        assert answer.response_metadata["route"]["abstained"]


@pytest.mark.parametrize(
    "streamed",
    [False, True],
)
async def test_a_fallback_that_is_an_expert_says_so_streamed_or_not(make, engine, streamed):
    """Metadata of a streamed answer would be two names in one."""
    base = ChatExpert(engine=engine, library=fake_library("tax"), model="tax")
    answers = await every_way(make(NOBODYS, fallback=base))
    for answer in answers[2:] if streamed else answers[:2]:
        metadata = answer.response_metadata
        assert (metadata["expert"], metadata["model_name"]) == ("tax", "tax")
        assert metadata["identity"] == base.library["tax"].identity
        assert metadata["route"]["abstained"]


def test_an_expert_that_is_gone_since_it_was_routed_leaves_the_question_to_the_fallback(make):
    """Taking an expert out of use would fail the questions under way."""
    answer = make({"gone": 0.9, "sql": 0.1}).invoke(ASK)
    assert answer.response_metadata["expert"] == "base"
    assert answer.response_metadata["route"]["reason"] == "removed"
