"""A fitted router in one file: arrays and JSON, no pickle, replaced in one step."""

import io
import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from one4all_lc.errors import InvalidInput
from one4all_lc.routing.probe import Probe
from one4all_lc.routing.scoring import ClassScore, InScope, Scorer, Settings
from one4all_lc.routing.spaces import Array, Groups, Middle

FILE = "router.npz"
FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """What a fit depends on; it is of use only where all of this is the same.

    Attributes:
        embedder: The embedder's fingerprint.
        exemplars: A hash of the experts' exemplars and of all negatives, in their order.
        target_retention: As it was fitted for.
    """

    embedder: str
    exemplars: str
    target_retention: float

    def difference(self, other: "Facts") -> str | None:
        """Say what differs in another one; None if nothing does."""
        if self.embedder != other.embedder:
            return f"it was fitted with embedder {self.embedder}, in use is {other.embedder}"
        if self.exemplars != other.exemplars:
            return "it was fitted on other exemplars than those in use"
        if self.target_retention != other.target_retention:
            return (
                f"it was fitted for target_retention {self.target_retention}, "
                f"asked is {other.target_retention}"
            )
        return None


def write_fit(folder: str | Path, scorer: Scorer, facts: Facts) -> Path:
    """Write `router.npz` into a folder, which is made if need be; the old file is there until then.

    Raises:
        InvalidInput: The folder cannot be written.
    """
    folder = Path(folder)
    classes, scope = scorer.classes, scorer.scope
    told = {
        "format": FORMAT,
        "facts": facts.__dict__,
        "names": scorer.names,
        "settings": [
            classes.settings.bandwidth,
            classes.settings.width,
            [t if np.isfinite(t) else None for t in classes.settings.temperatures],
        ],
        "temperature": classes.temperature,
        "widths": [classes.probe.width, scope.guard.width],
        "spread": scope.spread,
        "scales": scope.scales,
        "sigmoid": scope.sigmoid,
    }
    arrays: dict[str, Any] = {
        "owners": scorer.owners,
        "language": scorer.language,
        "vectors": scorer.vectors,
        "thresholds": scorer.thresholds,
        "centre": classes.middle.point,
        "probe": classes.probe.weights,
        "middle": scope.middle.point,
        "foreign": scope.foreign,
        "guard": scope.guard.weights,
        "told": np.frombuffer(json.dumps(told).encode(), np.uint8),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".router", delete=False) as file:
            file.write(buffer.getvalue())
        os.replace(file.name, folder / FILE)
    except OSError as error:
        msg = (
            f"The router cannot be saved in {folder} ({error}): give a folder that can be written."
        )
        raise InvalidInput(msg) from error
    return folder / FILE


def read_fit(folder: str | Path) -> tuple[Scorer, Facts]:
    """Read a saved fit.

    Raises:
        InvalidInput: There is none, or the file is not one.
    """
    path = Path(folder) / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        told = json.loads(arrays.pop("told").tobytes())
        if told["format"] != FORMAT:
            msg = f"{path} has format {told['format']}, this version reads {FORMAT}: fit anew."
            raise InvalidInput(msg)
        return _scorer(arrays, told), Facts(**told["facts"])
    except FileNotFoundError as error:
        msg = f"{folder} holds no {FILE}: save a fitted router there first."
        raise InvalidInput(msg) from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        msg = f"{path} is no saved router ({error}): delete it and fit anew."
        raise InvalidInput(msg) from error


def _scorer(arrays: dict[str, Any], told: dict[str, Any]) -> Scorer:
    vectors, owners = arrays["vectors"], arrays["owners"]
    names = tuple(told["names"])
    if len(vectors) != len(owners) or len(arrays["thresholds"]) != len(names):
        msg = "its arrays do not fit each other"
        raise ValueError(msg)
    bandwidth, width, temperatures = told["settings"]
    warm, warmth = (float("inf") if t is None else float(t) for t in temperatures)
    classes = ClassScore(
        Settings(bandwidth, width, (warm, warmth)),
        Middle.of(vectors, arrays["centre"]),
        Probe(told["widths"][0], arrays["probe"]),
        told["temperature"],
    )
    scales: tuple[tuple[float, float], ...] = tuple((a, b) for a, b in told["scales"])
    slope, offset = told["sigmoid"]
    scope = InScope(
        Middle.of(vectors, arrays["middle"]),
        arrays["foreign"],
        Probe(told["widths"][1], arrays["guard"]),
        told["spread"],
        scales,
        (slope, offset),
    )
    thresholds: Array = arrays["thresholds"]
    groups = Groups(owners, len(names))
    return Scorer(names, owners, arrays["language"], vectors, classes, scope, thresholds, groups)
