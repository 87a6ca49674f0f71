"""Follow-up questions: what of the conversation decides where a question goes."""

from dataclasses import dataclass, replace
from typing import Literal

from one4all_lc.errors import InvalidInput
from one4all_lc.routing.question import Asked
from one4all_lc.routing.route import Route

Reading = Literal["none", "last_turn", "auto"]
READINGS = ("none", "last_turn", "auto")
WORDS, AWAY = 6, -5.0
"""A question of so many words that lies so many deviations of held-out exemplars below the
threshold says by itself that it is about something else; short ones (`And how?`) lie far from
everything."""


@dataclass(frozen=True)
class Turn:
    """The routes that a follow-up question may be decided by.

    Attributes:
        message: The question alone.
        whole: The question with the turn before it; None if that is not read.
        previous: The question of that turn alone; None if that is not read.
    """

    message: Route
    whole: Route | None = None
    previous: Route | None = None


def check_reading(history: Reading, decay: float) -> Reading:
    """Return how a conversation is read.

    Raises:
        InvalidInput: There is no such way, or the decay is no share.
    """
    if history not in READINGS:
        msg = f"history is {history!r}: give one of {', '.join(map(repr, READINGS))}."
        raise InvalidInput(msg)
    if not 0 <= decay <= 1:
        msg = f"decay is {decay}: give a share between 0 and 1."
        raise InvalidInput(msg)
    return history


def texts_of(asked: Asked, history: Reading) -> tuple[str, ...]:
    """Return what must be embedded: the question alone, the whole last turn, the one before."""
    if history == "none" or not asked.previous:
        return (asked.question,)
    if history == "last_turn":
        return (asked.question, asked.last_turn)
    return (asked.question, asked.last_turn, asked.previous[0])


def decided(turn: Turn, asked: Asked, history: Reading, decay: float) -> Route:
    """Choose among the routes of a follow-up question.

    `auto`: the question alone, unless that abstains; then the whole last turn, if it is about the
    same as the turn before and the question does not speak for itself; then the expert of that
    turn, whose in-scope probability decays.
    """
    if turn.whole is None:
        return turn.message
    if history == "last_turn":
        return _as(turn.whole, asked, "last_turn")
    if not turn.message.abstained or turn.previous is None or not turn.message.experts:
        return turn.message
    if _foreign(turn.message):
        return turn.message
    before = asked.expert or turn.previous.experts[0].name
    if turn.whole.best == before:
        return _as(turn.whole, asked, "last_turn")
    answered = asked.expert is not None or not turn.previous.abstained
    sure = (turn.previous.in_scope_probability or 0.0) * decay
    if answered and sure >= 0.5 and any(item.name == before for item in turn.whole.experts):
        return _kept(turn.whole, asked, before)
    return turn.message


def _foreign(message: Route) -> bool:
    """Tell whether a question says by itself that it is about something else."""
    assert message.in_scope is not None
    assert message.threshold is not None
    away = message.in_scope - message.threshold
    return away < AWAY and len(message.question.split()) >= WORDS


def _as(route: Route, asked: Asked, history: Literal["last_turn"]) -> Route:
    return replace(route, question=asked.question, history=history)


def _kept(route: Route, asked: Asked, before: str) -> Route:
    """Return the route with the expert of the turn before in front."""
    first = [item for item in route.experts if item.name == before]
    rest = [item for item in route.experts if item.name != before]
    return replace(
        route,
        question=asked.question,
        experts=(*first, *rest),
        abstained=False,
        reason="matched",
        in_scope=first[0].in_scope,
        threshold=first[0].threshold,
        in_scope_probability=first[0].in_scope_probability,
        chosen=(before,),
        history="previous_expert",
    )
