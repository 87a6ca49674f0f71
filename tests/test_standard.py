"""LangChain's own suites for chat models, on an engine without weights and on the real base."""

import chromadb
import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from one4all_lc import ChatExpert, One4All, SemanticRouter
from one4all_lc.engine.engine import Engine
from one4all_lc.library import Library
from one4all_lc.testing import Asked, FakeEmbeddings, FakeEngine, fake_library
from tests.conftest import ADAPTERS

CALLS = {
    "magic_function(3)": '{"name": "magic_function", "arguments": {"input": 3}}',
    "Pirate greeting": '{"name": "greeting_generator", "arguments": {"answer_style": "Pirate"}}',
    "San Francisco": '{"name": "get_weather", "arguments": {"location": "San Francisco"}}',
    "你好": '{"name": "unicode_customer", "arguments": {"customer_name": "你好", '
    '"description": "x"}}',
    "こんにちは": '{"name": "unicode_customer", "arguments": {"customer_name": "こんにちは", '
    '"description": "x"}}',
}


def scripted(asked: Asked) -> str:
    """What a capable model would answer to the suites' questions."""
    calls = [call for words, call in CALLS.items() if words in asked.question]
    if calls and "<tools>" in asked.prompt:
        return f"<tool_call>\n{calls[0]}\n</tool_call>"
    return "Hello to you!"


@pytest.fixture(scope="module")
def fake():
    engine = FakeEngine(scripted)
    yield {"engine": engine, "library": fake_library("sql", "law"), "model": "sql"}
    engine.close()


@pytest.fixture(scope="module")
def real(base_nf4):
    library = Library(ADAPTERS, base_nf4.facts)
    return {"engine": Engine.of(base_nf4), "library": library, "model": "mobile"}


def routed(parts):
    """The same parts as a One4All, with a router that needs no weights."""
    router = SemanticRouter(
        library=parts["library"], embeddings=FakeEmbeddings(), client=chromadb.EphemeralClient()
    )
    return {"engine": parts["engine"], "router": router}


class Capable:
    """What every chat model of this package can do."""

    has_tool_choice = True
    supports_json_mode = True
    supports_anthropic_inputs = True
    supports_model_override = True
    model_override_value = "base"
    parts: dict

    @property
    def chat_model_params(self):
        return self.parts


class OnFake(Capable):
    @pytest.fixture(autouse=True, scope="class")
    def parts_of_class(self, request, fake):
        request.cls.parts = fake


class RoutedOnFake(Capable):
    @pytest.fixture(autouse=True, scope="class")
    def parts_of_class(self, request, fake):
        request.cls.parts = routed(fake)


class Keyless:
    """The suite's parameters but for an API key: there is nobody to show one to."""

    @property
    def standard_chat_model_params(self):
        parameters = super().standard_chat_model_params
        return {name: value for name, value in parameters.items() if name != "api_key"}


class TestExpertUnit(OnFake, Keyless, ChatModelUnitTests):
    chat_model_class = ChatExpert


class TestOne4AllUnit(RoutedOnFake, Keyless, ChatModelUnitTests):
    chat_model_class = One4All


class TestExpert(OnFake, ChatModelIntegrationTests):
    chat_model_class = ChatExpert


class TestOne4All(RoutedOnFake, ChatModelIntegrationTests):
    chat_model_class = One4All


SETTINGS = {"max_tokens": 40, "min_tokens": 1}
"""Short, and never empty: an expert of phones may have nothing to say to 'hello'."""

QUALITY = {
    "test_agent_loop": "135M parameters: it answers itself instead of calling the tool",
}
"""Tests of what the base knows, not of what this package does."""


class OnReal(Capable):
    @pytest.fixture(autouse=True, scope="class")
    def parts_of_class(self, request, real):
        request.cls.parts = real | SETTINGS

    @pytest.fixture(autouse=True)
    def quality(self, request):
        reason = QUALITY.get(request.node.originalname)
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason))


class TestExpertOnReal(OnReal, ChatModelIntegrationTests):
    chat_model_class = ChatExpert


class TestOne4AllOnReal(OnReal, ChatModelIntegrationTests):
    chat_model_class = One4All

    @pytest.fixture(autouse=True, scope="class")
    def parts_of_class(self, request, real):
        request.cls.parts = routed(real) | SETTINGS
