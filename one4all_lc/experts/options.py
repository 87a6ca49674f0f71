"""What a call asks of its answer beside the words: tools that it may call, a form that it has."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.utils.function_calling import convert_to_json_schema

from one4all_lc.engine.grammar import Grammar
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.tool_calls import Tool, calling, chosen

OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""The keywords of a call that are read here."""

_FORM = "Answer with JSON alone, of this schema:\n{schema}"


@dataclass(frozen=True)
class Options:
    """What one call asks of its answer.

    Attributes:
        tools: What may be called, as the prompt shows it.
        grammar: The form that the answer has; None for plain text.
        instruction: What the system turn says of the form.
    """

    tools: Sequence[Tool] = ()
    grammar: Grammar | None = None
    instruction: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Options":
        """Read them from a call's keywords.

        Raises:
            InvalidInput: One of them cannot be used.
        """
        form = settings.get("response_format")
        tools, must = chosen(settings.get("tools") or (), settings.get("tool_choice"))
        if must and not tools:
            msg = "tool_choice asks for a call, but there are no tools: bind some."
            raise InvalidInput(msg)
        if form is None:
            many = settings.get("parallel_tool_calls") is not False
            grammar = calling(tools, must=must, many=many) if tools else None
            return cls(tools, grammar)
        if must:
            msg = "tool_choice and response_format ask for different answers: give one of them."
            raise InvalidInput(msg)
        schema = _schema(form)
        instruction = _FORM.format(schema=json.dumps(schema, ensure_ascii=False))
        if tools:
            return cls(tools, calling(tools, must=False, schema=schema), instruction)
        return cls(grammar=Grammar.json_schema(schema), instruction=instruction)


def _schema(form: Any) -> dict[str, Any]:
    """Return the JSON schema that `response_format` asks for."""
    if not isinstance(form, Mapping):
        return convert_to_json_schema(form)
    if form.get("type") == "json_object":
        return dict(form.get("schema") or {"type": "object"})
    if form.get("type") == "json_schema" and isinstance(form.get("json_schema"), Mapping):
        return dict(form["json_schema"].get("schema", {}))
    if form.get("type") in ("json_object", "json_schema", "text"):
        msg = f"response_format is {dict(form)!r}: give 'json_schema' a schema, or leave it out."
        raise InvalidInput(msg)
    return convert_to_json_schema(dict(form))
