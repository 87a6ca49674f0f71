"""Experts that find named entities, with the characters that they stand in."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from one4all_lc.experts.text.classify import Text, text_of
from one4all_lc.experts.text.expert import Array, Reading, TextExpert
from one4all_lc.experts.text.reading import Tokens, Window
from one4all_lc.experts.text.results import Entities, Entity
from one4all_lc.folder import Expert
from one4all_lc.head import OUTSIDE, HeadFacts

# Letters and digits with their diacritics and half-spaces, or one sign.
_WORD = re.compile(
    r"[\w\u200c\u200d\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed]+|[^\w\s]"
)


def words_of(text: str) -> list[tuple[int, int]]:
    """Return which characters each word or punctuation mark of a text has."""
    return [found.span() for found in _WORD.finditer(text)]


def first_tokens(tokens: Tokens, words: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return for each word its first token: that one bears the word's tag.

    Args:
        tokens: Of the text that has the words.
        words: In their order.

    Returns:
        None for a word that no token stands for.
    """
    found: list[int | None] = []
    at = 0
    for start, end in words:
        while at < len(tokens.offsets) and tokens.offsets[at][1] <= start:
            at += 1
        within = at < len(tokens.offsets) and tokens.offsets[at][0] < end
        found.append(at if within else None)
    return found


class TagExpert(TextExpert[Entities]):
    """Finds the entities of a text: a string, messages (the last human one), or a mapping's `text`.

    A word has the tag of its first token; a long text is read in windows, each word where most
    stands around it. An entity whose least certain word is under the card's threshold is left out.

    Example:
        names = TagExpert(engine=engine, library=library, model="fa-entities")
        names.invoke("علی دایی در اردبیل به دنیا آمد.").entities
    """

    kind = "tag"

    @property
    def arguments(self) -> type[BaseModel]:
        """A text."""
        return Text

    def _reading(self, asked: Any, expert: Expert, facts: HeadFacts) -> Reading[Entities]:
        text = text_of(asked)
        tokens = self._tokenizing.tokens(text)
        windows = self._tokenizing.windows(tokens, facts.max_tokens)
        words = words_of(text)
        firsts = first_tokens(tokens, words)

        def decide(logits: list[Array]) -> Entities:
            scores = _joined(logits, windows, len(tokens.ids))
            tags = [_tag(None if i is None else scores[i], expert.card.labels) for i in firsts]
            found = entities_of(text, words, tags)
            least = facts.threshold or 0.0
            return Entities(entities=[item for item in found if item.probability >= least])

        return Reading(expert, windows, decide)


def _joined(logits: Sequence[Array], windows: Sequence[Window], count: int) -> Array:
    """Return each token's logits, from the window in which most stands around it."""
    joined = np.zeros((count, logits[0].shape[1]), np.float32)
    around = np.full(count, -1)
    for found, window in zip(logits, windows, strict=True):
        part = np.arange(window.part.start, window.part.stop)
        before = part - window.part.start + count * (window.part.start == 0)
        after = window.part.stop - 1 - part + count * (window.part.stop == count)
        margin = np.minimum(before, after)
        better = margin > around[part]
        joined[part[better]] = found[window.first : window.first + len(part)][better]
        around[part[better]] = margin[better]
    return joined


def _tag(logits: Array | None, labels: Sequence[str]) -> tuple[str, float]:
    if logits is None:
        return OUTSIDE, 1.0
    likely = np.exp(logits - logits.max())
    best = int(likely.argmax())
    return labels[best], float(likely[best] / likely.sum())


@dataclass
class _Open:
    label: str
    start: int
    end: int
    probability: float


def entities_of(
    text: str, words: Sequence[tuple[int, int]], tags: Sequence[tuple[str, float]]
) -> list[Entity]:
    """Join BIO tags to entities.

    `I-` of another type than the entity before it, or of none, begins an entity, as seqeval counts.

    Args:
        text: What was tagged.
        words: Which characters each word has.
        tags: Each word's tag and probability.
    """
    return [
        Entity(
            text=text[item.start : item.end],
            label=item.label,
            start=item.start,
            end=item.end,
            probability=item.probability,
        )
        for item in _spans(words, tags)
    ]


def _spans(words: Sequence[tuple[int, int]], tags: Sequence[tuple[str, float]]) -> Iterator[_Open]:
    running: _Open | None = None
    for (start, end), (tag, probability) in zip(words, tags, strict=True):
        prefix, _, label = tag.partition("-")
        if running and prefix == "I" and label == running.label:
            running.end, running.probability = end, min(running.probability, probability)
            continue
        if running:
            yield running
        running = None if tag == OUTSIDE else _Open(label, start, end, probability)
    if running:
        yield running
