"""What encoder experts find, as typed results that can also be said in words."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field

Quote = Callable[[str], str]
"""What is done with each text or label that is quoted: a terminal isolates its direction."""


class Result(BaseModel):
    """What an encoder expert finds."""

    @abstractmethod
    def said(self, quote: Quote = str) -> str:
        """Say it as a person would, in few words.

        Args:
            quote: Applied to every piece of the user's own text and every label.
        """


class Classification(Result):
    """The label or labels of a text, or of a pair of texts.

    Attributes:
        label: The likeliest one that holds; None if none does.
        labels: All that hold, the likeliest first.
        probability: Of the likeliest label, whether it holds or not.
        probabilities: Of every label.
        abstained: Whether no label is likely enough.
    """

    label: str | None
    labels: list[str]
    probability: float
    probabilities: dict[str, float]
    abstained: bool

    def said(self, quote: Quote = str) -> str:
        """Say the labels with their probabilities."""
        if self.labels:
            return ", ".join(self._with_probability(label, quote) for label in self.labels)
        nearest = max(self.probabilities, key=self.probabilities.__getitem__)
        return f"undecided; nearest is {self._with_probability(nearest, quote)}"

    def _with_probability(self, label: str, quote: Quote) -> str:
        return f"{quote(label)} ({self.probabilities[label]:.0%})"


class Entity(BaseModel):
    """A named entity in a text.

    Attributes:
        text: Its words as they stand there.
        label: Its type.
        start: Where it begins, in characters.
        end: Where it ends: `text[start:end]` is the entity.
        probability: Of the least certain of its words.
    """

    text: str
    label: str
    start: int
    end: int
    probability: float


class Entities(Result):
    """The named entities of a text, as they come in it.

    Attributes:
        entities: Empty if there are none.
    """

    entities: list[Entity]

    def said(self, quote: Quote = str) -> str:
        """Say each with its type and place, one a line."""
        if not self.entities:
            return "no entities"
        return "\n".join(
            f"{quote(item.text)}: {quote(item.label)} [{item.start}:{item.end}]"
            for item in self.entities
        )


class Extraction(Result):
    """The answer to a question that stands in a text.

    Attributes:
        answer: The words as they stand there; None if the text does not answer the question.
        start: Where it begins in its text, in characters.
        end: Where it ends.
        score: By how much the best span outscores "no answer".
        probability: The same between 0 and 1.
        source: Which of the texts that were given it stands in, from 0.
        metadata: That text's, if it is a LangChain Document.
    """

    answer: str | None
    start: int | None = None
    end: int | None = None
    score: float
    probability: float
    source: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def said(self, quote: Quote = str) -> str:
        """Say the answer, and where it stands if that has a name."""
        if self.answer is None:
            return "no answer in the text"
        where = self.metadata.get("source") or self.metadata.get("title")
        return quote(self.answer) + (f" ({quote(str(where))})" if where else "")
