"""semantic-router on vectors that are given to it; runs in its own environment.

python peer_semantic_router.py TASK.npz SCORES.npz

TASK has `exemplars` (n, d), `owners` (n,), `questions` (q, d), and `held_out` (h, d) with their
`held_out_owners` (h,), -1 for nobody's. SCORES gets, for each aggregation, the score of every route
for every question, (q, c), and after the router's own `fit` on the held-out questions its
confidence in the best route, (q,), with seconds per question. Nothing of one4all_lc is imported.
"""

import asyncio
import sys
import time

import numpy as np
from pydantic import PrivateAttr
from semantic_router import Route
from semantic_router.encoders import DenseEncoder
from semantic_router.routers import IndexedRouter

AGGREGATIONS = ("mean", "max", "sum")


class Given(DenseEncoder):
    """Looks vectors up by the texts' names."""

    name: str = "given"
    _vectors: dict = PrivateAttr(default_factory=dict)

    def put(self, kind: str, vectors: np.ndarray) -> list[str]:
        """Keep vectors; return the names of their texts."""
        names = [f"{kind} {number}" for number in range(len(vectors))]
        self._vectors.update(zip(names, vectors.tolist(), strict=True))
        return names

    def __call__(self, docs: list[str]) -> list[list[float]]:
        """Return the texts' vectors."""
        return [self._vectors[text] for text in docs]

    async def acall(self, docs: list[str]) -> list[list[float]]:
        """Return the texts' vectors."""
        return self(docs)


def measure(task: dict[str, np.ndarray], aggregation: str) -> dict[str, np.ndarray]:
    """Score all questions with one aggregation, then calibrate the router."""
    encoder = Given()
    texts = encoder.put("exemplar", task["exemplars"])
    asked = encoder.put("question", task["questions"])
    held = encoder.put("held out", task["held_out"])
    count = int(task["owners"].max()) + 1
    routes = [
        Route(
            name=str(index),
            utterances=[
                text for text, owner in zip(texts, task["owners"], strict=True) if owner == index
            ],
        )
        for index in range(count)
    ]
    router = IndexedRouter(encoder=encoder, routes=routes, aggregation=aggregation)
    started = time.perf_counter()
    rows = asyncio.run(router._scores_many(asked))
    seconds = (time.perf_counter() - started) / max(len(asked), 1)
    scores = np.array([[row[str(index)] for index in range(count)] for row in rows])
    found = {aggregation: scores, f"{aggregation}_seconds": np.array(seconds)}
    if len(held):
        owners = [str(owner) if owner >= 0 else None for owner in task["held_out_owners"]]
        router.fit(held, owners)
        found[f"{aggregation}_confidence"] = router.calibrator(scores.max(1))
        found[f"{aggregation}_bar"] = router.calibrator(_best(router, held))
    return found


def _best(router: IndexedRouter, texts: list[str]) -> np.ndarray:
    return np.array([max(row.values()) for row in asyncio.run(router._scores_many(texts))])


def main() -> None:
    """Measure one task."""
    with np.load(sys.argv[1]) as file:
        task = dict(file)
    found: dict[str, np.ndarray] = {}
    for aggregation in AGGREGATIONS:
        found |= measure(task, aggregation)
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
