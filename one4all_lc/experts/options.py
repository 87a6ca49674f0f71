"""What a call asks of its answer beside the words: tools that it may call, a form that it has."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.utils.function_calling import convert_to_json_schema

from one4all_lc.engine.grammar import Grammar
from one4all_lc.errors import InvalidInput
from one4all_lc.experts.reading import CallReader, Reader, TextReader
from one4all_lc.experts.templates import (
    TemplateReader,
    needs_special_tokens,
    reads_written_calls,
    response_template,
)
from one4all_lc.experts.tool_calls import CALLS, Tool, calling, chosen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""The keywords of a call that are read here."""

_FORM = "Answer with JSON alone, of this schema:\n{schema}"


@dataclass(frozen=True)
class Options:
    """What one call asks of its answer.

    Attributes:
        tools: What may be called, as the prompt shows it.
        must: Whether the answer is one call.
        many: Whether it may hold several.
        schema: Of an answer that is JSON; None for words.
        template: How the base's tokenizer reads what is not forced; None for text and calls alone.
        free_calls: Whether calls come in a form of the base's own, which is read and not enforced.
        special_tokens: Whether reading the answer takes the tokenizer's special tokens.
    """

    tools: Sequence[Tool] = ()
    must: bool = False
    many: bool = True
    schema: Mapping[str, Any] | None = None
    template: Mapping[str, Any] | None = None
    free_calls: bool = False
    special_tokens: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> "Options":
        """Read them from a call's keywords.

        Raises:
            InvalidInput: One of them cannot be used.
        """
        form = settings.get("response_format")
        tools, must = chosen(settings.get("tools") or (), settings.get("tool_choice"))
        if must and not tools:
            msg = "tool_choice asks for a call, but there are no tools: bind some."
            raise InvalidInput(msg)
        if must and form is not None:
            msg = "tool_choice and response_format ask for different answers: give one of them."
            raise InvalidInput(msg)
        forced = must_have_form(settings)
        template = None if forced else response_template(tokenizer)
        return cls(
            tools,
            must,
            settings.get("parallel_tool_calls") is not False,
            None if form is None else _schema(form),
            template,
            _reads_calls(template) and not reads_written_calls(template or {}),
            needs_special_tokens(template, tokenizer),
        )

    @property
    def grammar(self) -> Grammar | None:
        """The form that the answer has; None for plain text."""
        if self.tools and not self.free_calls:
            return calling(self.tools, must=self.must, many=self.many, schema=self.schema)
        return None if self.schema is None else Grammar.json_schema(self.schema)

    @property
    def instruction(self) -> str:
        """What the system turn says of the form."""
        if self.schema is None:
            return ""
        return _FORM.format(schema=json.dumps(self.schema, ensure_ascii=False))

    @property
    def forced(self) -> bool:
        """Whether the answer has its form from the first token on."""
        return self.must or self.schema is not None

    def reader(self, prompt: Callable[[], str]) -> Reader:
        """Return what reads the answer to a prompt."""
        ours = self.tools and not _reads_calls(self.template)
        inner: Reader = CallReader() if ours else TextReader()
        if self.template is None:
            return inner
        return TemplateReader(self.template, prompt(), self.tools, inner, many=self.many)


def _reads_calls(template: Mapping[str, Any] | None) -> bool:
    return CALLS in (template or {}).get("fields", {})


def must_have_form(settings: Mapping[str, Any]) -> bool:
    """Whether a call's keywords demand an answer of a form: a schema's, or a tool call's."""
    _, must = chosen(settings.get("tools") or (), settings.get("tool_choice"))
    return must or settings.get("response_format") is not None


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
