"""How an answer is held against the one that was wanted: metrics by name, and the user's own."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from one4all_lc.card import PERPLEXITY, SCORER
from one4all_lc.errors import InvalidInput
from one4all_lc.training.intervals import Array

Score = Callable[[str, str], float]
"""From an answer and the wanted one to a number; higher is better."""


def exact_match(answer: str, wanted: str) -> float:
    """1.0 if both are the same text, white space aside."""
    return float(answer.split() == wanted.split())


def first_word(answer: str, wanted: str) -> float:
    """1.0 if both begin with the same word: of a command, the program that is run."""
    return float(answer.split()[:1] == wanted.split()[:1])


def rouge_l() -> Score:
    """Return the ROUGE-L F-measure, by Google's `rouge_score`.

    Raises:
        InvalidInput: The package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        msg = "Measuring an expert needs rouge-score: pip install 'one4all_lc[train]'."
        raise InvalidInput(msg) from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda answer, wanted: float(scorer.score(wanted, answer)["rougeL"].fmeasure)


def scores_of(scorer: str | None = None) -> Mapping[str, Score]:
    """Return every metric of answers by its name.

    Args:
        scorer: `module:function` of the user's own, found on the path or in the working directory.

    Raises:
        InvalidInput: The scorer is not there, or rouge-score is not installed.
    """
    known = {"exact_match": exact_match, "rouge_l": rouge_l(), "first_word": first_word}
    return known if scorer is None else {**known, scorer: _scorer(scorer)}


def score_all(name: str, score: Score, answers: list[str], wanted: list[str]) -> Array:
    """Return (n,) scores.

    Raises:
        InvalidInput: The user's scorer raises, or gives something that is not a finite number.
    """
    values = []
    for answer, right in zip(answers, wanted, strict=True):
        try:
            value = float(score(answer, right))
        except Exception as error:
            msg = f"{name}({answer[:40]!r}, {right[:40]!r}) fails: {type(error).__name__}: {error}."
            raise InvalidInput(msg) from error
        if not np.isfinite(value):
            msg = f"{name}({answer[:40]!r}, {right[:40]!r}) is {value}: return a finite number."
            raise InvalidInput(msg)
        values.append(value)
    return np.array(values)


def check_metric(metric: str, known: Mapping[str, object]) -> None:
    """Refuse a metric that decides and is not measured.

    Raises:
        InvalidInput: It is none of `known` and not the perplexity.
    """
    if metric != PERPLEXITY and metric not in known:
        how = f"give --scorer {metric}" if SCORER.fullmatch(metric) else "name another"
        msg = f"The metric {metric!r} is none of {[*known, PERPLEXITY]}: {how}."
        raise InvalidInput(msg)


def _scorer(name: str) -> Score:
    if not SCORER.fullmatch(name):
        msg = f"The scorer is {name!r}: write module:function, scoring:same_number for example."
        raise InvalidInput(msg)
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        msg = f"The scorer {name!r} cannot be loaded ({error}): put its module on the path."
        raise InvalidInput(msg) from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        msg = f"The scorer {name!r} is {found!r}: name a function of an answer and the wanted one."
        raise InvalidInput(msg)
    return found  # type: ignore[no-any-return]
