"""What a model says of itself, and that whatever can be awaited has its async twin."""

import inspect

import chromadb
import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel

from one4all_lc import ChatExpert, One4All, SemanticRouter
from one4all_lc.agents import ExpertRouterMiddleware
from one4all_lc.experts.text import ClassifyExpert, ExtractExpert, PairExpert, TagExpert
from one4all_lc.retrieval import DomainRetriever
from one4all_lc.testing import FakeEmbeddings, FakeEngine, fake_expert, fake_library
from tests.conftest import ROOT

LAW = "What does indemnify mean?"


@pytest.fixture(scope="module")
def models():
    engine = FakeEngine()
    library = fake_library("sql", fake_expert("law", system_prompt="Cite the law."))
    client = chromadb.EphemeralClient()
    router = SemanticRouter(library=library, embeddings=FakeEmbeddings(), client=client)
    law = ChatExpert(engine=engine, library=library, model="law")
    yield {"law": law, "one": One4All(engine=engine, router=router)}
    engine.close()


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""


def test_tokens_are_counted_as_the_base_reads_them(models):
    """A conversation that is trimmed to fit would not fit."""
    law = models["law"]
    messages = [HumanMessage(LAW)]
    plain = law.get_num_tokens_from_messages(messages)
    assert plain == law.invoke(messages).usage_metadata["input_tokens"]
    with_tools = law.get_num_tokens_from_messages(messages, tools=[add])
    assert with_tools > plain + 50
    assert with_tools == law.bind_tools([add]).invoke(messages).usage_metadata["input_tokens"]
    assert law.get_num_tokens("four") == 4


def test_the_profile_says_what_the_model_can_do(models):
    """An agent would not use tools or structured answers, though it could."""
    for model in models.values():
        assert model.profile["tool_calling"]
        assert model.profile["structured_output"]
        assert not model.profile["image_inputs"]
        assert model.profile["max_input_tokens"] == model.engine.base.context_length - 1


def test_a_chain_can_be_drawn(models):
    """A chain could not be shown to those who review it."""
    router = models["one"].router
    chain = ChatPromptTemplate.from_template("{q}") | models["one"] | StrOutputParser()
    drawn = chain.get_graph().draw_mermaid()
    for name in ("ChatPromptTemplate", "router", *models["one"].library.names, "StrOutputParser"):
        assert name in drawn
    drawn = (router | RunnableLambda(lambda route: route.best)).get_graph().draw_mermaid()
    assert "SemanticRouter" in drawn
    assert "ChatExpert" in models["law"].get_graph().draw_mermaid()


def test_the_readme_draws_what_there_is():
    """A reader would look for parts that are not there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("```mermaid\n")[1].split("```")[0]
    shipped = sorted(card.parent.name for card in (ROOT / "adapters").glob("*/expert.json"))
    library = fake_library(*shipped)
    router = SemanticRouter(
        library=library, embeddings=FakeEmbeddings(), client=chromadb.EphemeralClient()
    )
    engine = FakeEngine()
    drawn = One4All(engine=engine, router=router).get_graph().draw_mermaid()
    engine.close()
    assert shown.strip() in drawn


CLASSES = (
    *(ChatExpert, One4All, SemanticRouter, DomainRetriever, ExpertRouterMiddleware),
    *(ClassifyExpert, TagExpert, ExtractExpert, PairExpert),
)

BUILDS = "builds a Runnable or tool and runs nothing"
ASKS = "says what the object is, from memory"
ALONE = {
    **dict.fromkeys(("as_tool", "asdict", "assign", "bind", "bind_tools", "map", "pick"), BUILDS),
    **dict.fromkeys(("pipe", "configurable_alternatives", "configurable_fields"), BUILDS),
    **dict.fromkeys(("with_alisteners", "with_config", "with_fallbacks", "with_listeners"), BUILDS),
    **dict.fromkeys(("with_retry", "with_structured_output", "with_types"), BUILDS),
    **dict.fromkeys(("text_expert",), BUILDS),
    **dict.fromkeys(("config_schema", "get_config_jsonschema", "get_graph", "get_name"), ASKS),
    **dict.fromkeys(("get_input_jsonschema", "get_input_schema", "get_lc_namespace"), ASKS),
    **dict.fromkeys(("get_output_jsonschema", "get_output_schema", "get_prompts", "lc_id"), ASKS),
    **dict.fromkeys(("is_lc_serializable", "to_json", "to_json_not_implemented"), ASKS),
    **dict.fromkeys(("set_verbose", "state_schema"), ASKS),
    "get_num_tokens": "tokenizes one text: microseconds, and LangChain has no async form",
    "get_num_tokens_from_messages": "as get_num_tokens",
    "get_token_ids": "as get_num_tokens",
    "read": "tokenizes one input and asks no engine",
    "load": "reads the weights, before an event loop serves anybody",
    "astream_log": "LangChain's own, and async alone",
}
"""Public methods without a twin, and why."""

LANGCHAINS_TWIN = {
    "batch": "`abatch` is LangChain's: it starts all at once, where `batch` follows the cores",
    "batch_as_completed": "the same",
}
"""Methods of this package whose twin is inherited, and why."""


def methods():
    """Every public method that is not pydantic's own, of every class."""
    for kind in CLASSES:
        for name, item in inspect.getmembers_static(kind):
            inner = getattr(item, "__func__", item)
            if not name.startswith("_") and callable(inner) and not hasattr(BaseModel, name):
                yield pytest.param(kind, name, id=f"{kind.__name__}.{name}")


def is_async(kind, name):
    inner = inspect.unwrap(getattr(kind, name))
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def is_twin(kind, name):
    return name[0] == "a" and callable(getattr(kind, name[1:], None))


def home(kind, name):
    return next(parent for parent in kind.__mro__ if name in vars(parent)).__module__


@pytest.mark.parametrize(("kind", "name"), methods())
def test_whatever_can_be_awaited_has_its_async_twin(kind, name):
    """A server that is async would have to block, or would get another behaviour."""
    if name in ALONE:
        return
    plain, twin = (name[1:], name) if is_twin(kind, name) else (name, f"a{name}")
    assert callable(getattr(kind, twin, None)), f"{kind.__name__}.{name} has no {twin}"
    ours = [home(kind, item).startswith("one4all_lc") for item in (plain, twin)]
    if plain not in LANGCHAINS_TWIN or kind is SemanticRouter:
        assert ours[0] == ours[1], "one of the two is LangChain's own"
    if ours[1]:
        assert is_async(kind, twin)
        assert not is_async(kind, plain)
        parameters = [
            list(inspect.signature(getattr(kind, item)).parameters) for item in (plain, twin)
        ]
        assert parameters[0] == parameters[1]


def test_the_list_of_methods_without_a_twin_is_no_longer_than_it_must_be():
    """A twin that is missing would be overlooked for an exception of old."""
    names = {name for kind in CLASSES for name in dir(kind)}
    assert set(ALONE) | set(LANGCHAINS_TWIN) <= names
    for name in ALONE:
        assert f"a{name}" not in names
    for kind in (BaseChatModel, BaseRetriever, Runnable, AgentMiddleware):
        assert any(issubclass(item, kind) for item in CLASSES)
