"""Experts that label a text, or say how two texts are related."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.expert import Array, Reading, TextExpert
from one4all_lc.experts.text.results import Classification
from one4all_lc.folder import Expert
from one4all_lc.head import HeadFacts
from one4all_lc.routing.question import question_of

SEVERAL = 0.5
"""The least probability of a label where several may hold and no threshold was fitted."""


class Text(BaseModel):
    """What an expert reads."""

    text: str = Field(description="The whole text: the expert sees nothing else.")


class Pair(BaseModel):
    """Two texts, of which the second is judged by the first."""

    premise: str = Field(description="What is given.")
    hypothesis: str = Field(description="What is judged by it.")


def text_of(asked: Any) -> str:
    """Find the text in an input: `text` of a mapping, or what a router would read.

    Raises:
        InvalidInput: There is none.
    """
    if isinstance(asked, Mapping) and "text" in asked:
        return text_of(asked["text"])
    return question_of(asked)


class ClassifyExpert(TextExpert[Classification]):
    """Labels a text: a string, messages (the last human one), or a mapping with `text`.

    Of a text that is longer than the base reads, all parts are read and their logits averaged.

    Example:
        sentiment = ClassifyExpert(engine=engine, library=library, model="review-sentiment")
        sentiment.invoke("The battery dies within an hour.").label
    """

    kind = "classify"

    @property
    def arguments(self) -> type[BaseModel]:
        """A text."""
        return Text

    def _reading(self, asked: Any, expert: Expert, facts: HeadFacts) -> Reading[Classification]:
        tokens = self._tokenizing.tokens(text_of(asked))
        windows = self._tokenizing.windows(tokens, facts.max_tokens)
        return Reading(expert, windows, lambda logits: decided(logits, expert, facts))


class PairExpert(TextExpert[Classification]):
    """Labels a pair of texts: a mapping with `premise` and `hypothesis`, or the two in this order.

    Example:
        inference = PairExpert(engine=engine, library=library, model="fa-inference")
        inference.invoke({"premise": "It rains.", "hypothesis": "The sun shines."}).label
    """

    kind = "pair"

    @property
    def arguments(self) -> type[BaseModel]:
        """A premise and a hypothesis."""
        return Pair

    def _reading(self, asked: Any, expert: Expert, facts: HeadFacts) -> Reading[Classification]:
        premise, hypothesis = map(self._tokenizing.tokens, _pair(asked))
        windows = self._tokenizing.windows(premise, facts.max_tokens, after=hypothesis)
        return Reading(expert, windows, lambda logits: decided(logits, expert, facts))


def decided(logits: Sequence[Array], expert: Expert, facts: HeadFacts) -> Classification:
    """Make labels of logits.

    Args:
        logits: One a window, each of shape (labels,).
        expert: Whose.
        facts: Of its head.
    """
    scores = np.mean(np.stack(list(logits)), axis=0).astype(float)
    if facts.several:
        likely = 1 / (1 + np.exp(-scores))
    else:
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
    labels = expert.card.labels
    order = np.argsort(-likely, kind="stable")
    least = facts.threshold if facts.threshold is not None else SEVERAL * facts.several
    chosen = order if facts.several else order[:1]
    held = [labels[i] for i in chosen if likely[i] >= least]
    return Classification(
        label=held[0] if held else None,
        labels=held,
        probability=float(likely[order[0]]),
        probabilities={labels[i]: float(likely[i]) for i in order},
        abstained=not held,
    )


def _pair(asked: Any) -> tuple[str, str]:
    if isinstance(asked, Mapping) and {"premise", "hypothesis"} <= asked.keys():
        return asked["premise"], asked["hypothesis"]
    two = isinstance(asked, Sequence) and not isinstance(asked, str) and len(asked) == 2
    if two and all(isinstance(item, str) for item in asked):
        return asked[0], asked[1]
    msg = (
        f"A pair expert got {type(asked).__name__}: give a mapping with 'premise' and "
        "'hypothesis', or the two texts in this order."
    )
    raise InvalidInput(msg)
