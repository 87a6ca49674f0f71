"""Experts that find a question's answer in texts, or say that it is not there."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from pydantic import BaseModel, Field

from one4all_lc.errors import InvalidInput
from one4all_lc.experts.text.expert import Array, Reading, TextExpert
from one4all_lc.experts.text.reading import Tokens, Window
from one4all_lc.experts.text.results import Extraction
from one4all_lc.folder import Expert
from one4all_lc.head import HeadFacts
from one4all_lc.routing.question import question_of

LONGEST = 64
"""Tokens of an answer."""

CONTEXT = ("context", "documents")


class Passage(BaseModel):
    """A question and the text that may answer it."""

    question: str = Field(description="The question.")
    context: str = Field(description="The text that the answer stands in.")


class ExtractExpert(TextExpert[Extraction]):
    """Finds an answer: a mapping with `question`, and `context` or `documents`.

    The context is a text, a LangChain Document, or a list of these, as a retriever gives them. Long
    ones are read in windows; every window of every text has its best span compared with "no answer"
    in the same window, and the span that outscores it by most is the answer.

    Example:
        reader = ExtractExpert(engine=engine, library=library, model="fr-reader")
        chain = {"question": RunnablePassthrough(), "documents": retriever} | reader
        chain.invoke("Où est né Victor Hugo ?").answer
    """

    kind = "extract"

    @property
    def arguments(self) -> type[BaseModel]:
        """A question and a context."""
        return Passage

    def _reading(self, asked: Any, expert: Expert, facts: HeadFacts) -> Reading[Extraction]:
        question, given = _question_and_texts(asked)
        asked_tokens = self._tokenizing.tokens(question)
        texts = [item.page_content for item in given]
        tokens = [self._tokenizing.tokens(text) for text in texts]
        cut = [
            self._tokenizing.windows(item, facts.max_tokens, before=asked_tokens) for item in tokens
        ]
        windows = [window for part in cut for window in part]
        owners = [i for i, part in enumerate(cut) for _ in part]

        def decide(logits: list[Array]) -> Extraction:
            found = [
                (*best_span(scores, window), i)
                for scores, window, i in zip(logits, windows, owners, strict=True)
            ]
            score, first, last, source = max(found, key=lambda item: item[0])
            probability = 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))
            if score <= (facts.threshold or 0.0):
                return Extraction(answer=None, score=score, probability=probability)
            start, end = _characters(texts[source], tokens[source], first, last)
            return Extraction(
                answer=texts[source][start:end],
                start=start,
                end=end,
                score=score,
                probability=probability,
                source=source,
                metadata=given[source].metadata,
            )

        return Reading(expert, windows, decide)


def best_span(logits: Array, window: Window) -> tuple[float, int, int]:
    """Return a window's best span.

    Args:
        logits: Shape (tokens, 2), of start and end.
        window: Where its text lies in those tokens.

    Returns:
        By how much it outscores "no answer", which the first token stands for; its first and last
        token in the text.
    """
    own = logits[window.first : window.first + len(window.part)].astype(float)
    scores = own[:, 0, None] + own[None, :, 1]
    allowed = np.tril(np.triu(np.ones_like(scores)), LONGEST - 1)
    scores = np.where(allowed > 0, scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    nothing = float(logits[0, 0]) + float(logits[0, 1])
    begin = window.part.start
    return float(scores[first, last]) - nothing, begin + int(first), begin + int(last)


def _characters(text: str, tokens: Tokens, first: int, last: int) -> tuple[int, int]:
    """Return which characters tokens stand for, without the space around them."""
    start, end = tokens.offsets[first][0], max(tokens.offsets[last][1], tokens.offsets[first][1])
    words = text[start:end]
    start += len(words) - len(words.lstrip())
    return start, start + len(words.strip())


def _question_and_texts(asked: Any) -> tuple[str, list[Document]]:
    name = next((name for name in CONTEXT if isinstance(asked, Mapping) and name in asked), None)
    if name is None:
        what = f"a mapping with {sorted(map(str, asked))}" if isinstance(asked, Mapping) else asked
        got = what if isinstance(asked, Mapping) else type(what).__name__
        msg = f"An extract expert got {got}: give 'question' and 'context' (or 'documents')."
        raise InvalidInput(msg)
    given = asked[name]
    texts = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    documents = [Document(item) if isinstance(item, str) else item for item in texts]
    documents = [item for item in documents if _is_document(item) and item.page_content.strip()]
    if not documents:
        msg = "There is no text to find an answer in: give a context, or documents that have some."
        raise InvalidInput(msg)
    return question_of({key: item for key, item in asked.items() if key != name}), documents


def _is_document(item: Any) -> bool:
    if isinstance(item, Document):
        return True
    msg = f"The context holds a {type(item).__name__}: give texts or LangChain Documents."
    raise InvalidInput(msg)
