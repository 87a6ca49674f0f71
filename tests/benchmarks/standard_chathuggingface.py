"""LangChain's suite for chat models on `ChatHuggingFace` with the same base, for the scoreboard.

Not collected with the tests: `python -m tests.benchmarks.standard` runs it.
"""

import pytest
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from langchain_tests.integration_tests import ChatModelIntegrationTests

from one4all_lc.base.embedded import resolve
from one4all_lc.base.loading import DEFAULT_BASE


@pytest.fixture(scope="module")
def pipeline():
    return HuggingFacePipeline.from_model_id(
        resolve(DEFAULT_BASE),
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": 40, "return_full_text": False},
    )


class TestChatHuggingFace(ChatModelIntegrationTests):
    chat_model_class = ChatHuggingFace
    has_tool_choice = True
    supports_json_mode = True
    supports_anthropic_inputs = True
    supports_model_override = True
    model_override_value = "base"
    parts: dict

    @pytest.fixture(autouse=True, scope="class")
    def parts_of_class(self, request, pipeline):
        request.cls.parts = {"llm": pipeline}

    @property
    def chat_model_params(self):
        return self.parts
