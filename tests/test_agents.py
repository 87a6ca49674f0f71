"""Experts in agents and graphs: one routing a turn, any model beside them, sync and async."""

import json
from operator import add
from typing import Annotated

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.tools import tool
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from one4all_lc.agents import (
    ExpertRouterMiddleware,
    expert_node,
    fan_out,
    route_to_expert,
)
from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.experts.tools import expert_tools
from one4all_lc.one4all import One4All
from one4all_lc.routing.route import Candidate, Route
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_expert, fake_library

TEAMS = "How many teams are there?"
LAW = "What does indemnify mean?"
NOBODYS = "Xyzzy plugh."
EXPERTS = (
    fake_expert("sql", exemplars=[TEAMS, "How many players are from Spain?"]),
    fake_expert("law", exemplars=[LAW, "What does estoppel mean?"]),
)


class Other(FakeMessagesListChatModel):
    """Another provider's model, whose answers are written beforehand."""

    def bind_tools(self, tools, **settings):
        return self.bind(**settings)


class WithTools(One4All):
    """Calls the tool `clock` once for every question, if it has tools."""

    def bind_tools(self, tools, *, tool_choice=None, **settings):
        assert tools
        return self.bind(**settings)

    def _generate(self, messages, stop=None, run_manager=None, **settings):
        if messages[-1].type == "human":
            calls = [{"name": "clock", "args": {}, "id": "c1", "type": "tool_call"}]
            message = AIMessage("", tool_calls=calls, response_metadata={"expert": self.model})
        else:
            message = AIMessage("done", response_metadata={"expert": self.model})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages, stop=None, run_manager=None, **settings):
        return self._generate(messages, stop, run_manager, **settings)

    _stream = _astream = None


@tool
def clock() -> str:
    """Tell the time."""
    return "noon"


class Recorder(BaseCallbackHandler):
    """Remembers the runs."""

    def __init__(self):
        self.routed, self.models = [], []

    def on_chain_start(self, serialized, inputs, *, name=None, **facts):
        if name == "SemanticRouter":
            self.routed.append(inputs)

    def on_chat_model_start(self, serialized, messages, **facts):
        self.models.append({"serialized": serialized, **facts})


def make_router(*experts):
    import chromadb

    library = fake_library(*(experts or EXPERTS))
    client = chromadb.EphemeralClient()
    return SemanticRouter(library=library, embeddings=FakeEmbeddings(), client=client)


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture
def one(engine):
    return One4All(engine=engine, router=make_router())


@pytest.fixture
def other():
    return Other(responses=[AIMessage("I am another model.")])


def ask(*texts):
    return {"messages": [HumanMessage(text) for text in texts]}


def expert_of(message):
    return message.response_metadata.get("expert")


async def test_the_routed_expert_answers_in_the_place_of_another_model(one, other):
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    for question, expert in ((TEAMS, "sql"), (LAW, "law")):
        for state in (agent.invoke(ask(question)), await agent.ainvoke(ask(question))):
            assert state["messages"][-1].text == f"{expert}: {question}"
            assert expert_of(state["messages"][-1]) == expert
            assert json.loads(json.dumps(state["expert_route"]))["best"] == expert


async def test_where_the_router_abstains_the_agents_own_model_answers(one, other):
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    for state in (agent.invoke(ask(NOBODYS)), await agent.ainvoke(ask(NOBODYS))):
        assert state["messages"][-1].text == "I am another model."
        assert state["expert_route"]["abstained"]


async def test_an_agent_of_experts_alone_routes_once_whatever_is_asked(one):
    agent = create_agent(one, middleware=[ExpertRouterMiddleware(one)])
    for question, expert in ((TEAMS, "sql"), (NOBODYS, "base")):
        for asynchronous in (False, True):
            recorder = Recorder()
            config = {"callbacks": [recorder]}
            state = await agent.ainvoke(ask(question), config) if asynchronous else None
            state = state or agent.invoke(ask(question), config)
            assert expert_of(state["messages"][-1]) == expert
            assert recorder.routed == [question]
            assert len(recorder.models) == 1


