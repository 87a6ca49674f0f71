"""Encoder experts as tools: the content is the result in words, the artifact the result."""

from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException
from pydantic import BaseModel

from one4all_lc.errors import One4AllError
from one4all_lc.experts.naming import checked_tool_name, described, tool_name
from one4all_lc.experts.text.results import Result

if TYPE_CHECKING:
    from one4all_lc.experts.text.expert import Reading, TextExpert


def tool_of(
    expert: "TextExpert[Any]",
    arguments: type[BaseModel],
    name: str | None = None,
    description: str | None = None,
    **settings: Any,
) -> BaseTool:
    """Return an encoder expert as a tool.

    Args:
        expert: Who reads.
        arguments: The tool's.
        name: `ask_<expert>` by default.
        description: The card's by default.
        **settings: As LangChain's tools take them: `handle_tool_error`.

    Raises:
        InvalidInput: The name is none for a tool.
    """

    def ask(**given: Any) -> tuple[str, dict[str, Any]]:
        try:
            reading = expert.read(_read(given))
            return _answer(reading, expert.answer(reading))
        except One4AllError as error:
            raise ToolException(str(error)) from error

    async def aask(**given: Any) -> tuple[str, dict[str, Any]]:
        try:
            reading = expert.read(_read(given))
            return _answer(reading, await expert.aanswer(reading))
        except One4AllError as error:
            raise ToolException(str(error)) from error

    card = expert.library[expert.model].card
    return StructuredTool.from_function(
        ask,
        aask,
        name=checked_tool_name(name) if name else tool_name(expert.model),
        description=description or described(card),
        args_schema=arguments,
        response_format="content_and_artifact",
        **settings,
    )


def _read(given: dict[str, Any]) -> Any:
    """A single argument of another name is the text."""
    (first, *rest) = given.values()
    return given if rest or "text" in given else {"text": first}


def _answer(reading: "Reading[Any]", result: Result) -> tuple[str, dict[str, Any]]:
    expert = reading.expert
    facts = {"expert": expert.name, "version": expert.card.version, "identity": expert.identity}
    return result.said(), {**facts, "kind": expert.card.kind, "result": result.model_dump()}
