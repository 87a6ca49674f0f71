"""Texts to tokens: whole ones, pairs, and windows over long ones, with every token's characters."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from one4all_lc.errors import InvalidInput, ModelNotFound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from one4all_lc.base.loading import SharedBase

LEAST = 16
"""Tokens of a long text that a window must have room for beside the other text."""


@dataclass(frozen=True)
class Tokens:
    """A text's tokens, without special ones.

    Attributes:
        ids: Their ids.
        offsets: Which characters each stands for.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """A part of a text as an encoder reads it.

    Attributes:
        tokens: Ids, special ones and those of the other text included.
        types: For each token 1 if it is of the second text.
        part: Which of the text's own tokens it has.
        first: Where in `tokens` those begin.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    part: range
    first: int


@dataclass(frozen=True)
class Frame:
    """The special tokens around and between texts, and the types of tokens of the second text.

    Attributes:
        single: Before and after a single text.
        before: Before the first of two.
        between: Between them.
        after: After the second.
        types: Of tokens after the first text: of those between, of the second text, of those after.
    """

    single: tuple[tuple[int, ...], tuple[int, ...]]
    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[tuple[int, ...], int, tuple[int, ...]]

    @classmethod
    def of(cls, backend: Any) -> Self:
        """Find them by what a tokenizer makes of two words."""
        one, two = backend.encode("a"), backend.encode("a", "a")
        kinds = two.sequence_ids
        ends = [(kinds.index(n), len(kinds) - kinds[::-1].index(n)) for n in (0, 1)]
        (first, end), (second, last) = ends
        start, stop = (
            one.sequence_ids.index(0),
            len(one.ids) - one.sequence_ids[::-1].index(0),
        )
        ids, types = two.ids, two.type_ids
        return cls(
            (tuple(one.ids[:start]), tuple(one.ids[stop:])),
            tuple(ids[:first]),
            tuple(ids[end:second]),
            tuple(ids[last:]),
            (tuple(types[end:second]), types[second], tuple(types[last:])),
        )


class Tokenizing:
    """A base's tokenizer, for many threads at once.

    transformers' own call changes a fast tokenizer's settings and so refuses a second thread; here
    none are changed.

    Args:
        tokenizer: A fast one.
        room: Tokens that the base reads at once.

    Raises:
        ModelNotFound: The tokenizer is not a fast one, which knows no characters of its tokens.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", room: int) -> None:
        if not tokenizer.is_fast:
            msg = (
                f"{type(tokenizer).__name__} does not say which characters a token stands for: "
                "choose a base that has a tokenizer.json."
            )
            raise ModelNotFound(msg)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._frame = Frame.of(self._backend)
        self.room = room

    @classmethod
    def of(cls, base: "SharedBase") -> "Tokenizing":
        """Return that of a base, made at the first call."""
        return _tokenizing(base)

    def tokens(self, text: str) -> Tokens:
        """Return a text's tokens.

        Raises:
            InvalidInput: It has none, or is not text.
        """
        if not isinstance(text, str):
            msg = f"The text is a {type(text).__name__}: give a string."
            raise InvalidInput(msg)
        try:
            found = self._backend.encode(text, add_special_tokens=False)
        except TypeError:
            msg = "The text holds half a surrogate pair: it was cut within a character."
            raise InvalidInput(msg) from None
        if not found.ids:
            msg = "The text is empty: give some."
            raise InvalidInput(msg)
        return Tokens(tuple(found.ids), tuple(found.offsets))

    def windows(
        self,
        text: Tokens,
        most: int | None = None,
        *,
        before: Tokens | None = None,
        after: Tokens | None = None,
        overlap: float = 0.25,
    ) -> list[Window]:
        """Cut a text into windows, one if it is short enough.

        Args:
            text: What is cut.
            most: Tokens of a window; None takes as many as the base reads.
            before: Another text that stands whole before each part.
            after: One that stands whole after each part.
            overlap: The share of a window that the next one has too.

        Raises:
            InvalidInput: The other text leaves no room.
        """
        most = min(most or self.room, self.room)
        other = before or after
        frame = self._frame
        special = (
            len(frame.single[0]) + len(frame.single[1])
            if other is None
            else len(frame.before) + len(frame.between) + len(frame.after)
        )
        room = most - special - (len(other.ids) if other else 0)
        if room < min(LEAST, len(text.ids)):
            length = len(other.ids) if other else 0
            msg = (
                f"The other text has {length:,} tokens of the {most:,} that are read at once: "
                "shorten it."
            )
            raise InvalidInput(msg)
        return [
            self._window(text, part, before, after) for part in _parts(len(text.ids), room, overlap)
        ]

    def _window(
        self, text: Tokens, part: range, before: Tokens | None, after: Tokens | None
    ) -> Window:
        frame, own = self._frame, text.ids[part.start : part.stop]
        if before is None and after is None:
            begin, end = frame.single
            return Window((*begin, *own, *end), (), part, len(begin))
        first = before.ids if before else own
        second = own if before else after.ids if after else ()
        between, of_second, ending = frame.types
        tokens = (*frame.before, *first, *frame.between, *second, *frame.after)
        untyped = (0,) * (len(frame.before) + len(first))
        types = (*untyped, *between, *((of_second,) * len(second)), *ending)
        start = len(frame.before) + (len(first) + len(frame.between) if before else 0)
        return Window(tokens, types if any(types) else (), part, start)


def _parts(length: int, room: int, overlap: float) -> Iterator[range]:
    """Yield which tokens each window has; the last one reaches back as far as it has room."""
    step = max(1, room - int(room * overlap))
    first = 0
    while first + room < length:
        yield range(first, first + room)
        first += step
    yield range(max(0, length - room), length)


@lru_cache(maxsize=16)
def _tokenizing(base: "SharedBase") -> Tokenizing:
    return Tokenizing(base.tokenizer, base.context_length)
