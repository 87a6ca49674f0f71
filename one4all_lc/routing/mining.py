"""Exemplars chosen from a training set, and what is wrong with those that there are: numpy alone.

All cosines here are taken around the middle of everyday questions, as the router's own are, for
embedders put every text into a narrow cone: two unrelated questions have a cosine of 0.8 with e5
and of 0.1 with MiniLM, but near 0 with both around the middle.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.intp]

DUPLICATE = 0.92
"""Cosine from which two questions of one expert say the same."""
CONFLICT = 0.8
"""Cosine from which two questions of two experts can hardly be told apart."""
FAR = 0.3
"""Cosine under which a question is far from every exemplar."""
THIN = 10
"""Exemplars under which an expert is known too little."""
STARTS = 4  # of k-means, of which the best counts
ROUNDS = 50  # of k-means, which is settled long before
BLOCK = 2048  # rows of cosines at a time


@dataclass(frozen=True)
class Pair:
    """Two exemplars that are near each other.

    Attributes:
        first: Index of one.
        second: Index of the other, larger.
        cosine: Around the middle.
    """

    first: int
    second: int
    cosine: float


def around(vectors: Array, middle: Array | None = None) -> Array:
    """Return unit vectors (n, d) around the middle (d,) of everyday questions; None is zero."""
    unit = _unit(np.asarray(vectors, np.float32))
    return unit if middle is None else _unit(unit - middle)


def middle_of(background: Array) -> Array:
    """Return the middle (d,) of the embeddings (m, d) of everyday questions."""
    return np.asarray(_unit(background).mean(0), np.float32)


def mine(
    unit: Array,
    count: int,
    *,
    taken: Array | None = None,
    languages: Sequence[str] | None = None,
    duplicate: float = DUPLICATE,
    seed: int = 0,
) -> list[int]:
    """Choose the questions that stand best for all: the medoids of clusters.

    Near-duplicates are dropped first, so that a question that is asked in a hundred ways is one;
    each language gets its share. What the clusters do not fill, for several may have the same
    medoid, is filled by the questions that are farthest from those chosen.

    Args:
        unit: (n, d) unit vectors of the training questions.
        count: How many to choose; fewer if there are not that many different ones.
        taken: (t, d) unit vectors of exemplars that are there already.
        languages: The n questions' languages; None takes them to be one.
        duplicate: Cosine from which two questions say the same.
        seed: The same one chooses the same.

    Returns:
        Indices, in order.
    """
    kept = distinct(unit, duplicate, taken)
    if len(kept) <= count:
        return [int(index) for index in kept]
    spoken = np.array(languages or [""] * len(unit))[kept]
    chosen: list[int] = []
    for language, share in _shares(spoken, count).items():
        mine_ = kept[spoken == language]
        places = _medoids(unit[mine_], share, np.random.default_rng(seed))
        chosen += [int(index) for index in mine_[places]]
    return sorted(chosen)


def distinct(unit: Array, duplicate: float = DUPLICATE, taken: Array | None = None) -> Ints:
    """Return the indices of questions that repeat no earlier one and none that is taken."""
    far = np.ones(len(unit), bool)
    if taken is not None and len(taken):
        far &= nearest(unit, taken)[1] < duplicate
    kept = np.zeros(0, np.intp)
    for rows in _blocks(len(unit), BLOCK // 4):
        block = np.arange(rows.start, rows.stop)[far[rows]]
        if len(kept) and len(block):
            block = block[nearest(unit[block], unit[kept])[1] < duplicate]
        close = unit[block] @ unit[block].T >= duplicate
        chosen: list[int] = []
        for place in range(len(block)):
            if not close[place, chosen].any():
                chosen.append(place)
        kept = np.concatenate([kept, block[chosen]])
    return kept


def near_duplicates(unit: Array, owners: Ints, cosine: float = DUPLICATE) -> list[Pair]:
    """List pairs of one expert's exemplars that say the same, the nearest first."""
    return _pairs(unit, owners, cosine, same=True)


def conflicts(unit: Array, owners: Ints, cosine: float = CONFLICT) -> list[Pair]:
    """List pairs of exemplars of different experts that are too near, the nearest first."""
    return _pairs(unit, owners, cosine, same=False)


