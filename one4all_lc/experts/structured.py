"""Answers as objects: what `with_structured_output` returns."""

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from one4all_lc.experts.chat import ChatExpert

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: "ChatExpert", schema: Any, method: Method, *, include_raw: bool, **settings: Any
) -> Runnable[Any, Any]:
    """Return a model whose answers are objects.

    Args:
        model: The chat model.
        schema: A pydantic class, TypedDict, JSON schema or OpenAI function.
        method: `json_schema` and `json_mode` enforce the schema on the answer, `function_calling`
            on a call of one tool.
        include_raw: Return the message, the object and the parsing error together.
        **settings: Keywords of every call.

    Raises:
        InvalidInput: There is no such method.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        msg = f"method is {method!r}: use 'json_schema', 'function_calling' or 'json_mode'."
        raise InvalidInput(msg)
    pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced = {"kwargs": {"method": method}, "schema": schema}
    parser: Any
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools(
            [schema], tool_choice=name, ls_structured_output_format=traced, **settings
        )
        parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        if pydantic:
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
    else:
        as_json = convert_to_json_schema(schema)
        form: dict[str, Any] = {"type": "json_object", "schema": as_json}
        if method == "json_schema":
            named = {"name": as_json.get("title", "answer"), "schema": as_json}
            form = {"type": "json_schema", "json_schema": named}
        bound = model.bind(response_format=form, ls_structured_output_format=traced, **settings)
        parser = PydanticOutputParser(pydantic_object=schema) if pydantic else JsonOutputParser()
    return _with_raw(bound, parser) if include_raw else bound | parser


def _with_raw(model: Runnable[Any, Any], parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
