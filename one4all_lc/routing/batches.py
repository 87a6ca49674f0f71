"""A batch of inputs on its way to routes: each alone first, then what only more text decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from one4all_lc.errors import InvalidInput
from one4all_lc.routing.choosing import Policy, empty_route, route_of, sentences, with_parts
from one4all_lc.routing.history import Reading, Turn, decided, texts_of
from one4all_lc.routing.question import Asked, RouterInput, asked_in
from one4all_lc.routing.route import Route
from one4all_lc.routing.spaces import Array
from one4all_lc.routing.state import State

# Embedders read some 512 tokens; more text would only keep the tokenizer busy.
READ = 8_000


@dataclass(frozen=True)
class Rules:
    """How questions are decided.

    Attributes:
        history: What of a conversation is read.
        decay: What an expert's probability keeps from turn to turn.
        policy: What is made of scores.
    """

    history: Reading
    decay: float
    policy: Policy


class Batch:
    """Inputs, and their routes as far as they are known; errors stay in their places.

    The caller embeds: `texts` first, then what `route` returns, which is empty unless somebody
    abstained in the middle of a conversation or compound questions are split.

    Args:
        inputs: What a chain hands over.
        rules: How they are decided.
    """

    def __init__(self, inputs: Sequence[RouterInput], rules: Rules) -> None:
        self._rules = rules
        self._asked = [_asked_or_error(item) for item in inputs]
        self._routes: list[Exception | Route] = []
        self._more: list[str] = []
        self._state: State | None = None

    @property
    def texts(self) -> list[str]:
        """The questions, to be embedded."""
        return [item.question[:READ] for item in self._asked if isinstance(item, Asked)]

    def route(self, state: State | None, vectors: Array | None) -> list[str]:
        """Route every question alone.

        Args:
            state: The experts; None if there is no question at all.
            vectors: (q, d) of `texts`; None without experts.

        Returns:
            What else is to be embedded, each text once.
        """
        self._state = state
        routes = iter(self._by_text(self.texts, vectors))
        self._routes = [
            item if isinstance(item, InvalidInput) else next(routes) for item in self._asked
        ]
        wanted = [text for item, route in self._open() for text in self._wanted(item, route)]
        self._more = list(dict.fromkeys(text[:READ] for text in wanted))
        return self._more

    def finish(self, vectors: Array | None) -> list[Exception | Route]:
        """Return the routes, follow-up and compound questions decided by the further vectors."""
        if vectors is None or not self._more:
            return self._routes
        known = dict(zip(self._more, self._by_text(self._more, vectors), strict=True))
        finished = {id(route): self._finished(item, route, known) for item, route in self._open()}
        return [finished.get(id(route), route) for route in self._routes]

    def _by_text(self, texts: list[str], vectors: Array | None) -> list[Route]:
        state = self._state
        if state is None:
            return []
        scores = state.score(vectors) if vectors is not None else None
        if scores is None or state.scorer is None:
            return [empty_route(text, state.fingerprint) for text in texts]
        return [
            route_of(
                text,
                scores,
                row,
                state.scorer,
                state.exemplars,
                self._rules.policy,
                state.fingerprint,
            )
            for row, text in enumerate(texts)
        ]

    def _open(self) -> list[tuple[Asked, Route]]:
        pairs = zip(self._asked, self._routes, strict=True)
        return [
            (item, route)
            for item, route in pairs
            if isinstance(item, Asked) and isinstance(route, Route) and route.experts
        ]

    def _wanted(self, asked: Asked, route: Route) -> tuple[str, ...]:
        parts = sentences(asked.question) if self._rules.policy.split else ()
        reading = self._rules.history
        reads = reading == "last_turn" or (reading == "auto" and route.abstained)
        return parts + (texts_of(asked, reading)[1:] if reads else ())

    def _finished(self, asked: Asked, route: Route, known: Mapping[str, Route]) -> Route:
        rules = self._rules
        if rules.policy.split and (parts := sentences(asked.question)):
            route = with_parts(route, [known[part[:READ]] for part in parts])
        more = [text[:READ] for text in texts_of(asked, rules.history)[1:]]
        if not more or any(text not in known for text in more):
            return route
        turn = Turn(route, *(known[text] for text in more))
        return decided(turn, asked, rules.history, rules.decay)


def _asked_or_error(input_: RouterInput) -> Asked | InvalidInput:
    try:
        return asked_in(input_)
    except InvalidInput as error:
        return error
