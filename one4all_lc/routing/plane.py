"""Exemplars in a plane: the directions of their space in which domains differ most."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
KEPT = 48
"""Principal directions that are looked at: beyond them lies what single questions say."""


def plane(vectors: Array, owners: NDArray[np.intp], directions: int = 2) -> NDArray[np.float64]:
    """Place exemplars so that domains lie as far apart as a linear map can put them.

    Discriminants among the principal directions: those in which domains' means differ most for how
    much questions differ within a domain, the spread within shrunk towards its mean so that few
    exemplars do not make up directions. Each pair of domains weighs as much as it is in danger of
    being confused, or one domain far away, of another language for example, would take a direction
    to itself. A single domain gets its principal directions. All is linear, so that distances in
    the picture are not made up; but domains that lie over each other in it may lie apart in
    further directions.

    Source of the weights: Loog, Duin and Haeb-Umbach, Multiclass linear dimension reduction by
    weighted pairwise Fisher criteria, 2001.

    Args:
        vectors: (n, d) embeddings.
        owners: (n,) indices of their domains.
        directions: Coordinates of each.

    Returns:
        (n, directions) coordinates; zeros where there are fewer directions than that.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    centred = np.asarray(unit - unit.mean(0), float)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    kept = strength[:KEPT] > 1e-6 * max(strength[0], 1e-9)
    points = left[:, :KEPT][:, kept] * strength[:KEPT][kept]
    found = points
    if len(np.unique(owners)) > 1 and points.shape[1] > 1:
        found = points @ _discriminants(points, owners)
    placed = np.zeros((len(vectors), directions))
    placed[:, : min(directions, found.shape[1])] = found[:, :directions]
    return placed


def _discriminants(points: NDArray[np.float64], owners: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the discriminant directions (k, at most k), the strongest first."""
    means = np.stack([points[owners == owner].mean(0) for owner in np.unique(owners)])
    place = np.unique(owners, return_inverse=True)[1]
    within = np.cov((points - means[place]).T, bias=True)
    within = 0.5 * within + 0.5 * np.eye(len(within)) * max(np.trace(within) / len(within), 1e-9)
    values, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(values)
    values, turned = np.linalg.eigh(_between(means @ whitening))
    directions = whitening @ turned[:, ::-1]
    # The sign of a direction is anybody's choice: always the same one.
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    return np.asarray(directions * signs)


def _between(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scatter (k, k) of c whitened means (c, k), each pair by its weight."""
    first, second = np.triu_indices(len(means), 1)
    apart = means[first] - means[second]
    distance = np.maximum(np.linalg.norm(apart, axis=1), 1e-6)
    error = np.array([math.erf(value / (2 * math.sqrt(2))) for value in distance])
    weight = error / (2 * distance**2)
    return np.asarray((apart * weight[:, None]).T @ apart)