async def test_an_answer_streams_token_by_token(one, other):
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    sync = [chunk.text for chunk, _ in agent.stream(ask(LAW), stream_mode="messages")]
    stream = agent.astream(ask(LAW), stream_mode="messages")
    for texts in (sync, [chunk.text async for chunk, _ in stream]):
        assert "".join(texts) == f"law: {LAW}"
        assert sum(bool(text) for text in texts) > 3


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_turn_that_loops_over_tools_is_routed_once(engine, other, asynchronous):
    model = WithTools(engine=engine, router=make_router())
    agent = create_agent(other, [clock], middleware=[ExpertRouterMiddleware(model)])
    recorder = Recorder()
    config = {"callbacks": [recorder]}
    state = await agent.ainvoke(ask(LAW), config) if asynchronous else None
    state = state or agent.invoke(ask(LAW), config)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai"]
    assert [expert_of(message) for message in state["messages"][1::2]] == ["law", "law"]
    assert recorder.routed == [LAW]


def test_an_own_model_that_loops_is_routed_once_too(one):
    calls = [{"name": "ask_sql", "args": {"question": TEAMS}, "id": "1", "type": "tool_call"}]
    own = Other(responses=[AIMessage("", tool_calls=calls), AIMessage("So it is.")])
    agent = create_agent(own, expert_tools(one), middleware=[ExpertRouterMiddleware(one)])
    recorder = Recorder()
    config = {"callbacks": [recorder], "tags": ["mine"], "metadata": {"user": "u1"}}
    state = agent.invoke(ask(NOBODYS), config)
    assert [message.text for message in state["messages"]] == [
        *(NOBODYS, "", f"sql: {TEAMS}", "So it is."),
    ]
    assert state["messages"][2].artifact["expert"] == "sql"
    assert recorder.routed == [NOBODYS]
    experts = recorder.models[1]
    assert experts["metadata"]["user"] == "u1"
    assert "mine" in experts["tags"]


async def test_a_new_question_of_a_thread_is_routed_anew(one, other):
    agent = create_agent(
        other, middleware=[ExpertRouterMiddleware(one)], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}}
    assert agent.invoke(ask(TEAMS), config)["messages"][-1].text == f"sql: {TEAMS}"
    assert agent.get_state(config).values["expert_route"]["best"] == "sql"
    state = await agent.ainvoke(ask(LAW), config)
    assert [expert_of(message) for message in state["messages"]] == [None, "sql", None, "law"]
    assert agent.invoke(ask(NOBODYS), config)["messages"][-1].text == "I am another model."
    assert agent.get_state(config).values["expert_route"]["best"] is None


def test_a_turn_that_was_interrupted_goes_on_with_its_route(engine, other):
    @tool
    def clock() -> str:
        """Tell the time."""
        return interrupt("May I?")

    model = WithTools(engine=engine, router=make_router())
    middleware = [ExpertRouterMiddleware(model)]
    agent = create_agent(other, [clock], middleware=middleware, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}, "callbacks": [Recorder()]}
    agent.invoke(ask(LAW), config)
    state = agent.invoke(Command(resume="noon"), config)
    assert (state["messages"][-1].text, expert_of(state["messages"][-1])) == ("done", "law")
    assert config["callbacks"][0].routed == [LAW]


def test_a_caller_cannot_set_the_route_but_reads_it(one, other):
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    assert "expert_route" not in agent.get_input_jsonschema()["properties"]
    assert "expert_route" in agent.get_output_jsonschema()["properties"]
    state = agent.invoke({**ask(LAW), "expert_route": {"best": "sql"}})
    assert state["expert_route"]["best"] == "law"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image", "url": "http://localhost/x.png"}],
        [{"type": "text", "text": LAW}, {"type": "image", "url": "http://localhost/x.png"}],
        " ",
    ],
)
def test_what_no_expert_can_read_is_left_to_the_agents_own_model(one, other, content):
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    state = agent.invoke({"messages": [HumanMessage(content)]})
    assert state["messages"][-1].text == "I am another model."
    assert state["expert_route"] is None


