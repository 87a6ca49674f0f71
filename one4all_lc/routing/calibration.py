"""From scores to probabilities and thresholds, on scores of exemplars that were held out."""

import numpy as np
from numpy.typing import NDArray

from one4all_lc.routing.spaces import Array, log_softmax

SHRINKAGE = 40
"""Exemplars at which an expert's own threshold counts as much as the one of all experts."""
SOMEBODYS = 0.8
"""The share of questions taken to be somebody's: exemplars cannot tell, and a router is put where
most are. (CLINC150 has .82 in its test rows, .97 in its development rows, router_mix .92.)"""
SMOOTHING = 0.3
"""Questions, evenly spread over the experts, that are added to held-out ones."""
TEMPERATURES = np.geomspace(0.003, 3.0, 60)


def temperature_of(scores: Array, owners: NDArray[np.intp]) -> tuple[float, float]:
    """Find the temperature of the best log-likelihood of the owners.

    Exemplars that all fall right would drive it to zero and every probability to 1. Platt's
    smoothed targets prevent that: a little of a question more, evenly spread over the experts.
    Source: Platt, Probabilistic outputs for support vector machines, 1999.

    Args:
        scores: (m, c) held-out class scores.
        owners: (m,) whose the exemplars are.

    Returns:
        The temperature, and the mean loss there.
    """
    count = len(scores)
    rows = np.arange(count)
    losses = []
    for step in TEMPERATURES:
        logs = log_softmax(scores / step)
        told = logs[rows, owners] * count + logs.mean(1) * SMOOTHING
        losses.append(-told.mean() / (count + SMOOTHING))
    best = int(np.argmin(losses))
    return float(TEMPERATURES[best]), float(losses[best])


def thresholds_of(scores: Array, owners: NDArray[np.intp], count: int, retention: float) -> Array:
    """Return quantiles (c,) of held-out own scores (m,): each expert's, shrunk to everybody's."""
    everybody = np.quantile(scores, 1 - retention)
    thresholds = np.full(count, everybody, "f4")
    for index in np.unique(owners):
        mine = scores[owners == index]
        trust = len(mine) / (len(mine) + SHRINKAGE)
        thresholds[index] = trust * np.quantile(mine, 1 - retention) + (1 - trust) * everybody
    return thresholds


def sigmoid_of(own: Array, foreign: Array) -> tuple[float, float]:
    """Fit slope and offset of the probability that a score is of an own question.

    Own questions count `SOMEBODYS` whatever their number: how many foreign questions will be asked
    is not known from exemplars. Newton's method on Platt's smoothed targets.

    Args:
        own: (m,) scores of exemplars that were held out.
        foreign: (k,) scores of questions that are nobody's; may be empty.

    Returns:
        a, b of the probability 1 / (1 + exp(-(a * score + b))).
    """
    if not len(own) or not len(foreign):
        return 1.0, 0.0
    scores = np.concatenate([own, foreign]).astype("f8")
    high, low = 1 - 1 / (len(own) + 2), 1 / (len(foreign) + 2)
    targets = np.concatenate([np.full(len(own), high), np.full(len(foreign), low)])
    shares = (SOMEBODYS / len(own), (1 - SOMEBODYS) / len(foreign))
    weights = np.repeat(shares, (len(own), len(foreign)))
    design = np.stack([scores, np.ones_like(scores)], 1)
    found = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        gradient = design.T @ (weights * (chance - targets)) + 1e-4 * found
        curvature = (design * (weights * chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curvature + 1e-4 * np.eye(2), gradient)
        found -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-6:
            break
    return max(float(found[0]), 1e-3), float(found[1])


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-values)), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -30, 30))), "f4")
