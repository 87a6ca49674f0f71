"""The experts of one moment, fitted and ready to score."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from langchain_core.embeddings import Embeddings

from one4all_lc.folder import Exemplar, Expert
from one4all_lc.routing.candidates import Candidates
from one4all_lc.routing.exemplars import (
    ExemplarSet,
    ExemplarStore,
    exemplars_of,
    negatives_of,
)
from one4all_lc.routing.scoring import Scorer, Scores, Settings
from one4all_lc.routing.spaces import Array
from one4all_lc.routing.tuned import TunedEmbeddings, TunedScorer

AT_ONCE = 1000
"""Exemplars up to which everything is chosen anew when they change: it takes a second."""
CHANGED = 0.2
"""The share of exemplars that may change before everything is chosen anew in any case."""


@dataclass(frozen=True)
class State:
    """The experts that were in use at one moment, ready to be scored.

    Attributes:
        experts: Those.
        exemplars: Theirs, with embeddings.
        scorer: Fitted on them; None without experts.
        fingerprint: Of all that routes depend on.
        embedder: Of the exemplars; questions must be embedded by the same.
        chosen_for: How many exemplars there were when the settings were chosen.
        candidates: The index of very many exemplars; None where every one is compared.
    """

    experts: tuple[Expert, ...]
    exemplars: ExemplarSet
    scorer: Scorer | TunedScorer | None
    fingerprint: str
    embedder: Embeddings
    chosen_for: int = 0
    candidates: Candidates | None = None

    def of(self, experts: tuple[Expert, ...]) -> bool:
        """Tell whether these are the experts: a library puts a new object for every change."""
        return len(experts) == len(self.experts) and all(
            new is old for new, old in zip(experts, self.experts, strict=True)
        )

    def score(self, vectors: Array) -> Scores | None:
        """Score questions (q, d) by what is near them, or by everything where that is little.

        Returns:
            The scores; None without experts.
        """
        if self.scorer is None:
            return None
        near = self.candidates.of_questions(vectors) if self.candidates else None
        return self.scorer.score(vectors, near)


def prepared(
    experts: tuple[Expert, ...],
    store: ExemplarStore,
    exemplars: ExemplarSet,
    fingerprint: str,
    target_retention: float,
    before: State | None,
) -> State:
    """Fit a scorer, with the settings of the state before where little has changed since."""
    count = len(exemplars.exemplars)
    if not experts:
        return State(experts, exemplars, None, fingerprint, store.embeddings)
    embeddings = store.embeddings
    if isinstance(embeddings, TunedEmbeddings):
        tuned = TunedScorer.fit(exemplars, target_retention, embeddings.temperature)
        return State(experts, exemplars, tuned, fingerprint, embeddings, count)
    settings = _kept_settings(before, exemplars) if before else None
    scorer = Scorer.fit(
        exemplars.vectors,
        exemplars.experts,
        [item.language for item in exemplars.exemplars],
        exemplars.background,
        target_retention,
        exemplars.negatives,
        settings,
    )
    chosen_for = before.chosen_for if before and settings else count
    near = Candidates.of(store, exemplars, scorer)
    return State(experts, exemplars, scorer, fingerprint, embeddings, chosen_for, near)


def _kept_settings(before: State, exemplars: ExemplarSet) -> Settings | None:
    count = len(exemplars.exemplars)
    if before.scorer is None or count <= AT_ONCE:
        return None
    known = set(zip(before.exemplars.experts, before.exemplars.exemplars, strict=True))
    new = set(zip(exemplars.experts, exemplars.exemplars, strict=True))
    changes = len(known ^ new) + abs(len(known) - before.chosen_for)
    return before.scorer.classes.settings if changes <= CHANGED * before.chosen_for else None


def texts_of(experts: Iterable[Expert], negatives: Iterable[Exemplar]) -> list[str]:
    """Return all texts that a fit depends on, one line each, with whose they are."""
    experts = tuple(experts)
    own = [
        f"{expert.name}\t{item.language}\t{item.text}"
        for expert in experts
        for item in exemplars_of(expert)
    ]
    return own + [f"\t{item.text}" for item in (*negatives, *negatives_of(experts))]


def digest(lines: Iterable[str]) -> str:
    """Return 32 hexadecimal digits that identify lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
