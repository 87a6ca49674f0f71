"""The router's decision for one question."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Reason = Literal[
    "matched", "below_threshold", "ambiguous", "empty", "removed", "decides", "incomplete"
]
History = Literal["message", "last_turn", "previous_expert"]


class Candidate(NamedTuple):
    """One expert as the router sees it for one question.

    A tuple, for a route has one for each of a thousand experts.

    Attributes:
        name: The expert.
        score: The class score: its log-odds against the other experts.
        probability: That the question is this expert's, given that it is some expert's; all
            experts' sum to 1.
        in_scope: How well the question fits this expert's domain; higher is better.
        in_scope_probability: That it is within this expert's domain, whatever the others say.
        threshold: What `in_scope` must reach for this expert to take a question.
    """

    name: str
    score: float
    probability: float
    in_scope: float = 0.0
    in_scope_probability: float = 1.0
    threshold: float = 0.0


@dataclass(frozen=True)
class NearExemplar:
    """An exemplar near the question.

    Attributes:
        text: The exemplar.
        expert: Whose it is.
        similarity: Its cosine to the question, language removed.
    """

    text: str
    expert: str
    similarity: float


@dataclass(frozen=True)
class Part:
    """One sentence of a compound question.

    Attributes:
        text: The sentence.
        expert: The expert that should answer it; None if nobody takes it.
        probability: The expert's.
    """

    text: str
    expert: str | None
    probability: float


@dataclass(frozen=True)
class Route:
    """The router's decision for one question.

    Attributes:
        question: The question as it was asked.
        experts: Every expert, best first.
        abstained: Whether no expert should answer.
        reason: `matched`, `below_threshold`, `ambiguous` where the margin is less than the router
            was told to accept, `empty` for a library without experts, `removed` for an expert
            that was taken out of use before it could answer, `decides` for one whose answer has
            no form, where a form was demanded, or `incomplete` for one that decides about two
            texts, where the question has one.
        in_scope: How well the question fits the best expert's domain; None without experts, as
            `threshold` is.
        threshold: What `in_scope` must reach.
        margin: The best expert's probability less the second's; 1 for a single expert.
        nearest: The nearest exemplars of all experts, nearest first.
        fingerprint: Of embedder, experts, exemplars and settings: scores with different
            fingerprints must not be compared.
        in_scope_probability: That the question is within the best expert's domain.
        chosen: The experts that should answer, best first: one unless the router was told to
            choose several; none if it abstained.
        history: What decided: `message`, the question alone; `last_turn`, the question with the
            whole turn before it; `previous_expert`, whoever had answered that turn.
        routed: The text that decided; the question itself if `history` is `message`.
        parts: The sentences of a compound question, if the router was told to split.
    """

    question: str
    experts: tuple[Candidate, ...]
    abstained: bool
    reason: Reason
    in_scope: float | None
    threshold: float | None
    margin: float
    nearest: tuple[NearExemplar, ...]
    fingerprint: str
    in_scope_probability: float | None = None
    chosen: tuple[str, ...] = ()
    history: History = "message"
    routed: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def best(self) -> str | None:
        """The expert that should answer; None if the router abstained."""
        return None if self.abstained else self.experts[0].name

    def as_dict(self) -> dict[str, Any]:
        """Return the route as JSON-ready values, `best` among them."""
        experts = tuple(item._asdict() for item in self.experts)
        bare = dataclasses.asdict(dataclasses.replace(self, experts=()))
        return {**bare, "experts": experts, "best": self.best}

    def explain(self, quote: Callable[[str], str] = repr) -> str:
        """Say in one sentence why the route is what it is.

        Args:
            quote: Applied to the exemplar that is quoted.
        """
        if self.in_scope is None or self.threshold is None:
            return "No expert is in use."
        best, near = self.experts[0], self.nearest[0]
        if self.reason == "removed":
            return f"{best.name} was taken out of use meanwhile."
        if self.reason == "decides":
            return f"{best.name} decides, and the answer must have a form."
        if self.reason == "incomplete":
            return f"{best.name} needs a second text, and the question has none."
        facts = (
            f"the nearest exemplar is {quote(near.text)} of {near.expert} ({near.similarity:.2f})"
        )
        relation = "under" if self.abstained else "at or over"
        scores = f"in-scope score {self.in_scope:.2f} {relation} the threshold {self.threshold:.2f}"
        if self.reason == "ambiguous":
            other = self.experts[1].name
            return f"Nobody is asked, for {best.name} and {other} are as likely: {facts}."
        if self.abstained:
            return f"No expert takes it: {facts}; {scores} of {best.name}."
        read = {"message": "", "last_turn": ", read with the turn before it,"}
        read["previous_expert"] = ", as the turn before it did,"
        why = read[self.history]
        return f"It goes{why} to {best.name} ({best.probability:.0%}): {facts}; {scores}."
