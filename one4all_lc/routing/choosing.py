"""From scores to a `Route`: who is chosen, whether nobody is, and of how many sentences."""

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from one4all_lc.errors import InvalidInput
from one4all_lc.routing.exemplars import ExemplarSet
from one4all_lc.routing.route import Candidate, NearExemplar, Part, Reason, Route
from one4all_lc.routing.scoring import Scorer, Scores
from one4all_lc.routing.tuned import TunedScorer

NEAREST = 3
Several = Literal["best", "margin", "independent"]
SENTENCE = re.compile(r"(?<=[.!?؟。])\s+|\n+")
SHORTEST = 3
"""Words that a sentence needs to be routed by itself."""


@dataclass(frozen=True)
class Policy:
    """What is made of the scores.

    Attributes:
        several: `best` chooses one expert; `margin` also those whose probability is within
            `within` of the best one's; `independent` all that would take the question themselves
            and have an in-scope probability of `at_least`.
        within: For `margin`.
        at_least: For `independent`.
        min_margin: The least margin; below it the router abstains as `ambiguous`. Only for `best`:
            choosing several is another answer to the same doubt.
        split: Whether sentences of a compound question are routed by themselves as well; those
            that an expert takes add that expert.

    Raises:
        InvalidInput: A value is not one of those.
    """

    several: Several = "best"
    within: float = 0.2
    at_least: float = 0.5
    min_margin: float = 0.0
    split: bool = False

    def __post_init__(self) -> None:
        if self.several not in ("best", "margin", "independent"):
            msg = f"several is {self.several!r}: give 'best', 'margin' or 'independent'."
            raise InvalidInput(msg)
        for name in ("within", "at_least", "min_margin"):
            if not 0 <= getattr(self, name) <= 1:
                msg = f"{name} is {getattr(self, name)}: give a share between 0 and 1."
                raise InvalidInput(msg)


def empty_route(question: str, fingerprint: str) -> Route:
    """Return the route where there is no expert."""
    return Route(question, (), True, "empty", None, None, 0.0, (), fingerprint, routed=question)


def route_of(
    question: str,
    scores: Scores,
    row: int,
    scorer: Scorer | TunedScorer,
    exemplars: ExemplarSet,
    policy: Policy,
    fingerprint: str,
) -> Route:
    """Decide on one question of a batch."""
    probability, in_scope = scores.probability[row], scores.in_scope[row]
    order = np.argsort(-scores.class_score[row], kind="stable")
    best = int(order[0])
    margin = float(probability[best] - probability[order[1]]) if len(order) > 1 else 1.0
    reason: Reason = "matched"
    if in_scope[best] < scorer.thresholds[best]:
        reason = "below_threshold"
    elif policy.several == "best" and margin < policy.min_margin:
        reason = "ambiguous"
    experts = _candidates(scores, row, scorer, order)
    return Route(
        question=question,
        experts=experts,
        abstained=reason != "matched",
        reason=reason,
        in_scope=float(in_scope[best]),
        threshold=float(scorer.thresholds[best]),
        margin=margin,
        nearest=_nearest(scores, row, exemplars),
        fingerprint=fingerprint,
        in_scope_probability=experts[0].in_scope_probability,
        chosen=_chosen(experts, policy) if reason == "matched" else (),
        routed=question,
    )


def _candidates(
    scores: Scores, row: int, scorer: Scorer | TunedScorer, order: NDArray[np.intp]
) -> tuple[Candidate, ...]:
    """Return the experts in that order; lists are made at once, a thousand `float()` take ms."""
    columns = (
        scores.class_score[row],
        scores.probability[row],
        scores.in_scope[row],
        scores.in_scope_probability[row],
        scorer.thresholds,
    )
    names = [scorer.names[index] for index in order.tolist()]
    return tuple(map(Candidate, names, *(column[order].tolist() for column in columns)))


def _nearest(scores: Scores, row: int, exemplars: ExemplarSet) -> tuple[NearExemplar, ...]:
    similarity = scores.similarity[row]
    most = min(NEAREST, len(similarity))
    rows = np.argpartition(-similarity, most - 1)[:most]  # sorting all would cost more than scoring
    return tuple(
        NearExemplar(
            exemplars.exemplars[i].text, exemplars.experts[i], float(min(similarity[i], 1.0))
        )
        for i in sorted(rows, key=lambda i: (-similarity[i], i))
    )


def _chosen(experts: tuple[Candidate, ...], policy: Policy) -> tuple[str, ...]:
    first = experts[0]
    others = [item for item in experts[1:] if item.in_scope >= item.threshold]
    if policy.several == "best":
        others = []
    elif policy.several == "margin":
        others = [o for o in others if first.probability - o.probability <= policy.within]
    else:
        others = [o for o in others if o.in_scope_probability >= policy.at_least]
    return (first.name, *(item.name for item in others))


def sentences(question: str) -> tuple[str, ...]:
    """Return the sentences of a compound question; nothing if it is one sentence."""
    parts = [part.strip() for part in SENTENCE.split(question) if part.strip()]
    long = tuple(part for part in parts if len(part.split()) >= SHORTEST)
    return long if len(long) > 1 else ()


def with_parts(whole: Route, parts: list[Route]) -> Route:
    """Add the experts that take single sentences of a question."""
    taken = [part.best for part in parts if part.best is not None]
    chosen = tuple(dict.fromkeys([*whole.chosen, *taken]))
    told = tuple(
        Part(part.question, part.best, part.experts[0].probability if part.experts else 0.0)
        for part in parts
    )
    if not whole.abstained or not chosen:
        return replace(whole, chosen=chosen, parts=told)
    # The whole is nobody's, for it lies between its sentences: the surest of them decides.
    first = max(
        (part for part in parts if part.best is not None),
        key=lambda part: part.in_scope_probability or 0.0,
    )
    names = tuple(dict.fromkeys([*first.chosen, *chosen]))
    return replace(first, question=whole.question, routed=first.question, chosen=names, parts=told)
