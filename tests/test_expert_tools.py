"""Experts as tools: LangChain's own suites, and what an agent's model sees of them."""

import json
import re

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import ToolMessage
from langchain_core.tools import ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from pydantic import BaseModel, Field, ValidationError

from one4all_lc.errors import InvalidInput, UnknownExpert
from one4all_lc.experts.chat import ChatExpert
from one4all_lc.experts.naming import NAME
from one4all_lc.experts.tools import as_tool, expert_tools
from one4all_lc.one4all import One4All
from one4all_lc.routing.router import SemanticRouter
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_expert, fake_library

ASKED = {"question": "How many teams are there?"}
EXPERTS = (
    fake_expert("sql", "Writes SQL.", ["How many teams are there?"], languages=("en", "fa")),
    fake_expert("law", "Explains legal terms.", ["What does indemnify mean?"], version=3),
)


def make_chat(*experts, engine=None, **settings):
    return ChatExpert(
        engine=engine or FakeEngine(), library=fake_library(*(experts or EXPERTS)), **settings
    )


def make_router(library):
    import chromadb

    client = chromadb.EphemeralClient()
    return SemanticRouter(library=library, embeddings=FakeEmbeddings(), client=client)


@pytest.fixture(scope="module")
def one():
    return One4All(engine=FakeEngine(), router=make_router(fake_library(*EXPERTS)))


class TestUnit(ToolsUnitTests):
    @property
    def tool_constructor(self):
        return expert_tools(make_chat(), "sql")[0]

    @property
    def tool_invoke_params_example(self):
        return ASKED


class TestIntegration(ToolsIntegrationTests):
    @property
    def tool_constructor(self):
        return expert_tools(make_chat(), "sql")[0]

    @property
    def tool_invoke_params_example(self):
        return ASKED


class TestWholeModelIntegration(ToolsIntegrationTests):
    @property
    def tool_constructor(self):
        return as_tool(make_chat(model="law"), arg_types={"question": str, "context": str})

    @property
    def tool_invoke_params_example(self):
        return {**ASKED, "context": "There are two."}


def called(tool, args):
    return tool.invoke({"name": tool.name, "args": args, "id": "1", "type": "tool_call"})


def test_every_expert_is_a_tool_with_its_cards_words():
    sql, law = expert_tools(make_chat())
    assert (sql.name, law.name) == ("ask_sql", "ask_law")
    assert sql.description == "Writes SQL. Understands: en, fa."
    parameters = convert_to_openai_tool(sql)["function"]["parameters"]
    assert parameters["required"] == ["question"]
    assert parameters["properties"]["question"]["description"]


def test_only_the_named_experts_are_tools():
    assert [tool.name for tool in expert_tools(make_chat(), "law")] == ["ask_law"]
    assert [tool.name for tool in expert_tools(make_chat(), ["law", "law"])] == ["ask_law"]
    with pytest.raises(UnknownExpert, match="sql, law, base"):
        expert_tools(make_chat(), ["sqll"])


@pytest.mark.parametrize("size", [59, 60, 61, 63])
def test_a_tools_name_is_valid_and_its_own_however_long_the_experts_is(size):
    tools = expert_tools(make_chat(fake_expert("a" * size), fake_expert("a" * (size - 1) + "b")))
    assert len({tool.name for tool in tools}) == 2
    assert all(NAME.fullmatch(tool.name) for tool in tools)


async def test_a_call_gets_text_and_a_tool_call_gets_a_message_that_says_who_answered():
    chat = make_chat(engine=FakeEngine({"law": "To make good a loss."}))
    (law,) = expert_tools(chat, "law")
    answer = law.invoke({"question": "What does indemnify mean?"})
    assert answer == await law.ainvoke({"question": "What does indemnify mean?"})
    assert (type(answer), answer) == (str, "To make good a loss.")
    assert law.invoke("What does indemnify mean?") == answer

    message = called(law, ASKED)
    assert isinstance(message, ToolMessage)
    assert (message.content, message.status) == (answer, "success")
    artifact = json.loads(json.dumps(message.artifact))
    assert (artifact["expert"], artifact["version"]) == ("law", 3)
    assert artifact["identity"] == chat.library["law"].identity
    assert artifact["usage"]["output_tokens"] > 0


async def test_an_error_of_the_package_is_a_tools_error_and_may_be_its_answer():
    (law,) = expert_tools(make_chat(), "law")
    with pytest.raises(ToolException, match="The question is empty: ask something"):
        law.invoke({"question": " "})
    with pytest.raises(ToolException, match="The question is empty: ask something"):
        await law.ainvoke({"question": " "})
    (law,) = expert_tools(make_chat(), "law", handle_tool_error=True)
    message = called(law, {"question": " "})
    assert (message.status, message.content) == ("error", "The question is empty: ask something.")
    with pytest.raises(ValidationError):
        law.invoke({"text": "What?"})