def test_an_expert_reads_a_conversation_with_another_models_blocks(one, other):
    thought = AIMessage([{"type": "thinking", "thinking": "?"}, {"type": "text", "text": "Hm."}])
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    state = agent.invoke({"messages": [HumanMessage(NOBODYS), thought, HumanMessage(LAW)]})
    assert state["messages"][-1].text == f"law: {LAW}"
    assert state["messages"][1].content == thought.content, "the agent's own copy is whole"


class Settings(AgentMiddleware):
    """Sets what a provider takes, as prompt caching does."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def wrap_model_call(self, request, handler):
        return handler(request.override(model_settings=self.settings))


def test_a_setting_for_another_model_does_not_reach_an_expert_but_one_for_experts_does(one, other):
    routed = ExpertRouterMiddleware(one)
    agent = create_agent(other, middleware=[Settings(cache_control={"type": "x"}), routed])
    assert agent.invoke(ask(LAW))["messages"][-1].text == f"law: {LAW}"
    agent = create_agent(one, middleware=[Settings(max_tokens=3), routed])
    assert agent.invoke(ask(LAW))["messages"][-1].text == "law"


def test_an_expert_that_is_taken_out_of_use_leaves_the_turn_to_the_own_model(one, other):
    class Removes(AgentMiddleware):
        def before_model(self, state, runtime):
            one.library.remove("law")

    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one), Removes()])
    assert agent.invoke(ask(LAW))["messages"][-1].text == "I am another model."


def test_a_router_may_be_given_beside_a_chat_expert(engine, other):
    router = make_router()
    chat = ChatExpert(engine=engine, library=router.library)
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(chat, router=router)])
    assert expert_of(agent.invoke(ask(LAW))["messages"][-1]) == "law"
    with pytest.raises(InvalidInput, match="ChatExpert has no router"):
        ExpertRouterMiddleware(chat)


def test_the_agents_system_prompt_reaches_the_expert(other):
    engine = FakeEngine(lambda asked: asked.prompt)
    one = One4All(engine=engine, router=make_router())
    middleware = [ExpertRouterMiddleware(one)]
    agent = create_agent(other, system_prompt="Be brief.", middleware=middleware)
    assert "Be brief." in agent.invoke(ask(LAW))["messages"][-1].text


def test_traces_name_the_expert_that_was_asked(one, other):
    recorder = Recorder()
    one.invoke(TEAMS, model="sql")  # LangChain remembers how it wrote this model for traces
    agent = create_agent(other, middleware=[ExpertRouterMiddleware(one)])
    agent.invoke(ask(LAW), {"callbacks": [recorder]})
    assert recorder.models[0]["metadata"]["ls_model_name"] == "law"
    assert "model='law'" in recorder.models[0]["serialized"]["repr"]


def drawn(graph):
    return graph.get_graph().draw_mermaid()


async def test_an_edge_leads_to_the_routed_experts_node(one):
    graph = StateGraph(MessagesState)
    for name in (*one.library.names, "base"):
        graph.add_node(name, expert_node(one, name))
        graph.add_edge(name, END)
    graph.add_conditional_edges(START, route_to_expert(one.router), [*one.library.names, "base"])
    app = graph.compile()
    for question, expert in ((TEAMS, "sql"), (LAW, "law"), (NOBODYS, "base")):
        for state in (app.invoke(ask(question)), await app.ainvoke(ask(question))):
            assert state["messages"][-1].text == f"{expert}: {question}"
    for name in ("sql", "law", "base"):
        assert f"__start__ -.-> {name};" in drawn(app).replace("&nbsp;", "")


async def test_an_edge_leads_to_a_given_node_where_no_expert_has_one(one):
    edge = route_to_expert(one.router, abstained=END, nodes={"law": "lawyer"})
    assert edge.invoke(ask(LAW)) == await edge.ainvoke(ask(LAW)) == "lawyer"
    assert edge.invoke(ask(TEAMS)) == edge.invoke(ask(NOBODYS)) == END


async def test_a_node_answers_with_its_expert_the_states_or_the_routers(one):
    assert expert_of(expert_node(one, "sql").invoke(ask(LAW))["messages"][0]) == "sql"
    node = expert_node(one)
    for state, expert in (
        ({}, "law"),
        ({"expert_route": {"best": "sql"}}, "sql"),
        ({"expert_route": {"best": None}}, "base"),
        ({"expert": "law", "expert_route": {"best": "sql"}}, "law"),
    ):
        asked = {**ask(LAW), **state}
        for update in (node.invoke(asked), await node.ainvoke(asked)):
            assert expert_of(update["messages"][0]) == expert
    with pytest.raises(UnknownExpert, match="sqll"):
        expert_node(one, "sqll")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_likely_expert_gets_the_question_and_a_reducer_joins_the_answers(
    engine, asynchronous
):
    class Joined(MessagesState):
        answers: Annotated[list[str], add]

    def routed(messages):
        """Finds two of three experts likely; nobody's question is nobody's."""
        scores = (("law", 0.6), ("sql", 0.3), ("cooking", 0.1))
        experts = tuple(Candidate(name, 0.5, probability) for name, probability in scores)
        abstained = messages[-1].text == NOBODYS
        reason = "below_threshold" if abstained else "matched"
        return Route(messages[-1].text, experts, abstained, reason, 0.5, 0.4, 0.3, (), "")

    library = fake_library("law", "sql", "cooking")
    one = ChatExpert(engine=engine, library=library)
    node = expert_node(one) | RunnableLambda(
        lambda update: {"answers": [update["messages"][0].text]}
    )
    graph = StateGraph(Joined)
    graph.add_node("ask", node)
    graph.add_conditional_edges(START, fan_out(RunnableLambda(routed), "ask"), ["ask"])
    app = graph.compile()
    for question, experts in ((LAW, ["law", "sql"]), (NOBODYS, ["base"])):
        asked = {**ask(question), "answers": []}
        state = await app.ainvoke(asked) if asynchronous else app.invoke(asked)
        assert state["answers"] == [f"{name}: {question}" for name in experts]
    assert "__start__ -.-> ask;" in drawn(app).replace("&nbsp;", "")


def test_a_fan_out_sends_copies_to_no_more_than_it_may(one):
    state = {**ask(LAW), "user": "u1"}
    (send,) = fan_out(one.router, "ask", most=1, at_least=0).invoke(state)
    assert (send.node, send.arg) == ("ask", {**state, "expert": "law"})
    sends = fan_out(one.router, "ask", at_least=0).invoke(state)
    assert [item.arg["expert"] for item in sends] == ["law", "sql"]
    with pytest.raises(InvalidInput, match="most=0"):
        fan_out(one.router, "ask", most=0)


def test_callbacks_tags_and_metadata_reach_the_experts_run_in_a_graph(one):
    graph = StateGraph(MessagesState)
    graph.add_node("ask", expert_node(one))
    graph.add_conditional_edges(START, fan_out(one.router, "ask", most=1), ["ask"])
    recorder = Recorder()
    config = {"callbacks": [recorder], "tags": ["mine"], "metadata": {"user": "u1"}}
    graph.compile().invoke(ask(LAW), config)
    (model,) = recorder.models
    assert "mine" in model["tags"]
    assert model["metadata"]["user"] == "u1"
    assert model["metadata"]["langgraph_node"] == "ask"
    assert len(recorder.routed) == 1