def nearest(unit: Array, others: Array) -> tuple[Ints, Array]:
    """Return for each vector (n, d) the index of the nearest other (m, d), and the cosine, (n,)."""
    found = [
        (cosines.argmax(1), cosines.max(1))
        for cosines in (unit[rows] @ others.T for rows in _blocks(len(unit)))
    ]
    if not found:
        return np.zeros(0, np.intp), np.zeros(0, np.float32)
    indices, cosines = zip(*found, strict=True)
    return np.concatenate(indices), np.concatenate(cosines)


def _pairs(unit: Array, owners: Ints, cosine: float, *, same: bool) -> list[Pair]:
    pairs = []
    for rows in _blocks(len(unit)):
        cosines = unit[rows] @ unit.T
        wanted = (owners[rows, None] == owners[None]) == same
        upper = np.arange(len(unit))[None] > np.arange(rows.start, rows.stop)[:, None]
        for row, column in np.argwhere(wanted & upper & (cosines >= cosine)):
            first, second = int(row) + rows.start, int(column)
            pairs.append(Pair(first, second, float(cosines[row, column])))
    return sorted(pairs, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def _shares(languages: NDArray[np.str_], count: int) -> Mapping[str, int]:
    """Divide a number among languages by how common they are; each gets one at least."""
    names, sizes = np.unique(languages, return_counts=True)
    if len(names) > count:
        order = np.argsort(-sizes, kind="stable")[:count]
        return {str(names[index]): 1 for index in sorted(order)}
    exact = sizes / sizes.sum() * count
    shares = np.maximum(np.floor(exact).astype(int), 1)
    while shares.sum() != count:  # largest remainders get what is left, the smallest give
        rest = exact - shares
        if shares.sum() < count:
            shares[np.argmax(rest)] += 1
        else:
            shares[np.argmin(np.where(shares > 1, rest, np.inf))] -= 1
    return {str(name): int(share) for name, share in zip(names, shares, strict=True)}


def _medoids(unit: Array, count: int, generator: np.random.Generator) -> list[int]:
    """Choose `count` of n vectors by spherical k-means from k-means++ seeds."""
    if count >= len(unit):
        return list(range(len(unit)))
    settled = [_settled(unit, unit[_seeds(unit, count, generator)]) for _ in range(STARTS)]
    cosines = max((unit @ centres.T for centres in settled), key=lambda c: float(c.max(1).sum()))
    members = cosines.argmax(1)
    cosines = np.where(members[:, None] == np.arange(count), cosines, -np.inf)
    best = cosines.argmax(0)[np.isfinite(cosines.max(0))]
    return _filled(unit, list(dict.fromkeys(int(index) for index in best)), count)


def _settled(unit: Array, centres: Array) -> Array:
    """Move centres (k, d) to the middles of their members until nothing changes."""
    members = np.full(len(unit), -1)
    for _ in range(ROUNDS):
        moved = (unit @ centres.T).argmax(1)
        if (moved == members).all():
            break
        members = moved
        sums = np.zeros_like(centres)
        np.add.at(sums, members, unit)
        empty = np.linalg.norm(sums, axis=1) < 1e-6
        centres = np.where(empty[:, None], centres, _unit(sums))
    return centres


def _seeds(unit: Array, count: int, generator: np.random.Generator) -> list[int]:
    """Draw k-means++ seeds: each the likelier the farther it lies from those before.

    Of several draws the one that leaves least distance counts, or a large cluster is drawn from
    again before a small one is found.

    Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, 2007.
    """
    chosen = [int((unit @ unit.mean(0)).argmax())]
    distance = 1 - unit @ unit[chosen[0]]
    tries = 2 + int(np.log(count))
    for _ in range(count - 1):
        weight = np.maximum(distance, 0).astype(float) + 1e-12
        weight[chosen] = 0
        drawn = generator.choice(len(unit), tries, p=weight / weight.sum())
        left = np.minimum(distance[:, None], 1 - unit @ unit[drawn].T)  # (n, tries)
        best = int(left.sum(0).argmin())
        chosen.append(int(drawn[best]))
        distance = left[:, best]
    return chosen


def _filled(unit: Array, chosen: list[int], count: int) -> list[int]:
    """Add the farthest ones until there are `count`."""
    cosine = (unit @ unit[chosen].T).max(1)
    while len(chosen) < count:
        cosine[chosen] = np.inf
        chosen.append(int(cosine.argmin()))
        cosine = np.maximum(cosine, unit @ unit[chosen[-1]])
    return chosen


def _blocks(count: int, size: int = 0) -> Iterator[slice]:
    size = size or BLOCK
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-9), np.float32)