def test_an_expert_that_is_taken_out_of_use_is_a_tools_error():
    chat = make_chat()
    sql, law = expert_tools(chat)
    chat.library.remove("law")
    with pytest.raises(ToolException, match="There is no expert 'law'"):
        law.invoke(ASKED)
    assert sql.invoke(ASKED) == "sql: How many teams are there?"


def test_the_models_settings_hold_for_its_tools():
    (law,) = expert_tools(make_chat(max_tokens=3), "law")
    assert law.invoke(ASKED) == "law"


class Recorder(BaseCallbackHandler):
    """Remembers the runs of tools and models."""

    def __init__(self):
        self.runs = {}

    def on_tool_start(self, serialized, input_str, *, run_id, **facts):
        self.runs["tool"] = {"run_id": run_id, **facts}

    def on_chat_model_start(self, serialized, messages, *, run_id, **facts):
        self.runs["model"] = {"run_id": run_id, **facts}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_callbacks_tags_and_metadata_reach_the_experts_run(asynchronous):
    (law,) = expert_tools(make_chat(), "law")
    recorder = Recorder()
    config = {
        "callbacks": [recorder],
        "tags": ["mine"],
        "metadata": {"user": "u1"},
        "run_name": "asked by me",
    }
    if asynchronous:
        await law.ainvoke(ASKED, config)
    else:
        law.invoke(ASKED, config)
    tool, model = recorder.runs["tool"], recorder.runs["model"]
    assert model["parent_run_id"] == tool["run_id"]
    assert "mine" in model["tags"]
    assert model["metadata"]["user"] == "u1"
    assert model["metadata"]["ls_model_name"] == "law"
    assert (tool["name"], model["name"]) == ("asked by me", None), (
        "the name is the tool run's alone"
    )


async def test_a_one4all_as_a_tool_routes_and_its_artifact_has_the_route(one):
    tool = as_tool(one)
    assert tool.name == "ask_experts"
    assert "sql: Writes SQL." in tool.description
    assert "law: Explains legal terms." in tool.description
    for message in (called(tool, ASKED), await tool.ainvoke({**_call(tool), "args": ASKED})):
        assert message.artifact["expert"] == message.artifact["route"]["best"] == "sql"
    assert called(tool, {"question": "Xyzzy plugh."}).artifact["expert"] == "base"


def _call(tool):
    return {"name": tool.name, "id": "2", "type": "tool_call"}


def test_a_long_list_of_experts_is_cut_in_the_description():
    experts = [fake_expert(f"x{i}") for i in range(14)]
    many = One4All(engine=FakeEngine(), router=make_router(fake_library(*experts)))
    assert as_tool(many).description.endswith("x9: Questions about x9.\n- and 4 more")


def test_a_chat_expert_as_a_tool_is_named_after_its_expert():
    tool = as_tool(make_chat(model="law"))
    assert (tool.name, tool.description) == ("ask_law", "Explains legal terms. Understands: en.")
    base = as_tool(make_chat())
    assert base.name == "ask_base"
    assert base.invoke(ASKED) == "base: How many teams are there?"


def test_a_tool_takes_a_name_and_a_description_of_its_own(one):
    tool = as_tool(one, name="help", description="Helps.")
    assert (tool.name, tool.description) == ("help", "Helps.")
    for name in ("two words", "", "a" * 65):
        with pytest.raises(InvalidInput, match="is no name for a tool"):
            as_tool(one, name=name)


def test_arguments_become_the_question_as_the_experts_were_taught_to_read_it():
    class Table(BaseModel):
        question: str
        columns: list[str] = Field(description="The table's columns.")

    chat = make_chat(model="sql")
    tool = as_tool(chat, Table)
    asked = {"question": "How many?", "columns": ["team", "city"]}
    assert tool.invoke(asked) == "sql: How many?\nColumns: team, city"
    tool = as_tool(chat, arg_types={"question": str, "context": str})
    assert tool.invoke({"question": "How many?", "context": "Two."}) == "sql: Two.\n\nHow many?"
    assert as_tool(chat, arg_types={"text": str}).invoke({"text": "How many?"}) == "sql: How many?"


@pytest.mark.parametrize(
    "arg_types", [{"a": str, "b": str}, {"question": str, "tone": str}, {"columns": list, "a": str}]
)
def test_arguments_that_would_be_lost_are_refused(arg_types):
    with pytest.raises(InvalidInput, match=re.escape(", ".join(arg_types))):
        as_tool(make_chat(), arg_types=arg_types)
