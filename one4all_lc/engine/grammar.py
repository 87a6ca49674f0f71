"""Answers that must have a form: a JSON schema, a regular expression, a grammar.

llguidance says which tokens may come next. What is left to us is to end in time: close to the limit
of an answer only tokens that close something are taken while there are any, so an answer is whole.
"""

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from one4all_lc.errors import InvalidInput

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CLOSING_TOKENS = 512
"""Tokens beyond `max_tokens` that an answer may take to become whole."""

# What is read up to a text ends by itself where that text is a token.
_LAZY = re.compile(r"^(\w+)\[lazy\]:", re.MULTILINE)

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """The form of an answer, in llguidance's notation.

    Attributes:
        text: The grammar.
        after: What JSON begins after, if it stands in free text: quotes before it mean nothing.
    """

    text: str
    after: str = ""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Self:
        """One JSON value that is valid for a schema, without members that it does not name."""
        from llguidance import LLMatcher

        text = json.dumps(_closed(schema))
        return cls(LLMatcher.grammar_from_json_schema(text, defaults=_JSON))  # type: ignore[arg-type]

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """A text that a regular expression matches as a whole."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_regex(pattern))

    @classmethod
    def lark(cls, text: str, after: str = "") -> Self:
        """A text that a grammar in Lark's notation produces from `start`."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_lark(text), after)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return a schema as a part of a grammar in Lark's notation."""
    return "%json " + json.dumps({**_closed(schema), "x-guidance": _JSON})


_SCHEMAS = ("items", "additionalProperties", "contains")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have no members beside those that it names.

    A schema that says nothing of others allows them, and a small model would go on adding some.
    What is joined from several parts stays open, since each part would forbid the others' members.
    """
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    for name in _NAMED:
        if isinstance(schema.get(name), Mapping):
            closed[name] = {key: _closed(item) for key, item in schema[name].items()}
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            closed[name] = [_closed(item) for item in schema[name]]
    for name in _SCHEMAS:
        if name in schema:
            closed[name] = _closed(schema[name])
    joined = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "not", "if"} & schema.keys()
    if "properties" in schema and not joined:
        closed.setdefault("additionalProperties", False)
    return closed


class Matcher:
    """Which tokens may come next in one answer.

    Args:
        matcher: llguidance's, at the beginning.
        after: What JSON begins after; see `Grammar`.
        vocabulary: The text of every token.
        ranks: Of every token, how well it closes outside of a string, and inside: 0 best, shape
            (2, vocabulary), int8.
    """

    def __init__(
        self, matcher: "LLMatcher", after: str, vocabulary: Sequence[str], ranks: "Tensor"
    ) -> None:
        self._matcher, self._after = matcher, after
        self._vocabulary, self._ranks = vocabulary, ranks
        self._in_string = self._escaped = False
        self._last = ""

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self, vocabulary: int, *, closing: bool = False) -> "Tensor":
        """Return which tokens may come next, shape (vocabulary,), bool.

        Args:
            vocabulary: Size of the logits, which may be padded.
            closing: Only those that close best.
        """
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        size = len(self._vocabulary)
        flags = torch.from_numpy(np.unpackbits(bits, bitorder="little", count=size))
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: len(flags)] = flags.bool()
        if closing:
            ranks = torch.full((vocabulary,), 127, dtype=torch.int8)
            ranks[:size] = self._ranks[int(self._in_string)]
            ranks[~allowed] = 127
            allowed &= ranks == ranks.min()
        return allowed

    def accept(self, token: int) -> None:
        """Go on after a token.

        Raises:
            RuntimeError: The token was not allowed, or the grammar has become too complex.
        """
        if not self._matcher.consume_token(token):
            raise RuntimeError(self._matcher.get_error() or "the answer has left its grammar")
        for character in self._vocabulary[token]:
            quotes = character == '"' and not self._escaped
            self._in_string = self._in_string != quotes
            self._escaped = self._in_string and character == "\\" and not self._escaped
            if self._after:
                self._last = (self._last + character)[-len(self._after) :]
                self._in_string = self._in_string and self._last != self._after


class Grammars:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: The base's.
        end_tokens: The tokens that end an answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", end_tokens: Collection[int]) -> None:
        self._tokenizer, self._end_tokens = tokenizer, sorted(end_tokens)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at the beginning of an answer.

        Raises:
            InvalidInput: The grammar cannot be used.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._compiled, self._by_tokens(grammar.text), log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().partition("\n")[0]
            msg = f"The form asked of the answer cannot be enforced: {reason}"
            raise InvalidInput(msg)
        return Matcher(matcher, grammar.after, self._vocabulary, self._ranks)

    def _by_tokens(self, text: str) -> str:
        """Name tokens where a grammar spells what has a special token of its own.

        llguidance takes those, Qwen3's `<tool_call>` for example, for no text at all.
        """
        for spelled, token in self._tokenizer.get_added_vocab().items():
            literal = json.dumps(spelled)
            if literal in text and self._compiled.is_special_token(token):
                text = _LAZY.sub(r"\1:", text) if f"TEXT {literal}" in text else text
                text = text.replace(literal, f"<[{token}]>")
        return text

    @functools.cached_property
    def _compiled(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, eos_token=self._end_tokens)

    @functools.cached_property
    def _vocabulary(self) -> list[str]:
        return [self._compiled.decode_str([token]) for token in range(self._compiled.vocab_size)]

    @functools.cached_property
    def _ranks(self) -> "Tensor":
        """How well tokens close: a string by its quote, else ends, brackets, commas, others.

        Of others short ones come first: a long one may pass by the place where it could end.
        """
        import torch

        ranks = torch.tensor([min(3 + len(text), 126) for text in self._vocabulary])
        ranks = ranks.to(torch.int8).repeat(2, 1)
        for token, text in enumerate(self._vocabulary):
            if re.fullmatch(r'"?[}\]]*', text):
                ranks[int(text[:1] == '"'), token] = 1
            if re.fullmatch('"|[,:] ?', text):
                ranks[0, token] = 2
        ranks[:, self._end_tokens] = 0
        return ranks
